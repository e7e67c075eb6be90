#!/usr/bin/env python3
"""Hugging Face folders made from GGUF files alone, in transformers (configuration and tokenizer) and mlx-lm (the whole model).

    folders.py BITSMITH TOKENIZER [--only NAME] [-v]

For every model of architectures.py: checkpoint -> gguf:f32 -> hf:f32. The folder must have the checkpoint's tensors bit for bit and
tokenize as it does; mlx-lm, given nothing but the folder, must compute what our runtime computes from the checkpoint; and MLX, GPTQ and
AWQ folders made from the GGUF must have the very weights of those made from the checkpoint. Then one GGUF with every way of cutting
text into words: transformers must take the expressions, and cut as we do. Exits 1 if anything differs.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import gguf
import mlx.core as mx
import numpy as np
from architectures import LENGTH, MODELS, VOCAB, Checks, write_checkpoint
from check import TEXTS
from clients import Bitsmith, MlxLm
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

SPECIAL = ["a <s> b</s>", "  two  spaces\n\n\tx ", "", "don't I'LL 1234567"]
# By transformers' names, with what it calls them.
KEYS = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
KEYS += ("head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id")
# One name per entry of the table in runtime/src/tokenizer/pre.rs.
CUTTINGS = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "tekken", "gpt-4o", "deepseek-v3", "deepseek-coder")
CUTTINGS += ("deepseek-llm", "falcon", "bloom", "viking", "default")
QUANTIZED = ("mlx:4bit", "gptq:4bit-g32", "awq:4bit-g32", "mlx:bf16")


class Folders(Checks):
    def expect(self, label, ok, details=""):
        self.passed += bool(ok)
        self.failed += not ok
        if self.verbose or not ok:
            print(f"{'ok' if ok else 'FAILED'}: {label} {details}".rstrip(), flush=True)


def bits(folder):
    """Names, types and bytes of all tensors."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, value in mx.load(str(file)).items():
            tensors[name] = (str(value.dtype), value.shape, np.array(value.view(mx.uint8)).tobytes())
    return tensors


def rope(config):
    """Kind, base and parameters, wherever this version keeps them; a Llama 3 rule but for the ratio that its parameters share."""
    found = dict(getattr(config, "rope_parameters", None) or config.rope_scaling or {})
    kind = found.get("rope_type", found.get("type", "default"))
    theta = found.get("rope_theta", getattr(config, "rope_theta", None))
    if kind != "llama3":
        return kind, theta, found.get("factor")
    low = found["low_freq_factor"]
    return kind, theta, found["factor"], found["high_freq_factor"] / low, found["original_max_position_embeddings"] / low


def check_model(bitsmith, checks, folder, architecture, model_type, changes, tokenizer, seed):
    name, work = folder.name, folder.parent
    write_checkpoint(folder, architecture, model_type, changes, tokenizer, seed)
    gguf, plain = work / "model.gguf", work / "plain"
    bitsmith.json("convert", folder, "--to", "gguf:f32", "-o", gguf)
    bitsmith.json("convert", gguf, "--to", "hf:f32", "-o", plain, "--shard-size", "2MB")
    source = {k: v.astype(mx.float32) for k, v in mx.load(str(folder / "model.safetensors")).items()}
    mx.save_safetensors(str(work / "source.safetensors"), source)
    (work / "source").mkdir()
    (work / "source.safetensors").rename(work / "source" / "model.safetensors")
    checks.expect(f"{name}: tensors of the checkpoint, bit for bit", bits(work / "source") == bits(plain))

    theirs, ours = AutoConfig.from_pretrained(folder), AutoConfig.from_pretrained(plain)
    for key in KEYS:
        # A Mistral without a window is a Llama, in GGUF and so in what comes out of it; and some defaults are not spelled out.
        a, b = getattr(theirs, key, None), getattr(ours, key, None)
        same = a == b or (key, a, b) == ("model_type", "mistral", "llama") or (key == "head_dim" and a is None)
        checks.expect(f"{name}: {key} in transformers", same, f"{b!r}, the checkpoint's {a!r}")
    checks.expect(f"{name}: rope in transformers", rope(ours) == rope(theirs), f"{rope(ours)}, the checkpoint's {rope(theirs)}")
    tokens_of(checks, name, folder, plain)

    sequence = np.random.default_rng(1000 + seed).integers(3, VOCAB, LENGTH).tolist()
    mine = bitsmith.logprobs(folder, [sequence], VOCAB)[0]
    value = checks.compare(f"{name}: the folder in MLX, the checkpoint in ours", MlxLm(plain).logprobs(sequence), mine, 1e-6)
    for target in QUANTIZED:
        a, b = work / "from-gguf" / target.replace(":", "-"), work / "from-folder" / target.replace(":", "-")
        try:
            bitsmith.json("quantize", folder, "--to", target, "--method", "rtn", "-o", b)
        except SystemExit as e:  # too narrow for the layout
            if "can be" not in str(e):
                raise
            continue
        # Scales and norms of the checkpoint's type, which a float32 file does not tell.
        half = work / "half.gguf"
        if not half.exists():
            bitsmith.json("convert", folder, "--to", "gguf:bf16", "-o", half)
        bitsmith.json("quantize", half, "--to", target, "--method", "rtn", "-o", a)
        checks.expect(f"{name}: {target} from the GGUF has the weights of {target} from the checkpoint", bits(a) == bits(b))
    print(f"{name}: mean KL {value:.0e}", flush=True)


