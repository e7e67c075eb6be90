#!/usr/bin/env python3
"""A batch on object storage, as moto serves S3's protocol: object_store.py BITSMITH, of a build with the feature `s3`.

The same artifacts as on a file system, of one process that is killed and others that go on; nothing is done twice. Needs moto[server].
"""
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

RECIPE = """
models = ["demo"]
to = ["gguf:q4_k_m", "mlx:4bit"]
method = "reference"
calib = "builtin"
samples = 8
ctx = 128
eval-ctx = 128
limit = 4
"""


def main():
    bitsmith = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            check(bitsmith, pathlib.Path(folder), f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            server.wait()


def check(bitsmith, work, endpoint):
    env = os.environ | {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1", "AWS_ENDPOINT": endpoint,
                        "AWS_ALLOW_HTTP": "true", "XDG_CACHE_HOME": str(work / "cache"), "TMPDIR": str(work)}
    for _ in range(200):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"), timeout=5)
            break
        except OSError:
            time.sleep(0.1)
    (work / "r.toml").write_text(RECIPE)

    def batch(*words):
        done = subprocess.run([bitsmith, "--json", "-q", "batch", "r.toml", *words], cwd=work, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{words}: {done.returncode} {done.stdout} {done.stderr}")
        return json.loads(done.stdout)

    local = batch("--out", "local")
    store = ["--store", "s3://bucket/some/prefix"]
    child = subprocess.Popen([bitsmith, "-q", "batch", "r.toml", "--out", "remote", *store], cwd=work, env=env)
    time.sleep(1.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    status = batch("--out", "remote", *store, "--status")
    before = dict(status["states"])["done"]
    remote = batch("--out", "remote", *store)
    # A task that was under way when its batch was killed may have ended just after.
    assert remote["nodes"]["there"] >= before, (status, remote["nodes"])
    hashes = lambda r: {a["target"]: a["sha256"] for a in r["artifacts"]}
    assert len(hashes(local)) == 2 and hashes(local) == hashes(remote), (hashes(local), hashes(remote))
    again = batch("--out", "again", *store)
    assert again["nodes"]["done"] == 0, again["nodes"]
    assert (work / "again" / "bitsmith-demo" / "bitsmith-demo-Q4_K_M.gguf").stat().st_size > 0
    # Its pods find the plan there.
    fresh = ["--store", "s3://bucket/other", "--emit", "k8s"]
    done = subprocess.run([bitsmith, "batch", "r.toml", *fresh], cwd=work, env=env, capture_output=True)
    assert done.returncode == 0 and b"completions: 1\n" in done.stdout and b"s3://bucket/other" in done.stdout, done
    wrong = subprocess.run([bitsmith, "batch", "r.toml", "--store", "s3://nowhere/x", "-q"], cwd=work, env=env, capture_output=True)
    assert wrong.returncode == 66, wrong
    print(f"2 artifacts are the same on S3; {before} nodes were done when the batch was killed")


if __name__ == "__main__":
    main()
