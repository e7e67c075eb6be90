#!/usr/bin/env python3
"""What goes with the weights: the metadata of a GGUF as gguf-py reads it, and an MLX folder in mlx-lm with its tokenizer.

    metadata.py BITSMITH SOURCE_FOLDER ARTIFACT...

A GGUF must have the keys and value types that llama.cpp's converter writes, the vocabulary of the source's tokenizer.json and finite
tensors. A folder must load with its tokenizer, and continue a text and a chat as bitsmith does. Exits 1 if an artifact fails.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFValueType as T

U32, F32, STRING, BOOL = T.UINT32, T.FLOAT32, T.STRING, T.BOOL
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "bf16": 32}
PROMPT = "The lighthouse keeper"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def expected_metadata(source, path):
    """(key, type, value) for a byte-level BPE model of the Llama family."""
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    arch = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    vocab = {i: t for t, i in tokenizer["model"]["vocab"].items()}
    types = {i: NORMAL for i in vocab}
    for token in tokenizer["added_tokens"]:
        vocab[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    yield "general.architecture", [STRING], arch
    yield "general.type", [STRING], "model"
    yield "general.file_type", [U32], next(v for k, v in FILE_TYPES.items() if path.stem.lower().endswith("-" + k))
    yield "general.quantization_version", [U32], 2
    for key, value in {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "vocab_size": config["vocab_size"],
    }.items():
        yield f"{arch}.{key}", [U32], value
    yield f"{arch}.rope.freq_base", [F32], config["rope_theta"]
    yield f"{arch}.attention.layer_norm_rms_epsilon", [F32], float(np.float32(config["rms_norm_eps"]))
    yield "tokenizer.ggml.model", [STRING], "gpt2"
    yield "tokenizer.ggml.pre", [STRING], None
    yield "tokenizer.ggml.tokens", [T.ARRAY, STRING], [vocab[i] for i in range(config["vocab_size"])]
    yield "tokenizer.ggml.token_type", [T.ARRAY, T.INT32], [types[i] for i in range(config["vocab_size"])]
    yield "tokenizer.ggml.merges", [T.ARRAY, STRING], merges
    yield "tokenizer.ggml.bos_token_id", [U32], config["bos_token_id"]
    yield "tokenizer.ggml.eos_token_id", [U32], config["eos_token_id"]
    extra = json.loads((source / "tokenizer_config.json").read_text())
    for key in ("add_bos_token", "add_eos_token"):
        if key in extra:
            yield f"tokenizer.ggml.{key}", [BOOL], extra[key]
    if "chat_template" in extra:
        yield "tokenizer.chat_template", [STRING], extra["chat_template"]


def check_gguf(source, path):
    """Yields what is wrong."""
    reader = gguf.GGUFReader(path)
    keys = 0
    for key, types, value in expected_metadata(source, path):
        keys += 1
        field = reader.get_field(key)
        if field is None:
            yield f"{key} is missing"
        elif field.types != types:
            yield f"{key} has type {[t.name for t in field.types]}, not {[t.name for t in types]}"
        elif value is not None and field.contents() != value:
            yield f"{key} is {str(field.contents())[:80]}, not {str(value)[:80]}"
    for tensor in reader.tensors:
        if not np.isfinite(gguf.dequantize(tensor.data, tensor.tensor_type)).all():
            yield f"{tensor.name} is not finite"
    print(f"{path.name}: {keys} metadata keys and {len(reader.tensors)} tensors in gguf-py")


def generated(bitsmith, path, *args):
    done = subprocess.run([bitsmith, "generate", path, *args, "--temp", "0", "--compute", "f32", "-q"], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def check_mlx(bitsmith, path):
    import mlx.core as mx
    from mlx_lm import generate
    from mlx_lm.utils import load

    model, tokenizer = load(path)
    model.set_dtype(mx.float32)  # greedy decoding must not depend on rounding
    question = tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)
    for what, prompt, args in [("text", PROMPT, []), ("chat", question, ["--chat"])]:
        theirs = generate(model, tokenizer, prompt=prompt, max_tokens=16).strip()
        ours = generated(bitsmith, path, "-p", PROMPT, "-n", "16", *args).removeprefix(PROMPT).strip()
        print(f"{path.name}: {what} in mlx-lm: {theirs!r}")
        if ours != theirs:
            yield f"{what} continues as {ours!r} in bitsmith"


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("source", type=Path)
    args.add_argument("artifact", nargs="+", type=Path)
    args = args.parse_args()
    failed = 0
    for path in args.artifact:
        wrong = list(check_gguf(args.source, path) if path.suffix == ".gguf" else check_mlx(args.bitsmith, path))
        for message in wrong:
            print(f"FAILED: {path.name}: {message}")
        failed += bool(wrong)
    print(f"{len(args.artifact) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
