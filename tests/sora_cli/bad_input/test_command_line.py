"""Command lines that are wrong, with words of the error; files in the way; and real processes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.report import FILE_NAME
from tests.sora_cli.bad_input.runner import (
    FINISHED,
    TRAIN,
    Case,
    bad,
    check_process,
    lay_out,
    recipe,
)

Words = str | tuple[str, ...]
TAG = "!!python/name:os.system"
LINES: dict[str, dict[str, Words]] = {
    "": {
        "trian": ("No such command 'trian'. Did you mean 'train'?", "try: sora --help"),
        "recipes shwo": ("No such command 'shwo'", "try: sora recipes --help"),
        "recipes show rtee": ("no recipe 'rtee'", "did you mean 'rte'?"),
        "recipes copy rte --to mine.txt": "mine.txt",
        "recipes copy rte --to mine.txt/copies": "mine.txt/copies",
        "methods --code nothing.py": "no file 'nothing.py' (--code)",
        "pick nowhere --keep 0.9": "nowhere",
        "pick mine --keep 0.9": "holds no path.json",
    },
    "init": {
        "a.csv": "no file or directory 'a.csv'",
        "r.yaml -o new.yaml": ("'r.yaml' is a recipe", "sora train r.yaml"),
        "mine.txt": ("not a data file", "csv, tsv, json"),
        "train.jsonl -o p.yaml --model models/base": ("p.yaml exists already", "--force"),
        "nobody/none --model nobody/none":
            ("nobody/none", "data on this disk: sora init FILE_OR_DIRECTORY"),
    },
    "train": {
        "": ("Missing argument", "try: sora train --help"),
        "quite-another": ("no recipe 'quite-another'", "sora recipes"),
        "qickstart": ("no recipe 'qickstart'", "did you mean 'quickstart'?"),
        "rr.yaml": ("no recipe 'rr.yaml'", "did you mean 'r.yaml'?"),
        "mine": ("'mine' is a directory, not a recipe file", "sora recipes"),
        "train.jsonl": "sora init train.jsonl",
        "rows": "sora init rows",
        "quickstart data.files.train=rows/train.csv":
            "data.held_out_rows=1 takes them from the training rows",
        "quickstart method.name=lroa":
            ("no method 'lroa'", "command line: method.name=lroa", "did you mean 'lora'?"),
    },
    "train r.yaml": {
        "--foce": ("No such option: --foce", "try: sora train --help"),
        "epochs": ("'epochs' is not an override", "block.key=value"),
        "''": "'' is not an override",
        "=3": ("'=3' is not an override", "block.key=value"),
        "training.=3": "'training.=3' is not an override",
        "training..epochs=3": ("'training..epochs=3' is not an override", "block.key=value"),
        "b.yaml": "'b.yaml' is not an override",
        "trainning.epochs=3": ("unknown block 'trainning'", "command line: trainning.epochs=3"),
        "training.epochz=3": ("unknown key 'epochz'", "did you mean 'epochs'?"),
        "model.device_map=auto": ("unknown key 'device_map' in model", "there are: path,"),
        "training.epochs.x=3":
            ("training.epochs must be a number", "command line: training.epochs.x=3"),
        "data.validation=[a": ("not valid YAML", "command line: data.validation=[a"),
        f"data.validation={TAG}": f"data.validation={TAG}",
        f"'data.validation=[{TAG} ]'":
            (f"the YAML tag {TAG} is not allowed", "command line: data.validation="),
        "extends=b.yaml": ("extends belongs in a recipe file", "command line: extends=b.yaml"),
        "training=3": ("training must be a block of keys", "command line: training=3"),
        "training=null": "every run needs training",
        "nothing=null": "unknown block 'nothing'",
        "method=lora": "write method.name=lora",
        "method.name=adalora method.t_init=x": "must be a number, not 'x'",
        "method.name=adalora training.max_steps=1": "leave no step of 1",
        "training.epochs=many":
            ("training.epochs must be a number", "command line: training.epochs=many"),
        "training.epochs=0 training.seed=-1 data.max_length=1": "(and 2 more problems)",
        "data.files=null data.path=./x": ("no data directory './x'", "command line: data.path=./x"),
        "--code x.py": "no file 'x.py' (--code)",
        "--code r.yaml": ("is no Python file (--code)", "must end in .py"),
        "output.dir=done": ("'done' holds a finished run", "--force"),
        "output.dir=mine": ("'mine' is not empty and holds no run", "output.dir=DIR"),
        "output.dir=mine.txt": "'mine.txt' is a file",
        "output.dir=mine.txt/run": "mine.txt",
        "--force output.dir=models/base": ("models/base is an input", "output.dir=DIR"),
    },
    "path": {
        "r.yaml": ("no path block", "path={vary:"),
        "p.yaml start.adapter=models/adapter":
            ("start does not go with a path", "command line: start.adapter=models/adapter"),
        "p.yaml method.name=lora":
            ("path.vary: method lora has no option that may vary between stages",
             "methods that have one: adalora, sora, cut"),
        "p.yaml method.name=adalora method.t_init=1 method.t_final=1 path.vary=method.target_r "
        "path.schedule.start=2 path.schedule.stop=1 path.epochs=0.1":
            "stage 1 of 1 steps: adalora: t_init 1 + t_final 1",
        "p.yaml path.vary=method.treshold":
            ("path.vary: 'method.treshold' may not vary with method sora",
             "command line: path.vary=method.treshold", "did you mean 'method.threshold'?"),
        "p.yaml path.vary=training.learning_rate":
            ("'training.learning_rate' may not vary with method sora",
             "command line: path.vary=training.learning_rate",
             "there are: method.threshold, method.l1, method.target_r"),
        "p.yaml path.schedule.start=-1":
            ("path.schedule: method.threshold cannot be -1.0 (stage 0)",
             "command line: path.schedule.start=-1"),
        "p.yaml path.schedule.kind=list path.schedule.start=null path.schedule.stop=null "
        "path.schedule.num=null 'path.schedule.values=[0, high]'":
            "path.schedule: method.threshold cannot be 'high' (stage 1)",
        "p.yaml path.schedule.kind=lin": "linear, log_linear, exp_linear or list",
        "p.yaml 'path.schedule={kind: list, values: [1]}'": "a list of at least 2 values",
        "p.yaml 'path.schedule={kind: list, values: [1, 2]}'": "start does not go with kind list",
        "p.yaml path.schedule=3": "a block of keys",
        "p.yaml path.scedule={}": "did you mean 'schedule'?",
        "p.yaml path.memorisation_rows=0": "at least 1",
        "p.yaml output.dir=mine": ("'mine' is not empty and holds no path", "output.dir=DIR"),
        "p.yaml output.dir=models/base/new":
            ("models/base/new lies inside an input", "output.dir=DIR"),
    },
    "sweep s.yaml": {
        "--engine slurm": "no engine 'slurm'",
        "--address auto": "--address goes with --engine ray",
        "output.dir=models": ("models contains an input", "output.dir=DIR"),
    },
    "auto": {
        "": "no recipe is given",
        "quickstart --task sequence-classification": "--task goes with --data only",
        "--data nothing.csv --dry-run": "a dry run writes no recipe",
        "r.yaml": ("does not say how large a drop", "--max-drop 1pt"),
        "r.yaml --max-drop 0.5": "ends at 1",
        "r.yaml --max-drop half": "must be a number",
        "r.yaml --max-drop 101pt": ("allows any score", "1pt"),
        "r.yaml --max-drop 100": "allows any score",
        "r.yaml --max-drop 1pt --confidence 1.5": "auto.confidence",
        "r.yaml --max-drop 1pt --serve ollama": "auto.serve",
        "r.yaml --max-drop 1pt auto.rows=200": "leave too few",
        "r.yaml --max-differ 1%":
            ("--max-differ needs rows to answer", "command line: auto.max_differ=1%",
             "--max-differ 1% --unlabelled FILE"),
        "r.yaml --max-differ 1% --max-drop 1pt --unlabelled train.jsonl": "exclude each other",
        "r.yaml --max-drop 1pt --unlabelled train.jsonl":
            ("rows can test, and at least 2 are needed", "command line: auto.unlabelled=",
             "are training rows", "give a file with other rows: --unlabelled FILE"),
        "r.yaml --max-drop 1pt --unlabelled nothing.csv":
            ("there is no file 'nothing.csv'", "command line: auto.unlabelled=nothing.csv"),
        "r.yaml --unlabelled train.jsonl":
            ("--unlabelled goes with --max-differ or --max-drop", "auto.unlabelled=train.jsonl",
             "--max-differ 1% --unlabelled train.jsonl"),
        "r.yaml --max-drop 1pt auto.basis=answers":
            ("auto.basis=answers needs rows to answer", "auto.basis=answers", "--unlabelled FILE"),
        "r.yaml --max-drop 1pt --unlabelled validation.jsonl auto.basis=some": "auto.basis",
        "r.yaml --max-differ 1% --unlabelled validation.jsonl auto.basis=labels":
            ("auto.basis=labels goes with max_drop", "auto.basis=null"),
        "r.yaml --max-drop 1pt --unlabelled validation.jsonl auto.basis=answers task.metrics=[f1]":
            ("f1 can drop by more than the share of answers that differ",
             "auto.basis=labels, or --max-differ 1%"),
        "r.yaml --max-drop 1pt --tolerance 0.1":
            ("--tolerance goes with --max-differ only", "leave out --tolerance"),
        "r.yaml --max-drop 1pt --unlabelled validation.jsonl --next-tokens":
            ("do not make equal written texts, so they bound no drop", "auto.next_tokens=true",
             "--max-differ 1% --unlabelled FILE"),
        "r.yaml --max-differ 1% --unlabelled validation.jsonl --next-tokens":
            ("is for models that write texts", "leave out --next-tokens"),
        "r.yaml --max-differ 150% --unlabelled train.jsonl":
            ("must be a share of the rows, above 0 and below 1",
             "command line: auto.max_differ=150%", "--max-differ 1%"),
        "r.yaml --max-differ 5pt --unlabelled train.jsonl": "--max-differ 5%",
        "r.yaml --max-differ half --unlabelled train.jsonl": "must be a share of the rows",
        "r.yaml --max-differ 1% --unlabelled nothing.csv":
            ("there is no file 'nothing.csv'", "command line: auto.unlabelled=nothing.csv"),
        "r.yaml --max-differ 1% --unlabelled rows": "'rows' is a directory, not a file of rows",
        "r.yaml --max-differ 1% --unlabelled mine.txt": "not a file of rows, by its ending",
        "r.yaml --max-differ 1% --unlabelled old.csv": "old.csv holds no rows",
        "r.yaml --max-differ 1% --unlabelled rows/train.csv": "no column 'sentence1'",
        "r.yaml --max-differ 1% --unlabelled train.jsonl":
            ("rows can test, and at least 2 are needed", "command line: auto.unlabelled=",
             "are training rows", "give a file with other rows: --unlabelled FILE"),
        "r.yaml --max-differ 1% --unlabelled validation.jsonl auto.rows=7":
            ("there are 6 rows without labels, and auto.rows asks for 7", "auto.rows=6"),
        "r.yaml --max-differ 1% --unlabelled validation.jsonl auto.rows=3":
            ("3 rows without labels are too few", "command line: auto.rows=3"),
        "r.yaml --max-differ 1% --unlabelled validation.jsonl --tolerance 1":
            ("--tolerance is for answers that are numbers", "command line: auto.tolerance=1"),
        "r.yaml --max-differ 1% --unlabelled validation.jsonl task.name=sequence-regression":
            ("answers with numbers", "command line: auto.max_differ=1%", "--tolerance 0.1"),
        "r.yaml --max-differ 1% --unlabelled validation.jsonl --tolerance nan": "auto.tolerance",
        "r.yaml --max-drop 1pt method.name=head": "there is no rank to reduce",
        "r.yaml --max-drop 1pt start.checkpoint=somewhere": "does not go with auto: it trains",
        "r.yaml --max-drop 1pt training.compact_every=5": "compact_every does not go with auto",
    },
    "prune models/adapter": {
        "": ("Missing option '--output'", "try: sora prune --help"),
        "-o mine": ("mine exists already", "--force"),
        "-o mine --force": ("mine is not replaced, even with --force", "choose another place"),
        "-o mine --max-drop 0.02 --heal 2 -r r.yaml": "holds no sizes of this command",
        "-o done --heal 2 -r r.yaml": ("done", "choose another place: -o OUT"),
        "-o models/adapter": "models/adapter is an input",
        "-o models/x/../adapter --force": ("models/adapter is an input", "another place"),
        "-o models/adapter/new --force": "lies inside an input",
        "-o models --force": "contains an input",
        "-o models/base/new": "lies inside an input",
    },
    "prune models/adapter -o new": {
        "--rank 1 --energy 0.5": ("exclude each other", "give one of them"),
        "--rank 0": "--rank must be at least 1",
        "--rank x": ("Invalid value for '--rank'", "try: sora prune --help"),
        "--energy 0": "--energy is a share above 0 and up to 1",
        "--energy 2": "--energy is a share above 0 and up to 1",
        "--energy nan": "--energy is a share above 0 and up to 1",
        "--max-params 0": "--max-params must be at least 1",
        "--max-params 3":
            ("not one component fits into --max-params 3", "the smallest takes 64"),
        "--mean-rank 0": "--mean-rank must be above 0",
        "--mean-rank 0.2": "not one component fits into --mean-rank 0.2",
        "--max-drop 0.01":
            ("--max-drop needs a recipe", "add --recipe R; or --max-differ 1% --unlabelled FILE"),
        "--max-drop 1pt --rank 1": "exclude each other",
        "--max-differ 1%": ("--max-differ needs rows to answer", "--unlabelled FILE"),
        "--max-differ 1% --unlabelled nothing.csv": "there is no file 'nothing.csv'",
        "--max-differ 1% --unlabelled rows": "'rows' is a directory",
        "--max-differ 1% --unlabelled old.csv": "old.csv holds no rows",
        "--max-differ 1% --unlabelled train.jsonl --tolerance 1":
            "--tolerance is for answers that are numbers",
        "--max-differ 1% --unlabelled train.jsonl -r r.yaml":
            "rows can test, and at least 2 are needed",
        "--unlabelled train.jsonl": "--unlabelled goes with --max-differ or --max-drop only",
        "--tolerance 1": "--tolerance goes with --max-differ only",
        "--max-drop 1pt -r r.yaml --tolerance 0.1": "--tolerance goes with --max-differ only",
        "--max-drop 1pt -r r.yaml --next-tokens": "--next-tokens goes with --max-differ only",
        "--max-drop 1pt -r r.yaml --unlabelled train.jsonl":
            "rows can test, and at least 2 are needed",
        "--max-drop 1pt -r r.yaml --unlabelled nothing.csv": "there is no file 'nothing.csv'",
        "--max-drop 1pt -r r.yaml auto.basis=answers":
            ("auto.basis=answers needs rows to answer", "--unlabelled FILE"),
        "--max-differ 1% -r r.yaml --unlabelled rows auto.basis=labels":
            ("auto.basis=labels goes with max_drop", "auto.basis=null"),
        "--max-drop 0.5 -r r.yaml": "is that 0.5 of a point, or 50 points?",
        "--max-drop much -r r.yaml": "--max-drop must be a number",
        "--max-drop -1 -r r.yaml": "--max-drop must be 0 or more",
        "--max-drop 1pt -r r.yaml task.metrics=[loss]": "loss has no points",
        "--max-drop 1pt -r r.yaml --confidence 95": "--confidence must be at least 0.5",
        "--rank 1 --confidence 0.9": "--confidence goes with --max-differ or --max-drop only",
        "-r r.yaml":
            ("--recipe goes with --max-drop, --max-differ and --heal only", "--max-drop 0.01"),
        "--rank 2 -r r.yaml": "--recipe goes with --max-drop, --max-differ and --heal only",
        "--heal 2 --rank 1": "--heal needs a recipe to train with",
        "--heal 2 --max-drop 1pt --rank 1": "exclude each other",
        "--heal 2 --max-drop 0.3 -r r.yaml": "is that 0.3 of a point, or 30 points?",
        "--heal 2 --rank 1 --energy 0.5": "exclude each other",
        "--resume": "--resume goes with --heal only",
        "--no-verify": "--no-verify goes with --heal only",
    },
    "export models/adapter": {
        "-o new --layout exakt": ("no layout 'exakt'", "one of exact, padded"),
        "-o new --dtype int8": ("no dtype 'int8'", "one of float32"),
        "-o mine": ("mine exists already", "--force"),
        "-o mine --force": ("mine is not replaced, even with --force", "choose another place"),
        "-o models/adapter": "models/adapter is an input",
        "-o models/adapter --layout padded --force": "models/adapter is an input",
        "-o . --force": "contains an input",
        "-o models/adapter/new": "models/adapter/new lies inside an input",
        "-o mine.txt/new --no-verify": "mine.txt/new",
    },
    "export": {
        "nowhere -o new": "there is no directory nowhere",
        "models/adapter/adapter_model.safetensors -o new": "is a file, not a PEFT adapter's",
        "models/adapter -o new --base models/base": "--base goes with --format gguf",
    },
    "merge models/adapter": {
        "-o models/base --force": ("models/base is an input of this command", "another place"),
        "-o models --force": "models contains an input",
        "-o mine": ("mine exists already", "--force"),
        "-o mine.txt/new --no-verify": "mine.txt/new",
    },
    "combine models/adapter": {
        "-o new": "nothing to combine",
        "models/adapter -o new --weights 1,2,3": "3 numbers for 2",
        "models/adapter -o new --weights 1,x": "is not a list of numbers",
        "models/adapter -o new --method ties": "full rank",
        "models/adapter -o new --method ties --rank 2 --weights=1,-1": "above 0 only",
        "models/adapter -o new --density 0.2": "--density goes with",
        "models/adapter -o new --method ties --seed 1": "--seed goes with",
        "models/adapter -o new --method sum": "no method 'sum'",
        "models/adapter -o new --method dare --rank 1 --seed -1": "Invalid value for '--seed'",
        "models/adapter -o new --rank 1 --energy 0.5": "exclude each other",
        "models/adapter -o new --max-params 17": "fits into --max-params 17",
        "models/adapter -o new --mean-rank 0.2": "fits into --mean-rank 0.2",
        "models/adapter -o new --max-params 17 --method ties": "fits into --max-params 17",
        "models/adapter -o new --mean-rank 0.2 --method ties": "fits into --mean-rank 0.2",
    },
    "extract models/base --base models/base -o new": {
        "": "how much",
        "--rank 3 --energy 0.5": "exclude each other",
        "--max-drop 1pt": "--max-drop needs a recipe",
        "--max-drop 1pt --rank 3": "exclude each other",
        "--max-differ 1% --rank 3": "exclude each other",
        "--max-differ 1%": "--max-differ needs rows to answer",
        "--rank 3 --unlabelled train.jsonl": "--unlabelled goes with --max-differ or --max-drop",
        "--rank 3 --next-tokens": "--next-tokens goes with --max-differ only",
        "--rank 3 --confidence 0.9": "--confidence goes with --max-differ or --max-drop only",
        "--rank 3 --recipe rte": "--recipe goes with --max-differ or --max-drop only",
        "--rank 3 training.seed=1": "OVERRIDES goes with --max-differ or --max-drop only",
    },
    "inspect": {
        "nowhere": "there is no directory nowhere",
        "models/base": "is not an adapter directory",
        "models/adapter --plot x.nope": ("x.nope", "png"),
        "models/adapter --plot mine.txt/x.png": "--plot mine.txt/x.png: mine.txt is a file",
        "models/adapter --plot models/adapter/ranks.png": "lies inside an input",
        "models/adapter models/adapter --plot x.png": "shows one adapter, not 2",
        "models/adapter models/adapter --modules": "shows one adapter, not 2",
    },
    "verify": {
        "models/adaptr": ("there is no directory models/adaptr", "sora verify models/adapter"),
        "./a": "there is no model at ./a",
        "models/adapter --tolerance -1": "must be 0 or more, not -1",
        "models/adapter --tolerance nan": "must be 0 or more, not nan",
        "models/adapter --dtype int8": "--dtype must be one of float32",
        "models/adapter --certificate": "holds no certificate",
        "models there --certificate": "B does not go with --certificate",
        "a b data.path=c": "goes with --certificate only",
    },
    "eval": {
        "./a -r r.yaml": "there is no model at ./a",
        "no-such-model -r r.yaml":
            ("'no-such-model' is neither a local directory nor", "sora eval DIR --recipe r.yaml"),
        "models/base -r r.yaml":
            ("holds no trained head: classifier.bias, classifier.weight", "a merged model"),
        "a": ("Missing option '--recipe'", "sora eval --help"),
        "models/adapter -r r.yaml --predictions train.jsonl --force":
            "train.jsonl is an input",
        "models/adapter -r r.yaml --predictions r.yaml --force": "r.yaml is an input",
        "models/adapter -r r.yaml data.files=null data.path=rows --predictions rows/p.jsonl":
            "rows/p.jsonl lies inside an input",
        "models/adapter -r r.yaml --predictions mine.txt/p.jsonl":
            "--predictions mine.txt/p.jsonl: mine.txt is a file",
    },
    "compare": {
        "": "Missing argument",
        "nowhere": "no file or directory nowhere",
        "mine": "no finished run",
        "mine --format yaml": "no format 'yaml'",
        "mine -o x.foo": "x.foo",
        "mine --plot .": "is a directory",
        "study -o study/rte-lora-r8-s0/report.json --force": "is an input of this command",
        "study/rte-lora-r8-s0 --format jsonl -o study/rte-lora-r8-s0/report.json --force":
            "is an input of this command",
        "study --metric bleu": "there are: accuracy, loss",
        "study --baseline 'lora r=9'": "did you mean 'lora r=8'?",
        "study --budgets 50": "--baseline LABEL",
        "study --budgets x --baseline 'lora r=8'": "percentages of the baseline's size",
        "study --budgets 50 --baseline lora": "no group is called 'lora'",
        "study --budgets 50 --baseline 'lora r=8' --paper": "exclude each other",
        "study --min-gain 3 --baseline 'lora r=8'": "--min-gain goes with --budgets",
        "study --budgets 50 --baseline 'lora r=8' --min-gain nan": "a number of points, not nan",
        "study --budgets 50 --format jsonl": "--budgets goes with a table",
    },
    "report": {
        "nowhere": "there is no directory nowhere",
        "models/adapter": ("models/adapter is no run's directory",
                           "to see the adapter alone: sora inspect models/adapter"),
        "done --examples 0": ("Invalid value for '--examples'", "try: sora report --help"),
        "done --predictions nowhere": "cannot be read",
        "done -o done/report.json --force": "done/report.json is an input",
        "done -o mine.txt/page.html": "--output mine.txt/page.html: mine.txt is a file",
    },
    "predict models/adapter": {
        "trian.jsonl -o new.csv": ("there is no file 'trian.jsonl'", "did you mean 'train.jsonl'?"),
        "models -o new.csv": "'models' is a directory",
        "r.yaml -o new.csv": ("'r.yaml' is not a file of rows", "known endings: .csv, .tsv"),
        "train.jsonl": ("Missing option", "sora predict --help"),
        "train.jsonl -o out.xlsx": ("-o out.xlsx: the file must end in one of", "-o out.jsonl"),
        "train.jsonl -o old.csv": ("old.csv exists already", "--force"),
        "train.jsonl -o train.jsonl --force": "train.jsonl is an input of this command",
        "train.jsonl -o models/adapter/o.csv": "lies inside an input",
        "train.jsonl -o mine.txt/o.csv": "mine.txt is a file",
        "- -o - --format xml": ("there is no --format 'xml'", "one of jsonl, csv"),
        "train.jsonl -o new.csv --format csv": "--format is for stdin and stdout",
        "train.jsonl -o - --json": "--json does not go with -o -",
        "train.jsonl -o new.csv --task sequence-clasification":
            ("no task 'sequence-clas", "did you mean 'sequence-classification'?"),
        "train.jsonl -o new.csv 'data.label_names=[no, yes]'": "the adapter's classes are 0, 1",
        "train.jsonl -o new.csv 'data.text_columns=[sentense1, sentence2]'":
            ("no column 'sentense1'", "did you mean 'sentence1'?"),
        "train.jsonl -o new.csv data.max_lenght=9":
            ("unknown key 'max_lenght' in data", "did you mean 'max_length'?"),
    },
    "predict": {
        "./gone train.jsonl -o new.csv":
            ("there is no model at ./gone", "sora predict done train.jsonl -o new.csv"),
        "./x train.jsonl -o new.csv":
            ("there is no model at ./x", "sora predict DIR train.jsonl -o new.csv"),
        "models/base train.jsonl -o new.csv --task sequence-classification "
        "'data.label_names=[a, b]'": "holds no trained head",
    },
    "chat": {
        "models/adapter": ("models/adapter does not write texts: its task is "
                           "sequence-classification", "sora predict models/adapter FILE -o OUT"),
        "chat models/adapter": "models/adapter does not write texts",
        "./x": ("there is no model at ./x", "sora chat DIR"),
        "models/adapter --temperature 0": ("--temperature must be above 0", "--greedy"),
        "models/adapter --top-p 0": "--top-p is a share above 0",
        "models/adapter --dtype int8": ("there is no --dtype 'int8'", "one of float32"),
        "models/adapter --max-new-tokens 0": "Invalid value for '--max-new-tokens'",
    },
    "generate": {
        "models/adapter -p cat": ("does not write texts", "sora predict"),
        "chat": ("Missing option", "sora generate --help"),
        "chat -p ' '": "the prompt is empty",
        f"chat -p '{'cat ' * 300}'": "leaves no room for an answer",
        "models/adapter -p cat --repetition-penalty 0": "--repetition-penalty must be above 0",
        "models/adapter -p cat --greedy --seed 1": "--seed does not go with --greedy",
        "models/adapter -p cat --raw --system x": "--system does not go with --raw",
    },
}  # fmt: skip
"""Mistakes on the desk: how a command line begins, how it ends, and words of the error."""
WORDS = {f"{start} {rest}".strip(): LINES[start][rest] for start in LINES for rest in LINES[start]}
RUN = {f"out/{FILE_NAME}": FINISHED}
REPORT = f"models/{FILE_NAME}"
FILES: dict[str, Case] = {
    "code that fails": bad("'x.py' fails on import: ZeroDivisionError", *TRAIN, "--code", "x.py",
        at=("x.py", "1 / 0"), **{"x.py": "\n1 / 0\n"}),
    "code without a method": bad("'x.py' defines no adapter method", *TRAIN, "--code", "x.py",
        then="AdapterMethod", **{"x.py": "x = 1\n"}),
    "a result with foreign files": bad("out/adapter is not replaced", *TRAIN, "--force",
        then="output.dir=DIR", **RUN | {"out/checkpoints/x.txt": "x",
        "out/adapter/sora.json": "{}", "out/adapter/thesis.txt": "x"}),
    "a result of nobody": bad("'out/adapter' was not written by", *TRAIN, "--force",
        then="output.dir=DIR", **{"out/adapter/thesis.txt": "x"}),
    "a checkpoint that is none": bad("'out/checkpoints/step-000001' was not written by", *TRAIN,
        "--force", then="output.dir=DIR", **RUN | {"out/checkpoints/step-000001/x.txt": "x"}),
    "a report of another tool": bad("'out' is not empty and holds no run", *TRAIN,
        then="output.dir=DIR", **{f"out/{FILE_NAME}": "[]"}),
    "a stage that is none": bad("'out/stages/01/adapter' was not written by", "path", "p.yaml",
        then="output.dir=DIR", **{"out/stages/01/adapter/thesis.txt": "x"}),
    "a damaged path": bad("path.json is damaged or of another version", "path", "p.yaml",
        **{"out/path.json": '{"schema_version": 1, "na'}),
    "a damaged path to pick from": bad("damaged", "pick", "out", "--keep", "0.9",
        **{"out/path.json": '{"schema_version": 1, "na'}),
    "a record of another tool": bad("was not written by sora sweep", "sweep", "s.yaml",
        "output.dir=out", then="output.dir=DIR", **{"out/sweep.json": "[]"}),
    "predictions over a report": bad(f"{REPORT} is an input", "eval", "models/adapter", "-r",
        "r.yaml", "--force", "--predictions", REPORT, **{REPORT: FINISHED}),
    "predictions over a history": bad("models/history.json is an input", "eval",
        "models/adapter", "-r", "r.yaml", "--force", "--predictions", "models/history.json",
        **{REPORT: FINISHED, "models/history.json": "[]"}),
    "exported over a link": bad("is an input", "export", "models/adapter", "-o", "link",
        "--force", link=lambda path: path.symlink_to("models/adapter")),
    "pruned over more than an adapter": bad("it also holds 'README.md'", "prune", "models/adapter",
        "-o", "new", "--force", then="move that away",
        **{"new/adapter_config.json": "{}", "new/README.md": "x"}),
    "merged over more than a model": bad("it also holds 'package.json'", "merge", "models/adapter",
        "-o", "new", "--force", then="move that away",
        **{"new/config.json": "{}", "new/package.json": "{}"}),
    "a damaged report": bad("out/report.json is no run's report", "report", "out",
        **{f"out/{FILE_NAME}": "{"}),
    "a report of other things": bad("is no run's report: name", "report", "out",
        **{f"out/{FILE_NAME}": '{"name": 3}'}),
    "a damaged certificate": bad("is damaged or of another version", "report", "out",
        **RUN | {"out/certificate.json": "{}"}),
    "a page over a thesis": bad("out/report.html exists already", "report", "out",
        then="name another file: -o FILE.html, or add --force", **RUN | {"out/report.html": "x"}),
    "predictions that are none": bad("p.jsonl is not JSON, line by line", "report", "out",
        "--predictions", "p.jsonl", then="sora eval RUN", **RUN | {"p.jsonl": "{"}),
    "a page over predictions": bad("is an input", "report", "out", "--predictions", "p.jsonl",
        "-o", "p.jsonl", "--force", **RUN | {"p.jsonl": "{}\n"}),
}  # fmt: skip
PROCESSES = {
    "typo": bad("unknown key 'epochz'", r=recipe("training", "epochz: 3"), then="did you mean"),
    "tag": bad("is not allowed",
        r=recipe("output", "dir: !!python/object/apply:os.system ['touch x']")),
    "rows": bad("not valid JSON", at=("train.jsonl", "BROKEN"),
        **{"train.jsonl": '{"sentence1": "BROKEN"\n'}),
    "labels": bad("label 7 in column 'label' is none of the 2 classes",
        **{"validation.jsonl": '{"sentence1": "a", "sentence2": "b", "label": 7}\n'}),
    "model": bad("there is no model at ./d", *TRAIN, "model.path=./d"),
    "merge": bad("there is no directory nowhere", "merge", "nowhere", "-o", "new"),
}  # fmt: skip


@pytest.mark.parametrize("line", WORDS)
def test_bad_line(line: str, checked: Callable[[Case], object]) -> None:
    words = WORDS[line]
    says = (words,) if isinstance(words, str) else words
    checked(Case(says, tuple(shlex.split(line))))


@pytest.mark.parametrize("case", FILES.values(), ids=FILES)
def test_bad_files(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)


@pytest.mark.parametrize("case", PROCESSES.values(), ids=PROCESSES)
def test_in_a_process(case: Case, tmp_path: Path, desk: Path) -> None:
    check_process(case, tmp_path, desk)


def test_debug_shows_where_a_mistake_was_noticed(
    tmp_path: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lay_out({"r.yaml": recipe("training", "epochz: 3")}, tmp_path, desk)
    monkeypatch.chdir(tmp_path)
    assert run(["--debug", *TRAIN]) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert "error: unknown key 'epochz'" in shown


def test_a_fault_of_the_program_is_called_one(
    tmp_path: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Deep inside, something unforeseen: told as such, with the traceback in a file."""

    def fault(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    lay_out({}, tmp_path, desk)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sora_cli.tasks.sequence.tokenise", fault)
    assert run(TRAIN) == 1
    shown = capsys.readouterr().err
    error = shown[shown.index("error: ") :].splitlines()
    assert error[0] == "error: internal error: ZeroDivisionError: of all things"
    assert "Traceback" not in shown
    log = Path(error[1].split()[-1])
    assert log.parent == tmp_path
    text = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert "in fault" in text
    assert "report it" in error[2]
