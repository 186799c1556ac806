# make demo    set up, then run examples/digits.yaml to its report
# make fast    set up, then the tests that take seconds, on two cores
# make slow    the tests that take minutes each
# make chaos   60 jobs on three Ray nodes while the service, drivers, workers, nodes and the database die
# make parity  every layout against one process, and the tables of docs/layouts.md
# make test    set up, then everything that must hold: style, types, import directions, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FAST := tests/jobs tests/cluster tests/orchestrator

.PHONY: install demo test check fast slow chaos parity bench clean

install: $(READY)

# The bound on torch is given again to pip, since a plain range may admit a CUDA build of several gigabytes.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off 'torch>=2.11,<2.14' -e '.[dev]'
	touch $@

demo: install
	$(BIN)/thresher run examples/digits.yaml

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: install
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(FAST)

# What is not in FAST starts processes of its own for all cores, so it comes afterwards, one test at a time.
test: check fast
	$(BIN)/python -m pytest -q $(FAST:%=--ignore=%)

slow: install
	$(BIN)/python -m pytest -q -m slow --timeout 1200

chaos: install
	$(BIN)/python -m tests.service.chaos

parity: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.multiprocess.parity --docs docs/layouts.md

bench: install
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
