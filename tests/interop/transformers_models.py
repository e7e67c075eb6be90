#!/usr/bin/env python3
"""Every architecture against transformers: a tiny random model of each, made by transformers itself.

    transformers_models.py BITSMITH TOKENIZER_FOLDER [--only NAME]... [-v]

For each model, transformers' logits in float32 are compared with bitsmith's on the checkpoint, on the GGUF and on the MLX folder that
bitsmith makes of it (largest difference of a log-probability, relative to the largest), with the distributions that llama.cpp and
mlx-lm compute from these (mean KL divergence), and with what transformers computes from the checkpoint that bitsmith makes of the GGUF.
Clients that are not installed or do not know the architecture are named and skipped. Exits 1 if a comparison fails.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from clients import Bitsmith, LlamaCpp, MlxLm, kl, log_softmax

VOCAB = 2048
LENGTH = 96
RELATIVE = 1e-4
DIVERGENCE = 1e-5
ENCODED = 1e-2
FLIPPED = 1e-2

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GEMMA = {"head_dim": 48, "query_pre_attn_scalar": 48}
GRANITE = {"attention_multiplier": 0.1, "embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96}

LOCAL_MOE = {"num_local_experts": 8, "num_experts_per_tok": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
DEEPSEEK = {
    "num_key_value_heads": 4, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24, "kv_lora_rank": 64, "q_lora_rank": 96,
    "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 96, "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
}  # fmt: skip
GPT_OSS = {**LOCAL_MOE, "head_dim": 32, "num_hidden_layers": 4, "sliding_window": 24}
LLAMA4 = {**LOCAL_MOE, "num_experts_per_tok": 1, "head_dim": 32, "intermediate_size_mlp": 256, "num_hidden_layers": 4, "interleave_moe_layer_step": 2}
NO_YARN = "it needs YaRN in DeepSeek V2"

def rope(kind, **parameters):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **parameters}}


def longrope(original):
    divisors = np.linspace(1, 4, 16).round(3).tolist()
    parameters = {"short_factor": divisors[:1] * 16, "long_factor": divisors, "original_max_position_embeddings": original, "factor": 4.0}
    return {**rope("longrope", **parameters), "max_position_embeddings": 4 * original}


# Lengths of sequences where the usual ones would not do: all beyond the original context.
LENGTHS = {"rope-longrope": (LENGTH, 56), "phi3-longrope": (LENGTH, 56)}

# Name: model_type, differences from SMALL, clients that cannot run it with the reason.
MODELS = {
    "llama": ("llama", {}, {}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {}),
    "mistral": ("mistral", {"sliding_window": None}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", {"head_dim": 48}, {}),
    "qwen3-moe": ("qwen3_moe", {**MOE, "head_dim": 48, "norm_topk_prob": True, "mlp_only_layers": []}, {}),
    "mixtral": ("mixtral", LOCAL_MOE, {}),
    "qwen2-moe": ("qwen2_moe", {**MOE, "shared_expert_intermediate_size": 160, "norm_topk_prob": False}, {}),
    "granite-moe": (
        "granitemoe",
        {**LOCAL_MOE, "attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0},
        {},
    ),
    "deepseek-v2": ("deepseek_v2", DEEPSEEK, {}),
    "deepseek-v2-lite": ("deepseek_v2", {**DEEPSEEK, "q_lora_rank": None, "rope_parameters": None}, {"mlx-lm": NO_YARN}),
    "deepseek-v2-groups": (
        "deepseek_v2",
        {**DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
        {"llama.cpp": "it ranks groups of experts by their two best, as for DeepSeek V3"},
    ),
    "deepseek-v3": ("deepseek_v3", {**DEEPSEEK, "n_group": 2, "topk_group": 1}, {}),
    "gpt-oss": ("gpt_oss", {**GPT_OSS, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, {}),
    "gpt-oss-yarn": (
        "gpt_oss",
        {**GPT_OSS, "rope_parameters": {**YARN, "truncate": False}},
        dict.fromkeys(("llama.cpp", "mlx-lm"), "it rounds YaRN's ramp to whole dimensions"),
    ),
    "llama4": ("llama4_text", LLAMA4, {"mlx-lm": "its llama4_text has no experts"}),
    "llama4-chunks": (
        "llama4_text",
        {**LLAMA4, "interleave_moe_layer_step": 1, "attention_chunk_size": 24, "floor_scale": 16, "attn_scale": 0.5},
        {"mlx-lm": "its llama4_text has no experts", "llama.cpp file": "GGUF has no key for the length of chunks"},
    ),
    "gemma2": ("gemma2", {**GEMMA, "sliding_window": 128}, {}),
    "gemma2-window": ("gemma2", {**GEMMA, "sliding_window": 24}, {"mlx-lm": "it has no windows in Gemma 2"}),
    "gemma": ("gemma", {"head_dim": 48}, {"mlx-lm": "it has the exact GELU in Gemma 1"}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 24}, {}),
    "gemma3-usual": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7, "sliding_window": 40}, {}),
    "phi2": ("phi", {"partial_rotary_factor": 0.4}, {}),
    "phi3": ("phi3", {}, {}),
    "phi4": ("phi3", {"partial_rotary_factor": 0.75, "tie_word_embeddings": True}, {}),
    "phi3-window": ("phi3", {"sliding_window": 24}, {"llama.cpp": "it has no windows in Phi 3", "mlx-lm": "it has no windows in Phi 3"}),
    "pythia": ("gpt_neox", {"rotary_pct": 0.25, "intermediate_size": 512, "hidden_act": "gelu"}, {}),
    "gpt-neox": ("gpt_neox", {"use_parallel_residual": False, "intermediate_size": 512, "hidden_act": "gelu_fast"}, {}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}, {}),
    "stablelm-12b": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}, {}),
    "olmo2": ("olmo2", {}, {}),
    "granite": ("granite", GRANITE, {}),
    "granite-bias": ("granite", {**GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, {}),
    "command-r": ("cohere", {"logit_scale": 0.25}, {}),
    "command-r-plus": (
        "cohere",
        {"logit_scale": 0.25, "use_qk_norm": True, "num_hidden_layers": 64, "hidden_size": 64, "intermediate_size": 96},
        {},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 5}, {}),
    # Rotary embeddings for long contexts, beyond the original one.
    "rope-linear": ("llama", rope("linear", factor=2.5), {}),
    "rope-llama3": ("llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32), {}),
    "rope-yarn": ("qwen2", rope("yarn", factor=4.0, original_max_position_embeddings=32), {}),
    "rope-yarn-llama": ("llama", rope("yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=16.0, beta_slow=2.0), {"llama.cpp file": "it knows one ramp only"}),
    "rope-dynamic": (
        "qwen2",
        {**rope("dynamic", factor=2.0), "max_position_embeddings": 48},
        {"llama.cpp file": "it has no dynamic base"},
    ),
    "rope-longrope": ("llama", longrope(48), {}),
    "phi3-longrope": ("phi3", {**longrope(48), "original_max_position_embeddings": 48}, {}),
    "phi3-longrope-short": (
        "phi3",
        {**longrope(512), "original_max_position_embeddings": 512},
        {"mlx-lm": "it takes the divisors of long texts for all texts"},
    ),
    "gpt2": ("gpt2", {"n_embd": 128, "n_head": 4, "n_layer": 3, "n_positions": 256}, {}),
}


def make(folder, model_type, changes, tokenizer, seed):
    """A model with weights whose distributions show a mistake: attention that looks at few positions, confident logits."""
    torch.manual_seed(seed)
    keys = {**SMALL, **changes}
    config = transformers.AutoConfig.for_model(model_type, **keys)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                inputs = p.shape[0] if model_type == "gpt2" and ".h." in name else p.shape[-1]
                p.normal_(0, 1.5 / inputs**0.5)
            elif "norm" in name.split(".")[-2] or ".ln_" in name:
                p.add_(0.3 * torch.randn_like(p))
            else:
                p.normal_(0, 0.2)
        for name, b in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                b.uniform_(0, 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tokenizer, name), folder)
    return model


def logprobs(model, sequences):
    out = []
    with torch.no_grad():
        for s in sequences:
            out.append(log_softmax(model(torch.tensor([s])).logits[0].float().numpy()))
    return out


# Text models that transformers has inside others only: vision_models.py.
ELSEWHERE = {"qwen2_5_vl_text"}


class Checks:
    def __init__(self, verbose):
        self.verbose = verbose
        self.passed = self.failed = 0
        # Clients by model_type with which something was compared.
        self.proved = {}

    def note(self, ok, text):
        self.passed += ok
        self.failed += not ok
        if self.verbose or not ok:
            print(f"{'ok' if ok else 'FAILED'}: {text}", flush=True)

    def equal(self, label, got, want, limit=RELATIVE):
        worst = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))
        self.note(worst <= limit, f"{label}: largest relative difference {worst:.1e}")

    def alike(self, label, got, want, mixture):
        each = np.concatenate([kl(w, g) for g, w in zip(got, want, strict=True)])
        # Of two experts with nearly the same score, a client with less precision may choose the other one.
        middle, mean = float(np.median(each)), float(each.mean())
        ok = middle <= DIVERGENCE and mean <= FLIPPED if mixture else mean <= DIVERGENCE
        self.note(ok, f"{label}: mean KL {mean:.1e}, median {middle:.1e}")


def check(name, bitsmith, tokenizer, work, checks):
    model_type, changes, skipped = MODELS[name]
    source = work / "source"
    model = make(source, model_type, changes, tokenizer, seed=len(name))
    random = np.random.default_rng(1)
    sequences = [[int(t) for t in random.integers(2, VOCAB, n)] for n in LENGTHS.get(name, (LENGTH, 7))]
    want = logprobs(model, sequences)
    vocab = want[0].shape[-1]

    def ours(path, label):
        checks.equal(f"{name}: {label} in bitsmith", bitsmith.logprobs(path, sequences, vocab), want)

    ours(source, "checkpoint")
    proved = checks.proved.setdefault(model_type, set())
    proved.add("transformers")
    for client, target, path in (("llama.cpp", "gguf:f32", work / "model.gguf"), ("mlx-lm", "mlx:f32", work / "mlx")):
        if f"{client} file" in skipped:
            print(f"{name}: no {target}: {skipped[f'{client} file']}")
            continue
        bitsmith.json("convert", source, "--to", target, "-o", path)
        ours(path, target)
        if client in skipped:
            print(f"{name}: not in {client}: {skipped[client]}")
            continue
        reader = LlamaCpp(path) if client == "llama.cpp" else MlxLm(path)
        checks.alike(f"{name}: {target} in {client}", [reader.logprobs(s) for s in sequences], want, mixture=any("expert" in key for key in changes))
        proved.add(client)
    if (work / "model.gguf").exists():
        back = work / "back"
        bitsmith.json("convert", work / "model.gguf", "--to", "hf:f32", "-o", back)
        again = transformers.AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32, attn_implementation="eager").eval()
        checks.equal(f"{name}: checkpoint made of the GGUF in transformers", logprobs(again, sequences), want)


ENCODERS = {"bert": (None, "gelu"), "bert-mean": ("mean", "gelu_pytorch_tanh"), "bert-cls": ("cls", "gelu")}
TEXTS = ["Hello, world! It's café time: naïve ÅNGSTRÖM, 東京 3.14", "an unseen wörd\tqqqzzz", "a"]


def make_encoder(folder, pooling, activation):
    """A BERT whose WordPiece vocabulary has every character and some pieces of the texts below."""
    torch.manual_seed(1)
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()] + list("京東")
    words = "hello world it time cafe naive angstrom an seen word".split()
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *words, "##rld", "##seen", "un", "##ive"]
    vocab = {p: i for i, p in enumerate(dict.fromkeys(pieces))}
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    transformers.BertTokenizer(vocab=vocab).save_pretrained(folder)
    keys = {**SMALL, "vocab_size": len(vocab), "hidden_act": activation}
    config = transformers.BertConfig(**{k: v for k, v in keys.items() if k != "num_key_value_heads"})
    model = transformers.BertModel._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "LayerNorm" in name:
                p.add_(0.3 * torch.randn_like(p))
            else:
                p.normal_(0, 1.5 / p.shape[-1] ** 0.5 if p.ndim >= 2 else 0.2)
    model.save_pretrained(folder)
    if pooling:
        (folder / "1_Pooling").mkdir()
        modes = {"pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_cls_token": pooling == "cls"}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
        modules = [{"idx": 0, "type": "sentence_transformers.models.Transformer", "path": ""}]
        modules.append({"idx": 1, "type": "sentence_transformers.models.Pooling", "path": "1_Pooling"})
        (folder / "modules.json").write_text(json.dumps(modules))
    return model


def check_encoder(name, bitsmith, work, checks):
    """Tokens and hidden states, and the embedding that they are pooled into."""
    pooling, activation = ENCODERS[name]
    source, gguf = work / "source", work / "model.gguf"
    model = make_encoder(source, pooling, activation)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    sequences = [tokenizer(text)["input_ids"] for text in TEXTS]

    def states(model):
        with torch.no_grad():
            return [model(torch.tensor([s])).last_hidden_state[0].numpy() for s in sequences]

    def pool(states):
        return states.mean(axis=0) if pooling == "mean" else states[0]

    want = states(model)
    bitsmith.json("convert", source, "--to", "gguf:f32", "-o", gguf)
    for path, label in ((source, "checkpoint"), (gguf, "gguf:f32")):
        checks.note(bitsmith.tokens(path, TEXTS, special=True) == sequences, f"{name}: {label}: tokens in bitsmith")
        got = bitsmith.embed(path, sequences)
        checks.equal(f"{name}: {label} in bitsmith", [s for s, _ in got], want)
        if pooling:
            checks.equal(f"{name}: {label}: embeddings in bitsmith", [e for _, e in got], [pool(w) for w in want])
    llama = LlamaCpp(gguf)
    checks.note([llama.tokens(t, special=True) for t in TEXTS] == sequences, f"{name}: gguf:f32: tokens in llama.cpp")
    got = [llama.embeddings(s, pooling) for s in sequences]
    # It rounds GELU to half precision.
    checks.proved["bert"] = {"transformers", "llama.cpp"}
    checks.equal(f"{name}: gguf:f32 in llama.cpp", got, [pool(w) if pooling else w for w in want], ENCODED)
    back = work / "back"
    bitsmith.json("convert", gguf, "--to", "hf:f32", "-o", back)
    again = transformers.AutoModel.from_pretrained(back, dtype=torch.float32, attn_implementation="eager").eval()
    checks.equal(f"{name}: checkpoint made of the GGUF in transformers", states(again), want)
    tokenizer = transformers.AutoTokenizer.from_pretrained(back)
    checks.note([tokenizer(t)["input_ids"] for t in TEXTS] == sequences, f"{name}: tokenizer made of the GGUF in transformers")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bitsmith")
    parser.add_argument("tokenizer")
    parser.add_argument("--only", action="append")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    checks = Checks(args.verbose)
    for name in args.only or [*MODELS, *ENCODERS]:
        with tempfile.TemporaryDirectory() as work:
            try:
                if name in ENCODERS:
                    check_encoder(name, Bitsmith(args.bitsmith), Path(work), checks)
                else:
                    check(name, Bitsmith(args.bitsmith), args.tokenizer, Path(work), checks)
            except (Exception, SystemExit) as e:
                checks.note(False, f"{name}: {type(e).__name__}: {e}")
    if not args.only:
        for arch in Bitsmith(args.bitsmith).json("archs")["architectures"]:
            if set(arch["model_types"]) <= ELSEWHERE:
                continue
            proved = set().union(*(checks.proved.get(t, ()) for t in arch["model_types"]))
            checks.note(proved == set(arch["proof"]), f"{arch['name']}: archs says that it is compared with {arch['proof']}, and so it was")
    print(f"{checks.passed} comparisons passed, {checks.failed} failed")
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
