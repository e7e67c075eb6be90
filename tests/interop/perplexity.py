#!/usr/bin/env python3
"""Perplexity of a GGUF in llama.cpp and in bitsmith, on the same text: they must differ by at most 0.2 %.

    perplexity.py BITSMITH FILE.gguf TEXT [--windows N] [--limit PERCENT]

llama.cpp's side is what llama-perplexity does: the whole text tokenized once with special tokens, windows of 512, BOS in the place of
a window's first token where the tokenizer adds BOS, and the second half of every window scored. Whole distributions are read from
llama.cpp, so that no position is left out. Exits 1 above the limit, or where the two tokenize the text differently.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from clients import Bitsmith, LlamaCpp

CTX = 512


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


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("model")
    args.add_argument("text")
    args.add_argument("--windows", type=int, help="this many windows only")
    args.add_argument("--limit", type=float, default=0.2, help="percent")
    args.add_argument("--our-tokens", action="store_true", help="give llama.cpp our token ids instead of its own")
    args = args.parse_args()

    limited = ["--limit", args.windows] if args.windows else []
    bitsmith = Bitsmith(args.bitsmith)
    ours = bitsmith.json("eval", args.model, "--ppl", args.text, "--ctx", CTX, *limited)["perplexity"][0]
    client = LlamaCpp(args.model, CTX)
    tokens = client.tokens(Path(args.text).read_bytes().decode(), special=True)
    our_tokens = bitsmith.json("tokenize", args.model, "--file", args.text, "--special")["sequences"][0]
    if args.our_tokens:
        tokens = our_tokens
    same = tokens == our_tokens
    theirs, tokens = llama_perplexity(client, tokens, args.windows)
    difference = 100 * (ours["ppl"] / theirs - 1)
    ok = abs(difference) <= args.limit and ours["tokens"] == tokens and same
    print(
        f"{'ok' if ok else 'FAILED'}: {Path(args.model).name} on {Path(args.text).name}: perplexity {ours['ppl']:.4f} over {ours['tokens']} tokens,"
        f"{'' if same else ', TOKENS DIFFER'}, llama.cpp {theirs:.4f} over {tokens}: {difference:+.4f} % (limit {args.limit} %)"
    )
    sys.exit(not ok)


if __name__ == "__main__":
    main()
