#!/usr/bin/env python3
"""Speed of the integrated runtime beside llama.cpp's, on the same GGUF files: runtime.py MODEL.gguf ... --llama-cpp BIN_FOLDER.

Both sides alternate with the same number of threads, and medians of wall time are compared: a prompt (llama-bench's `pp`) and text after
it (`tg`). bitsmith's numbers come from `generate` with one token and with many, so loading is not in them. With `--text FILE`,
perplexity too: `eval` beside `llama-perplexity`, whole commands. The folder has llama-bench and llama-perplexity, built for this machine
(`cmake -DGGML_NATIVE=ON`). Needs no packages.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import time

# One token each or about that in any vocabulary: prompts need not make sense.
WORDS = "the time of one day and all that we have seen in this world was good for them to know".split()


def run(command):
    start = time.monotonic()
    done = subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True)
    return done.stdout, time.monotonic() - start


def ours(args, model, prompt, new):
    command = [args.bitsmith, "generate", model, "-p", prompt, "-n", new, "--compute", args.compute, "--kv", "f16"]
    result = json.loads(run(command + ["--json", "--threads", args.threads])[0])
    if len(result["tokens"]) != new:
        raise SystemExit(f"{model}: the text ended after {len(result['tokens'])} tokens, at: {result['stop']}")
    return result["prompt_tokens"], result["seconds"]


def speeds(args, model):
    """Tokens per second: prompt and text of bitsmith, prompt and text of llama.cpp."""
    prompt = " ".join(WORDS[i % len(WORDS)] for i in range(args.prompt))
    tokens, first = ours(args, model, prompt, 1)
    # The first new token comes with the prompt's logits.
    _, whole = ours(args, model, prompt, args.new + 1)
    bench = [args.llama_cpp / "llama-bench", "-m", model, "-p", tokens, "-n", args.new, "-r", 1, "-t", args.threads, "-o", "json"]
    theirs = {r["n_gen"] > 0: r["avg_ts"] for r in json.loads(run(bench)[0])}
    return tokens / first, args.new / (whole - first), theirs[False], theirs[True]


def perplexity(args, model):
    """Seconds of both commands over the same windows."""
    command = [args.bitsmith, "eval", model, "--ppl", args.text, "--limit", args.limit, "--compute", args.compute]
    # What was measured before is not looked up.
    ours = run(command + ["--threads", args.threads, "--fresh"])
    theirs = [args.llama_cpp / "llama-perplexity", "-m", model, "-f", args.text, "-c", 512, "--chunks", args.limit, "-t", args.threads]
    return ours[1], run(theirs)[1]


def bandwidth(threads):
    """Bytes per second at which so many threads read memory."""
    bench = ["cargo", "bench", "-q", "-p", "bitsmith-formats", "--bench", "encode", "--", "--reading", threads]
    return json.loads(run(bench)[0])["bytes_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--llama-cpp", type=pathlib.Path, required=True)
    parser.add_argument("--bitsmith", default="target/release/bitsmith")
    parser.add_argument("--compute", choices=["f32", "int8"], default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="words of the prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of the text")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--text", type=pathlib.Path, help="measure perplexity on this text too")
    parser.add_argument("--limit", type=int, default=4, help="windows of 512 tokens for perplexity")
    args = parser.parse_args()
    reading = bandwidth(args.threads) / 1e9
    print(f"{args.threads} threads read {reading:.1f} GB/s\n")
    print("| file | prompt, tokens/s | llama.cpp | ratio | text, tokens/s | llama.cpp | ratio | GB/s of weights | of reading |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in args.models:
        rounds = [speeds(args, model) for _ in range(args.repeat)]
        prompt, text, their_prompt, their_text = (statistics.median(column) for column in zip(*rounds))
        ratios = statistics.median(r[0] / r[2] for r in rounds), statistics.median(r[1] / r[3] for r in rounds)
        read = text * model.stat().st_size / 1e9
        print(
            f"| {model.stem} | {prompt:.1f} | {their_prompt:.1f} | {ratios[0]:.2f} "
            f"| {text:.2f} | {their_text:.2f} | {ratios[1]:.2f} | {read:.1f} | {100 * read / reading:.0f} % |",
            flush=True,
        )
    if args.text:
        print(f"\n| file | eval --compute {args.compute}, s | llama-perplexity, s | × |\n|---|---|---|---|")
        for model in args.models:
            rounds = [perplexity(args, model) for _ in range(args.repeat)]
            mine, theirs = (statistics.median(column) for column in zip(*rounds))
            print(f"| {model.stem} | {mine:.1f} | {theirs:.1f} | {statistics.median(t / m for m, t in rounds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
