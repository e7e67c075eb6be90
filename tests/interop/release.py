#!/usr/bin/env python3
"""Makes a release of the demo model and uses it as its readers do.

    release.py BITSMITH

sha256sum checks the lists, huggingface_hub reads the cards, llama.cpp and mlx-lm load the artifacts from the release folder, and the
release is made again from its record. Exits 1 if anything fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from check import check
from clients import Bitsmith
from huggingface_hub import ModelCard


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args = args.parse_args()
    ok = True
    with tempfile.TemporaryDirectory() as work:
        release = os.path.join(work, "release")
        run = "run demo --to gguf:q4_k_m,gguf:q8_0,mlx:4bit --samples 8 --limit 4 --license apache-2.0 --publisher me -q --out"
        subprocess.run([args.bitsmith, *run.split(), release], check=True, stdout=subprocess.DEVNULL)
        mlx = os.path.join(release, "bitsmith-demo-4bit")
        for folder, library in (release, "gguf"), (mlx, "mlx"):
            subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
            data = ModelCard.load(os.path.join(folder, "README.md")).data
            good = (data.library_name, data.license, data.get("quantized_by")) == (library, "apache-2.0", "me")
            print(f"{'ok' if good else 'FAILED'}: card of {os.path.basename(folder)}: {data.to_dict()}", flush=True)
            ok &= good
        bitsmith = Bitsmith(args.bitsmith)
        for artifact in os.path.join(release, "bitsmith-demo-Q4_K_M.gguf"), mlx:
            ok &= check(bitsmith, artifact, texts=check.__defaults__[2][:2])
        record = os.path.join(release, "bitsmith.json")
        out = subprocess.run([args.bitsmith, "--json", "reproduce", record], check=True, capture_output=True, text=True).stdout
        same = json.loads(out)["same"]
        print(f"{'ok' if same else 'FAILED'}: reproduce: {out.strip()}")
    sys.exit(not (ok and same))


if __name__ == "__main__":
    main()
