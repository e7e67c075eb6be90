#!/usr/bin/env bash
# A batch on a real Slurm: Debian's slurm-wlm and munge, private to this script and without privileges. During the run a node is set
# down and the controller is killed with -9; artifacts must be those of a local run, and nothing may be done twice.
# Installs the packages where apt-get may do so; exit code 77 where Slurm cannot be had.
set -euo pipefail
cd "$(dirname "$0")/../.."
bitsmith=$(realpath "${1:-target/release/bitsmith}")
have() { command -v "$1" > /dev/null; }
if ! have slurmctld || ! have munged; then
  { apt-get install -y -qq --no-install-recommends slurm-wlm munge || { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; }; } > /dev/null 2>&1 ||
    { echo "skipped: slurm-wlm and munge are not installed, and cannot be"; exit 77; }
fi

d=$(mktemp -d)
batch=
finish() {
  if [ -n "$batch" ]; then kill "$batch" 2> /dev/null || true; fi
  as scancel --me 2> /dev/null || true
  for pid in "$d"/slurmd.pid "$d"/slurmctld.pid "$d"/munge/munged.pid; do
    if [ -s "$pid" ]; then kill "$(cat "$pid")" 2> /dev/null || true; fi
  done
  for pid in $(pgrep slurmstepd || true); do
    if tr '\0' '\n' < "/proc/$pid/environ" 2> /dev/null | grep -qx "SLURM_CONF=$d/slurm.conf"; then kill -9 "$pid" 2> /dev/null || true; fi
  done
  # Tasks that were just cancelled may still write.
  for _ in 1 2 3 4 5; do rm -rf "$d" 2> /dev/null && return; sleep 1; done
}
trap finish EXIT
# Everything runs as one user who has no privileges.
mkdir "$d/munge" "$d/state" "$d/spool" "$d/work"
run=()
if [ "$(id -u)" -eq 0 ]; then
  # Another user must reach the program and this folder.
  cp "$bitsmith" "$d/bitsmith" && bitsmith=$d/bitsmith
  chown -R nobody "$d"
  run=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
