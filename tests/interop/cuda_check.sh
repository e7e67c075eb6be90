#!/usr/bin/env bash
# Compiles bitsmith with CUDA support, in a target folder of its own. Needs a CUDA toolkit with nvcc on the PATH or under CUDA_HOME, and no
# GPU. Where there is one, builds and runs it too, and holds results on the device against the CPU's (device.py).
#
# CUDA_COMPUTE_CAP says for which GPU the kernels are compiled where none can be asked. cudarc knows toolkits up to 13.4; a newer one is
# used as an older one with CUDARC_CUDA_VERSION=13040.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -z "${CUDA_HOME:-}" ] || export PATH="$CUDA_HOME/bin:$PATH"
command -v nvcc >/dev/null || { echo "nvcc is missing: install a CUDA toolkit, or set CUDA_HOME" >&2; exit 1; }
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target/cuda}
gpu=$(nvidia-smi -L 2>/dev/null | head -1 || true)
[ -n "$gpu" ] || export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}

cargo check --locked --workspace --features bitsmith/cuda
if [ -z "$gpu" ]; then
  echo "compiled; there is no GPU to run it on"
  exit 0
fi
echo "$gpu"
cargo build --locked --release --workspace --features bitsmith/cuda
python3 tests/interop/device.py "$CARGO_TARGET_DIR/release/bitsmith" cuda
