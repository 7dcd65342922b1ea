# Each target sets up what it needs: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# More threads than cores only wait for each other in the small matrices of the tests.
TEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal

.PHONY: help setup demo demo-full test lint typing-links wheel notebooks clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make the environment without running anything

# torch comes first and alone, so that a machine's own build of it is taken. The package `kernels`
# stays outside the environment: one test puts it on the path to show that kernels/ does not shadow it.
$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' constraints.txt)" "$$(grep '^setuptools==' constraints.txt)"
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(PIP) install --no-deps --upgrade --target $(VENV)/optional/kernels "$$(grep '^kernels==' constraints.txt)"
	@touch $@

demo: $(READY)  ## evaluate every variant on the bundled model, at most 5 minutes on two cores
	$(BIN)/ropewalk demo --out runs/demo

demo-full: $(READY)  ## the same with contexts of 8192 and 16384
	$(BIN)/ropewalk demo --full --out runs/demo-full

# Triton decides at its import whether kernels are interpreted, so the interpreter has its own process.
test: $(READY)  ## pass the tests
	TRITON_INTERPRET=1 $(PYTEST) -m interpret
	TRITON_INTERPRET=0 $(PYTEST) -m "not interpret"

lint: $(READY) typing-links  ## format, lint and type checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

typing-links:
	@mkdir -p build/typing/ropewalk
	@for folder in blocks kernels llm evals; do ln -sfn ../../../$$folder build/typing/ropewalk/$$folder; done

wheel: $(READY)  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

notebooks: $(READY)  ## execute the notebooks
	$(BIN)/python notebooks/execute.py

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist runs ./*.egg-info