def tokens_of(checks, name, source, made):
    """Tokens with and without those around a text, in transformers, from the folder as it finds it."""
    ours = AutoTokenizer.from_pretrained(made)
    theirs = AutoTokenizer.from_pretrained(source)
    assert isinstance(ours, PreTrainedTokenizerFast), type(ours)
    for text in TEXTS + SPECIAL:
        for special in (True, False):
            a, b = (t(text, add_special_tokens=special)["input_ids"] for t in (theirs, ours))
            checks.expect(f"{name}: tokens of {text!r}", a == b, f"{b}, the checkpoint's {a}")
            checks.expect(f"{name}: text of the tokens of {text!r}", theirs.decode(a) == ours.decode(b))
    for kind in ("bos_token", "eos_token", "pad_token", "chat_template"):
        a, b = getattr(theirs, kind), getattr(ours, kind)
        checks.expect(f"{name}: {kind} in transformers", a == b, f"{b!r}, the checkpoint's {a!r}")


def check_cuttings(bitsmith, checks, work):
    """Texts without characters that Unicode versions disagree about."""
    bitsmith.json("convert", "demo", "--to", "gguf:bf16", "-o", work / "demo.gguf")
    texts = [*TEXTS, "3 33 333 3333 12345678 1,000,000", "IT'S we'll HELLO helloWorld HTTPServer", "a  b\t\tc\n\n d\r\n  ", "Straße Ωmega жук 한국어"]
    for cutting in CUTTINGS:
        reader = gguf.GGUFReader(work / "demo.gguf")
        writer = gguf.GGUFWriter(work / "cut.gguf", "llama")
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name == "general.architecture":
                continue
            value = cutting if name == "tokenizer.ggml.pre" else field.contents()
            kind = field.types[0]
            writer.add_key_value(name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        bitsmith.json("convert", work / "cut.gguf", "--to", "hf:bf16", "-o", work / "cut")
        try:
            tokenizer = AutoTokenizer.from_pretrained(work / "cut")
        except Exception as e:
            checks.expect(f"{cutting} in transformers", False, str(e))
            continue
        theirs = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        ours = bitsmith.tokens(work / "cut.gguf", texts)
        for text, a, b in zip(texts, theirs, ours, strict=True):
            checks.expect(f"{cutting}: tokens of {text!r}", a == b, f"{b}, transformers' {a}")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("bitsmith")
    args.add_argument("tokenizer", help="a folder with tokenizer.json and tokenizer_config.json, of 2048 tokens")
    args.add_argument("--only", action="append", help="this model only")
    args.add_argument("-v", "--verbose", action="store_true", help="print every comparison")
    args = args.parse_args()
    bitsmith, checks = Bitsmith(args.bitsmith), Folders(args.verbose)
    if not args.only:
        with tempfile.TemporaryDirectory() as work:
            check_cuttings(bitsmith, checks, Path(work))
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


if __name__ == "__main__":
    main()
