# `make train` and `make test` need nothing but Python 3.11+ and, for the C++ kernels, a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard csrc/*)

.PHONY: train test lint types unit bench cuda clean

train: $(VENV)/.demo
	$(BIN)/ptgm-fast train --profile

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the mapping of kernels/ into the package: it is shown the layout of the installed one.
types: $(VENV)/.test
	rm -rf build/typed && mkdir -p build/typed
	cp -r ptgm_fast build/typed/ptgm_fast && cp -r kernels build/typed/ptgm_fast/kernels
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p ptgm_fast

unit: $(VENV)/.test
	$(BIN)/python -m pytest

bench: $(VENV)/.test
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only

# Optional: one op in CUDA C++, a library of its own. Nothing that pip installs needs it.
cuda:
	@command -v nvcc >/dev/null || { echo "make cuda needs nvcc of the CUDA toolkit; pip install works without it" >&2; exit 2; }
	mkdir -p build
	nvcc -O3 -std=c++17 --cudart=static -Xcompiler -fPIC -shared -I csrc \
		-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a \
		-gencode arch=compute_100,code=sm_100 -gencode arch=compute_120,code=[sm_120,compute_120] \
		csrc/views.cu -o build/views_cuda.so

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf build dist *.egg-info $(VENV)
