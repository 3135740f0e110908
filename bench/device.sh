#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: compile the kernels for it, check both forms of each against its formula, and time them
# beside the machine's ceilings and torch. Under nine minutes; the table comes last, all numbers go to $OUT/kernels.json.
#
#     bench/device.sh [--only 'attention.*'] [--minutes 7.5]         further arguments go to widefield_bench.kernels
#     bench/device.sh --decode [--minutes 8]       checks and times decoding instead, beside diffusers: $OUT/decode.json
#     bench/device.sh --rehearse [--decode]        the same steps on a CPU, small, to see that they run: no GPU is asked
#
# --decode needs diffusers and onnx too, and takes what else is there: cupy, tensorrt, onnxruntime-gpu.
# Needs python3 (or $PYTHON) with torch for CUDA, triton and numpy. Nothing is installed, no setting is changed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
export OUT=${OUT:-$PWD/build/device}
export PYTHONPATH=kernels:runtime:export:bench PYTHONUNBUFFERED=1
export TRITON_DEFAULT_FP_FUSION=1  # as Triton has always done, and as the kernels are compiled
unset TRITON_INTERPRET
mkdir -p "$OUT"

where=() rehearse=
if [[ ${1:-} == --rehearse ]]; then
    shift
    rehearse=1 where=(--device cpu --quick)
fi

# Whether the modules are there, and a GPU where one is wanted.
require() {
    local asks="import ${1// /, }, sys; sys.exit(not (${#rehearse} or torch.cuda.is_available()))"
    if ! "$python" -c "$asks"; then
        echo "error: no GPU that torch can use, or one of $1 is missing; see the line above" >&2
        exit 1
    fi
    [[ -n $rehearse ]] || nvidia-smi --query-gpu=name,driver_version --format=csv,noheader || true
}

if [[ ${1:-} == --decode ]]; then
    shift
    require "torch diffusers onnx"
    "$python" -m widefield.cli doctor
    exec "$python" -m widefield_bench.gpu_decode --out "$OUT" "${where[@]}" "$@" 2> >(tee "$OUT/decode.log" >&2)
fi

require "torch triton"
if [[ -n $rehearse ]]; then
    "$python" -m widefield_kernels.jit.build -o "$OUT/compiled" --only 'noise.*' --table 2>&1 | tee "$OUT/build.log"
else
    capability=$("$python" - <<'PYTHON'
import torch
from widefield_kernels.jit.variant import CAPABILITIES
major, minor = torch.cuda.get_device_capability()
print(max((c for c in CAPABILITIES if c // 10 == major and c % 10 <= minor), default=10 * major + minor))
PYTHON
    )
    "$python" -m widefield_kernels.jit.build --capabilities "$capability" --table 2>&1 | tee "$OUT/build.log"
fi
exec "$python" -m widefield_bench.kernels --out "$OUT" "${where[@]}" "$@" 2> >(tee "$OUT/run.log" >&2)
