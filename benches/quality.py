#!/usr/bin/env python3
"""Quality of every method on every target, as a Markdown table.

    benches/quality.py MODEL --calib TEXT --data TEXT [--limit 128] [--samples 60] [--methods rtn,gptq] [--targets gguf:q4_k_m,mlx:4bit]

Runs `bitsmith run` once per method: the source's predictions are the reference, each artifact is written, loaded back and
compared. `rtn` and `reference` are the peers' own encoders, byte for byte, so each row has its peer in the same run.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile

METHODS = "rtn,reference,awq,awq+reference,gptq,awq+gptq"
TARGETS = "gguf:q4_0,gguf:q4_k_m,gguf:q5_k_m,gguf:q6_k,gguf:q8_0,mlx:4bit,mlx:4bit-g32,mlx:4bit-g128,mlx:8bit"


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--calib", required=True)
    a.add_argument("--data", required=True)
    a.add_argument("--bitsmith", default="target/release/bitsmith")
    a.add_argument("--methods", default=METHODS)
    a.add_argument("--targets", default=TARGETS)
    a.add_argument("--limit", default="128")
    a.add_argument("--samples", default="60")
    a.add_argument("--presets", action="store_true", help="keep the presets' mixes instead of one format for every matrix")
    a = a.parse_args()

    print("| target | method | bpw | perplexity | ratio | mean KLD | × peer | same top | seconds | peak MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for method in a.methods.split(","):
        out = tempfile.mkdtemp()
        command = [a.bitsmith, "run", a.model, "--to", a.targets, "--method", method, "--calib", a.calib, "--data", a.data]
        command += ["--limit", a.limit, "--samples", a.samples, "--out", out, "--json"]
        command += [] if a.presets else ["--pure"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        shutil.rmtree(out)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
        result = json.loads(done.stdout)
        rows += [(method, artifact, eval) for artifact, eval in zip(result["artifacts"], result["eval"][1:])]

    for target in a.targets.split(","):
        ofs = [(m, x, e) for m, x, e in rows if x["target"] == target]
        # The peer: ggml with importance for GGUF, mx.quantize for MLX.
        peer = next((e["kld"][0]["mean"] for m, _, e in ofs if m == ("reference" if target.startswith("gguf") else "rtn")), None)
        for method, x, e in ofs:
            k, p = e["kld"][0], e["perplexity"][0]
            ratio = f"{k['mean'] / peer:.2f}" if peer else ""
            print(
                f"| {target} | {method} | {x['bpw']:.2f} | {p['ppl']:.2f} | {k['ppl_ratio']:.4f} ± {k['ppl_ratio_stderr']:.4f} "
                f"| {k['mean']:.5f} ± {k['mean_stderr']:.5f} | {ratio} | {100 * k['same_top_p']:.1f} % | {x['seconds']:.1f} "
                f"| {x['peak_rss_bytes'] / 2**20:.0f} |"
            )


main()
