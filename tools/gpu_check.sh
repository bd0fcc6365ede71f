#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds and checks fastdiff on a machine with a GPU, in under 10 minutes, and writes one JSON report:
# bench/results/h200/gpu-check.json, and a copy with the logs in $OUT if that is set.
#
# NOTE: this script has not run on hardware yet; only its shell logic has, on a machine without a GPU.
#
# It needs no network: python3 with torch, setuptools, pybind11, cmake, ninja and pytest, and nvcc. What else the tests
# and benchmarks use (diffusers, rich, matplotlib) is taken from wheels in build/wheels, if they are there:
#   pip download --no-deps --only-binary :all: --python-version 3.12 --dest build/wheels \
#     diffusers==0.42.1 importlib_metadata rich matplotlib
#
# Every step has its own time limit, and a step that fails or runs too long does not keep the others from running.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-bench/results/h200}
work=$PWD/build/gpu-check
site=$work/site
rm -rf "$work"
mkdir -p "$site" "$RESULTS"

export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a}
export FASTDIFF_CUDA=${FASTDIFF_CUDA:-1}
export PYTHONPATH=$site PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# step NAME SECONDS COMMAND...: runs it with its output in NAME.log, and notes how it ended. The shell in between is there
# because `timeout` knows programs only, and most commands are functions.
step() {
  local name=$1 limit=$2 began=$SECONDS status
  shift 2
  printf '=== %s (at most %s s)\n' "$name" "$limit"
  timeout --kill-after=5 "$limit" bash -c '"$@"' _ "$@" >"$work/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - began))" "$limit" >>"$work/steps.tsv"
  tail -n 3 "$work/$name.log"
  return "$status"
}

# The package index is switched off, so that a missing wheel is an error at once and not a long wait.
install() {
  "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$site" "$@"
}

wheels() {
  local found=(build/wheels/*.whl)
  if [ -e "${found[0]}" ]; then install "${found[@]}"; else echo "no wheels in build/wheels"; fi
}

build() {
  install --no-build-isolation . && "$PYTHON" -m fastdiff.cli info
}

tests() { "$PYTHON" -m pytest -q -p no:cacheprovider --ignore=tests/test_wheel.py -m "not slow" "$@"; }

# The tests that need no GPU, side by side if pytest-xdist is there; one after the other they take too long.
other_tests() {
  local parallel=()
  "$PYTHON" -c 'import xdist' && parallel=(-n 8)
  tests -k "not cuda and not simt" "${parallel[@]}" "$@"
}

# Memory that torch caches hides accesses out of bounds from the tool, and its own probing calls are no errors of ours.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 9 \
    "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_contract.py -k "test_equals_the_reference and cuda"
}

machine() {
  nvcc --version && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
}

export -f machine wheels build install tests other_tests sanitize
export PYTHON site

step machine 15 machine
step wheels 20 wheels
step build 180 build
step tests_cuda 120 tests -k "cuda and not simt" --junitxml "$work/tests_cuda.xml"
step benchmarks 90 "$PYTHON" -m fastdiff.cli bench --device cuda --json "$work/bench.json"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck; do step "sanitizer_$tool" 30 sanitize "$tool"; done
fi
step tests_rest 60 other_tests --junitxml "$work/tests_rest.xml"

# Report
[ -f "$work/bench.json" ] && cp "$work/bench.json" "$RESULTS/cuda.json"
"$PYTHON" tools/gpu_report.py "$work" "$RESULTS/gpu-check.json"
status=$?
if [ -n "${OUT:-}" ]; then
  cp "$RESULTS/gpu-check.json" "$OUT/"
  [ -f "$work/bench.json" ] && cp "$work/bench.json" "$OUT/cuda.json"
  tar -czf "$OUT/logs.tar.gz" -C "$work" --exclude=site .
fi
exit "$status"
