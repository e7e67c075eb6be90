#!/usr/bin/env python3
"""Encoders of MLX's formats side by side with `mx.quantize` on a CPU: same bytes out, and CPU time.

    python3 benches/quantize_mlx.py [--types mlx-4bit-g64,mlx-mxfp8] [--rounds 5]

`--rounds` times each side in turn encodes 512 x 4096 normal weights in BF16; the table has the medians of CPU nanoseconds per
weight. Bytes are compared on those weights. Needs numpy and mlx; this project's side is the bench `encode` of the crate `formats`,
which is built first.
"""
import argparse
import pathlib
import statistics
import sys
import tempfile
import time

import mlx.core as mx
import numpy as np

from quantize import COLS, ROWS, Ours

# By name: mode, bits, group.
TYPES = {f"mlx-{bits}bit-g{group}": ("affine", bits, group) for group in (32, 64, 128) for bits in (2, 3, 4, 5, 6, 8)}
TYPES |= {"mlx-mxfp4": ("mxfp4", 4, 32), "mlx-mxfp8": ("mxfp8", 8, 32), "mlx-nvfp4": ("nvfp4", 4, 16)}


def encode(name, weights):
    """`mx.quantize`'s result as this project lays it out (by group: codes, scale, bias), and its CPU seconds."""
    mode, bits, group = TYPES[name]
    start = time.process_time()
    planes = mx.quantize(weights, group_size=group, bits=bits, mode=mode)
    mx.eval(*planes)
    seconds = time.process_time() - start
    groups = weights.size // group
    views = [np.array(plane.view(mx.uint8)).reshape(groups, -1) for plane in planes]
    return np.concatenate(views, axis=1).reshape(-1), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", help="only these, comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions that are timed")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    weights = mx.array(np.random.default_rng(1).standard_normal((ROWS, COLS)).astype(np.float32) * np.float32(0.02)).astype(mx.bfloat16)
    mx.eval(weights)
    plain = np.array(weights.astype(mx.float32))
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(pathlib.Path(folder))
        print("| type | mx.quantize ns/weight | bitsmith ns/weight | ratio |")
        print("|---|---|---|---|")
        for name in args.types.split(",") if args.types else TYPES:
            theirs, mine = [], []
            for _ in range(args.rounds):
                expected, seconds = encode(name, weights)
                theirs.append(seconds)
                got, seconds, _ = ours.encode([name], plain, None)[name]
                mine.append(seconds)
            theirs, mine = (statistics.median(t) * 1e9 / plain.size for t in (theirs, mine))
            print(f"| {name} | {theirs:.2f} | {mine:.2f} | {theirs / mine:.1f} |", flush=True)
            if not np.array_equal(expected, got):
                failures += 1
                print(f"{name}: bytes differ", file=sys.stderr)
    print(f"\nbytes: {'the same everywhere' if not failures else f'{failures} types differ'}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
