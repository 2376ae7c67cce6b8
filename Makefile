# Everything runs in .venv, which the first target makes. Nothing outside the checkout is touched.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# make demo MODEL=folder-or-hub-id PROMPT="..." GENERATE="--seed 3 --num-frames 49"
MODEL    ?=
PROMPT   ?= a red ball rolls slowly to the left over a green floor
GENERATE ?=
BENCH    ?=
# make test ARGS="-k noise -x"
ARGS     ?=

.PHONY: demo test test-slow lint format build-engines bench clean

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py --model "$(MODEL)" --prompt "$(PROMPT)" -- $(GENERATE)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not gpu" $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m "slow" $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# make bench BENCH="--only medium --threads 1"
bench: $(VENV)/.demo
	$(BIN)/python scripts/run_benchmarks.py $(BENCH)

build-engines:
	@echo "make $@: not built yet. ONNX Runtime is this version's only backend; see README.md." >&2
	@exit 1

clean:
	rm -rf bundles out dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[export,onnxruntime,video]"
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable ".[export,onnxruntime,video,dev]"
	@touch $@
