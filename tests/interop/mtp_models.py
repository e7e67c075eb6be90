#!/usr/bin/env python3
"""Layers for multi-token prediction: a tiny DeepSeek V3 with one, against transformers and llama.cpp.

    mtp_models.py BITSMITH TOKENIZER_FOLDER [--llama-cpp SOURCE_TREE] [-v]

Logits, in which these layers have no part, of the checkpoint and of the GGUFs with, without and beside them, in bitsmith, in llama.cpp and,
of the folder, in transformers; and, where a source tree is given, tensors and keys against llama.cpp's converter, which for this
architecture has to be told not to leave the layer out. Exits 1 if a comparison fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import safetensors.torch
import torch
import transformers
from clients import Bitsmith, LlamaCpp
from transformers_models import DEEPSEEK, SMALL, VOCAB, Checks, logprobs, make

EXTRA = SMALL["num_hidden_layers"]


def with_extra_layer(folder):
    """Adds a copy of the last layer, changed, with what joins it to the model."""
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    torch.manual_seed(9)
    last = f"model.layers.{EXTRA - 1}."
    for name in [n for n in tensors if n.startswith(last)]:
        copy = tensors[name].clone()
        tensors[name.replace(last, f"model.layers.{EXTRA}.", 1)] = copy + 0.01 * torch.randn_like(copy)
    hidden, at = SMALL["hidden_size"], f"model.layers.{EXTRA}."
    new = {"eh_proj": torch.randn(hidden, 2 * hidden) / 16, "enorm": 1 + torch.randn(hidden) / 8, "hnorm": 1 + torch.randn(hidden) / 8}
    new |= {"shared_head.norm": 1 + torch.randn(hidden) / 8, "shared_head.head": tensors["lm_head.weight"].clone()}
    new["embed_tokens"] = tensors["model.embed_tokens.weight"].clone()
    tensors |= {f"{at}{name}.weight": t.contiguous() for name, t in new.items()}
    safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["num_nextn_predict_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))


CONVERTER = """
import sys
sys.path[:0] = [TREE, TREE + "/gguf-py"]
import gguf
from pathlib import Path
from conversion.deepseek import DeepseekV2Model as Model
Model.skip_mtp = False
Model.set_vocab = lambda self: None
first = Model.__init__
def start(self, *args, **kwargs):
    first(self, *args, **kwargs)
    self.block_count = self.hparams["num_hidden_layers"] + self.hparams["num_nextn_predict_layers"]
    self.tensor_map = gguf.get_tensor_name_map(self.model_arch, self.block_count)
Model.__init__ = start
keys = Model.set_gguf_parameters
def more(self):
    keys(self)
    self.gguf_writer.add_nextn_predict_layers(self.hparams["num_nextn_predict_layers"])
Model.set_gguf_parameters = more
Model(Path(SOURCE), gguf.LlamaFileType.ALL_F32, Path(OUT)).write()
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bitsmith")
    parser.add_argument("tokenizer")
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    checks, bitsmith = Checks(args.verbose), Bitsmith(args.bitsmith)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = work / "source"
        model = make(source, "deepseek_v3", {**DEEPSEEK, "n_group": 2, "topk_group": 1}, args.tokenizer, seed=4)
        with_extra_layer(source)
        sequences = [[int(t) for t in np.random.default_rng(1).integers(2, VOCAB, n)] for n in (96, 7)]
        want = logprobs(model, sequences)

        def ours(path, label):
            checks.equal(f"{label} in bitsmith", bitsmith.logprobs(path, sequences, VOCAB), want)

        ours(source, "checkpoint")
        files = {}
        for mode in ("keep", "split", "drop"):
            path = files[mode] = work / mode / "model.gguf"
            bitsmith.json("convert", source, "--to", "gguf:f32", "--mtp", mode, "-o", path)
            ours(path, f"gguf:f32, {mode}")
            llama = LlamaCpp(path)
            checks.alike(f"gguf:f32, {mode} in llama.cpp", [llama.logprobs(s) for s in sequences], want, mixture=True)
        bitsmith.json("convert", source, "--to", "hf:f32", "--mtp", "split", "-o", work / "hf")
        back = transformers.AutoModelForCausalLM.from_pretrained(work / "hf", dtype=torch.float32, attn_implementation="eager").eval()
        checks.equal("hf:f32, split in transformers", logprobs(back, sequences), want)
        bitsmith.json("convert", work / "hf", "--to", "gguf:f32", "-o", work / "again.gguf")
        tensors = lambda path: {t.name: (t.tensor_type, tuple(t.shape), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}
        kept = tensors(files["keep"])
        checks.note(tensors(work / "again.gguf") == kept, "the same tensors by way of a folder with a file for the layer")
        beside = tensors(files["split"].with_name("mtp-model.gguf"))
        trunk = tensors(files["split"])
        shared = trunk.keys() & beside.keys()
        checks.note(trunk | beside == kept and shared == {"token_embd.weight", "output.weight", "output_norm.weight"}, f"split: shared {shared}")
        if args.llama_cpp:
            script = f"TREE, SOURCE, OUT = {str(args.llama_cpp)!r}, {str(source)!r}, {str(work / 'theirs.gguf')!r}\n{CONVERTER}"
            ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
            if ended.returncode != 0:
                raise SystemExit(ended.stderr[-1500:])
            theirs = tensors(work / "theirs.gguf")
            different = {n for n in kept.keys() | theirs.keys() if kept.get(n) != theirs.get(n)}
            checks.note(not different, f"{len(kept)} tensors as llama.cpp's converter has them: {sorted(different)[:8]}")
            keys = ("block_count", "nextn_predict_layers", "leading_dense_block_count", "expert_count")
            value = lambda path, key: gguf.GGUFReader(path).fields[f"deepseek2.{key}"].contents()
            for key in keys:
                pair = [value(p, key) for p in (files["keep"], work / "theirs.gguf")]
                checks.note(pair[0] == pair[1], f"deepseek2.{key}: {pair}")
    print(f"{checks.passed} comparisons passed, {checks.failed} failed")
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
