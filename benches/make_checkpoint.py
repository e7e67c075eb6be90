#!/usr/bin/env python3
"""Makes a Llama checkpoint of random BF16 weights for measuring speed and memory: make_checkpoint.py OUT SHAPE [--layers N] [--sparse].

Tokenizer and vocabulary are those of the built-in demo model, so that any target can be written, or those in the folder that
`--tokenizer` names, as llama.cpp's converter knows only tokenizers of released models. `--sparse` leaves the weights as holes in the
file: all zero, and hardly any disk. Needs numpy.
"""
import argparse
import json
import pathlib
import shutil

import numpy as np

# Hidden size, feed-forward size, heads, key-value heads, layers.
SHAPES = {"0.5b": (2048, 5632, 16, 16, 9), "7b": (4096, 11008, 32, 32, 32), "70b": (8192, 28672, 64, 8, 80)}
DEMO = pathlib.Path(__file__).resolve().parent.parent / "datasets" / "demo"
SHARD = 5 << 30


def tensors(hidden, ffn, heads, kv_heads, layers, vocab):
    """Names and shapes, as Hugging Face has them."""
    head = hidden // heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv_heads * head, hidden),
            "self_attn.v_proj": (kv_heads * head, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }.items():
            yield f"{p}{name}.weight", shape
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def write_shard(path, entries, pool, sparse):
    header, at = {}, 0
    for name, shape in entries:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        if sparse:
            f.truncate(8 + len(head) + at)
            return
        for k, (_, shape) in enumerate(entries):
            left, start = 2 * int(np.prod(shape)), 2 * (k * 7919 % 4096)
            while left:
                part = pool[start : start + left]
                f.write(part)
                left, start = left - len(part), 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=DEMO)
    args = parser.parse_args()
    hidden, ffn, heads, kv_heads, layers = SHAPES[args.shape]
    layers = args.layers or layers
    args.out.mkdir(parents=True)
    config = json.loads((DEMO / "config.json").read_text())
    config |= {
        "hidden_size": hidden, "intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers, "head_dim": hidden // heads, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }
    if args.tokenizer != DEMO:
        tokenizer = json.loads((args.tokenizer / "tokenizer.json").read_text())
        ids = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
        config["vocab_size"] = max(ids.values()) + 1
        config |= {"bos_token_id": ids.get("<s>", 0), "eos_token_id": ids.get("</s>", 0)}
        (args.out / "generation_config.json").write_text("{}")
    else:
        shutil.copy(DEMO / "generation_config.json", args.out)
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(args.tokenizer / name, args.out)
    weights = (0.02 * np.random.default_rng(1).standard_normal(1 << 25, dtype=np.float32)).view(np.uint32)
    pool = memoryview((weights >> 16).astype("<u2").tobytes())
    shards, filled = [[]], 0
    for name, shape in tensors(hidden, ffn, heads, kv_heads, layers, config["vocab_size"]):
        size = 2 * int(np.prod(shape))
        if filled + size > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size
    index = {}
    for i, entries in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(args.out / name, entries, pool, args.sparse)
        index |= {tensor: name for tensor, _ in entries}
    if len(shards) > 1:
        (args.out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


if __name__ == "__main__":
    main()
