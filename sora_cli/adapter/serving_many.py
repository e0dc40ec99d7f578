"""Many adapters on one server: who takes which, its command and memory, and the price of the rest.

It works on the facts of adapters, as `facts_of` returns them. The servers' rules: `programs`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

from sora_cli.adapter.consumers import Consumer, base_configuration, filled, substituted
from sora_cli.adapter.facts import Facts
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.programs import PROGRAMS, Program
from sora_cli.adapter.ranks import shortest_names
from sora_cli.adapter.serving import gguf_commands
from sora_cli.core.console import size
from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote
from sora_cli.model.fingerprint import stored_tensors, weight_files
from sora_cli.model.references import local_checkpoint, resolve_model_path

_WIDTH = {"float64": 8, "float32": 4}  # bytes of a number; others: 2


@dataclass(frozen=True)
class _Member:
    """An adapter of a set.

    Attributes:
        name: on the server.
        export: the command that makes it a directory of PEFT's, if it is none.
        rank: the number that vLLM compares with its option.
        ranks: module path -> stored components.
        sums: module path -> in + out.
        squares: module path -> squared singular values, descending.
        file_bytes: of the file, `other_bytes` of them are no factors.
        width: bytes of a stored number.
    """

    name: str
    directory: str
    base: BaseReference
    task_type: str | None
    verdicts: Mapping[str, Consumer]
    export: str
    rank: int
    ranks: Mapping[str, int]
    sums: Mapping[str, int]
    squares: Mapping[str, Sequence[float]]
    file_bytes: int
    other_bytes: int
    width: int

    def lost(self, rank: int) -> float:
        """Return the share of ||dW||_F^2 that is lost if no module keeps a larger rank."""
        total = sum(map(sum, self.squares.values()))
        return sum(sum(s[rank:]) for s in self.squares.values()) / total if total else 0.0

    def bytes_exported(self) -> int:
        """Return the bytes of the file that an exact export writes."""
        numbers = sum(rank * self.sums[path] for path, rank in self.ranks.items())
        return numbers * self.width + self.other_bytes


@dataclass(frozen=True)
class Obstacle:
    """An adapter that a server does not take as it is, with the price of making it fit.

    Attributes:
        advice: the reason, and the command that helps.
        step: the kind of that command, as in `Consumer`.
        bytes_now: of the adapter's file.
        bytes_then: what the command writes; None: not known.
        lost: share of ||dW||_F^2 that the command loses; None: it loses nothing.
    """

    adapter: str
    advice: str
    step: str
    bytes_now: int
    bytes_then: int | None
    lost: float | None

    def price(self) -> str:
        """Return the price in words."""
        if self.step == "merge":
            copy = "" if self.bytes_then is None else f" ({size(self.bytes_then)})"
            return f"a copy of the whole base model{copy}, on a server of its own"
        if self.lost is not None:
            return f"loses {_share(self.lost)} of ||dW||²"
        if self.bytes_then is not None:
            return f"{size(self.bytes_now)} now, {size(self.bytes_then)} then"
        return ""


@dataclass(frozen=True)
class SmallerRank:
    """A smaller value of the option for the largest rank.

    Attributes:
        reserved: bytes that the server then reserves.
        lost: adapter to be cut -> share of its ||dW||_F^2 that is lost.
    """

    rank: int
    reserved: int
    lost: Mapping[str, float]


@dataclass(frozen=True)
class ServerPlan:
    """One server for the adapters of one base model.

    Attributes:
        version: the version whose rules were read, on the day `read`.
        old: the rules were read over a year ago.
        adapters: those it serves together.
        largest_rank: of these; for vLLM the value of its option.
        commands: in order; the last one starts the server.
        requests: adapter -> the part of a request that chooses it.
        reserved: bytes that vLLM reserves for adapters on its device.
        at_least: the base model's layers are not known, so `reserved` counts adapted ones only.
    """

    name: str
    version: str
    read: str
    old: bool
    adapters: Sequence[str]
    largest_rank: int | None
    commands: Sequence[str]
    requests: Mapping[str, str]
    reserved: int | None
    at_least: bool
    smaller: Sequence[SmallerRank]
    obstacles: Sequence[Obstacle]


@dataclass(frozen=True)
class BasePlan:
    """The adapters of one base model, and the servers that can serve several of them.

    Attributes:
        adapters: name on the servers -> directory.
    """

    base: str
    task_type: str | None
    adapters: Mapping[str, str]
    servers: Sequence[ServerPlan]


def plan_servers(adapters: Sequence[Facts], today: date) -> list[BasePlan]:
    """Plan the servers of adapters, one plan for each base model and kind of task.

    Args:
        adapters: the facts of each; see `facts_of`.
        today: the day from which the age of the rules is counted.
    """
    directories = [facts.directory for facts in adapters]
    for directory in directories:
        if directories.count(directory) > 1:
            raise SoraError(f"'{directory}' is named twice", hint="name each adapter once")
    names = _served_names(directories)
    groups: list[list[_Member]] = []
    for name, facts in zip(names, adapters, strict=True):
        member = _member(name, facts)
        for group in groups:
            if group[0].task_type == member.task_type and _same_base(group, member.base):
                group.append(member)
                break
        else:
            groups.append([member])
    return [_plan_group(group, today) for group in groups]


def _served_names(directories: Sequence[str]) -> list[str]:
    """Return a name for each adapter that all servers take, and that is also a file's name."""
    # all directories in runs have the same name
    places = [directory.removesuffix("/adapter") for directory in directories]
    names: list[str] = []
    for short in shortest_names(places, "/"):
        name = clean = re.sub(r"[^\w.]+", "-", short).strip("-.") or "adapter"
        numbers = count(2)
        while name in names:
            name = f"{clean}-{next(numbers)}"
        names.append(name)
    return names


