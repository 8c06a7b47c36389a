# Each target makes the virtual environment itself. All that it needs is make and Python 3.11 or newer with venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# What measures the coverage; empty where a second run need not.
COVER ?= --cov

.PHONY: help demo test lint format bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    the main job on real input, unprivileged   (ARGS='FILE... --backend tmpfile')"
	@echo "make test    the whole test suite with its coverage     (ARGS='-k segments -n0')"
	@echo "make lint    ruff and strict mypy"
	@echo "make format  let ruff format the code"
	@echo "make bench   the benchmarks                              (ARGS=...)"
	@echo "make clean   remove the environment and what was built"

demo: $(VENV)/.ready
	$(BIN)/memplat demo $(ARGS)

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n logical --dist loadgroup $(COVER) --junit-xml=build/junit.xml $(ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "memplat needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make virtual environments: on Debian, apt-get install python3-venv" >&2; exit 1; }

# The stamps are as old as what was installed: metadata, and the compiled core where there is a compiler.
$(VENV)/.ready: pyproject.toml setup.py $(wildcard memplat/_native/*.pyx memplat/_native/*.pxi memplat/_native/*.h memplat/_native/tree.c) $(VENV)/bin/python
	$(BIN)/python -m pip install -qq --editable '.[cli]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml $(VENV)/.ready
	$(BIN)/python -m pip install -qq --editable '.[cli,conformance,dev,unicorn]'
	@touch $@
