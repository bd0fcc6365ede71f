# SPDX-License-Identifier: Apache-2.0
# Needs python3 (3.11 or later, with venv), a C++20 compiler and make; nvcc is used if there is one. cmake, ninja
# and all the rest come from the package index into $(VENV). Each step leaves a stamp: a second run is quick.

TORCH  ?= 2.13.0
PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
TEST_JOBS ?= 2

# What is built here runs here: machine code for this machine's GPU (all of Hopper's instructions, if it is one), or,
# where there is none, code for every GPU from Ampere on. `pip install .`, which knows no machine, takes a longer list.
ifndef TORCH_CUDA_ARCH_LIST
THIS_GPU := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -x '[0-9.]*' | sort -u)
TORCH_CUDA_ARCH_LIST := $(or $(patsubst 9.0,9.0a,$(THIS_GPU)),8.0+PTX)
endif
export TORCH_CUDA_ARCH_LIST

# What the build depends on besides files. See setup.py for their meaning.
BUILD_VARIABLES := TORCH FASTDIFF_CUDA TORCH_CUDA_ARCH_LIST CUDACXX CUDA_HOME CMAKE_ARGS CXXFLAGS

PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check
STAMPS := $(VENV)/stamps
SOURCES := setup.py pyproject.toml CMakeLists.txt README.md LICENSE $(shell find cmake csrc python bench -type f \
  -not -path '*/results/*' -not -path '*.egg-info/*' -not -path '*_cache/*' -not -name '*.so' -not -name '*.pyc')
NATIVE_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')

# Prints a list from pyproject.toml, the one place that names packages: $(call requirements,build-system requires)
requirements = $(PY) -c "import functools, sys, tomllib; \
  print(*functools.reduce(dict.get, sys.argv[1:], tomllib.load(open('pyproject.toml', 'rb'))), sep='\n')" $(1)

.PHONY: help bench test demo wheel format check clean FORCE
.DELETE_ON_ERROR:

help:
	@echo "make bench    set up, then run the benchmarks: table, JSON and plot in bench/results"
	@echo "make test     set up, then run the whole test suite"
	@echo "make demo     set up, then draw digits with eager diffusers and with fastdiff, side by side"
	@echo "make wheel    set up, then build dist/*.whl and install it in $(VENV)"
	@echo "make format   rewrite the sources in the project's format"
	@echo "make check    formats, lints and types, as in CI"
	@echo "make clean    remove $(VENV) and everything built"
	@echo
	@echo "Variables: TORCH=$(TORCH)  PYTHON=$(PYTHON)  VENV=$(VENV)"
	@echo "           ARGS='...'  more arguments for fastdiff bench, fastdiff demo or pytest"
	@echo "           TEST_JOBS=$(TEST_JOBS)  processes that run tests, of two threads each"
	@echo "           FASTDIFF_CUDA=0|1  TORCH_CUDA_ARCH_LIST='$(TORCH_CUDA_ARCH_LIST)'  MAX_JOBS=2  see setup.py"

bench: $(STAMPS)/wheel $(STAMPS)/extra-bench
	$(VENV)/bin/fastdiff bench $(ARGS)

demo: $(STAMPS)/wheel $(STAMPS)/extra-demo
	$(VENV)/bin/fastdiff demo $(ARGS)

test: $(STAMPS)/wheel $(STAMPS)/extra-test
	$(PY) -m pytest --numprocesses $(TEST_JOBS) $(ARGS)

wheel: $(STAMPS)/wheel

$(PY):
	$(PYTHON) -m venv $(VENV)

# torch comes first and by its exact version, and every later step is held to it: left to itself, pip would
# replace it by the newest, which is gigabytes.
$(STAMPS)/torch-$(TORCH): | $(PY)
	$(PIP) install torch==$(TORCH) numpy
	@mkdir -p $(STAMPS) && rm -f $(STAMPS)/torch-*
	@echo torch==$(TORCH) > $@

$(STAMPS)/tools: pyproject.toml $(STAMPS)/torch-$(TORCH)
	$(call requirements,build-system requires) | grep -v ^torch | $(PIP) install build -r /dev/stdin
	@touch $@

# Written only when its contents change: `make FASTDIFF_CUDA=0` rebuilds, the next such call does not.
$(STAMPS)/variables: FORCE | $(PY)
	@mkdir -p $(STAMPS)
	@echo '$(foreach v,$(BUILD_VARIABLES),$(v)=$($(v)))' | cmp -s - $@ || \
	  echo '$(foreach v,$(BUILD_VARIABLES),$(v)=$($(v)))' > $@

# build/lib* is setuptools' staging folder, which would otherwise keep modules that are gone from the sources.
$(STAMPS)/wheel: $(SOURCES) $(STAMPS)/variables $(STAMPS)/tools
	rm -rf dist build/lib*
	$(PY) -m build --wheel --no-isolation --skip-dependency-check
	$(PIP) install --force-reinstall --no-deps dist/*.whl
	@touch $@

$(STAMPS)/extra-%: pyproject.toml $(STAMPS)/torch-$(TORCH) | $(STAMPS)/wheel
	$(PIP) install -c $(STAMPS)/torch-$(TORCH) "$$(ls dist/*.whl)[$*]"
	@touch $@

# The formatters need no wheel.
$(STAMPS)/dev: pyproject.toml $(STAMPS)/torch-$(TORCH)
	$(call requirements,project optional-dependencies dev) | $(PIP) install -r /dev/stdin
	@touch $@

format: $(STAMPS)/dev
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(NATIVE_FILES)

check: $(STAMPS)/dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(NATIVE_FILES)
	$(PY) -m mypy

clean:
	rm -rf $(VENV) build dist python/*.egg-info python/fastdiff/*.so .*_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +
