"""A directory in which commands work in any order, and what must hold after each of them.

A step is a line: a verb, the names of its inputs and of its output, and options.

    train run1 sora            stop run2 lora 3           resume run2
    prune run1 cut1 --rank 1   heal run1 run3 2           export cut1 copy1 --layout padded
    prune run1 small1 --bits 4 pack small1 p1.safetensors export p1.safetensors back1
    merge cut1 model1          stack run2 model1 model2   combine run1 cut1 sum1
    eval cut1                  predict p1.safetensors     verify run1 model1     push cut1

The expectation of a step is computed before the command runs, from what its inputs hold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.core.exit_codes import NO_VERDICT, OK
from sora_cli.model.files import TRAINED_ON
from tests.helpers_runs import files_of
from tests.machine.place import EXACT, Tensors, adapter_in, apart, stored_update
from tests.machine.runs import Runs
from tests.machine.shop import TOLD
from tests.machine.thing import NARROW, Thing, check_kept
from tests.sora_cli.experiments.auto.support import certificate_of


class Steps(Runs):
    """All steps."""

    # smaller copies

    def _prune(self, source: str, out: str, *words: str) -> None:
        reason = self._no_adapter(source) or self._taken(out, [source], words, "adapter")
        bits = int(words[words.index("--bits") + 1]) if "--bits" in words else None
        thing = self.things.get(source)
        if thing is not None and not reason and bits and thing.bits:
            reason = "rounded already"
        if thing is not None and not reason and bits and "--max-drop" not in words:
            reason = None if thing.is_alive else "nothing to round"
        given = [str(self.origin.recipe) if word == "RECIPE" else word for word in words]
        said = self._call("prune", self._at(source), "-o", self._at(out), *given)
        if reason or thing is None:
            return self._refused(said, reason or "")
        self._done(said, said.code if "--max-drop" in words and said.code == NO_VERDICT else OK)
        update, head, ranks = stored_update(self._at(out))
        check_kept(thing, words, update, ranks, bits)
        lost = apart(thing.update, update) > EXACT
        changed = apart(thing.head, head)
        assert changed < 0.01 if "--head-bits" in words else changed == 0
        assert changed or not bits or "--head-bits" not in words or "--head-bits" in thing.numbers
        numbers = f"{thing.numbers} | {' '.join(w for w in words if w != '--force')}"
        small = Thing(
            out, "adapter", numbers if lost or bits else thing.numbers, update, head, ranks,
            lineage=(*thing.lineage, "prune"), bits=bits or (None if lost else thing.bits),
            narrow=thing.narrow and bits is None,
        )  # fmt: skip
        if not small.is_alive:
            small = replace(small, bits=None)
        if "--max-drop" in words:
            self._check_drop(thing, small, said.code)
        return self._adapter(small)

    def _check_drop(self, thing: Thing, small: Thing, code: int) -> None:
        """The drop that the promise is about is that of the two adapters' answers."""
        found = certificate_of(self._at(small.name))
        assert (code == OK) == found.certified
        drop = self._accuracy(thing) - self._accuracy(small)
        test = None if found.written is None else found.written.test
        told = 0.0 if test is None else test.drop
        assert told == pytest.approx(drop, abs=self._near(thing, small))
        assert test is None or not test.upper < test.drop
        assert test is None or not found.certified or test.upper <= found.promise.max_drop

    def _adapter(self, thing: Thing) -> None:
        """Remember an adapter's directory, after its files were found to be complete."""
        place = self._at(thing.name)
        names = {p.name for p in place.iterdir()}
        assert names >= {"README.md", "adapter_config.json", "adapter_model.safetensors",
                         "sora.json", "tokenizer.json"}  # fmt: skip
        assert self._lineage(place) == thing.lineage
        assert self._bits(thing.name) == thing.bits
        self._files.pop(thing.name, None)
        self._wrote(thing)

    def _combine(self, first: str, second: str, out: str, *words: str) -> None:
        sources = [first, second]
        reason = self._no_adapter(*sources) or self._taken(out, sources, words, "adapter")
        if reason is None and apart(self.things[first].head, self.things[second].head):
            reason = "the heads differ"
        said = self._call("combine", *map(self._at, sources), "-o", self._at(out), *words)
        if reason:
            return self._refused(said, reason)
        self._done(said)
        one, other = self.things[first], self.things[second]
        update, head, ranks = stored_update(self._at(out))
        mean = {
            path: (one.update.get(path, 0.0) + other.update.get(path, 0.0)) / 2
            for path in {**one.update, **other.update}
        }
        assert apart(mean, update) < EXACT
        assert apart(one.head, head) == 0
        lineage = self._lineage(self._at(out))
        assert lineage[-1:] == ("combine",)
        numbers = f"({one.numbers}) + ({other.numbers})"
        bits = self._bits(out)  # numbers on a grid stay there where they are halved
        return self._adapter(Thing(out, "adapter", numbers, update, head, ranks, lineage, bits))

    def _bits(self, name: str) -> int | None:
        bits: int | None = json.loads((self._at(name) / "sora.json").read_text())["bits"]
        return bits

    # other forms of the same

    def _export(self, source: str, out: str, *words: str) -> None:
        reason = self._no_adapter(source) or self._taken(out, [source], words, "adapter")
        said = self._call("export", self._at(source), "-o", self._at(out), *words)
        if reason:
            return self._refused(said, reason)
        self._done(said)
        thing = self.things[source]
        if thing.twin is not None and not set(words) - {"--force"}:
            assert files_of(self._at(out)) == thing.twin
            return self._adapter(replace(thing, name=out, kind="adapter", twin=None))
        update, head, ranks = stored_update(self._at(out))
        narrow = "bfloat16" in words and not thing.narrow
        assert apart(thing.update, update) < (NARROW if narrow else EXACT)
        assert apart(thing.head, head) <= (NARROW if narrow else 0)
        if "padded" in words:
            config = json.loads((self._at(out) / "adapter_config.json").read_text())
            assert not config["rank_pattern"]
        numbers = f"{thing.numbers} | bfloat16" if narrow else thing.numbers
        copy = Thing(out, "adapter", numbers, update, head, ranks,
                     lineage=(*thing.lineage, "export"), bits=self._bits(out),
                     narrow=narrow or thing.narrow)  # fmt: skip
        assert copy.bits == thing.bits or narrow
        return self._adapter(copy)

    def _pack(self, source: str, out: str, *words: str) -> None:
        reason = self._no_adapter(source) or self._taken(out, [source], words, "packed")
        thing = self.things.get(source)
        if reason is None and thing is not None and thing.bits is None:
            reason = "not rounded"
        place = self._at(out)
        said = self._call("export", self._at(source), "-o", place, "--format", "packed", *words)
        if reason or thing is None:
            return self._refused(said, reason or "")
        self._done(said)
        back = self.scratch / "back"
        self._done(self._call("export", place, "-o", back))
        twin = thing.twin or files_of(adapter_in(self._at(source)))
        twin = {name: file for name, file in twin.items() if name != TRAINED_ON}  # not packed
        assert files_of(back) == twin
        assert place.stat().st_size < sum(map(len, twin.values()))
        self._files.pop(out, None)
        return self._wrote(replace(thing, name=out, kind="packed", twin=twin))

    def _merge(self, source: str, out: str, *words: str) -> None:
        self._merged(source, None, out, words)

    def _stack(self, source: str, base: str, out: str, *words: str) -> None:
        """Merge into a merged model, by force: not what it holds already."""
        self._merged(source, base, out, list(dict.fromkeys([*words, "--force"])))

    def _merged(self, source: str, base: str | None, out: str, words: Sequence[str]) -> None:
        onto = None if base is None else self.things.get(base)
        reads = [source] if base is None else [source, base]
        reason = self._no_adapter(source) or self._taken(out, reads, words, "merged")
        thing = self.things.get(source)
        if base is not None and (onto is None or onto.kind != "merged"):
            reason = f"{base} is no model"
        given = [] if base is None else ["--base", self._at(base), "--no-verify"]
        if onto is not None and thing is not None and not reason:
            if thing.numbers in onto.folded:
                reason = "merged already"
            elif any(apart(thing.update, t.update) < EXACT for t in self.things.values()
                     if t.numbers in onto.folded):  # fmt: skip
                return None  # another way to the same numbers: to the byte or not
        said = self._call("merge", self._at(source), "-o", self._at(out), *given, *words)
        if reason or thing is None:
            return self._refused(said, reason or "")
        self._done(said)
        update = dict(thing.update)
        for path, change in (onto.update if onto else {}).items():
            update[path] = update.get(path, 0.0) + change
        self._check_weights(out, update, thing.head)
        self._files.pop(out, None)
        folded = (*(onto.folded if onto else ()), thing.numbers)
        return self._wrote(
            Thing(out, "merged", f"merged {folded}", update, thing.head, {}, folded=folded)
        )

    def _check_weights(self, out: str, update: Tensors, head: Tensors) -> None:
        """A merged model holds the base's weights with the update, and the head."""
        stored = load_file(self._at(out) / "model.safetensors")
        for name, tensor in stored.items():
            path = name.removesuffix(".weight")
            if name in head:
                assert torch.equal(tensor, head[name].to(tensor.dtype)), name
            elif path in update and name.endswith(".weight"):
                expected = self.origin.base[name].double() + update[path]
                assert torch.allclose(tensor.double(), expected, rtol=0, atol=1e-5), name
            else:
                assert torch.equal(tensor, self.origin.base[name]), name
        assert stored.keys() >= {*head, *(f"{path}.weight" for path in update)}

    # looking

    def _eval(self, source: str) -> None:
        said = self._call("eval", self._at(source), "--recipe", self.origin.recipe, "--json")
        if reason := self._has_answers(source):
            return self._refused(said, reason)
        self._done(said)
        thing = self.things[source]
        found = json.loads(said.out)["validation"]["accuracy"]
        assert found == pytest.approx(self._accuracy(thing), abs=self._near(thing))
        return None

    def _predict(self, source: str) -> None:
        rows, out = self.origin.folder / "validation.jsonl", self.scratch / "answers.jsonl"
        said = self._call("predict", self._at(source), rows, "-o", out, "--force")
        if reason := self._has_answers(source):
            return self._refused(said, reason)
        self._done(said)
        answers = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
        logits = self._logits(self.things[source])
        sure = (logits[:, 0] - logits[:, 1]).abs() >= TOLD
        wanted = [str(int(i)) for i in logits.argmax(1)]
        assert [str(a) for a, s in zip(answers, sure, strict=True) if s] == [
            w for w, s in zip(wanted, sure, strict=True) if s
        ]
        return None

    def _verify(self, first: str, second: str) -> None:
        said = self._call("verify", self._at(first), self._at(second), "--json")
        if reason := self._has_answers(first) or self._has_answers(second):
            return self._refused(said, reason)
        assert said.code in (0, 1, 3), said.err
        one, other = self.things[first], self.things[second]
        a, b = self._logits(one), self._logits(other)
        outputs = float((a - b).abs().max() / a.abs().max())
        if apart(one.update, other.update) < EXACT and apart(one.head, other.head) == 0:
            assert said.code == OK, said.out
        elif outputs > TOLD:
            assert said.code != OK, said.out
        return None

    def _push(self, source: str) -> None:
        thing = self.things.get(source)
        more = ["--merged"] if thing is not None and thing.kind == "merged" else []
        words = [
            "push",
            self._at(source),
            "me/it",
            "--base-id",
            "owner/base",
            "--dry-run",
            "--json",
        ]
        said = self._call(*words)
        if reason := self._no_adapter(source):
            self._refused(said, reason)
        if more:
            said = self._call(*words, *more)
        if more or not reason:
            self._done(said)
            assert "README.md" in json.loads(said.out)["files"]
