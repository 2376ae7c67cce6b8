# Everything runs in .venv, which the first target makes, and Triton in .triton-env. Nothing outside the checkout is
# touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
TRITON := .triton-env
# Python compiles what it imports, a small part of all files.
INSTALL := -m pip install --quiet --no-compile --disable-pip-version-check --constraint
PIP    := $(BIN)/python $(INSTALL) constraints.txt

# make demo MODEL=folder-or-hub-id PROMPT="..." GENERATE="--seed 3 --num-frames 49"
MODEL    ?=
PROMPT   ?= a red ball rolls slowly to the left over a green floor
GENERATE ?=
# make build-engines MODEL=... PRECISION=fp16 TARGET="rtx-sm89 rtx-sm120" WORKLOADS="768x512x121 512x512x9..1024x704x161"
PRECISION ?= fp16
TARGET    ?=
WORKLOADS ?=
BUILD     ?=
# make wheelhouse EXTRA=tensorrt-rtx,video
EXTRA     ?= tensorrt-rtx
BENCH    ?=
# make test ARGS="-k noise -x"
ARGS     ?=

.PHONY: demo test test-slow lint format build-engines wheelhouse bench triton-env clean

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py --model "$(MODEL)" --prompt "$(PROMPT)" -- $(GENERATE)

# A thread for each of two workers: more would wait for each other.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

build-engines: $(VENV)/.engines
	$(BIN)/python scripts/build_engines.py --model "$(MODEL)" --precision "$(PRECISION)" --target "$(TARGET)" \
		--workloads "$(WORKLOADS)" -- $(BUILD)

wheelhouse: $(VENV)/bin/python
	$(PIP) --editable .
	$(BIN)/python scripts/make_wheelhouse.py --extra "$(EXTRA)" --out dist/wheelhouse

# make bench BENCH="--only medium --threads 1"
bench: $(VENV)/.demo
	$(BIN)/python scripts/run_benchmarks.py $(BENCH)

triton-env: $(TRITON)/.done

clean:
	rm -rf bundles out dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[export,onnxruntime,video]"
	@touch $@

# A machine whose GPU TensorRT for RTX does not know installs ".[tensorrt]" into it first.
$(VENV)/.engines: $(VENV)/.demo
	$(PIP) --editable ".[export,onnxruntime,video,tensorrt-rtx]"
	@touch $@

# The bindings of TensorRT come without its libraries: tests compare their doubles with them.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[export,onnxruntime,video,tensorrt-rtx,dev]" tensorrt-cu13-bindings tensorrt-lean-cu13-bindings
	@touch $(VENV)/.demo $(VENV)/.engines $@

# An environment of its own: tritonserver and its client want other versions than the tests.
$(TRITON)/.done: pyproject.toml constraints-triton.txt
	$(PYTHON) -m venv $(TRITON)
	$(TRITON)/bin/python $(INSTALL) constraints-triton.txt --editable ".[onnxruntime]" nvidia-pytriton
	@touch $@
