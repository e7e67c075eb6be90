#!/usr/bin/env python3
"""Every architecture in the real clients: small checkpoints with random weights, written by bitsmith as GGUF and MLX.

    architectures.py BITSMITH TOKENIZER_FOLDER [--only NAME] [-v]

For each architecture the checkpoint itself is read by mlx-lm (float32), which gives the distributions that everything is compared
with, and by bitsmith; then every artifact is read by its client and by bitsmith. Sequences are several times as long as the
`original_max_position_embeddings` of the scaled rotary embeddings. Exits 1 if a comparison fails.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from clients import Bitsmith, LlamaCpp, MlxLm, dequantize, kl

VOCAB = 2048
LENGTH = 200
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

# Differences from BASE.
BASE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
MODELS = {
    "llama3-rope": ("LlamaForCausalLM", "llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "llama3-rope-parameters": (
        "LlamaForCausalLM",
        "llama",
        {"rope_theta": None, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}, "num_key_value_heads": 4},
    ),
    "llama-linear-rope": ("LlamaForCausalLM", "llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "num_key_value_heads": 1}),
    "smollm": ("LlamaForCausalLM", "llama", {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "mistral", {"head_dim": 96, "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "qwen2-narrow": ("Qwen2ForCausalLM", "qwen2", {"hidden_size": 64, "num_key_value_heads": 1, "rope_theta": None, "tie_word_embeddings": None}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {"head_dim": 128, "rope_theta": 1e6, "tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "qwen3-untied": ("Qwen3ForCausalLM", "qwen3", {"hidden_size": 128, "head_dim": 64, "num_key_value_heads": 1}),
}
# What transformers takes for a key that is missing; mlx-lm has other defaults.
DEFAULTS = {"rope_theta": 10000.0, "tie_word_embeddings": False}

# Targets, each with limits on the mean KL divergence of ours: from the artifact in its client, from the same with the client computing
# in float32, and from the checkpoint (what the encoding itself loses). Random weights magnify rounding, so the first is wide: a wrong
# permutation, bias or frequency gives 1 and more.
CONVERT = {"gguf:f32": (1e-5, None, 1e-6), "gguf:bf16": (2e-3, None, 1e-6), "mlx:bf16": (1e-2, 1e-6, 1e-6)}
QUANTIZE = {"gguf:q8_0": (2e-2, 1e-5, 2e-2), "mlx:8bit": (2e-1, 1e-6, 3e-2)}


def write_checkpoint(folder, architecture, model_type, changes, tokenizer, seed):
    config = {"architectures": [architecture], "model_type": model_type, **BASE, **changes}
    config = {k: v for k, v in config.items() if v is not None}
    if model_type == "qwen2":
        config.pop("head_dim")
    random = np.random.default_rng(seed)
    hidden, inner, heads, kv_heads = (config[k] for k in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"))
    head = config.get("head_dim", hidden // heads)
    tensors = {}

    def linear(name, rows, columns, gain=1.0, bias=False):
        tensors[f"{name}.weight"] = random.normal(0, gain / np.sqrt(columns), (rows, columns))
        if bias:
            tensors[f"{name}.bias"] = random.normal(0, 0.5, rows)

    def norm(name, width):
        tensors[f"{name}.weight"] = random.uniform(0.5, 1.5, width)

    # Attention that looks at few positions, and logits with a spread of about 2.5: distributions in which a mistake shows.
    bias = model_type == "qwen2"
    tensors["model.embed_tokens.weight"] = random.normal(0, 2.5 / np.sqrt(hidden), (VOCAB, hidden))
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        linear(f"{layer}.self_attn.q_proj", heads * head, hidden, 1.4, bias)
        linear(f"{layer}.self_attn.k_proj", kv_heads * head, hidden, 1.4, bias)
        linear(f"{layer}.self_attn.v_proj", kv_heads * head, hidden, 1.0, bias)
        linear(f"{layer}.self_attn.o_proj", hidden, heads * head)
        linear(f"{layer}.mlp.gate_proj", inner, hidden)
        linear(f"{layer}.mlp.up_proj", inner, hidden)
        linear(f"{layer}.mlp.down_proj", hidden, inner)
        norm(f"{layer}.input_layernorm", hidden)
        norm(f"{layer}.post_attention_layernorm", hidden)
        if model_type == "qwen3":
            norm(f"{layer}.self_attn.q_norm", head)
            norm(f"{layer}.self_attn.k_norm", head)
    norm("model.norm", hidden)
    if not config.get("tie_word_embeddings"):
        linear("lm_head", VOCAB, hidden, 2.5)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    arrays = {name: mx.array(value.astype(np.float32)).astype(mx.bfloat16) for name, value in tensors.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tokenizer, name), folder)


def for_mlx_lm(folder):
    """The checkpoint with all keys where mlx-lm looks for them, which ignores `rope_parameters` for most architectures."""
    config = json.loads((folder / "config.json").read_text())
    scaling = config.pop("rope_parameters", {})
    theta = scaling.pop("rope_theta", None)
    config = {**DEFAULTS, **config, **({"rope_theta": theta} if theta else {}), **({"rope_scaling": scaling} if scaling else {})}
    other = folder.parent / "for-mlx-lm"
    shutil.copytree(folder, other)
    (other / "config.json").write_text(json.dumps(config))
    return other


class Checks:
    def __init__(self, verbose):
        self.verbose = verbose
        self.passed = self.failed = 0

    def compare(self, label, p, q, limit):
        value = kl(p, q)
        ok = bool(value.mean() <= limit)  # NaN fails
        self.passed += ok
        self.failed += not ok
        if self.verbose or not ok:
            print(
                f"{'ok' if ok else 'FAILED'}: {label}: mean KL {value.mean():.2e} (limit {limit:.0e}), worst {value.max():.2e} at"
                f" {value.argmax()}, same top token {(p.argmax(-1) == q.argmax(-1)).mean():.1%}",
                flush=True,
            )
        return value.mean()


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("tokenizer", help="a folder with tokenizer.json and tokenizer_config.json, of 2048 tokens")
    args.add_argument("--only", action="append", help="this model only")
    args.add_argument("-v", "--verbose", action="store_true", help="print every comparison")
    args = args.parse_args()
    bitsmith, checks = Bitsmith(args.bitsmith), Checks(args.verbose)
    for number, (name, (architecture, model_type, changes)) in enumerate(MODELS.items()):
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                check_model(bitsmith, checks, Path(work, name), architecture, model_type, changes, args.tokenizer, number)
            except SystemExit as e:  # a client or bitsmith refuses: count it, go on with the next
                checks.failed += 1
                print(f"FAILED: {name}: {e}", flush=True)
    print(f"{checks.passed} passed, {checks.failed} failed")
    sys.exit(checks.failed > 0)


def check_model(bitsmith, checks, folder, architecture, model_type, changes, tokenizer, seed):
    name = folder.name
    write_checkpoint(folder, architecture, model_type, changes, tokenizer, seed)
    sequence = np.random.default_rng(1000 + seed).integers(3, VOCAB, LENGTH).tolist()
    source = MlxLm(for_mlx_lm(folder))
    source.set_float32()
    source = source.logprobs(sequence)
    entropy = -(np.exp(source) * source).sum(-1).mean()
    if not 0.5 < entropy < 6.5:
        raise SystemExit(f"distributions with a mean entropy of {entropy:.2f} nats compare nothing")
    table = {}
    mine = bitsmith.logprobs(folder, [sequence], VOCAB)[0]
    table["checkpoint: MLX float32"] = checks.compare(f"{name}: checkpoint in MLX, float32", source, mine, 1e-6)

    out = folder.parent / "out"
    for target in CONVERT:
        bitsmith.json("convert", folder, "--to", target, "-o", f"{out}/")
    bitsmith.json("quantize", folder, "--method", "reference", *(x for t in QUANTIZE for x in ("--to", t)), "-o", f"{out}/")
    for target, (limit, exact_limit, source_limit) in {**CONVERT, **QUANTIZE}.items():
        container, encoding = target.split(":")
        artifact = out / (f"{name}-{encoding.upper()}.gguf" if container == "gguf" else f"{name}-{encoding}")
        mine = bitsmith.logprobs(artifact, [sequence], VOCAB)[0]
        checks.compare(f"{name}: {target} against the checkpoint", source, mine, source_limit)
        if container == "gguf":
            client, exact = LlamaCpp(artifact), None
            if exact_limit:
                # The same bits by gguf-py's decoders.
                decoded = folder.parent / "decoded.gguf"
                dequantize(artifact, decoded)
                exact = LlamaCpp(decoded).logprobs(sequence)
            label = "llama.cpp"
            theirs = client.logprobs(sequence)
        else:
            client = MlxLm(artifact)
            label = f"MLX {client.dtype}"
            theirs = client.logprobs(sequence)
            client.set_float32()
            exact = client.logprobs(sequence)
        table[f"{target}: {label}"] = checks.compare(f"{name}: {target} in {label}", theirs, mine, limit)
        if exact is not None:
            table["float32"] = checks.compare(f"{name}: {target} in {label}, float32", exact, mine, exact_limit)
            table[f"{target}: {label}"] = f"{table[f'{target}: {label}']:.0e} (float32 {table.pop('float32'):.0e})"
    print(f"{name} (entropy {entropy:.1f}): mean KL " + ", ".join(f"{k} {v if isinstance(v, str) else format(v, '.0e')}" for k, v in table.items()), flush=True)


if __name__ == "__main__":
    main()