def _member(name: str, facts: Facts) -> _Member:
    spectra, width = facts.spectra, _WIDTH.get(facts.dtype, 2)
    return _Member(
        name,
        facts.directory,
        facts.base,
        facts.task_type,
        {verdict.name: verdict for verdict in facts.consumers},
        f"sora export {quote(facts.directory)} -o OUT",
        max(facts.r, facts.largest_rank),
        {path: facts.ranks[path].stored for path in spectra},
        {path: sum(spectrum.shape) for path, spectrum in spectra.items()},
        {path: [s * s for s in spectrum.values.tolist()] for path, spectrum in spectra.items()},
        facts.bytes,
        max(facts.bytes - facts.parameters.adapter * width, 0),
        width,
    )


def _same_base(group: Sequence[_Member], base: BaseReference) -> bool:
    """Return true if one of the group has this base: by its weights if known, else by a name."""
    for member in group:
        other = member.base
        if other.fingerprint and base.fingerprint:
            if other.fingerprint == base.fingerprint:
                return True
        elif other.revision is None or base.revision in (None, other.revision):
            names = [{b.path, b.resolved, b.hub_id} - {"", None} for b in (other, base)]
            if names[0] & names[1]:
                return True
    return False


def _plan_group(group: Sequence[_Member], today: date) -> BasePlan:
    base = group[0].base
    name = base.here or base.hub_id or base.path or "BASE"
    if "://" in name:  # of a package
        name = str(_place(base) or "BASE")
    return BasePlan(
        name,
        group[0].task_type,
        {member.name: member.directory for member in group},
        [_plan(program, group, name, today) for program in PROGRAMS if program.many],
    )


def _plan(program: Program, group: Sequence[_Member], base: str, today: date) -> ServerPlan:
    obstacles = [o for member in group if (o := _obstacle(program, member)) is not None]
    refused = {obstacle.adapter for obstacle in obstacles}
    served = [member for member in group if member.name not in refused]
    rank = program.rank_option(max((m.rank for m in served), default=0)) if served else None
    reserved, at_least = None, False
    if program.reserves and served:
        reserved, at_least = _reserved_per_rank(program, served)
    total = None if reserved is None or rank is None else reserved * rank * len(served)
    return ServerPlan(
        program.name,
        program.version,
        str(program.day),
        program.is_old(today),
        [member.name for member in served],
        rank,
        list(_commands(program, served, base, rank)) if served else [],
        {member.name: _request(program, member, i) for i, member in enumerate(served)},
        total,
        at_least,
        [] if reserved is None or rank is None else _smaller(program, served, rank, reserved),
        obstacles,
    )


def _obstacle(program: Program, member: _Member) -> Obstacle | None:
    """Return the reason why a server does not take an adapter; None: it does."""
    verdict = member.verdicts.get(program.name)
    if verdict is None:
        reason = f"takes directories of PEFT only: {member.export} first"
        verdict = Consumer(program.name, False, reason, "exact")
    elif program.layout == "gguf":
        if gguf_commands(verdict, member.directory, None, member.name) is not None:
            return None
    elif verdict.loads:
        marks = [mark for mark in program.refused if mark in member.directory]
        if not marks:
            return None
        reason = f"takes no '{marks[0]}' in a directory's name: rename it"
        verdict = Consumer(program.name, False, reason)
    step, then = verdict.step, None
    if step == "merge":
        then = _base_bytes(member.base)
    elif step == "exact":
        then = member.bytes_exported()
    lost = member.lost(program.steps[-1]) if step == "prune" else None
    return Obstacle(member.name, verdict.advice, step, member.file_bytes, then, lost)


def _commands(
    program: Program, served: Sequence[_Member], base: str, rank: int | None
) -> Iterator[str]:
    """Yield the commands that prepare the adapters and start the server."""
    if program.layout == "gguf":
        for member in served:
            verdict = member.verdicts[program.name]
            yield from gguf_commands(verdict, member.directory, base, member.name) or ()
        base = base if base.lower().endswith(".gguf") else "BASE.gguf"
    items = [filled(program.item, {"NAME": m.name, "DIR": m.directory}) for m in served]
    values = {"BASE": base, "RANK": str(rank), "COUNT": str(len(served))}
    paths = (path for member in served for path in member.ranks)
    many = program.starts(program.many, served[0].task_type, paths)
    before, after = many.split("ITEMS")
    yield filled(before, values) + program.between.join(items) + filled(after, values)


