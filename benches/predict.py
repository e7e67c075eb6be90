#!/usr/bin/env python3
"""How close the divergence that `auto` predicts is to the one that is measured on other text of the same kind.

The articles of a WikiText file are dealt out to two files: predictions are made on one, and measured on the other.
Prints a Markdown table with a row for each model and target.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path


def deal(text: Path, folder: Path) -> tuple[Path, Path]:
    """Every other article (` = Title = ` on a line of its own begins one) to either of two files."""
    articles = re.split(r"(?m)(?=^ = [^=].* = \n)", text.read_text())
    files = folder / "predicted-on.txt", folder / "measured-on.txt"
    for i, file in enumerate(files):
        file.write_text("".join(articles[i::2]))
    return files


def row(bitsmith: str, model: str, target: str, args: argparse.Namespace, files: tuple[Path, Path], folder: Path) -> str:
    on, measured_on = map(str, files)
    output = str(folder / re.sub(r"\W", "-", f"{model}-{target}")) + "/"
    quantize = [bitsmith, "quantize", model, "--to", target, "--calib", args.calib, "--samples", str(args.samples)]
    made = json.loads(subprocess.check_output([*quantize, "--predict-on", on, "-o", output, "--json"], stderr=subprocess.DEVNULL))
    artifact = made["artifacts"][0]
    note = next(n for n in artifact["notes"] if "predicted" in n)
    predicted = float(re.search(r"divergence: ([\d.]+)", note)[1])
    evaluate = [bitsmith, "eval", artifact["path"], "--kld", measured_on, "--against", model, "--style", "paper", "--ctx", "512", "--json"]
    measured = json.loads(subprocess.check_output(evaluate, stderr=subprocess.DEVNULL))["kld"][0]
    change = predicted / measured["mean"] - 1
    return (
        f"| {Path(model).name} | {target} | {artifact['bpw']:.3f} | {predicted:.6f} | "
        f"{measured['mean']:.6f} ± {measured['mean_stderr']:.6f} | {change:+.1%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints")
    parser.add_argument("--targets", default="gguf:auto@4.5bpw,gguf:auto@3.5bpw,gguf:auto@0.002kld,mlx:auto@4bpw")
    parser.add_argument("--calib", required=True, help="text for calibration")
    parser.add_argument("--text", required=True, type=Path, help="a WikiText file")
    parser.add_argument("--samples", type=int, default=60, help="calibration windows")
    parser.add_argument("--bitsmith", default="target/release/bitsmith")
    args = parser.parse_args()
    print("| model | target | bpw | predicted | measured | difference |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files = deal(args.text, Path(folder))
        for model in args.models:
            for target in args.targets.split(","):
                print(row(args.bitsmith, model, target, args, files, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
