#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
#
# Build, test and measure on a machine with one or two GPUs, with nothing but what is there. Of itself it downloads
# nothing: it takes a Python with Cython, NumPy and pytest, CuPy for the example, torch for the peers; a C compiler; nvcc for
# the kernels.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

usage() {
    cat <<'END'
usage: benchmarks/gpu.sh [options] [SECTION[=SECONDS]...]

  build      wheels, extensions, C programs, kernels        120 s
  test       the tests of GPUs, on the real driver          100 s
  example    examples/gpu_pipeline.py, and with --graph      40 s
  measure    pplx_async beside plain CUDA C                 120 s
  peers      NCCL, and UCXX where it is installed            60 s
  sanitize   the tests of GPUs under compute-sanitizer      150 s

Without a section: all of them, in ten minutes at most. A section that fails or takes too long stops no other one, and
makes the exit status 1. Each writes what it has at once.

  --results DIR    where to: gpu-N.json, gpu-N.png, gpu-N-peers.json for N GPUs, gpu.log and gpu-sections.txt
                   (default: benchmarks/results)
  --wheels DIR     Python packages that this machine lacks, as wheels; they are installed into build/gpu-packages
  --gpus N         use so many (default: 2, if there are)
  --quick          little of everything, to see that it works
  --library FILE   the libcuda (default: libcuda.so.1)
  --kernels FILE   PTX of kernels.cu (default: what nvcc makes of it)
  --python FILE    the interpreter (default: python3)
END
}

declare -A LIMITS=([build]=120 [test]=100 [example]=40 [measure]=120 [peers]=60 [sanitize]=150)
ALL=(build test example measure peers sanitize)
RESULTS=benchmarks/results WHEELS="" LIBRARY=libcuda.so.1 PYTHON=python3
MEASURE=() QUICK=() SECTIONS=()

while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --quick) QUICK=(--quick); shift; continue ;;
    --results | --wheels | --gpus | --library | --kernels | --python)
        [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
        case $1 in
        --results) RESULTS=$2 ;;
        --wheels) WHEELS=$2 ;;
        --library) LIBRARY=$2 ;;
        --python) PYTHON=$2 ;;
        *) MEASURE+=("$1" "$2") ;;
        esac
        shift 2; continue ;;
    esac
    name=${1%%=*}
    [ -n "${LIMITS[$name]:-}" ] || { echo "no section or option $1: --help has them" >&2; exit 2; }
    if [ "$name" != "$1" ]; then
        [[ ${1#*=} =~ ^[1-9][0-9]*$ ]] || { echo "no number of seconds: $1" >&2; exit 2; }
        LIMITS[$name]=${1#*=}
    fi
    SECTIONS+=("$name"); shift
done
[ ${#SECTIONS[@]} -gt 0 ] || SECTIONS=("${ALL[@]}")

mkdir -p "$RESULTS" || exit
export PYTHONPATH="$PWD/build/gpu-packages:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Streams share so many queues of the GPU, 8 if nothing is said: one that waits in a gate holds up those behind it.
export CUDA_DEVICE_MAX_CONNECTIONS=32
export RESULTS WHEELS LIBRARY PYTHON
ABSENT=77
# What is written in Python alone, such as streams of the host, is the same everywhere.
TESTS=(tests/gpu tests/words/test_device_header.py --fabric loopback --fabric ipc)
# Once more where the GPU says that it has no stream memory operations: then a kernel of ours waits and tells.
KERNEL_TESTS=(tests/gpu/test_streams.py -k kernel)

# Tests take the tests' own libcuda where there is no GPU. Here that would be a success of nothing.
need_gpu() {
    [ "$LIBRARY" != libcuda.so.1 ] || "$PYTHON" -c 'import sys
from benchmarks.gpu.cuda import Cuda
sys.exit(None if Cuda().gpus else "the driver finds no GPU")'
}

do_build() {
    set -e
    if [ -n "$WHEELS" ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target build/gpu-packages \
            "$WHEELS"/*.whl
    fi
    "$PYTHON" setup.py --quiet build_ext --inplace
    benchmarks/gpu/build.sh
}

do_test() {
    need_gpu && "$PYTHON" -m pytest -q -p no:cacheprovider "${TESTS[@]}" || return
    GPU_WITHOUT_WORDS=1 "$PYTHON" -m pytest -q -p no:cacheprovider "${KERNEL_TESTS[@]}"
}

# On the host it would do as well: it has to say that it did not.
do_example() {
    set -o pipefail
    need_gpu || return
    "$PYTHON" -c 'import importlib.util, sys
from benchmarks.gpu.cuda import Cuda
sys.exit(Cuda(sys.argv[1]).gpus < 2 or importlib.util.find_spec("cupy") is None)' "$LIBRARY" ||
        { echo "the example takes CuPy and two GPUs"; return "$ABSENT"; }
    "$PYTHON" examples/gpu_pipeline.py | grep "on two GPUs" && "$PYTHON" examples/gpu_pipeline.py --graph | grep "on two GPUs"
}

do_measure() {
    "$PYTHON" -m benchmarks.gpu.measure --results "$RESULTS" --library "$LIBRARY" "$@"
}

do_peers() {
    "$PYTHON" -m benchmarks.gpu.peers --results "$RESULTS" --library "$LIBRARY" "$@"
}

do_sanitize() {
    local tool
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) ||
        { echo "there is no compute-sanitizer on this machine"; return "$ABSENT"; }
    tool+=" --target-processes all --error-exitcode 9"
    # What the driver refuses is an error to it, so without those that ask for just that.
    need_gpu && $tool "$PYTHON" -m pytest -q -p no:cacheprovider "${TESTS[@]}" --ignore tests/gpu/test_virtual_driver.py \
        --deselect tests/gpu/test_virtual.py::test_other_gpus_chunks_are_no_peers_and_ours_where_we_have_access || return
    GPU_WITHOUT_WORDS=1 $tool "$PYTHON" -m pytest -q -p no:cacheprovider "${KERNEL_TESTS[@]}"
}

status=0 section=""
exec > >(tee "$RESULTS/gpu.log")
log=$!
trap '[ -z "$section" ] || kill "$section"; exit 130' INT TERM
date +%F >"$RESULTS/gpu-sections.txt"
for name in "${SECTIONS[@]}"; do
    case $name in
    measure) arguments=("${MEASURE[@]}" "${QUICK[@]}") ;;
    peers) arguments=("${QUICK[@]}") ;;
    *) arguments=() ;;
    esac
    echo "== $name, ${LIMITS[$name]} s at most"
    began=$SECONDS
    # In a process group of its own: what a section has started ends with it.
    timeout --kill-after=5 "${LIMITS[$name]}" \
        bash -c "$(declare -f need_gpu "do_$name"; declare -p TESTS KERNEL_TESTS ABSENT); do_$name \"\$@\"" "$name" \
        ${arguments[@]+"${arguments[@]}"} </dev/null 2>&1 &
    section=$!
    wait $section
    code=$?
    case $code in
    0) how="fine" ;;
    "$ABSENT") how="absent" ;;
    124 | 137) how="took too long"; status=1 ;;
    *) how="failed with $code"; status=1 ;;
    esac
    echo "$name: $how, $((SECONDS - began)) s" | tee -a "$RESULTS/gpu-sections.txt"
done
exec >&-
wait $log
exit $status
