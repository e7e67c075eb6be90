#!/usr/bin/env python3
"""Perplexity of a GGUF in llama.cpp and in bitsmith, on the same text: they must differ by at most 0.2 %.

    perplexity.py BITSMITH TEXT FILE.gguf... [--windows N] [--limit PERCENT] [--our-tokens]

llama.cpp's side is what llama-perplexity does: the whole text tokenized once with special tokens, windows of 512, BOS in the place of
a window's first token where the tokenizer adds BOS, and the second half of every window scored. Whole distributions are read from
llama.cpp, so that no position is left out. llama.cpp rounds activations to 8 bits before it multiplies them with quantized weights,
which has its own effect on perplexity, so the same tensors decoded to F32 by gguf-py are measured as well. Exits 1 above the limit,
or where the two tokenize the text differently.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from clients import Bitsmith, LlamaCpp, dequantize

CTX = 512
DECODED_LIMIT = 0.02  # percent; llama.cpp's cache of keys and values is f16


def llama_perplexity(client, tokens, windows):
    """Perplexity, and the number of tokens scored."""
    count = min(len(tokens) // CTX, windows or len(tokens))
    assert count > 0, f"{len(tokens)} tokens are less than one window"
    nll = []
    for w in range(count):
        window = tokens[w * CTX : (w + 1) * CTX]
        if client.bos is not None:
            window[0] = client.bos
        # Row j is the distribution of token j + 1.
        rows = np.arange(CTX // 2, CTX - 1)
        nll.append(-client.logprobs(window)[rows, np.array(window)[rows + 1]])
    nll = np.concatenate(nll)
    return float(np.exp(nll.mean())), len(nll)


def check(bitsmith, model, args):
    limited = ["--limit", args.windows] if args.windows else []
    ours = bitsmith.json("eval", model, "--ppl", args.text, "--ctx", CTX, *limited)["perplexity"][0]
    client = LlamaCpp(model, CTX)
    tokens = client.tokens(Path(args.text).read_bytes().decode(), special=True)
    our_tokens = bitsmith.json("tokenize", model, "--file", args.text, "--special")["sequences"][0]
    if args.our_tokens:
        tokens = our_tokens
    same = tokens == our_tokens

    def report(name, client, limit):
        ppl, count = llama_perplexity(client, tokens, args.windows)
        difference = 100 * (ours["ppl"] / ppl - 1)
        ok = abs(difference) <= limit and ours["tokens"] == count and same
        print(
            f"{'ok' if ok else 'FAILED'}: {Path(model).name} on {Path(args.text).name}: perplexity {ours['ppl']:.4f} over {ours['tokens']} tokens,"
            f" {name} {ppl:.4f} over {count}{'' if same else ' OF ANOTHER TOKENIZATION'}: {difference:+.4f} % (limit {limit} %)",
            flush=True,
        )
        return ok

    ok = report("llama.cpp", client, args.limit)
    with tempfile.TemporaryDirectory() as work:
        decoded = Path(work, "f32.gguf")
        dequantize(model, decoded)
        return report("llama.cpp with tensors decoded to F32", LlamaCpp(decoded, CTX), DECODED_LIMIT) and ok


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("text")
    args.add_argument("model", nargs="+")
    args.add_argument("--windows", type=int, help="this many windows only")
    args.add_argument("--limit", type=float, default=0.2, help="percent")
    args.add_argument("--our-tokens", action="store_true", help="give llama.cpp our token ids instead of its own")
    args = args.parse_args()
    bitsmith = Bitsmith(args.bitsmith)
    failed = sum(not check(bitsmith, model, args) for model in args.model)
    print(f"{len(args.model) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
