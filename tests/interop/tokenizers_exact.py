#!/usr/bin/env python3
"""Tokenizers of real models: the same tokens as Hugging Face's library and llama.cpp, and as llama.cpp's own test vectors say.

    tokenizers_exact.py BITSMITH FOLDER

FOLDER has a folder with `tokenizer.json` per tokenizer, and in `vectors` files NAME.inp (texts, separated by lines of
`__ggml_vocab_test__`), NAME.out (a line of token ids for each) and perhaps NAME.gguf (a vocabulary). For each tokenizer, a checkpoint is made
around it and converted; then every text must give the same tokens from the checkpoint in bitsmith and in the library `tokenizers`, from the
GGUF in bitsmith and in llama.cpp, and in the vectors of that name. Tokenizers that do not double a leading space cannot
be expressed in GGUF; their texts that begin with one are compared with llama.cpp only. Exits 1 if a comparison fails.
"""

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from clients import LlamaCpp
from tokenizers import Tokenizer

# Vectors of the same vocabulary under llama.cpp's name.
VECTORS = {"gpt2": "gpt-2", "llama3.2": "llama-bpe", "phi-3": "phi-3", "qwen2": "qwen2", "llama2-32000": "llama-spm"}
# Metaspace that does not double a leading space: SentencePiece, which GGUF stands for, always puts one in front.
LEADING_SPACE = {"mistral-v0.3"}
WIDTH = 32


def write_checkpoint(folder, source, vocab):
    folder.mkdir()
    for file in source.glob("*.json"):
        shutil.copy(file, folder)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": vocab, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (vocab, WIDTH), "model.norm.weight": (WIDTH,)}
    layer = "model.layers.0."
    shapes |= {f"{layer}self_attn.{p}_proj.weight": (WIDTH, WIDTH) for p in "qkvo"}
    shapes |= {f"{layer}mlp.{p}_proj.weight": (WIDTH, WIDTH) for p in ("gate", "up", "down")}
    shapes |= {f"{layer}{n}.weight": (WIDTH,) for n in ("input_layernorm", "post_attention_layernorm")}
    header, at = {}, 0
    for name, shape in shapes.items():
        n = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + n]}
        at += n
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + np.full(at // 4, 0.01, np.float32).tobytes())


def texts(folder, name):
    return (folder / "vectors" / f"{name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")


def expected(folder, name, count):
    lines = (folder / "vectors" / f"{name}.out").read_text().split("\n")
    return [list(map(int, line.split())) for line in lines[:count]]


def ours(bitsmith, model, inputs, work):
    out = []
    for text in inputs:
        file = work / "text.txt"
        file.write_bytes(text.encode())
        done = subprocess.run([bitsmith, "tokenize", model, "--file", file, "--json"], stdout=subprocess.PIPE, check=True)
        sequences = json.loads(done.stdout)["sequences"]
        out.append(sequences[0] if sequences else [])
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bitsmith")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    failed = compared = 0

    def compare(label, got, want, inputs):
        nonlocal failed, compared
        wrong = [i for i, (g, w) in enumerate(zip(got, want, strict=True)) if g != w]
        compared += len(want)
        failed += len(wrong)
        for i in wrong[:3]:
            print(f"FAILED: {label}: {inputs[i][:40]!r}: {got[i][:10]} instead of {want[i][:10]}")

    for source in sorted(p.parent for p in args.folder.glob("*/tokenizer.json")):
        name = source.name
        library = Tokenizer.from_file(str(source / "tokenizer.json"))
        inputs = texts(args.folder, VECTORS.get(name, "llama-bpe"))
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            checkpoint, gguf = work / "checkpoint", work / "model.gguf"
            write_checkpoint(checkpoint, source, max(library.get_vocab(True).values()) + 1)
            subprocess.run([args.bitsmith, "convert", checkpoint, "--to", "gguf:f16", "-o", gguf, "-q"], check=True, stdout=subprocess.DEVNULL)
            theirs = [library.encode(t, add_special_tokens=False).ids for t in inputs]
            compare(f"{name}: checkpoint and the library", ours(args.bitsmith, checkpoint, inputs, work), theirs, inputs)
            from_gguf = ours(args.bitsmith, gguf, inputs, work)
            llama = LlamaCpp(gguf)
            compare(f"{name}: GGUF and llama.cpp", from_gguf, [list(llama.tokens(t)) for t in inputs], inputs)
            if name in VECTORS:
                compare(f"{name}: GGUF and the vectors", from_gguf, expected(args.folder, VECTORS[name], len(inputs)), inputs)
            if name in LEADING_SPACE:
                kept = [i for i, t in enumerate(inputs) if not t.startswith(" ")]
                inputs, from_gguf, theirs = ([x[i] for i in kept] for x in (inputs, from_gguf, theirs))
            compare(f"{name}: GGUF and the library", from_gguf, theirs, inputs)
    for vocabulary in sorted((args.folder / "vectors").glob("*.gguf")):
        name = vocabulary.stem
        if not (args.folder / "vectors" / f"{name}.inp").exists():
            continue
        inputs = texts(args.folder, name)
        with tempfile.TemporaryDirectory() as work:
            got = ours(args.bitsmith, vocabulary, inputs, Path(work))
        compare(f"{name}.gguf and its vectors", got, expected(args.folder, name, len(inputs)), inputs)
    print(f"{compared} texts compared, {failed} differ")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
