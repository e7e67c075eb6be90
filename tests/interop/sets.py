#!/usr/bin/env python3
"""Splits a GGUF, loads the set in llama.cpp, and merges it again; with --llama-gguf-split also as that tool does.

    sets.py BITSMITH GGUF [--llama-gguf-split PROGRAM]

The set must give the same distributions as the file, merging must give back the file's bytes, and llama-gguf-split must cut and merge
to the same bytes. Exits 1 if anything differs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from clients import Bitsmith, LlamaCpp

SIZE = "2MB"  # llama-gguf-split refuses a first tensor that is larger


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("gguf", type=Path)
    args.add_argument("--llama-gguf-split")
    args = args.parse_args()
    bitsmith = Bitsmith(args.bitsmith)
    results = {}
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        made = bitsmith.json("convert", args.gguf, "--to", "gguf:keep", "--shard-size", SIZE, "-o", work / "ours.gguf")
        first = Path(made["artifacts"][0]["path"])
        parts = sorted(work.glob("ours-*.gguf"))
        results[f"{len(parts)} files"] = len(parts) > 2 and parts[0] == first
        bitsmith.json("convert", first, "--to", "gguf:keep", "-o", work / "merged.gguf")
        results["merged to the same bytes"] = (work / "merged.gguf").read_bytes() == args.gguf.read_bytes()
        tokens = [5, 6, 7, 300, 301]
        whole, split = LlamaCpp(args.gguf).logprobs(tokens), LlamaCpp(first).logprobs(tokens)
        results["the same distributions in llama.cpp"] = np.array_equal(whole, split)
        if args.llama_gguf_split:
            run = lambda *words: subprocess.run([args.llama_gguf_split, *words], check=True, capture_output=True)  # noqa: E731
            run("--split", "--split-max-size", SIZE.removesuffix("B"), args.gguf, work / "theirs")
            theirs = sorted(work.glob("theirs-*.gguf"))
            same = [a.read_bytes() == b.read_bytes() for a, b in zip(parts, theirs)]
            results["llama-gguf-split cuts to the same bytes"] = len(parts) == len(theirs) and all(same)
            run("--merge", first, work / "remerged.gguf")
            bitsmith.json("convert", work / "remerged.gguf", "--to", "gguf:keep", "-o", work / "again.gguf")
            results["llama-gguf-split merges our set"] = (work / "again.gguf").read_bytes() == args.gguf.read_bytes()
        else:
            print("skipped: LLAMA_GGUF_SPLIT does not name a llama-gguf-split")
    for what, ok in results.items():
        print(f"{'ok' if ok else 'FAILED'}: {what}")
    sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
