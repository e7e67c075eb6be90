#!/usr/bin/env bash
# Makes artifacts of the demo model and loads them in the real clients: llama.cpp and mlx-lm. Installs the clients from PyPI
# into a virtual environment under target/ (or uses the one that INTEROP_VENV names).
set -euo pipefail
cd "$(dirname "$0")/../.."
bitsmith=${BITSMITH:-target/release/bitsmith}
venv=${INTEROP_VENV:-target/interop-venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import xllamacpp, mlx_lm' 2>/dev/null || "$venv/bin/pip" install -q xllamacpp 'mlx[cpu]' mlx-lm

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
passed=0
check() { "$venv/bin/python" tests/interop/check.py "$bitsmith" "$@" && passed=$((passed + 1)); }

"$bitsmith" quantize demo --method reference --to gguf:bf16 --to gguf:q4_0 --to gguf:q8_0 --to gguf:q6_k --to mlx:8bit -o "$out/"
"$bitsmith" quantize demo --samples 16 --to gguf:q4_k_m --to mlx:4bit -o "$out/gptq/"
"$bitsmith" quantize demo --samples 16 --method awq+gptq --to gguf:q4_k_s --to mlx:4bit-g32 -o "$out/awq/"
for artifact in "$out"/*.gguf "$out"/*/*.gguf "$out"/*-8bit "$out"/*/*-4bit*; do
  check "$artifact"
done
echo "$passed passed, 0 failed"
