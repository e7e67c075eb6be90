#!/usr/bin/env python3
"""Encoders side by side with ggml's: same bytes out, and CPU time on one thread.

    python3 benches/quantize.py [LIBGGML_BASE] [--types q4_0,q6_k] [--rounds 5] [--kinds normal,laplace,...]

LIBGGML_BASE (or GGML_BASE in the environment) is the path of libggml-base.so; README.md says how to build it. The project's own
encoders run through the bench `encode` of the crate `formats`, which is built first. Needs numpy.

For every type, without and with importance: `--rounds` times each side in turn encodes 512 x 4096 normal weights; the table has
the medians of CPU nanoseconds per weight. Then bytes are compared, on those weights and on one matrix of each other kind:
Laplace, with outliers, with zeros (of both signs), constant blocks, all negative, tiny, subnormal, of mixed magnitude. Any difference fails the run, but for
one that is meant: where a scale overflows f16, ggml stores infinity, and this project the largest finite number and codes to go with it.
"""
import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS, COLS = 512, 4096
# ggml's type ids, and where the f16 scales are in a block: (block bytes, offsets).
TYPES = {
    "f16": (1, None), "bf16": (30, None),
    "q4_0": (2, (18, [0])), "q4_1": (3, (20, [0, 2])), "q5_0": (6, (22, [0])), "q5_1": (7, (24, [0, 2])), "q8_0": (8, (34, [0])),
    "q2_k": (10, (84, [80, 82])), "q3_k": (11, (110, [108])), "q4_k": (12, (144, [0, 2])), "q5_k": (13, (176, [0, 2])),
    "q6_k": (14, (210, [208])),
    "iq2_xxs": (16, (66, [0])), "iq2_xs": (17, (74, [0])), "iq3_xxs": (18, (98, [0])), "iq1_s": (19, (50, [0])),
    "iq4_nl": (20, (18, [0])), "iq3_s": (21, (110, [0])), "iq2_s": (22, (82, [0])), "iq4_xs": (23, (136, [0])),
    "iq1_m": (29, (56, [])),
    "tq1_0": (34, (54, [52])), "tq2_0": (35, (66, [64])), "mxfp4": (39, (17, [])), "nvfp4": (40, (36, [])),
    "q1_0": (41, (18, [0])), "q2_0": (42, (18, [0])),
}


