# make demo   train DST-EE beside its rivals on real data, about a minute
# make test   run the tests
# make test-ranks  the tests that train on two to four processes, the examples among them; those with eight are among the slow ones
# make test-hosts  the tests under the real Lightning, transformers and accelerate, in an environment of its own (.venv-hosts)
# make test-long  the tests that take long by themselves: compilers, the bench and commands from end to end
# make test-slow  the tests that are too many for every day: about a minute
# make check  formatting, lint, types, who imports whom, warnings of every C++ compiler that is installed
# make bench  time the kernels against PyTorch's own: figures, tables and an HTML report, about ten minutes
# make bench-peers  the same with other libraries for sparse training, in an environment of its own (.venv-peers)
# make bench-scaling  how time grows with weights, layers, density, swaps and odd data: a quarter of an hour; go on with RESUME=1
# make results-page  make docs/results.md and its pictures again, of the committed results
# make docs   build the documentation into site/, in an environment of its own (.venv-docs); fails on links and names that are wrong
# make sanitize  run the CPU kernels under sanitizers, with every compiler and many flags: half an hour a compiler
# make cuda-check  compile the CUDA kernels with nvcc, without a GPU; fails on warnings, spills and more instructions than before
# make cuda-ptx     execute the compiled CUDA kernels' PTX on the CPU, against the reference and with planted faults;
#               make cuda-ptx-full runs all cases, for sm_80 and sm_90
# make triton-check  compile the Triton kernels for sm_80, sm_90 and gfx942, without a GPU; fails on spills and lost vector loads
# make sdist  the source archive in dist/, compiled from there and tried in an empty folder: about two minutes
# make wheel  a wheel with CPU kernels in dist/, for the Python of .venv, tried in a virtual environment of its own: about four minutes
# Each sets up .venv first (pinned dependencies, compiled kernels) where that has not been done.
#
# make gpu    on a machine with a GPU: build, test, time, profile with its own Python, nothing is installed; under 9 minutes
#             figures and logs go to bench/results, or to OUT=folder; DSTEE_COMMIT=... names the commit where git cannot

PYTHON ?= python3
BIN := .venv/bin
OUT ?= bench/results
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') setup.py pyproject.toml

.PHONY: demo test test-ranks test-hosts test-long test-slow check sanitize cuda-check cuda-ptx cuda-ptx-full triton-check bench bench-peers bench-scaling results-page docs sdist wheel gpu format clean

demo: .venv/built
	$(BIN)/dstee train --data digits --compare --out runs/demo --overwrite

test: .venv/built
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist worksteal # several processes: threads that spin take others' cores

test-ranks: .venv/built
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m "ranks and not slow" tests/distributed tests/bench tests/test_examples.py

test-hosts: .venv-hosts/built
	OMP_WAIT_POLICY=PASSIVE .venv-hosts/bin/python -m pytest -n auto --dist worksteal -m "not slow" tests/integrations "tests/test_docs.py::test_code_runs[docs/integrations.md]"

test-long: .venv/built
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist worksteal -m "long and not slow and not ranks and not cuda_ptx"

test-slow: .venv/built
	$(BIN)/python -m pytest -m "slow and not cuda_ptx"

check: .venv/built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter csrc/%,$(SOURCES))
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tests/compile_checks/cpp_check.py

sanitize: .venv/ready
	$(BIN)/python tests/compile_checks/sanitize.py

cuda-check: .venv/ready
	$(BIN)/python tests/compile_checks/cuda_check.py
	$(BIN)/python tests/compile_checks/cuda_counts.py

cuda-ptx: .venv/built
	$(BIN)/python -m pytest -m "cuda_ptx and not slow" tests/ops

cuda-ptx-full: .venv/built
	$(BIN)/python -m pytest -m cuda_ptx tests/ops

triton-check: .venv/ready
	$(BIN)/python tests/compile_checks/triton_check.py

BENCH := --shapes resnet50 --density 0.1 0.05 0.02
STEPS := --op step --shapes mlp gnn vgg19 resnet50 --density 0.1 --repeats 12
HOST := --op host --density 0.1
RESULTS := bench/results

bench: .venv/built
	$(BIN)/python -m bench $(BENCH) --json $(RESULTS)/cpu.json --html $(RESULTS)/cpu.html
	$(BIN)/python -m bench $(STEPS) --json $(RESULTS)/cpu-steps.json --html $(RESULTS)/cpu-steps.html
	$(BIN)/python -m bench $(HOST) --json $(RESULTS)/cpu-host.json --html $(RESULTS)/cpu-host.html
	$(BIN)/python -m bench.readme_table

bench-peers: .venv-peers/built
	.venv-peers/bin/python -m bench $(BENCH) --json $(RESULTS)/cpu.json --html $(RESULTS)/cpu.html
	.venv-peers/bin/python -m bench $(STEPS) --json $(RESULTS)/cpu-steps.json --html $(RESULTS)/cpu-steps.html
	.venv-peers/bin/python -m bench $(HOST) --json $(RESULTS)/cpu-host.json --html $(RESULTS)/cpu-host.html
	.venv-peers/bin/python -m bench.readme_table

bench-scaling: .venv/built
	$(BIN)/python -m bench --op scaling $(if $(RESUME),--resume,--json) $(RESULTS)/cpu-scaling.json --html $(RESULTS)/cpu-scaling.html

results-page: .venv/built
	$(BIN)/python -m bench.results_page

docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --clean

sdist: .venv/ready
	$(BIN)/python tests/compile_checks/package_check.py sdist

wheel: .venv/ready
	$(BIN)/python tests/compile_checks/package_check.py wheel

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

.venv-docs/ready: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

# --no-deps: sparsimony asks for numpy 1, and works with 2; rigl-torch needs torchvision for two class names only
.venv-peers/built: bench/peers.txt requirements-dev.txt $(SOURCES)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r bench/peers.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

.venv-hosts/built: requirements-hosts.txt requirements-dev.txt $(SOURCES)
	$(PYTHON) -m venv .venv-hosts
	.venv-hosts/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -r requirements-hosts.txt
	.venv-hosts/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-hosts .venv-peers site build dist tests/cuda_host/.build tests/cuda_ptx/.build *.egg-info dstee/_C*.so