as() { "${run[@]}" env HOME="$d" XDG_CACHE_HOME="$d/cache" SLURM_CONF="$d/slurm.conf" "$@"; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
user=$(as id -un)
cpus=$(nproc)
cat > "$d/slurm.conf" << CONF
ClusterName=test
SlurmctldHost=vm(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$d/munge/munge.sock
StateSaveLocation=$d/state
SlurmdSpoolDir=$d/spool
SlurmctldPidFile=$d/slurmctld.pid
SlurmdPidFile=$d/slurmd.pid
SlurmctldLogFile=$d/slurmctld.log
SlurmdLogFile=$d/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
BatchStartTimeout=1
MaxArraySize=10001
SchedulerParameters=sched_interval=1,sched_min_interval=10000,batch_sched_delay=0,bf_interval=1,default_queue_depth=10000
NodeName=vm NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=16000
PartitionName=main Nodes=ALL Default=YES
CONF
chmod 644 "$d/slurm.conf"
as dd if=/dev/urandom of="$d/munge/munge.key" bs=1 count=1024 status=none
as chmod 400 "$d/munge/munge.key"
as chmod 700 "$d/munge"
as munged --force --key-file="$d/munge/munge.key" --socket="$d/munge/munge.sock" --pid-file="$d/munge/munged.pid" \
  --log-file="$d/munge/munged.log" --seed-file="$d/munge/munged.seed"
controller() { as slurmctld "$@" -f "$d/slurm.conf"; }
controller -c
as slurmd -c -N vm -f "$d/slurm.conf"
for _ in $(seq 100); do
  [ "$(as sinfo -h -o %T 2> /dev/null)" = idle ] && break
  sleep 0.1
done
[ "$(as sinfo -h -o %T 2> /dev/null)" = idle ] || { cat "$d"/slurm*.log; echo "skipped: Slurm does not start here"; exit 77; }

# Three models, four targets: the demo, and copies of it with other weights.
cp -r datasets/demo "$d/work/one"
for name in two three; do
  cp -r datasets/demo "$d/work/$name"
  python3 - "$d/work/$name/model.safetensors" "$name" << 'PYTHON'
import struct, sys
path, seed = sys.argv[1], len(sys.argv[2])
data = bytearray(open(path, "rb").read())
# The lowest bits of some weights, of two bytes each.
for at in range(8 + struct.unpack("<Q", data[:8])[0], len(data), 2 * seed * 100):
    data[at] ^= 1
open(path, "wb").write(data)
PYTHON
done
[ ${#run[@]} -eq 0 ] || chown -R nobody "$d/work"
cat > "$d/work/recipe.toml" << 'RECIPE'
models = ["one", "two", "three"]
to = ["gguf:q4_k_m", "gguf:q8_0", "mlx:4bit", "gguf:q3_k_m"]
method = "reference"
calib = "builtin"
samples = 8
ctx = 128
eval-ctx = 128
limit = 4
RECIPE
cd "$d/work"
as "$bitsmith" batch recipe.toml --out local -q --json > "$d/local.json"
as "$bitsmith" batch recipe.toml --out slurm -q --json --engine slurm --pack 0 --wait > "$d/slurm.json" 2> "$d/slurm.err" &
batch=$!

records() { find slurm/.store/records -name '*.json' 2> /dev/null | wc -l; }
at_least() {
  for _ in $(seq 1200); do
    [ "$(records)" -ge "$1" ] && return
    kill -0 "$batch" 2> /dev/null || return 0
    sleep 0.1
  done
  echo "no $1 nodes were done in time"
  cat "$d/slurm.err"
  as squeue -r
  exit 1
}
at_least 4
find slurm/.store/records -name '*.json' -printf '%p %T@\n' | sort > "$d/early"
echo "after $(records) nodes: node down"
as scontrol update nodename=vm state=down reason=test
sleep 1
# It may have come back by itself, as it registers.
as scontrol update nodename=vm state=resume 2> /dev/null || true
# Requeued jobs are held for two minutes, which a test need not wait.
release() {
  as squeue -h -r -t PD -o '%A %r' | while read -r id reason; do
    if [ "$reason" = BeginTime ]; then as scontrol update JobId="$id" StartTime=now || true; fi
  done
}
release
at_least 12
echo "after $(records) nodes: the controller is killed"
kill -9 "$(cat "$d/slurmctld.pid")"
sleep 1
controller
# Jobs that ended in the second before are running as far as it knows, until the node registers and has no such jobs.
registered=0
for i in $(seq 600); do
  kill -0 "$batch" 2> /dev/null || break
  if [ $((i % 30)) -eq 0 ] && [ $registered -lt 3 ]; then
    registered=$((registered + 1))
    kill "$(cat "$d/slurmd.pid")"
    sleep 1
    as slurmd -N vm -f "$d/slurm.conf"
  fi
  release 2> /dev/null || true
  sleep 0.5
done
code=0
wait "$batch" || code=$?
[ "$code" -eq 0 ] || { echo "the batch ended with exit code $code"; cat "$d/slurm.err"; tail -n 5 slurm/.store/work/slurm-*.log || true; exit 1; }

# What was done before the node went down was not done again.
while read -r path time; do
  [ "$(find "$path" -printf '%T@')" = "$time" ] || { echo "$path was made twice"; exit 1; }
done < "$d/early"
python3 - "$d/local.json" "$d/slurm.json" << 'PYTHON'
import json, sys
local, slurm = (json.load(open(path)) for path in sys.argv[1:])
hashes = lambda r: {(a["model"], a["target"]): a["sha256"] for a in r["artifacts"]}
assert len(hashes(local)) == 12, hashes(local)
assert hashes(local) == hashes(slurm), (hashes(local), hashes(slurm))
print(f"12 artifacts are the same; {slurm['nodes']['done']} nodes on Slurm")
PYTHON
left=$(as "$bitsmith" batch recipe.toml --out slurm --status --engine slurm --json)
python3 -c 'import json, sys; s = json.loads(sys.argv[1]); assert s["cpu_seconds_left"] == 0 and not s["queue"], s' "$left"
