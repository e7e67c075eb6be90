#!/usr/bin/env python3
"""Kills `bitsmith run` on the demo model at random moments and lets it go on: killed.py BITSMITH [--times N] [--seed S].

Each time one to three runs are killed with -9, and the one after them must end with the artifacts and the files of a run that nobody
disturbed: the same names, and nothing besides.
"""
import argparse
import hashlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

JOB = "run demo --to gguf:q4_k_m,mlx:4bit --method gptq --samples 2 --ctx 64 --eval-ctx 64 --limit 1 -q --json".split()


def call(bitsmith, work, out, cache, stop_after=None):
    """Whether the run came to its end; otherwise it was killed after so many seconds."""
    env = os.environ | {"XDG_CACHE_HOME": str(work / cache)}
    child = subprocess.Popen([bitsmith, *JOB, "--out", out], cwd=work, env=env, stdout=subprocess.DEVNULL)
    try:
        code = child.wait(stop_after)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        code = child.wait()
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"exit code {code}")
    return code == 0


def result(folder):
    """Names of all files, and the hashes of those that do not say when they were made."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        timed = path.suffix == ".json" or path.name in ("SHA256SUMS", "report.html", "report.md") or "figures" in name
        own = path.name.endswith((".gguf", ".safetensors")) or name.endswith("4bit/config.json")
        files[name] = hashlib.sha256(path.read_bytes()).hexdigest() if own or not timed else None
    return files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bitsmith", type=pathlib.Path)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    bitsmith, draw = args.bitsmith.resolve(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        start = time.monotonic()
        assert call(bitsmith, work, "whole", "cache-whole")
        seconds = time.monotonic() - start
        whole = result(work / "whole")
        assert sum(name.endswith(".gguf") for name in whole) == 2, whole
        kills = 0
        for i in range(args.times):
            out, cache = f"out{i}", f"cache{i}"
            for _ in range(draw.randint(1, 3)):
                kills += not call(bitsmith, work, out, cache, draw.uniform(0, seconds))
            assert call(bitsmith, work, out, cache)
            found = result(work / out)
            if found != whole:
                other = {n: (found.get(n), whole.get(n)) for n in found.keys() | whole.keys() if found.get(n, 0) != whole.get(n, 0)}
                sys.exit(f"the time number {i + 1} came out otherwise: {other}")
            subprocess.run(["rm", "-rf", work / out, work / cache], check=True)
    print(f"{args.times} times the same after {kills} kills; {len(whole)} files")


if __name__ == "__main__":
    main()
