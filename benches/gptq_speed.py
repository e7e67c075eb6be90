#!/usr/bin/env python3
"""Seconds and peak memory of GPTQ on one decoder layer of a 7B shape (4096 and 11008 channels), beside GPTQ in PyTorch.

    benches/gptq_speed.py CHECKPOINT [--torch PYTHON] [--gptqmodel PYTHON --text FILE] [--threads 2] [--samples 8]
                          [--targets gptq:4bit-g128,gguf:q4_k_m]

CHECKPOINT is made by `make_checkpoint.py CHECKPOINT 7b --layers 1`. This project's numbers are those of the whole command: calibration,
embedding and output matrix included (`--pure` is not given, so GPTQ targets leave those two alone). PyTorch's are for the seven matrices'
solving alone, given H: the published algorithm (factor of the inverse once per input, blocks of 128 columns, symmetric 4-bit groups of
128), in a process of its own with the Python that `--torch` names. GPTQModel's are those of its whole run from Python, calibrated on as many
windows of FILE, with the Python that `--gptqmodel` names.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time

HIDDEN, FFN = 4096, 11008
# Matrices by input: the width of the input, and the outputs that share it.
INPUTS = [(HIDDEN, [HIDDEN, HIDDEN, HIDDEN]), (HIDDEN, [HIDDEN]), (HIDDEN, [FFN, FFN]), (FFN, [HIDDEN])]


def torch_seconds(threads):
    """One layer with PyTorch, in this process."""
    import torch

    torch.set_num_threads(threads)
    total = 0.0
    for width, outputs in INPUTS:
        x = torch.randn(2 * width, width)
        h = x.T @ x / len(x)
        del x
        weights = [torch.randn(out, width) / width**0.5 for out in outputs]
        start = time.time()
        h.diagonal().add_(0.01 * h.diagonal().mean())
        u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
        for w in weights:
            for lo in range(0, width, 128):
                hi = lo + 128
                block, errors = w[:, lo:hi].clone(), torch.zeros(len(w), 128)
                corner = u[lo:hi, lo:hi]
                scale = block.abs().amax(1) / 7
                for i in range(128):
                    column = block[:, i]
                    q = scale * (column / scale).round().clamp(-8, 7)
                    errors[:, i] = (column - q) / corner[i, i]
                    block[:, i:] -= errors[:, i : i + 1] @ corner[i : i + 1, i:]
                    w[:, lo + i] = q
                w[:, hi:] -= errors @ u[lo:hi, hi:]
        total += time.time() - start
    return total


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("checkpoint")
    a.add_argument("--bitsmith", default="target/release/bitsmith")
    a.add_argument("--torch")
    a.add_argument("--gptqmodel")
    a.add_argument("--text")
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--samples", default="8")
    a.add_argument("--method", default="gptq")
    a.add_argument("--targets", default="gptq:4bit-g128,gguf:q4_k_m")
    a = a.parse_args()
    if a.checkpoint == "torch":
        return print(torch_seconds(a.threads))
    print("| | seconds | peak MiB |")
    print("|---|---|---|")
    if a.gptqmodel:
        out = tempfile.mkdtemp(dir=os.path.dirname(os.path.abspath(a.checkpoint)))
        peer = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers", "peer.py")
        words = ["--group", "128", "--calib", os.path.abspath(a.text), "--samples", a.samples]
        command = [a.gptqmodel, peer, "gptqmodel", os.path.abspath(a.checkpoint), f"{out}/a", *words]
        start = time.time()
        # It leaves logs where it runs.
        subprocess.run(command, cwd=out, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        seconds, peak = time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        shutil.rmtree(out)
        print(f"| GPTQModel, whole run, 4 bits in groups of 128 | {seconds:.0f} | {peak / 2**10:.0f} |", flush=True)
    for target in a.targets.split(","):
        out = tempfile.mkdtemp(dir=os.path.dirname(os.path.abspath(a.checkpoint)))
        command = [a.bitsmith, "quantize", a.checkpoint, "--to", target, "--method", a.method, "--calib", "builtin", "--samples", a.samples]
        command += ["--threads", str(a.threads), "-o", f"{out}/a", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE)
        shutil.rmtree(out)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
        artifact = json.loads(done.stdout)["artifacts"][0]
        print(f"| {target}, {a.method} | {artifact['seconds']:.0f} | {artifact['peak_rss_bytes'] / 2**20:.0f} |", flush=True)
    if a.torch:
        seconds = subprocess.run([a.torch, __file__, "torch", "--threads", str(a.threads)], stdout=subprocess.PIPE, check=True).stdout
        print(f"| PyTorch, solving alone | {float(seconds):.0f} | |")


main()
