#!/usr/bin/env python3
"""Holds the format that each preset gives each tensor against llama-quantize.

    presets.py BITSMITH LLAMA_QUANTIZE TOKENIZER_FOLDER [--golden FILE]

Random models of several shapes become F16 GGUFs; llama-quantize says in a dry run what it would make of every tensor, with and without
an importance matrix, and `bitsmith quantize --dry-run --json` must say the same. Presets that this build of bitsmith does not list are
counted. With --golden, llama-quantize's answers are written to a file for the unit tests. Exits 1 if anything differs.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from architectures import BASE, write_checkpoint
from clients import Bitsmith
from gguf import GGUFReader, GGUFWriter

PRESETS = (
    "q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q2_k_s q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq2_m"
    " iq3_xxs iq3_xs iq3_s iq3_m iq4_nl iq4_xs tq1_0 tq2_0 q1_0 q2_0 mxfp4_moe f16 bf16 f32"
).split()
# Names of ours for llama-quantize's with flags.
TABLES = ["--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"]
LARGE = {"q2_k_l": "q2_k", "q3_k_xl": "q3_k_l", "q4_k_l": "q4_k_m", "q5_k_l": "q5_k_m", "q6_k_l": "q6_k"}


def model(layers, heads, kv_heads, tied, hidden=256, inner=256, kind="llama", head_dim=None):
    return kind, {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "head_dim": head_dim or hidden // heads,
    }


MODELS = {
    "two-tied": model(2, 4, 4, True),
    "nine-gqa4": model(9, 8, 2, False, inner=512),
    "seventeen-gqa8-tied": model(17, 8, 1, True),
    "thirty-two-gqa2": model(32, 4, 2, False, kind="mistral"),
    "forty-gqa4-tied": model(40, 4, 1, True, kind="qwen2"),
    "eighty-gqa8": model(80, 8, 1, False),
    "eighty-gqa1": model(80, 4, 4, False),
    "eighty-qwen2": model(80, 4, 1, False, kind="qwen2"),
    "rows-of-288": model(9, 4, 1, False, hidden=288, inner=544, head_dim=64),
    "rows-of-320-tied": model(8, 4, 2, True, hidden=320, inner=256, head_dim=64),
    "rows-of-64-and-128": model(3, 4, 4, False, hidden=128, inner=192),
    "rows-of-40": model(3, 4, 2, True, hidden=40, inner=72, head_dim=8),
}
# Mixtures, which transformers makes.
MIXTURE = {"vocab_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256, "intermediate_size": 256}
EXPERTS = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
DEEPSEEK = {
    **MIXTURE, "num_key_value_heads": 4, "num_hidden_layers": 9, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
    "kv_lora_rank": 256, "q_lora_rank": 256, "n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 256, "first_k_dense_replace": 1,
}  # fmt: skip
MIXTURES = {
    "mixtral-eight-experts": ("mixtral", {**MIXTURE, "num_hidden_layers": 17, "num_local_experts": 8}),
    "mixtral-four-experts": ("mixtral", {**MIXTURE, "num_hidden_layers": 9, "num_local_experts": 4}),
    "qwen3-moe": ("qwen3_moe", {**MIXTURE, **EXPERTS, "num_hidden_layers": 9, "head_dim": 64, "norm_topk_prob": True, "mlp_only_layers": [0]}),
    "qwen2-moe": ("qwen2_moe", {**MIXTURE, **EXPERTS, "num_hidden_layers": 17, "shared_expert_intermediate_size": 512}),
    "deepseek-v2": ("deepseek_v2", DEEPSEEK),
    "deepseek-v2-lite": ("deepseek_v2", {**DEEPSEEK, "q_lora_rank": None, "n_routed_experts": 8}),
    "deepseek-v3": ("deepseek_v3", {**DEEPSEEK, "num_hidden_layers": 17, "first_k_dense_replace": 3, "n_group": 2, "topk_group": 1}),
    "gpt-oss": ("gpt_oss", {**MIXTURE, "num_hidden_layers": 8, "num_local_experts": 32, "num_experts_per_tok": 2, "head_dim": 64}),
}
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def write_imatrix(path, gguf):
    writer = GGUFWriter(path, "imatrix")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 8)
    for tensor in GGUFReader(gguf).tensors:
        if tensor.name.startswith("blk.") and tensor.name.endswith(".weight") and len(tensor.shape) >= 2 and "gate_inp" not in tensor.name:
            matrices = int(tensor.shape[2]) if len(tensor.shape) > 2 else 1
            writer.add_tensor(f"{tensor.name}.in_sum2", np.ones((matrices, tensor.shape[0]), np.float32))
            writer.add_tensor(f"{tensor.name}.counts", np.full((matrices, 1), 8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[.*?\], type = +(\S+), size = .*?(?:-> .*?\((\S+)\))?$", re.M)


def llama_quantize(binary, gguf, preset, flags):
    """Types by tensor; None where llama-quantize refuses."""
    done = subprocess.run([binary, "--dry-run", *flags, gguf, preset.upper()], capture_output=True, text=True)
    if done.returncode:
        return None
    types = {name: (new or old).lower() for name, old, new in LINE.findall(done.stdout + done.stderr)}
    if not types:
        raise SystemExit(f"llama-quantize printed no tensor: {done.stdout[-500:]}{done.stderr[-500:]}")
    return types


def runs(types):
    """The types by layer, run-length encoded (`q6_k*2 q4_k*5`), and the parts that have them. Norms are left out: they never change."""
    parts = {}
    for name, type_ in types.items():
        found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
        if found and not found[2].endswith("norm") and "gate_inp" not in found[2] and found[2] != "attn_sinks":
            parts.setdefault(found[2], []).append((int(found[1] or 0), type_))
    out = {}
    for part, layers in sorted(parts.items()):
        encoded = []
        for _, type_ in sorted(layers):
            if encoded and encoded[-1][0] == type_:
                encoded[-1][1] += 1
            else:
                encoded.append([type_, 1])
        out.setdefault(" ".join(f"{t}*{n}" if n > 1 else t for t, n in encoded), []).append(part)
    return {types: " ".join(parts) for types, parts in sorted(out.items())}


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("llama_quantize")
    args.add_argument("tokenizer", help="a folder with tokenizer.json and tokenizer_config.json, of 2048 tokens")
    args.add_argument("--golden", type=Path, help="write llama-quantize's answers here")
    args.add_argument("--only", action="append", help="a model")
    args = args.parse_args()
    bitsmith = Bitsmith(args.bitsmith)
    listed = {t["encoding"] for t in bitsmith.json("targets")["targets"] if t["container"] == "gguf"}
    missing = [p for p in [*PRESETS, *LARGE] if p not in listed]
    if missing:
        print(f"not compared, as this build does not list them: {' '.join(missing)}")
    golden, same, different = [], 0, 0
    for number, (name, (kind, changes)) in enumerate({**MODELS, **MIXTURES}.items()):
        if args.only and name not in args.only:
            continue
        answers = {}
        with tempfile.TemporaryDirectory() as work:
            folder, dense, imatrix = Path(work, name), Path(work, "dense.gguf"), Path(work, "imatrix.gguf")
            if kind in ARCHITECTURES:
                write_checkpoint(folder, ARCHITECTURES[kind], kind, changes, args.tokenizer, number)
                config = {**BASE, **changes, "model_type": kind}
            else:
                from transformers_models import make

                make(folder, kind, changes, args.tokenizer, number)
                config = json.loads((folder / "config.json").read_text())
            bitsmith.json("convert", folder, "--to", "gguf:f16", "-o", dense)
            write_imatrix(imatrix, dense)
            # llama-quantize holds rows against formats that flags name only when it encodes them, and then stops.
            large = LARGE if changes["hidden_size"] % 32 == 0 else {}
            for guided in (False, True):
                evidence = ["--imatrix", str(imatrix)] if guided else []
                for pure in (False, True):
                    flags = evidence + ["--pure"] * pure
                    theirs = {p: llama_quantize(args.llama_quantize, dense, p, flags) for p in PRESETS}
                    theirs |= {p: llama_quantize(args.llama_quantize, dense, b, flags + TABLES) for p, b in large.items() if not pure}
                    targets = [f"gguf:{p}" for p in theirs if p in listed]
                    ours = bitsmith.json(
                        "quantize", folder, "--method", "reference" if guided else "rtn", "--to", ",".join(targets), "--dry-run",
                        "-o", f"{work}/out/", *flags,
                    )  # fmt: skip
                    for estimate in ours["estimates"]:
                        preset = estimate["target"].removeprefix("gguf:")
                        if theirs[preset] is None:
                            continue
                        # Types of norms and biases are those of the dense file, which is ours.
                        mine = {e["role"]: e["codec"] for e in estimate["plan"]}
                        if name == "gpt-oss":
                            # There, a norm has another name in files.
                            mine = {n.replace("ffn_norm", "post_attention_norm"): codec for n, codec in mine.items()}
                        wrong = [(n, t, mine.get(n)) for n, t in theirs[preset].items() if mine.get(n) != t and n != "rope_freqs.weight"]
                        same += not wrong
                        different += bool(wrong)
                        if wrong:
                            label = f"{name} {preset}{' imatrix' * guided}{' pure' * pure}"
                            print(f"FAILED: {label}: {len(wrong)} differ, first {wrong[0][0]}: {wrong[0][1]}, ours {wrong[0][2]}", flush=True)
                    for preset, types in theirs.items():
                        if types and not pure:
                            answers.setdefault(preset, {})["imatrix" if guided else "plain"] = runs(types)
        for answer in answers.values():
            if answer.get("imatrix") == answer.get("plain"):
                del answer["imatrix"]
        golden.append({"name": name, "config": config, "presets": answers})
    if args.golden:
        lines = ",\n".join(json.dumps(m, separators=(",", ":")) for m in golden)
        args.golden.write_text(f"[\n{lines}\n]\n")
    print(f"{same} passed, {different} failed")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
