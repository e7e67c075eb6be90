#!/usr/bin/env python3
"""Hands an artifact to the real client and compares: tokens (GGUF), and next-token distributions at every position.

    check.py BITSMITH ARTIFACT [--max-kl 0.002] [--skip-tokens]

A `.gguf` goes to llama.cpp (package xllamacpp), a folder to mlx-lm (CPU build of MLX). Exits 1 if the mean KL divergence of our
runtime's distributions from the client's exceeds the limit, or a text is tokenized differently.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

TEXTS = [
    "The lighthouse keeper counted the ships twice, wrote 47 in the book, and closed the window against the rain.",
    "fn area(width: u32, height: u32) -> u32 {\n    width * height\n}\n",
    "Wie spät ist es? Il est déjà tard, и мы идём домой.",
    "If 12 apples cost 3.60, one apple costs 3.60 / 12 = 0.30.",
    '"Are you coming?" she asked. "In a minute," he said, and did not move.',
]
TOP = 50
FIRST = 2  # positions before this have too little context to be interesting


def ours(bitsmith, *args):
    done = subprocess.run([bitsmith, *args, "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)["sequences"]


class LlamaCpp:
    def __init__(self, path, longest):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = longest + 16
        params.n_parallel = 1
        params.warmup = False
        params.cpuparams.n_threads = os.cpu_count()
        self.server = xllamacpp.Server(params)

    def tokens(self, text):
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(self.server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["tokens"]

    def distributions(self, sequence):
        for i in range(FIRST, len(sequence)):
            answer = self.server.handle_completions(
                {"prompt": sequence[: i + 1], "n_predict": 1, "n_probs": TOP, "temperature": 0.0, "cache_prompt": False}
            )
            answer = json.loads(answer) if isinstance(answer, str) else answer
            top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            yield i, {t["id"]: t["logprob"] for t in top}


class MlxLm:
    def __init__(self, path):
        from mlx_lm.utils import load_model

        self.model, _ = load_model(Path(path))

    def distributions(self, sequence):
        import mlx.core as mx

        logits = self.model(mx.array([sequence]))[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        for i in range(FIRST, len(sequence)):
            row = logprobs[i].tolist()
            best = sorted(range(len(row)), key=lambda t: -row[t])[:TOP]
            yield i, {t: row[t] for t in best}


def divergence(client, mine):
    """KL(client || mine) over the client's top tokens, all others as one."""
    shared = [t for t in client if t in mine]
    kl = sum(math.exp(client[t]) * (client[t] - mine[t]) for t in shared)
    rest = 1 - sum(math.exp(client[t]) for t in shared)
    rest_mine = 1 - sum(math.exp(mine[t]) for t in shared)
    if rest > 1e-9:
        kl += rest * math.log(rest / max(rest_mine, 1e-12))
    return kl


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("artifact")
    args.add_argument("--max-kl", type=float, default=2e-3)
    args.add_argument("--skip-tokens", action="store_true", help="do not compare tokenization")
    args = args.parse_args()

    with tempfile.TemporaryDirectory() as work:
        sequences = []
        for i, text in enumerate(TEXTS):
            file = Path(work, f"{i}.txt")
            file.write_text(text, encoding="utf-8")
            sequences += ours(args.bitsmith, "tokenize", args.artifact, "--file", str(file))
        tokens = Path(work, "tokens.json")
        tokens.write_text(json.dumps({"sequences": sequences}))
        mine = ours(args.bitsmith, "logits", args.artifact, "--tokens", str(tokens), "--top", str(2 * TOP))

    gguf = args.artifact.endswith(".gguf")
    client = LlamaCpp(args.artifact, max(map(len, sequences))) if gguf else MlxLm(args.artifact)
    failed = False
    if gguf and not args.skip_tokens:
        for text, sequence in zip(TEXTS, sequences):
            theirs = client.tokens(text)
            if theirs != sequence:
                print(f"tokenization differs for {text!r}:\n  ours   {sequence}\n  theirs {theirs}")
                failed = True
    kls = []
    for sequence, rows in zip(sequences, mine):
        rows = {r["position"]: dict(map(tuple, r["top"])) for r in rows}
        kls += [divergence(theirs, rows[i]) for i, theirs in client.distributions(sequence)]
    mean = sum(kls) / len(kls)
    failed |= not mean <= args.max_kl
    verdict = "FAILED" if failed else "ok"
    print(f"{verdict}: {args.artifact}: {len(kls)} positions, mean KL {mean:.2e}, worst {max(kls):.2e}, limit on the mean {args.max_kl:.0e}")
    sys.exit(failed)


main()
