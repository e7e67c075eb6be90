#!/usr/bin/env bash
# A batch on a real Ray of this machine, a worker of which is killed during the run: ray.sh BITSMITH PYTHON, with a Python that has
# ray[default]. Artifacts must be those of a local run. Takes 2 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/../.."
bitsmith=$(realpath "$1")
python=$(realpath -s "$2")
ray=$(dirname "$python")/ray
d=$(mktemp -d)
export RAY_DISABLE_IMPORT_WARNING=1 XDG_CACHE_HOME="$d/cache" RAY_TMPDIR="$d/session"
descendants() {
  for child in $(pgrep -P "$1" || true); do
    echo "$child"
    descendants "$child"
  done
}
finish() {
  # Not `ray stop`, which ends every Ray of this machine. Agents and workers have other names, and are children of those with ours.
  pids=$(for pid in $(pgrep -f -- "$d/session" || true); do echo "$pid"; descendants "$pid"; done)
  for pid in $pids; do kill -9 "$pid" 2> /dev/null || true; done
  for _ in 1 2 3 4 5; do rm -rf "$d" 2> /dev/null && return; sleep 1; done
}
trap finish EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
dashboard=$(free_port)
"$ray" start --head --num-cpus=2 --node-ip-address=127.0.0.1 --port="$(free_port)" --min-worker-port=20000 --max-worker-port=20100 \
  --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --object-store-memory=100000000 --temp-dir="$d/session" \
  --disable-usage-stats > "$d/ray.log" 2>&1 || { cat "$d/ray.log"; exit 1; }
cat > "$d/recipe.toml" << 'RECIPE'
models = ["demo"]
to = ["gguf:q4_k_m", "gguf:q8_0", "mlx:4bit"]
method = "reference"
calib = "builtin"
samples = 8
ctx = 128
eval-ctx = 128
limit = 4
RECIPE
cd "$d"
"$bitsmith" batch recipe.toml --out local -q --json > local.json
"$bitsmith" batch recipe.toml --out ray -q --json --engine ray --ray "http://127.0.0.1:$dashboard" --ray-python "$python" --wait > ray.json &
batch=$!
killed=
for _ in $(seq 1200); do
  kill -0 "$batch" 2> /dev/null || break
  # A worker is the parent of our process.
  if [ -z "$killed" ]; then
    for task in $(pgrep -f "^$bitsmith .*task run .*--store $d/ray/" || true); do
      worker=$(ps -o ppid= -p "$task" | tr -d ' ')
      if [ -n "$worker" ] && grep -q ray:: "/proc/$worker/cmdline" 2> /dev/null; then
        kill -9 "$worker" "$task" 2> /dev/null && killed=$worker
        break
      fi
    done
  fi
  sleep 0.1
done
wait "$batch" || { echo "the batch ended with exit code $?"; cat ray.json; exit 1; }
[ -n "$killed" ] || { echo "no worker was killed"; exit 1; }
python3 - local.json ray.json << 'PYTHON'
import json, sys
local, ray = (json.load(open(path)) for path in sys.argv[1:])
hashes = lambda r: {(a["model"], a["target"]): a["sha256"] for a in r["artifacts"]}
assert len(hashes(local)) == 3 and hashes(local) == hashes(ray), (hashes(local), hashes(ray))
print(f"3 artifacts are the same on Ray, though a worker was killed; {ray['nodes']['done']} nodes")
PYTHON
