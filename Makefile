# `make train` and `make test` need nothing but Python 3.11+ and, for the C++ kernels, a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py $(wildcard csrc/*)

.PHONY: train test test-fast lint types unit fuzz sanitize oldest bench recipes bench-gpu gpu-wheels gpu-check docs clean

train: $(VENV)/.demo
	$(BIN)/ptgm-fast train --profile --baselines

test: lint types unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the mapping of kernels/ into the package, so it gets a copy in the installed layout, and beside it
# the modules of benchmarks/, which import each other by name.
types: $(VENV)/.test
	rm -rf build/typed && mkdir -p build/typed
	cp -r ptgm_fast build/typed/ptgm_fast && cp -r kernels build/typed/ptgm_fast/kernels
	cp -r benchmarks/*.py benchmarks/cases build/typed
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		-p ptgm_fast -p cases -m compare -m write_results -m conftest

# Tests use one thread, so files run in parallel; a file stays in one process, since its fixtures are shared. WORKERS=0: serial.
WORKERS ?= 2
unit: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Only tests that take less than 0.7 s, for quick iteration.
test-fast: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" --fast

# The oldest versions that pyproject.toml claims, in a separate environment (5 GB): the tests of everything that they could
# break. Two tests cover what Pillow itself has fixed since; pytorch-pretrained-biggan is not installed there.
OLDEST := .venv-oldest
oldest: $(OLDEST)/.done
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile tests/kernels tests/engine tests/sampling
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" --fast tests/models tests/training tests/generators \
		tests/data tests/config tests/cli tests/runs tests/profiling tests/report tests/source \
		--ignore tests/generators/test_biggan_deep.py -k "not transparent_colour and not (pillows_conversion and TIFF2)"

$(OLDEST)/.done: $(SOURCES) scripts/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(PYTHON) scripts/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt --editable '.[all]' \
		pytest pytest-benchmark pytest-xdist hypothesis scipy scikit-learn pybind11
	touch $@

# 2,000 tries of the fuzz tests; FIRST=2000 runs different ones.
FIRST ?= 0
fuzz: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) tests/fuzz --tries 2000 --first-try $(FIRST)

# The C++ implementations under the address and undefined-behavior sanitizers, in a separate build. First, a read past
# the end of a tensor shows that the sanitizers see tensor memory at all.
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

# Throughput suites: contenders in turn, five rounds; then results by date and machine, tables and plots. Calls of
# microseconds depend on what ran before in the process: each suite has its own process, and so has each round of the ops.
MEASURED = --benchmark-enable --benchmark-only --rounds 5
bench: $(VENV)/.bench
	rm -rf build/bench && mkdir -p build/bench
	for isa in "" $$($(BIN)/python benchmarks/instruction_set.py); do for round in 0 1 2 3 4; do \
		PTGM_FAST_ISA=$$isa $(BIN)/python -m pytest benchmarks/kernels $(MEASURED) --round $$round \
			--benchmark-json=build/bench/kernels$$isa-$$round.json || exit; \
	done; done
	for suite in engine generators end_to_end; do \
		$(BIN)/python -m pytest benchmarks/$$suite $(MEASURED) --benchmark-json=build/bench/$$suite.json || exit; \
	done
	$(BIN)/python benchmarks/write_results.py build/bench/*.json

# Whole trainings only: a plain loop with the recipe of 0.1.0 and with the default recipe, and ours, in turn for each of three seeds; prints the table.
recipes: $(VENV)/.bench
	mkdir -p build
	$(BIN)/python -m pytest benchmarks/end_to_end/test_whole_training.py --benchmark-enable --benchmark-only --rounds 3 \
		--benchmark-json=build/recipes.json
	$(BIN)/python benchmarks/write_results.py --recipes build/recipes.json

# The cases that run on a GPU, timed by CUDA events; without a GPU it exits with 2 and a message.
bench-gpu: $(VENV)/.bench
	mkdir -p build
	$(BIN)/python -m pytest benchmarks $(MEASURED) --device cuda --benchmark-json=build/benchmarks-gpu.json
	$(BIN)/python benchmarks/write_results.py build/benchmarks-gpu.json

# Checks and measurements on a GPU, in parts of at most ten minutes: docs/gpu.md. On its machine, which needs no network and no
# $(VENV): make gpu-check PARTS=1. Bring build/gpu-wheels along; the wheels are for the Python version named here.
PARTS ?= 1 2 3 4 5 6 7
OUT ?= build/gpu-check
EACH ?= 540
gpu-check:
	$(PYTHON) scripts/gpu_check --part $(PARTS) --out $(OUT) --seconds $(EACH)

WHEELS := build/gpu-wheels
WHEELS_PYTHON ?= 3.12
WHEELS_FOR = --only-binary=:all: --implementation cp --python-version $(WHEELS_PYTHON) \
	$(foreach glibc,2_34 2_31 2_28 2_27 2_26 2_24 2_17 2_12 2_5,--platform manylinux_$(glibc)_x86_64) \
	--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64
gpu-wheels: | $(BIN)/python
	rm -rf $(WHEELS)
	$(BIN)/pip download --quiet $(WHEELS_FOR) --dest $(WHEELS) pydantic
	$(BIN)/pip download --quiet $(WHEELS_FOR) --dest $(WHEELS) --no-deps --requirement scripts/gpu_check/wheels.txt
	du -sh $(WHEELS)

# The site, into build/site; a broken link or a page outside the navigation fails it.
docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

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

# Static: the package itself is not needed.
$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
		> $(VENV)/docs.txt
	$(BIN)/pip install --quiet --requirement $(VENV)/docs.txt
	touch $@

clean:
	rm -rf build dist *.egg-info $(VENV) $(OLDEST)
