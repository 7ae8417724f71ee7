# `make train` and `make test` need nothing but Python 3.11+ and, for the C++ kernels, a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard csrc/*)

.PHONY: train test test-fast lint types unit fuzz sanitize bench bench-gpu clean

train: $(VENV)/.demo
	$(BIN)/ptgm-fast train --profile --baselines

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the mapping of kernels/ into the package: it is shown the layout of the installed one, and beside it
# the modules of benchmarks/, which import each other by name.
types: $(VENV)/.test
	rm -rf build/typed && mkdir -p build/typed
	cp -r ptgm_fast build/typed/ptgm_fast && cp -r kernels build/typed/ptgm_fast/kernels
	cp -r benchmarks/*.py benchmarks/cases build/typed
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		-p ptgm_fast -p cases -m compare -m write_results -m conftest

# Whole files side by side (their fixtures are shared), since tests keep to one thread. WORKERS=0: one after another.
WORKERS ?= 2
unit: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# What takes less than 0.7 s: for the loop of writing and trying.
test-fast: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" --fast

# 2,000 tries of the fuzzing tests; FIRST=2000 for others.
FIRST ?= 0
fuzz: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) tests/fuzz --tries 2000 --first-try $(FIRST)

# The C++ implementations under the address and undefined-behavior sanitizers, in a build of its own. That the
# sanitizers see a tensor's memory at all is shown first, by a row more than there is.
SANITIZED := build/sanitize/ptgm_fast
UNDER_SANITIZERS = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=build/sanitize $(BIN)/
sanitize: $(SANITIZED)/_C.so
	rm -rf $(SANITIZED)/kernels && cp -r kernels $(SANITIZED)/kernels
	cp -r $(filter-out %.so,$(wildcard ptgm_fast/*)) $(SANITIZED)
	$(UNDER_SANITIZERS)python scripts/beyond_the_end.py 2>&1 | grep "heap-buffer-overflow"
	$(UNDER_SANITIZERS)pytest tests/kernels -m "not slow and not gpu" \
		-k "not interpreted and not graph and not opcheck and not compiled and not fork and not tooling"

$(SANITIZED)/_C.so: $(wildcard csrc/*) | $(VENV)/.test
	mkdir -p $(SANITIZED)
	$(CXX) -O1 -g1 -std=c++17 -shared -fPIC -fvisibility=hidden -fopenmp -fno-math-errno -fno-trapping-math -w \
		-fsanitize=address,undefined -fno-sanitize-recover=all \
		$$($(BIN)/python -m pybind11 --includes) -Icsrc $(wildcard csrc/*.cpp) -o $@

# Throughput suites: contenders in turn, five rounds; then results by date and machine, tables and plots. What ran
# before in a process changes calls of microseconds: each suite has a process, and each round of the ops one of its own.
MEASURED = --benchmark-enable --benchmark-only --rounds 5
bench: $(VENV)/.bench
	rm -rf build/bench && mkdir -p build/bench
	for round in 0 1 2 3 4; do \
		$(BIN)/python -m pytest benchmarks/kernels $(MEASURED) --round $$round --benchmark-json=build/bench/kernels-$$round.json || exit; \
	done
	for suite in engine generators end_to_end; do \
		$(BIN)/python -m pytest benchmarks/$$suite $(MEASURED) --benchmark-json=build/bench/$$suite.json || exit; \
	done
	$(BIN)/python benchmarks/write_results.py build/bench/*.json

# The cases that run on a GPU, timed by its events; without one it ends with 2 and says so.
bench-gpu: $(VENV)/.bench
	mkdir -p build
	$(BIN)/python -m pytest benchmarks $(MEASURED) --device cuda --benchmark-json=build/benchmarks-gpu.json
	$(BIN)/python benchmarks/write_results.py build/benchmarks-gpu.json

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.bench: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[bench]'
	touch $@ $(VENV)/.demo

clean:
	rm -rf build dist *.egg-info $(VENV)