def _request(program: Program, member: _Member, i: int) -> str:
    return substituted(program.request, {"NAME": member.name, "ID": str(i)})


def _smaller(
    program: Program, served: Sequence[_Member], rank: int, per_rank: int
) -> list[SmallerRank]:
    """Return the smaller values of the option, largest first, with the loss of cutting to them."""
    return [
        SmallerRank(step, per_rank * step * len(served),
                    {m.name: m.lost(step) for m in served if m.rank > step})
        for step in reversed(program.steps)
        if step < rank
    ]  # fmt: skip


def _reserved_per_rank(program: Program, group: Sequence[_Member]) -> tuple[int, bool]:
    """Return the bytes that a server reserves for one rank of one slot; true: at least these.

    For each of `--max-loras` slots vLLM allocates (max_lora_rank, in) and (out, max_lora_rank) at
    every linear layer of the model, adapted or not (`create_lora_weights` in vllm/lora/layers),
    for some kinds of models also at `embed_tokens` and `lm_head`, tied or not.
    """
    sums = {path: n for member in group for path, n in member.sums.items()}
    adapted = sum(sums.values())
    base = group[0].base
    place = _place(base)
    tensors = [] if place is None else stored_tensors(place)
    weights = [t for t in tensors if t.name.endswith(".weight") and len(t.shape) == 2]
    if not weights or any(t.dtype not in ("F32", "F16", "BF16") for t in weights):
        return adapted * program.reserves, True  # a GGUF file, or quantised: other shapes
    modules = {t.name.removesuffix(".weight"): sum(t.shape) for t in weights}
    tables = {path: n for path, n in modules.items() if re.search(r"emb|\bw[tp]e$|lm_head", path)}
    linear = sum(modules.values()) - sum(tables.values())
    kind = (base_configuration(base) or {}).get("model_type")
    if kind in program.embeddings:
        ends = "embed_tokens", "wte"
        linear += 2 * next((n for path, n in tables.items() if path.endswith(ends)), 0)
    experts = any(len(t.shape) == 3 for t in tensors)  # several in one tensor are not counted
    return linear * program.reserves, experts or linear < adapted


def _base_bytes(base: BaseReference) -> int | None:
    """Return the bytes of a base model's weights; None if they are not here, or in a GGUF file."""
    place = _place(base)
    if place is None or place.is_file():  # a merge writes a GGUF file's numbers out in full
        return None
    return sum(file.stat().st_size for file in weight_files(place)) or None


def _place(base: BaseReference) -> Path | None:
    """Return a base model's place on this disk; None: it is not here."""
    try:
        return local_checkpoint(resolve_model_path(base.resolved or base.path), base.revision)
    except (SoraError, OSError):
        return None


def plan_facts(plans: Sequence[BasePlan]) -> dict[str, Any]:
    """Return the plans for JSON."""
    return {"bases": [asdict(plan) for plan in plans]}


def plan_lines(plans: Sequence[BasePlan]) -> Iterator[str]:
    """Yield the plans as lines for people."""
    bases = len({plan.base for plan in plans})
    if bases > 1:
        yield f"{bases} base models: a server holds one, so each needs servers of its own"
        yield ""
    for i, plan in enumerate(plans):
        if i:
            yield ""
        yield f"base {plan.base}, {plan.task_type or 'task_type not recorded'}"
        yield from (f"  {name}: {directory}" for name, directory in plan.adapters.items())
        for server in plan.servers:
            yield from _server_lines(server, len(plan.adapters))


def _server_lines(server: ServerPlan, adapters: int) -> Iterator[str]:
    rank = "" if server.largest_rank is None else f", largest rank {server.largest_rank}"
    yield f"  {server.name} {server.version} takes {len(server.adapters)} of {adapters}{rank}"
    if server.old:
        yield f"    its rules were read on {server.read}, over a year ago: yours may differ"
    yield from (f"    {command}" for command in server.commands)
    if server.requests:
        name, request = next(iter(server.requests.items()))
        yield f"    in a request for {name}: {request}"
    if server.reserved is not None:
        slots = f"slots of rank {server.largest_rank} for {len(server.adapters)}"
        least = "at least " if server.at_least else ""
        yield f"    {slots} reserve {least}{size(server.reserved)} of device memory"
    for smaller in server.smaller:
        cut = ", ".join(f"{name} {_share(lost)}" for name, lost in smaller.lost.items())
        price = f"cut by sora prune --rank {quote(str(smaller.rank))}, of ||dW||² is lost: {cut}"
        yield f"    of rank {smaller.rank}: {size(smaller.reserved)}; {price}"
    for obstacle in server.obstacles:
        price = obstacle.price()
        yield f"    not {obstacle.adapter}: {obstacle.advice}" + (f"; {price}" if price else "")


def _share(lost: float) -> str:
    return "under 0.1%" if 0 < lost < 0.001 else f"{lost:.1%}"
