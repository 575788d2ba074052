# Everything installs from constraints.txt into .venv and re-uses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export TOKENIZERS_PARALLELISM := false
export RAY_DEDUP_LOGS := 0

.PHONY: install quickstart compare test test-fast lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[vl,dev]'
	@touch $(STAMP)

quickstart: $(STAMP)   ## data, tiny base model, HPT on CPU, one table
	$(BIN)/python -m unify_posttrain.quickstart

compare: $(STAMP)      ## the same, with the same steps of GRPO beside it
	$(BIN)/python -m unify_posttrain.quickstart --compare grpo

test: $(STAMP)         ## everything; two end-to-end runs side by side, since most of their time is waiting for imports
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 -m "not e2e"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/step_overhead.py

clean:
	rm -rf outputs build dist
