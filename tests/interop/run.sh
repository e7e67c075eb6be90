#!/usr/bin/env bash
# Makes artifacts of the demo model and of small random models of every architecture, and loads them in the real clients:
# llama.cpp, gguf-py and mlx-lm. Installs the clients from PyPI into a virtual environment under target/ (or uses the one that
# INTEROP_VENV names). Exits 1 if a check fails.
set -euo pipefail
cd "$(dirname "$0")/../.."
bitsmith=${BITSMITH:-target/release/bitsmith}
venv=${INTEROP_VENV:-target/interop-venv}
here=tests/interop
export PYTHONDONTWRITEBYTECODE=1
[ -x "$bitsmith" ] || { echo "$bitsmith is missing: cargo build --release" >&2; exit 1; }
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
# Versions are fixed because clients.py calls the library inside xllamacpp.
"$venv/bin/python" -c 'import xllamacpp, mlx_lm, gguf' 2>/dev/null ||
  "$venv/bin/pip" install -q 'xllamacpp==2026.10.11549' 'mlx[cpu]==0.32.4' 'mlx-lm==0.32.2' 'gguf==0.19.0'

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
passed=0 failed=0
# A check that hangs counts as failed.
check() {
  local script=$1
  shift
  printf '\n-- %s\n' "$script"
  if timeout 900 "$venv/bin/python" "$here/$script" "$bitsmith" "$@"; then passed=$((passed + 1)); else
    echo "FAILED: $script: exit code $?"
    failed=$((failed + 1))
  fi
}

"$bitsmith" quantize demo --method reference --to gguf:bf16 --to gguf:q4_0 --to gguf:q8_0 --to gguf:q6_k --to mlx:8bit -o "$out/" -q
"$bitsmith" quantize demo --samples 16 --to gguf:q4_k_m --to mlx:4bit -o "$out/best/" -q
"$bitsmith" quantize demo --samples 16 --method gptq --to gguf:q4_k_s --to mlx:4bit-g32 -o "$out/gptq/" -q
# Every mode, width, group size and recipe of MLX.
modes=(2bit 3bit-g128 4bit 5bit-g32 6bit 8bit mxfp4 mxfp8 nvfp4 mixed_2_6 mixed_3_4 mixed_3_6 mixed_4_6)
"$bitsmith" quantize demo --method rtn "${modes[@]/#/--to=mlx:}" -o "$out/modes/" -q
# Every block format of ggml.
types=(q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k_s q4_k_s q5_k_s q6_k iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s iq4_nl iq4_xs
  tq1_0 tq2_0 q1_0 q2_0 mxfp4 nvfp4)
"$bitsmith" quantize demo --method reference --calib builtin --samples 8 --pure "${types[@]/#/--to=gguf:}" -o "$out/types/" -q
gguf=("$out"/types/*.gguf)
[ ${#gguf[@]} -eq ${#types[@]} ] || { echo "not the GGUF files that were asked for: ${gguf[*]}" >&2; exit 1; }
mlx=("$out"/modes/*/)
[ ${#mlx[@]} -eq ${#modes[@]} ] || { echo "not the MLX folders that were asked for: ${mlx[*]}" >&2; exit 1; }
# Codes of other formats, kept.
"$bitsmith" quantize demo --method rtn --to=gptq:4bit-g64,awq:4bit-g64,compressed:nvfp4 -o "$out/packed/" -q
for format in gptq-4bit-g64 awq-4bit-g64 compressed-nvfp4; do
  "$bitsmith" convert "$out/packed/bitsmith-demo-$format" --to gguf:keep -o "$out/kept/$format.gguf" -q
done
"$bitsmith" convert "$out/packed/bitsmith-demo-awq-4bit-g64" --to mlx:keep -o "$out/kept/awq-mlx" -q
artifacts=("$out"/*.gguf "$out"/{best,gptq}/*.gguf "$out"/*-8bit "$out"/{best,gptq}/*-4bit*)
[ ${#artifacts[@]} -eq 9 ] || { echo "not the artifacts that were asked for: ${artifacts[*]}" >&2; exit 1; }

check check.py "${artifacts[@]}"
# The coarsest of these models amplify the rounding of activations.
check check.py "${gguf[@]}" --texts 2 --max-kl 2e-2
check check.py "${mlx[@]%/}" --texts 2
check check.py "$out"/kept/*.gguf "$out/kept/awq-mlx" --texts 2 --max-kl 2e-2
check metadata.py datasets/demo "${artifacts[@]}"
check perplexity.py datasets/text/evaluation/prose.txt --windows 12 "$out"/bitsmith-demo-{BF16,Q8_0}.gguf "$out"/best/*.gguf
check architectures.py datasets/demo
check folders.py datasets/demo
# A set of files that llama-gguf-split cuts and merges to the same bytes, and presets as llama-quantize has them: these tools are in no package.
check sets.py "$out/bitsmith-demo-BF16.gguf" ${LLAMA_GGUF_SPLIT:+--llama-gguf-split "$LLAMA_GGUF_SPLIT"}
if [ -n "${LLAMA_QUANTIZE:-}" ]; then check presets.py "$LLAMA_QUANTIZE" datasets/demo; else
  printf '\n-- presets.py\nskipped: LLAMA_QUANTIZE does not name a llama-quantize\n'
fi
# compressed-tensors needs torch, which is large: a virtual environment that has it may be named.
if [ -n "${SERVER_VENV:-}" ]; then
  "$bitsmith" quantize demo --method rtn --to=compressed:{int4,int4-g32-asym,int8,int8-g64,fp8,nvfp4} -o "$out/server/" -q
  venv=$SERVER_VENV check server.py datasets/demo "$out"/server/*/
else
  printf '\n-- server.py\nskipped: SERVER_VENV does not name an environment with torch, transformers, accelerate and compressed-tensors\n'
fi
check release.py
check killed.py --times 3
# A batch on a real Slurm takes minutes, and more where the machine is busy: on request.
if [ -n "${SLURM:-}" ]; then
  printf '\n-- slurm.sh\n'
  code=0
  timeout 900 "$here/slurm.sh" "$bitsmith" || code=$?
  case $code in
    0) passed=$((passed + 1)) ;;
    77) ;;
    *) echo "FAILED: slurm.sh: exit code $code"; failed=$((failed + 1)) ;;
  esac
