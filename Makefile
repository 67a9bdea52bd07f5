# make demo   train DST-EE beside its rivals on real data, about a minute
# make test   run the tests
# make check  formatting, lint, types
# make bench  time the kernels against PyTorch's own
# make cuda-check  compile the CUDA kernels with nvcc, without a GPU; fails on warnings and spills
# make triton-check  compile the Triton kernels for sm_80, sm_90 and gfx942, without a GPU; fails on spills and lost vector loads
# Each sets up .venv first (pinned dependencies, compiled kernels) where that has not been done.
#
# make gpu    on a machine with a GPU: build, test and time with its own Python, nothing is installed; under 9 minutes
#             figures go to bench/results, or to OUT=folder

PYTHON ?= python3
BIN := .venv/bin
OUT ?= bench/results
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') setup.py pyproject.toml

.PHONY: demo test check cuda-check triton-check bench gpu format clean

demo: .venv/built
	$(BIN)/dstee train --data digits --compare --out runs/demo --overwrite

test: .venv/built
	$(BIN)/python -m pytest

check: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter csrc/%,$(SOURCES))
	$(BIN)/mypy

cuda-check: .venv/ready
	$(BIN)/python tests/cuda_check.py

triton-check: .venv/ready
	$(BIN)/python tests/triton_check.py

bench: .venv/built
	$(BIN)/python -m bench.bench_drop_grow --json bench/results/drop_grow-cpu.json
	$(BIN)/python -m bench.bench_masked_sgd --json bench/results/masked_sgd-cpu.json
	$(BIN)/python -m bench.readme_table

gpu:
	$(PYTHON) -m bench.gpu --out $(OUT)

format: .venv/built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter csrc/%,$(SOURCES))

.venv/ready: requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit("dstee needs Python 3.10 or newer, got " + sys.version) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/built: .venv/ready $(SOURCES)
	@echo "Building dstee (under a minute)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	$(BIN)/python -m dstee info
	touch $@

clean:
	rm -rf .venv build dist tests/cuda_host/.build *.egg-info dstee/_C*.so
