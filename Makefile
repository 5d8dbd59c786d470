# Every target sets up .venv on first use, with the versions of constraints.txt.
#   PYTHON    the interpreter that makes .venv
#   PIP_ARGS  more arguments for pip, such as an index with CPU builds of torch

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)

.PHONY: demo test lint bench clean

demo: $(READY)
	$(BIN)/surebound demo --out demo-run

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	$(BIN)/python benchmarks/reference.py
	$(BIN)/python benchmarks/verify.py --every 10 --timeout 10

clean:
	rm -rf $(VENV) demo-run .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by exact version: a plain request for it may pull gigabytes of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(PIP) --editable '.[dev]'
	touch $@
