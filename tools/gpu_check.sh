#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds, checks and measures fastdiff on a machine with a GPU, in under 10 minutes, and writes one JSON report,
# bench/results/h200/gpu-check.json, and a copy beside the logs in $OUT if that is set: tools/gpu_check.sh [STEP...]
#
# NOTE: this script has not run on hardware yet; only its shell logic has, on a machine without a GPU.
#
# Steps: machine wheels build tests benchmarks memcheck racecheck initcheck synccheck (default: all). They run in this
# order; every one has its own time limit, and one that fails or runs too long does not keep the others from running.
# The report is written after each, so that a run that is cut short has one. What is left out keeps its place in the
# report, if that is of the same commit. Variables:
#   LIMIT_<step>  another limit than the one below, in seconds
#   SANITIZE      which tests the sanitizers run, as pytest's -k, e.g. "test_equals_the_reference and dwt"
#   BENCH         more arguments of `fastdiff bench`, e.g. "--op linear_step"
#   COMMIT        what is checked, where there is no git to ask
#
# It needs no network: python3 with torch, setuptools, pybind11, cmake, ninja and pytest, and nvcc; pytest-xdist if it
# is there. What else the tests and benchmarks use is taken from wheels in build/wheels. Nothing can be measured without
# diffusers; without another of these packages its cases are not:
#   pip download --no-deps --only-binary :all: --python-version 3.12 --dest build/wheels \
#     diffusers==0.42.1 importlib_metadata rich matplotlib \
#     PyWavelets kornia==0.9.0 kornia_rs ptwt==1.0.1 pytorch_wavelets==1.3.0 six
#
# On a machine that has a copy of the sources and from which only a folder comes back, name that folder OUT, and:
#   - send build/wheels too, which git ignores;
#   - without .git set COMMIT to what `git rev-parse --short HEAD` says: results of an unknown commit are never merged;
#   - afterwards put gpu-check.json into bench/results/h200 here, so that it goes along and the next run, of other steps
#     of the same commit, is merged into it.
set -uo pipefail
cd "$(dirname "$0")/.."

# Seconds, with the sanitizers side by side 550. All sources are 2200 s of compilation on one core, for 90a and without
# AVX2 1800 s, which 16 cores should share in 2 minutes; the longest file, gradients of attention, takes 105 s by itself.
declare -A limits=(
  [machine]=15 [wheels]=15 [build]=210 [tests]=90 [benchmarks]=130
  [memcheck]=90 [racecheck]=90 [initcheck]=90 [synccheck]=90
)
steps=(machine wheels build tests benchmarks memcheck racecheck initcheck synccheck)

PYTHON=${PYTHON:-python3}
RESULTS=${RESULTS:-bench/results/h200}
work=${WORK:-$PWD/build/gpu-check}
site=$work/site
logs=${OUT:-$work}/logs

for name in "$@"; do
  if [ -z "${limits[$name]:-}" ]; then
    echo "gpu_check.sh: no step is called '$name'; there are: ${steps[*]}" >&2
    exit 2
  fi
done
rm -rf "$logs"
mkdir -p "$site" "$logs" "$RESULTS"

export PYTHON site logs
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a}
export FASTDIFF_CUDA=${FASTDIFF_CUDA:-1}
export CMAKE_ARGS=${CMAKE_ARGS:--DFASTDIFF_COMPILES_AVX2=OFF -DFASTDIFF_COMPILES_AVX2_VNNI=OFF}
export PYTHONPATH=$site PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# step NAME: runs the function of that name with its output in NAME.log, and notes how it ended. The shell in between is
# there because `timeout` knows programs only.
step() {
  local name=$1 began=$SECONDS status limit=LIMIT_$1 signal=TERM grace=5
  limit=${!limit:-${limits[$name]}}
  # pytest then writes what it has, after up to 10 seconds for its processes. What runs in the background ignores INT.
  if [ "$name" = tests ]; then signal=INT grace=12; fi
  printf '=== %s (at most %s s)\n' "$name" "$limit"
  timeout --signal="$signal" --kill-after="$grace" "$limit" bash -c '"$@"' _ "$name" "$limit" >"$logs/$name.log" 2>&1
  status=$?
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - began))" "$limit" >>"$logs/steps.tsv"
  tail -n 3 "$logs/$name.log"
}

machine() {
  nvcc --version && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
}

# The package index is switched off, so that a missing wheel is an error at once and not a long wait.
install() {
  "$PYTHON" -m pip install --quiet --no-index --no-deps --upgrade --target "$site" "$@"
}

wheels() {
  local found=(build/wheels/*.whl)
  if [ -e "${found[0]}" ]; then install "${found[@]}"; else echo "no wheels in build/wheels"; fi &&
    "$PYTHON" -c "from diffusers import DPMSolverMultistepScheduler" # as the benchmarks do
}

build() {
  install --no-build-isolation . && "$PYTHON" -m fastdiff.cli info
}

# What runs on the GPU, in processes side by side if there is pytest-xdist: references on the CPU are what takes long.
tests() {
  local parallel=()
  "$PYTHON" -c 'import xdist' && parallel=(-n 8)
  "$PYTHON" -m pytest -q -p no:cacheprovider -k cuda "${parallel[@]}" --junitxml "$logs/tests.xml" \
    tests/cuda tests/guidance/test_window_blend_cuda.py tests/quant/test_int8_linear_wgmma.py \
    tests/test_contract.py tests/test_examples.py
}

# A case that is begun has half a minute to end.
benchmarks() {
  local more=()
  read -ra more <<<"${BENCH:-}"
  "$PYTHON" -m fastdiff.cli bench --device cuda --threads "$(nproc)" --budget "$(($1 - 30))" \
    --json "$logs/benchmarks.json" "${more[@]}"
}

# Memory that torch caches hides accesses out of bounds from the tool, and its own probing calls are no errors of ours.
# There is not enough time for all cases, so those of wgmma and then of the same ops come first.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 9 \
    "$PYTHON" -m pytest -v -p no:cacheprovider --first int8_linear --first weight_linear \
    -k "(${SANITIZE:-wgmma or test_equals_the_reference}) and cuda" \
    tests/quant/test_int8_linear_wgmma.py tests/test_contract.py
}
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }
initcheck() { sanitize initcheck; }
synccheck() { sanitize synccheck; }

export -f install sanitize "${steps[@]}"

report() {
  "$PYTHON" tools/gpu_report.py "$logs" "$RESULTS/gpu-check.json" "${COMMIT:-}"
  status=$?
  if [ -n "${OUT:-}" ]; then cp "$RESULTS/gpu-check.json" "$OUT/"; fi
}

at_work=0
for name in "${steps[@]}"; do
  case " ${*:-${steps[*]}} " in
    *" $name "*) ;;
    *) continue ;;
  esac
  case $name in
    *check) step "$name" & at_work=$((at_work + 1)) ;; # last, as they measure nothing: four may share the GPU
    *)
      step "$name"
      report
      ;;
  esac
done
for ((; at_work > 0; at_work--)); do
  wait -n
  report
done
exit "$status"
