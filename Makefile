# make ablate | test | test-fast | lint | train | mlflow-server. The first call makes .venv; later calls reuse it until pyproject.toml or constraints.txt change.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := dev,orchestrator,aws,server
# One more than the cores of a small machine: tests of drivers and servers wait much of their time.
WORKERS ?= 3

.PHONY: ablate test test-fast lint format train mlflow-server setup
.DEFAULT_GOAL := test

# Nine joint trainings on synthetic motion, in ten minutes. ARGS="tables_7_9 --preset small --data uiprmd=PATH ..." runs another study, preset or data.
ablate: ARGS ?=
ablate: setup
	$(BIN)/python -m orchestrator.ablate $(ARGS)

test: setup
	@# One thread per process: the workers share the processors, and float sums come in one order.
	@# By files: what the tests of one share, hosts or a study that was run, is made once. In the order of tests/conftest.py.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-fast: PYTEST_ARGS += -m "not slow and not cluster"
test-fast: test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: setup
	$(BIN)/python -m ups_model.train --preset tiny

# An MLflow server with PostgreSQL, on this machine alone; docs/tracking.md. Ctrl-C ends it.
mlflow-server: setup
	exec $(BIN)/python -m cluster.mlflow_server $(ARGS)

setup: $(INSTALLED)

# The stamp is written last, so an interrupted installation is taken up again by the next call.
$(INSTALLED): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHON) python3.11 python3; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	      echo "making $(VENV) with $$($$python --version)"; $$python -m venv $(VENV) && break || exit 1; \
	    fi; \
	  done; \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "error: Python 3.11 or newer is needed, found $$(python3 --version 2>&1 || echo none);" \
	    "install it, or name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@