class Ggml:
    """ggml's reference encoders, by ctypes."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
        self.lib.ggml_row_size.restype = ctypes.c_size_t
        self.lib.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        self.lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool

    def requires_importance(self, name):
        return self.lib.ggml_quantize_requires_imatrix(TYPES[name][0])

    def encode(self, name, weights, importance):
        """Bytes and CPU seconds."""
        ggml_type = TYPES[name][0]
        self.lib.ggml_quantize_init(ggml_type)
        rows, cols = weights.shape
        # Written once before the clock starts, so that no page is new.
        out = np.full(rows * self.lib.ggml_row_size(ggml_type, cols), 0xAA, dtype=np.uint8)
        weigh = importance.ctypes.data if importance is not None else None
        start = time.thread_time()
        self.lib.ggml_quantize_chunk(ggml_type, weights.ctypes.data, out.ctypes.data, 0, rows, cols, weigh)
        return out, time.thread_time() - start


class Ours:
    """This project's encoders, by the bench binary."""

    def __init__(self, folder):
        self.folder = folder
        lines = subprocess.run(
            ["cargo", "bench", "-q", "-p", "bitsmith-formats", "--bench", "encode", "--no-run", "--message-format=json"],
            cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        built = [json.loads(line) for line in lines if line.startswith("{")]
        self.binary = next(m["executable"] for m in built if m.get("executable") and m["target"]["name"] == "encode")

    def types(self):
        return ["f16", "bf16"] + subprocess.run([self.binary, "--types"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()

    def encode(self, names, weights, importance):
        """Results by type: bytes, and CPU seconds of encoding and decoding. The second repetition counts: the first meets new pages."""
        weights.tofile(self.folder / "weights.f32")
        command = [self.binary, self.folder / "weights.f32", str(weights.shape[1]), "--repeat", "2", "--out", self.folder]
        if importance is not None:
            importance.tofile(self.folder / "importance.f32")
            command += ["--importance", self.folder / "importance.f32"]
        output = subprocess.run(command + names, check=True, stdout=subprocess.PIPE, text=True).stdout
        results = {r["type"]: r for r in map(json.loads, output.splitlines())}
        return {n: (np.fromfile(self.folder / f"{n}.bin", dtype=np.uint8), r["encode_s"][-1], r["decode_s"][-1]) for n, r in results.items()}


def matrices(random):
    """One matrix of each kind."""
    normal = random.standard_normal((ROWS, COLS)).astype(np.float32) * np.float32(0.02)
    yield "normal", normal
    yield "laplace", random.laplace(size=(ROWS, COLS)).astype(np.float32) * np.float32(0.02)
    yield "outliers", np.where(random.random((ROWS, COLS)) < 0.01, normal * 30, normal)
    yield "zeros", np.where(random.random((ROWS, COLS)) < 0.9, 0, normal).astype(np.float32)
    zero_blocks = np.repeat(random.random((ROWS, COLS // 32)) < 0.3, 32, axis=1)
    yield "zero blocks", np.where(zero_blocks, 0, normal).astype(np.float32)
    yield "constant blocks", np.repeat(normal[:, ::32], 32, axis=1)
    yield "few values", np.round(normal * 100).astype(np.float32) / 64
    yield "negative", -np.abs(normal)
    yield "positive", np.abs(normal) + np.float32(0.01)
    yield "tiny", normal * np.float32(1e-20)
    yield "large", normal * np.float32(1e6)
    yield "huge", normal * np.float32(1e30)
    scales = np.exp(random.standard_normal((ROWS, COLS // 16)) * 4).astype(np.float32)
    yield "mixed magnitudes", normal * np.repeat(scales, 16, axis=1)
    powers = np.float32(2.0) ** random.integers(-8, 8, size=(ROWS, COLS)).astype(np.float32)
    signs = np.where(random.random((ROWS, COLS)) < 0.5, np.float32(-1), np.float32(1))
    yield "signed zeros", np.where(random.random((ROWS, COLS)) < 0.02, np.abs(normal), 0 * signs).astype(np.float32)
    yield "equal magnitudes", np.repeat(np.abs(normal[:, ::32]), 32, axis=1) * signs
    yield "subnormal", random.integers(-(2**22), 2**22, size=(ROWS, COLS)).astype(np.float32) * np.float32(2.0**-149)
    yield "near powers of two", powers * (1 - random.integers(0, 80, size=(ROWS, COLS)).astype(np.float32) * np.float32(2.0**-24))


def different_blocks(name, ours, theirs):
    """Indices of blocks whose bytes differ, but for those to which ggml gives an infinite f16 scale and we the largest finite one."""
    layout = TYPES[name][1]
    if layout is None:
        return np.flatnonzero(ours != theirs)
    size, scales = layout
    ours, theirs = ours.reshape(-1, size), theirs.reshape(-1, size)
    differ = (ours != theirs).any(axis=1)
    for at in scales:
        infinite = (theirs[:, at] == 0) & (theirs[:, at + 1] & 0x7F == 0x7C)
        largest = (ours[:, at] == 0xFF) & (ours[:, at + 1] == theirs[:, at + 1] - 1)
        differ &= ~(infinite & largest)
    return np.flatnonzero(differ)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ggml", nargs="?", default=os.environ.get("GGML_BASE"), help="path of libggml-base.so")
    parser.add_argument("--types", help="only these, comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions that are timed")
    parser.add_argument("--kinds", help="kinds of weights to compare bytes on, comma-separated (default: all)")
    args = parser.parse_args()
    if not args.ggml:
        parser.error("name libggml-base.so, or set GGML_BASE")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        ggml, ours = Ggml(args.ggml), Ours(pathlib.Path(folder))
        names = [n for n in ours.types() if not args.types or n in args.types.split(",")]
        random = np.random.default_rng(1)
        importance = np.exp(random.standard_normal(COLS)).astype(np.float32)
        kinds = dict(matrices(random))
        weights = kinds["normal"]

        print("| type | importance | ggml ns/weight | bitsmith ns/weight | ratio | decode ns/weight |")
        print("|---|---|---|---|---|---|")
        for name in names:
            for weigh in (None, importance):
                if weigh is None and ggml.requires_importance(name) or weigh is not None and name in ("f16", "bf16"):
                    continue
                theirs, mine, decode = [], [], []
                for _ in range(args.rounds):
                    theirs.append(ggml.encode(name, weights, weigh)[1])
                    _, encode_s, decode_s = ours.encode([name], weights, weigh)[name]
                    mine.append(encode_s)
                    decode.append(decode_s)
                theirs, mine, decode = (statistics.median(t) * 1e9 / weights.size for t in (theirs, mine, decode))
                kind = "no" if weigh is None else "yes"
                print(f"| {name} | {kind} | {theirs:.2f} | {mine:.2f} | {theirs / mine:.1f} | {decode:.2f} |", flush=True)

        for kind, weights in kinds.items():
            if args.kinds and kind not in args.kinds.split(","):
                continue
            for weigh in (None, importance):
                able = [n for n in names if weigh is not None or not ggml.requires_importance(n)]
                # Where squares overflow, ggml's own assertions end its process.
                able = [n for n in able if kind != "huge" or not n.startswith(("iq1", "iq2", "iq3"))]
                for name, (mine, _, _) in ours.encode(able, weights, weigh).items():
                    theirs, _ = ggml.encode(name, weights, weigh)
                    wrong = different_blocks(name, mine, theirs)
                    if wrong.size:
                        failures += 1
                        print(f"{name}, {kind}, importance {weigh is not None}: {wrong.size} blocks differ, first {wrong[0]}", file=sys.stderr)
    print(f"\nbytes: {'the same everywhere' if not failures else f'{failures} cases differ'}")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
