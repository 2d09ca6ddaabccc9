# Two commands on a fresh clone: `make demo` and `make test`. They need Python >= 3.10 and make.
# Another interpreter: make PYTHON=python3.12 test. More test processes: make WORKERS=8 test.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-input
DEMO := examples/demo_model

.DEFAULT_GOAL := help
.PHONY: help demo test test-gloo nightly fast bench bench-quick bench-load bench-window quality faults check lint types architecture format install install-dev clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.runtime ## generate text on 4 CPU ranks (tensor parallel 2 x pipeline parallel 2)
	$(PY) -m launch --nproc 4 --tp 2 --pp 2 examples/text_completion.py \
	    --ckpt_dir $(DEMO) --tokenizer_path $(DEMO)/tokenizer.model

test: $(VENV)/.dev ## the test suite, but for layouts of five and more ranks
	$(PY) -m pytest -n $(WORKERS) -m "not nightly"

nightly: $(VENV)/.dev ## every test, also those that two cores need minutes for
	$(PY) -m pytest -n $(WORKERS)

fast: $(VENV)/.dev ## the tests that are not marked slow
	$(PY) -m pytest -n $(WORKERS) -m "not slow and not nightly"

test-gloo: $(VENV)/.dev ## the test suite over gloo alone, as between hosts
	LLAMA_TRANSPORT=gloo $(PY) -m pytest -n $(WORKERS) -m "not nightly"

bench: $(VENV)/.bench ## decode, prefill, scaling, beside llama.cpp and transformers; writes docs/performance.md (an hour)
	$(PY) -m llama bench --json docs/bench.json --plots docs/images --report docs/performance.md

bench-quick: $(VENV)/.bench ## the same in two minutes on the 110 M shape; writes nothing
	$(PY) -m llama bench --quick

bench-load: $(VENV)/.dev ## what loading costs in bytes, seconds and memory, beside safetensors
	$(PY) -m tests.benchmarks.load

bench-window: $(VENV)/.dev ## what a decoded token costs far beyond a sliding window, and without one
	$(PY) -m tests.benchmarks.window

quality: $(VENV)/.dev ## what quantisation costs the demo model in quality; writes docs/quantisation.md
	$(PY) -m tests.benchmarks.quality --write

faults: $(VENV)/.dev ## every fault that must end well, three times; writes docs/reliability.md (half an hour, root)
	$(PY) -m tests.faults.run

check: lint types architecture ## every static check

lint: $(VENV)/.dev ## ruff, both as linter and as formatter
	$(PY) -m ruff check
	$(PY) -m ruff format --check

types: $(VENV)/.dev ## mypy --strict
	$(PY) -m mypy

architecture: $(VENV)/.dev ## import direction and the other house rules
	$(PY) -m pytest -q tests/test_architecture.py

format: $(VENV)/.dev ## let ruff rewrite the sources
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

install: $(VENV)/.runtime ## .venv with what running needs

install-dev: $(VENV)/.dev ## .venv with what developing needs

clean: ## remove caches and build outputs; `rm -r .venv` undoes the rest
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# A stamp is touched last, so an interrupted install is repeated and a finished one is not.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "Python >= 3.10 is needed, found: $$($(PYTHON) --version 2>&1);" \
	        "name another one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.created requirements.txt setup.py
	$(PIP) --constraint requirements.txt torch setuptools
	$(PIP) --no-build-isolation -r requirements.txt
	$(PIP) --no-build-isolation --no-deps --editable .
	@$(PY) -m llama.native
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@

# The peers are compiled (llama.cpp, minutes, a C++ compiler): only who compares needs them.
$(VENV)/.bench: $(VENV)/.dev requirements-bench.txt
	$(PIP) -r requirements-bench.txt
	@touch $@
