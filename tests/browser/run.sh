#!/usr/bin/env bash
# Opens reports in headless Chromium: no errors, working choices, nothing that axe-core finds serious. Pages are given as arguments; without
# any, `bitsmith run` and `bitsmith map` each make one of the demo model. Needs node, npm and Chromium (CHROMIUM, or `chromium` on the path). Screenshots go to
# target/browser, for people to look at.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=target/browser
mkdir -p "$work"
cp tests/browser/package.json tests/browser/check.mjs "$work"
npm install --silent --no-audit --no-fund --prefix "$work"
pages=("$@")
if [ ${#pages[@]} -eq 0 ]; then
  cargo run --release -- run --to gguf:q4_k_m,gguf:q2_k,mlx:4bit --out "$work/demo"
  mkdir -p "$work/map"
  cp README.md "$work/map/readme.txt"
  cp docs/src/which.md "$work/map/which.txt"
  cargo run --release -- map demo --to gguf:q4_k,gguf:q3_k,mlx:4bit --limit 8 --data "$PWD/$work/map/readme.txt,$PWD/$work/map/which.txt" \
    -o "$work/map/map.json" --report "$work/map/report.html"
  pages=("$work/demo/report.html" "$work/map/report.html")
fi
export CHROMIUM="${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}"
node "$work/check.mjs" "$work" "${pages[@]}"
