#!/usr/bin/env python3
"""Whole conversions side by side with the peers, in one run: CPU seconds, wall seconds and peak memory, medians of `--repeat` runs.

    convert.py CHECKPOINT --llama-cpp SOURCE --llama-quantize BINARY --python PYTHON [--mlx-python PYTHON] [--repeat 3]

CHECKPOINT is a folder of `make_checkpoint.py` with a tokenizer that llama.cpp knows. PYTHON runs llama.cpp's convert_hf_to_gguf.py (torch,
transformers, gguf), the other one mlx-lm. Both sides get the same number of threads. Work goes to a temporary folder beside CHECKPOINT.
"""
import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(command, env=None):
    """CPU seconds, wall seconds and peak RSS in MiB of a command."""
    start = time.monotonic()
    with open(os.devnull, "w") as null, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([str(c) for c in command], stdout=null, stderr=errors, env={**os.environ, **(env or {})})
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            errors.seek(0)
            raise SystemExit(f"{command}: status {status}\n{errors.read().decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - start, usage.ru_maxrss / 1024


def steps(commands, clean):
    """Several commands one after the other: sums, and the largest peak."""
    clean()
    costs = [run(*command) for command in commands]
    return sum(c[0] for c in costs), sum(c[1] for c in costs), max(c[2] for c in costs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--llama-cpp", type=pathlib.Path)
    parser.add_argument("--llama-quantize", type=pathlib.Path)
    parser.add_argument("--python")
    parser.add_argument("--mlx-python")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    bitsmith = [ROOT / "target/release/bitsmith", "-q", "--threads", args.threads]
    source = args.checkpoint.resolve()
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        work = pathlib.Path(folder)

        def clean(*keep):
            for path in work.iterdir():
                if path.name not in keep:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

        jobs = []
        if args.llama_quantize:
            ours = lambda preset: [(bitsmith + ["convert", source, "--to", f"gguf:{preset}", "-o", work / "ours.gguf"],)]
            f16 = [(bitsmith + ["convert", source, "--to", "gguf:bf16", "-o", work / "dense.gguf"],)]
            theirs = lambda preset: [([args.llama_quantize, work / "dense.gguf", work / "peer.gguf", preset, args.threads],)]
            for preset in ("q4_k_m", "q4_0", "q8_0"):
                jobs.append((f"gguf:{preset} from safetensors", "bitsmith", ours(preset), clean))
                jobs.append((f"gguf:{preset} from a BF16 GGUF", "llama-quantize", theirs(preset), lambda: clean("dense.gguf") or run(f16[0][0])))
            if args.llama_cpp and args.python:
                convert = [args.python, args.llama_cpp / "convert_hf_to_gguf.py", source, "--outtype", "bf16", "--outfile", work / "dense.gguf"]
                env = {"OMP_NUM_THREADS": str(args.threads), "NO_LOCAL_GGUF": ""}
                jobs.append(("gguf:q4_k_m from safetensors", "convert_hf_to_gguf.py, llama-quantize", [(convert, env), *theirs("q4_k_m")], clean))
        if args.mlx_python:
            for mode, flags in {
                "4bit": ["--q-bits", "4"], "3bit": ["--q-bits", "3"], "8bit": ["--q-bits", "8"],
                "mxfp4": ["--q-mode", "mxfp4"], "mxfp8": ["--q-mode", "mxfp8"], "nvfp4": ["--q-mode", "nvfp4"],
            }.items():
                ours = bitsmith + ["convert", source, "--to", f"mlx:{mode}", "-o", work / "ours"]
                theirs = [args.mlx_python, "-m", "mlx_lm", "convert", "--hf-path", source, "--mlx-path", work / "peer", "-q", *flags]
                jobs.append((f"mlx:{mode}", "bitsmith", [(ours,)], clean))
                jobs.append((f"mlx:{mode}", "mlx_lm convert", [(theirs,)], clean))
        print("| target | tool | CPU s | wall s | peak MiB |\n|---|---|---|---|---|")
        for target, tool, commands, prepare in jobs:
            costs = [steps(commands, prepare) for _ in range(args.repeat)]
            cpu, wall, peak = (statistics.median(c[i] for c in costs) for i in range(3))
            print(f"| {target} | {tool} | {cpu:.1f} | {wall:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
