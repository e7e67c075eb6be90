#!/usr/bin/env bash
# CPU seconds and peak memory of making one target with each method: encode.sh MODEL CALIBRATION_TEXT [SAMPLES]
set -euo pipefail
bitsmith=${BITSMITH:-target/release/bitsmith}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
echo "| target | method | CPU s | wall s | peak MiB |"
echo "|---|---|---|---|---|"
for target in gguf:q4_0 gguf:q4_k_m gguf:q6_k gguf:q8_0 mlx:4bit; do
  for method in rtn reference gptq awq+gptq; do
    rm -rf "$out/a"
    case $method in rtn) calib=() ;; *) calib=(--calib "$2" --samples "${3:-60}") ;; esac
    # bash's TIMEFORMAT gives user and system time of the child.
    TIMEFORMAT='%U %S %R'
    { time "$bitsmith" -q quantize "$1" --to "$target" --method "$method" "${calib[@]}" -o "$out/a/" --json >"$out/json" 2>/dev/null; } 2>"$out/time"
    peak=$(python3 -c 'import json,sys; print(round(json.load(open(sys.argv[1]))["artifacts"][0]["peak_rss_bytes"] / 2**20))' "$out/json")
    awk -v t="$target" -v m="$method" -v p="$peak" '{ printf "| %s | %s | %.1f | %.1f | %s |\n", t, m, $1 + $2, $3, p }' "$out/time"
  done
done
