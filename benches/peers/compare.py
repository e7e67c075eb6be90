#!/usr/bin/env python3
"""`bitsmith quantize` beside the calibrated methods of mlx-lm, GPTQModel and llm-compressor, as a Markdown table.

    compare.py MODEL --calib TEXT --data TEXT --python VENV/bin/python [--peers mlx,gptqmodel,compressor] [--work FOLDER]

Every peer quantizes the checkpoint on the same windows of the same text (`peer.py`); bitsmith writes the same container with the method
that `--method` names. Each artifact, theirs and ours, is opened by `bitsmith eval` and compared with the source on text that none was
calibrated on. What is in FOLDER already is not made again.

Bytes are those of quantized tensors: codes, scales, zero points and order of columns; where a peer leaves embedding and output matrix as
they are, so does bitsmith.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

# Container: bitsmith's target, then methods of peers: name in the table, peer.py's words.
ROWS = {
    "mlx": [
        (f"mlx:{bits}bit", [(f"mlx-lm {method}", [f"mlx-{method.lower()}", "--bits", bits, "--group", "64"]) for method in methods])
        for bits, methods in (("4", ["RTN", "AWQ", "GPTQ"]), ("3", ["RTN", "AWQ"]), ("2", ["RTN", "AWQ", "GPTQ"]))
    ],
    "gptqmodel": [
        (
            f"gptq:{bits}bit-g128",
            [
                ("GPTQModel", ["gptqmodel", "--bits", bits, "--group", "128"]),
                ("GPTQModel, mse 2.4", ["gptqmodel", "--bits", bits, "--group", "128", "--more", "mse=2.4"]),
            ],
        )
        for bits in ("4", "3")
    ],
    "compressor": [
        ("compressed:int4-g128", [("llm-compressor GPTQ", ["compressor-gptq", "--bits", "4", "--group", "128"])]),
        ("compressed:int4-g128-asym", [("llm-compressor AWQ", ["compressor-awq", "--bits", "4", "--group", "128"])]),
    ],
}


def timed(command, log):
    """Runs a command without a model hub; its CPU seconds and largest resident set in MiB."""
    with open(log, "w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))}: failed, see {log}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "mib": usage.ru_maxrss / 1024}


def quantized_bytes(folder):
    """Bytes of a folder's tensors without those that stayed plain: norms, biases, and whole matrices in floating point."""
    total = 0
    for file in Path(folder).glob("*.safetensors"):
        with open(file, "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        header.pop("__metadata__", None)
        for name, tensor in header.items():
            plain = name.endswith((".weight", ".bias")) and tensor["dtype"] in ("F32", "F16", "BF16")
            total += 0 if plain else tensor["data_offsets"][1] - tensor["data_offsets"][0]
    return total


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("model")
    a.add_argument("--calib", required=True)
    a.add_argument("--data", required=True)
    a.add_argument("--python", default=sys.executable, help="of the environment that has the peers")
    a.add_argument("--peers", default=",".join(ROWS))
    a.add_argument("--bitsmith", default="target/release/bitsmith")
    a.add_argument("--method", default="best")
    a.add_argument("--samples", default="60")
    a.add_argument("--awq-samples", default="8", help="for mlx-lm's AWQ, whose search takes minutes per window on a CPU")
    a.add_argument("--limit", default="64")
    a.add_argument("--work", default="peers-work")
    a = a.parse_args()
    work = Path(a.work)
    work.mkdir(parents=True, exist_ok=True)

    def made(name, command):
        """The artifact that a command writes, given its path, and what making it took."""
        out, cost = work / name, work / f"{name}.json"
        if not cost.exists():
            cost.write_text(json.dumps(timed(command(out), work / f"{name}.log")))
        return out, json.loads(cost.read_text())

    def measured(artifact):
        """What the artifact loses on the evaluation text."""
        kept = work / f"{artifact.name}.eval.json"
        if not kept.exists():
            command = [a.bitsmith, "eval", artifact, "--kld", a.data, "--against", a.model, "--limit", a.limit, "--json", "-q"]
            result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            kept.write_text(result.stdout.decode())
        return json.loads(kept.read_text())["kld"][0]

    print("| target | method | bytes | perplexity ratio | mean KLD | ours / theirs | CPU s | peak MiB |", flush=True)
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for target, methods in [row for peer in a.peers.split(",") for row in ROWS[peer]]:
        results = []
        for name, (peer, *words) in methods:
            samples = a.awq_samples if peer == "mlx-awq" else a.samples
            calib = ["--calib", a.calib, "--samples", samples]
            slug = "-".join([peer, *words]).replace("--", "").replace("=", "-")
            results.append((name, *made(slug, lambda out: [a.python, HERE / "peer.py", peer, a.model, out, *calib, *words])))
        how = ["--method", a.method, "--calib", a.calib, "--samples", a.samples]
        slug = f"{target.replace(':', '-')}-{a.method}"
        ours, cost = made(slug, lambda out: [a.bitsmith, "quantize", a.model, "--to", target, *how, "-o", out])
        own = measured(ours)
        for name, artifact, spent in results:
            row(target, name, artifact, measured(artifact), own, spent)
        row(target, f"bitsmith {a.method}", ours, own, None, cost)


def row(target, name, artifact, kld, own, cost):
    ratio = f"{own['mean'] / kld['mean']:.2f}" if own else ""
    print(
        f"| {target} | {name} | {quantized_bytes(artifact)} | {kld['ppl_ratio']:.4f} ± {kld['ppl_ratio_stderr']:.4f} "
        f"| {kld['mean']:.5f} ± {kld['mean_stderr']:.5f} | {ratio} | {cost['cpu']:.0f} | {cost['mib']:.0f} |",
        flush=True,
    )


main()
