#!/usr/bin/env python3
"""Hands artifacts to the real clients and compares: tokens (GGUF), and next-token distributions at every position.

    check.py BITSMITH ARTIFACT... [--max-kl LIMIT] [--skip-tokens] [--texts N]

A `.gguf` goes to llama.cpp (package xllamacpp), a folder to mlx-lm (CPU build of MLX). An artifact fails if the mean KL divergence of
our runtime's distributions from the client's exceeds the limit, or a text is tokenized differently. Every artifact is compared twice:
as the client computes it, with activations rounded to 8 bits (llama.cpp) or to the folder's floating-point type (MLX), and with the
client computing in float32 as our runtime does (llama.cpp: on the same tensors decoded by gguf-py), where the results must be the
same but for summation order. Exits 1 if an artifact fails.
"""

import argparse
import os
import sys
import tempfile

import numpy as np
from clients import Bitsmith, LlamaCpp, MlxLm, dequantize, kl

TEXTS = [
    "The lighthouse keeper counted the ships twice, wrote 47 in the book, and closed the window against the rain.",
    "fn area(width: u32, height: u32) -> u32 {\n    width * height\n}\n",
    "Wie spät ist es? Il est déjà tard, и мы идём домой. 東京 🙂",
    "If 12 apples cost 3.60, one apple costs 3.60 / 12 = 0.30.",
    '"Are you coming?" she asked. "In a minute," he said, and did not move.',
]
FIRST = 2  # positions before this have too little context to be interesting

# Limits on the mean KL divergence, by what the client computes in.
LIMITS = {"gguf": 2e-3, "bf16.gguf": 1e-4, "f16.gguf": 1e-5, "float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-6}
DECODED_LIMIT = 1e-5  # llama.cpp's cache of keys and values is f16


def gguf_limit(path):
    return next((v for k, v in LIMITS.items() if path.lower().endswith("-" + k)), LIMITS["gguf"])


def compare(label, client, sequences, mine, limit):
    values, same = [], []
    for sequence, rows in zip(sequences, mine, strict=True):
        theirs = client.logprobs(sequence)[FIRST:]
        values.append(kl(theirs, rows[FIRST:]))
        same.append(theirs.argmax(-1) == rows[FIRST:].argmax(-1))
    values, same = np.concatenate(values), np.concatenate(same)
    ok = bool(values.mean() <= limit)  # NaN fails
    print(
        f"{'ok' if ok else 'FAILED'}: {label}: {len(values)} positions, mean KL {values.mean():.2e} (limit {limit:.0e}),"
        f" worst {values.max():.2e}, same top token {same.mean():.1%}",
        flush=True,
    )
    return ok


def check(bitsmith, artifact, max_kl=None, skip_tokens=False, texts=TEXTS):
    name = os.path.basename(artifact)
    sequences = bitsmith.tokens(artifact, texts)
    if artifact.endswith(".gguf"):
        client = LlamaCpp(artifact)
        ok = True
        for text, sequence in zip(texts, sequences, strict=True):
            theirs = client.tokens(text)
            if theirs != sequence and not skip_tokens:
                print(f"FAILED: {name}: tokenization differs for {text!r}:\n  ours   {sequence}\n  theirs {theirs}")
                ok = False
        mine = bitsmith.logprobs(artifact, sequences, client.n_vocab)
        ok &= compare(f"{name} in llama.cpp", client, sequences, mine, max_kl or gguf_limit(artifact))
        with tempfile.TemporaryDirectory() as work:
            decoded = os.path.join(work, "f32.gguf")
            try:
                dequantize(artifact, decoded)
            except (NotImplementedError, ValueError) as e:  # gguf-py lacks the newest formats
                print(f"{name}: compared as llama.cpp computes it only: {e}")
                return ok
            return compare(f"{name} in llama.cpp, decoded to float32", LlamaCpp(decoded), sequences, mine, DECODED_LIMIT) and ok
    client = MlxLm(artifact)
    mine = bitsmith.logprobs(artifact, sequences, client.n_vocab)
    ok = True
    if client.dtype != "float32":
        ok = compare(f"{name} in MLX, {client.dtype}", client, sequences, mine, max_kl or LIMITS[client.dtype])
        client.set_float32()
    return compare(f"{name} in MLX, float32", client, sequences, mine, LIMITS["float32"]) and ok


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("artifact", nargs="+")
    args.add_argument("--max-kl", type=float)
    args.add_argument("--skip-tokens", action="store_true", help="do not compare tokenization")
    args.add_argument("--texts", type=int, default=len(TEXTS), help="compare only on this many texts")
    args = args.parse_args()
    bitsmith = Bitsmith(args.bitsmith)
    failed = sum(not check(bitsmith, a, args.max_kl, args.skip_tokens, TEXTS[: args.texts]) for a in args.artifact)
    print(f"{len(args.artifact) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