else printf '\n-- slurm.sh\nskipped: SLURM is not set\n'; fi
# On Ray, and on object storage: a Python that has ray[default], one that has moto[server], and a program with the feature `s3`.
if [ -n "${RAY_PYTHON:-}" ]; then
  printf '\n-- ray.sh\n'
  if timeout 900 "$here/ray.sh" "$bitsmith" "$RAY_PYTHON"; then passed=$((passed + 1)); else echo "FAILED: ray.sh"; failed=$((failed + 1)); fi
else printf '\n-- ray.sh\nskipped: RAY_PYTHON does not name a Python with ray[default]\n'; fi
if [ -n "${MOTO_VENV:-}" ] && [ -n "${BITSMITH_S3:-}" ]; then
  bitsmith=$BITSMITH_S3 venv=$MOTO_VENV check object_store.py
else
  printf '\n-- object_store.py\nskipped: MOTO_VENV and BITSMITH_S3 do not name an environment with moto[server] and a program with the feature s3\n'
fi
check serve_load.py datasets/demo
# lm-evaluation-harness needs torch too.
if [ -n "${LM_EVAL_VENV:-}" ]; then
  venv=$LM_EVAL_VENV check lm_eval_parity.py datasets/demo datasets/text/evaluation/prose.txt
  # Records of real tasks are not ours to ship.
  [ -z "${TASK_DATA:-}" ] || venv=$LM_EVAL_VENV check tasks_parity.py datasets/demo "$TASK_DATA" --limit 20
else
  printf '\n-- lm_eval_parity.py\nskipped: LM_EVAL_VENV does not name an environment with lm-eval[api], torch and transformers\n'
fi
# Every architecture as transformers has it, which needs torch and, beside it, the clients above.
# A source tree of llama.cpp has a converter to compare with, and a folder with mlx-vlm its loader.
if [ -n "${TRANSFORMERS_VENV:-}" ]; then
  venv=$TRANSFORMERS_VENV check transformers_models.py datasets/demo
  venv=$TRANSFORMERS_VENV check vision_models.py datasets/demo ${LLAMA_CPP:+--llama-cpp "$LLAMA_CPP"} ${MLX_VLM:+--mlx-vlm "$MLX_VLM"}
  venv=$TRANSFORMERS_VENV check mtp_models.py datasets/demo ${LLAMA_CPP:+--llama-cpp "$LLAMA_CPP"}
else
  printf '\n-- transformers_models.py, vision_models.py, mtp_models.py\nskipped: TRANSFORMERS_VENV does not name an environment with torch, transformers and the clients above\n'
fi
# Real tokenizers and llama.cpp's test vectors, which are too large to be part of this project.
if [ -n "${TOKENIZERS:-}" ]; then
  "$venv/bin/python" -c 'import tokenizers' 2>/dev/null || "$venv/bin/pip" install -q tokenizers
  check tokenizers_exact.py "$TOKENIZERS"
else printf '\n-- tokenizers_exact.py\nskipped: TOKENIZERS does not name a folder of tokenizers\n'; fi
printf '\n%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
