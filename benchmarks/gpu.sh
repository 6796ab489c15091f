#!/usr/bin/env bash
# Build, test, sanitize and measure the kernels on a machine with a CUDA GPU; needs no network.
#
#   benchmarks/gpu.sh
#
# PYTHON           interpreter: torch >= 2.11 with CUDA, setuptools, pybind11, ninja, pytest,
#                  hypothesis, scipy (default python3)
# HISTOKIT_NVCC    nvcc, when it is not on PATH
# SKIP_SANITIZER=1 leave compute-sanitizer out
# LIMIT            seconds for all of it (default 600); what no longer fits is cut off, and said
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

fail() {
  echo "error: $*" >&2
  exit 1
}

step() {
  echo
  echo "== $*"
}

# Runs a command in what is left of the time. A measurement that is cut off is no failure.
limit=${LIMIT:-600}
within() {
  local left=$((limit - SECONDS)) code=0
  if ((left < 1)); then
    echo "left out, the time is over: $*"
    return
  fi
  timeout "$left" "$@" || code=$?
  if ((code == 124)); then
    echo "cut off, the time is over: $*"
    return
  fi
  return "$code"
}

step "machine"
command -v nvidia-smi > /dev/null || fail "nvidia-smi was not found: is this a machine with a GPU?"
command -v "${HISTOKIT_NVCC:-nvcc}" > /dev/null || fail "nvcc was not found; set HISTOKIT_NVCC"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$python" -c 'import sys, torch; print("torch", torch.__version__); sys.exit(not torch.cuda.is_available())' ||
  fail "$python has no torch that sees the GPU"

step "build"
own=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
export HISTOKIT_CUDA_ARCHS=${HISTOKIT_CUDA_ARCHS:-$own} # for this machine alone, in half the time
HISTOKIT_CUDA=1 "$python" setup.py --quiet build_ext --inplace
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
"$python" -c 'import histokit, histokit._C as c; print(c.build_info()); assert histokit.has_cuda()'

step "every kernel once"
for cores in 0 1; do # by the plain kernels, then on tensor cores where there are such
  HISTOKIT_TENSOR_CORES=$cores within "$python" benchmarks/gpu_smoke.py
done

step "tests of the ops"
# the sentences of errors are tested, which the host has to wait for
HISTOKIT_CHECK=1 within "$python" -m pytest -p no:cacheprovider tests/ops/test_ops.py \
  tests/ops/test_cancer_cross_attention.py tests/ops/test_prototype_attention.py \
  tests/ops/test_distance_attention.py tests/ops/test_pearson_update.py \
  tests/ops/test_linear_ops.py tests/ops/test_sparse_targets.py tests/ops/test_hard_values.py

step "benchmark"
within "$python" benchmarks/bench_ops.py --device cuda --repeat 5

step "tensor cores"
within "$python" benchmarks/gpu_tensor_cores.py

# Reads and writes out of bounds, races in shared memory, reads of memory that nothing wrote. Only
# kernels of this project are watched, where the tool's version can tell them apart; torch's caching
# allocator is off, or its blocks would hide an access past the end of a tensor.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 within compute-sanitizer --error-exitcode 9 "$@"
}

works() {
  sanitize "$@" "$python" -c 'import torch; torch.ones(8, device="cuda").sum().item()' 2>&1
}

step "compute-sanitizer"
only=(--kernel-name kernel_substring=histokit)
if [[ ${SKIP_SANITIZER:-0} == 1 ]]; then
  echo "left out: SKIP_SANITIZER=1"
elif ! command -v compute-sanitizer > /dev/null; then
  echo "left out: compute-sanitizer was not found"
elif ! said=$(works "${only[@]}") && only=() && ! said=$(works); then
  echo "left out: compute-sanitizer does not work on this machine:"
  tail -n 3 <<< "$said"
else
  for tool in memcheck racecheck initcheck; do
    for cores in 0 1; do
      echo "-- $tool, HISTOKIT_TENSOR_CORES=$cores"
      HISTOKIT_TENSOR_CORES=$cores \
        sanitize --tool "$tool" "${only[@]}" "$python" benchmarks/gpu_smoke.py | tail -n 3
    done
  done
fi
