#!/usr/bin/env python3
"""Quantizes a checkpoint with another tool, on text and hardware that are given and not on what the tool would download.

    peer.py mlx-awq MODEL OUT --bits 4 --group 64 --calib TEXT --samples 60

Each peer is the tool's own function with its own defaults; what is ours is where the calibration windows come from: as many as `bitsmith
quantize --samples` takes, from the same places of the text. Needs mlx-lm, gptqmodel or llmcompressor, whichever is named.
"""

import argparse
import os
import sys
from pathlib import Path


def windows(model, text, samples, length):
    """Evenly spaced windows of tokens, each after BOS if the tokenizer adds one: those of `bitsmith quantize --calib`."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    first = tokenizer("").input_ids[:1]
    body = length - len(first)
    tokens = tokenizer(Path(text).read_text(), add_special_tokens=False).input_ids
    starts = [(len(tokens) - body) * i // (samples - 1) for i in range(samples)]
    return [first + tokens[start : start + body] for start in starts]


def mlx_windows(a, samples=None):
    import mlx.core as mx

    return mx.array(windows(a.model, a.calib, samples or a.samples, a.ctx))


def mlx(module, a, *words):
    """Runs the command line of one of mlx-lm's quantizers. MLX's products are very slow in 16 bits on a CPU: all is computed in f32, and
    scales are written as F16, which resolves finer than the source's BF16."""
    import mlx.core as mx

    load, save = module.load, module.save

    def load_f32(*words, **named):
        loaded = load(*words, **named)
        loaded[0].set_dtype(mx.float32)
        return loaded

    def save_f16(out, source, model, *rest):
        model.set_dtype(mx.float16)
        save(out, source, model, *rest)

    module.load, module.save = load_f32, save_f16
    sys.argv = [module.__name__, "--model", a.model, "--mlx-path", a.out, "--bits", a.bits, "--group-size", a.group, *words]
    module.main()


def mlx_rtn(a):
    from mlx_lm.convert import convert

    convert(a.model, a.out, quantize=True, q_bits=int(a.bits), q_group_size=int(a.group))


def mlx_awq(a):
    from mlx_lm.quant import awq

    awq.load_data = lambda *_: mlx_windows(a)
    mlx(awq, a, "--embed-bits", a.bits, "--embed-group-size", a.group)


def mlx_gptq(a):
    from mlx_lm.quant import gptq

    gptq.load_data = lambda *_: mlx_windows(a)
    mlx(gptq, a, "--fallback-bits", a.bits, "--fallback-group-size", a.group)


def mlx_dwq(a):
    from mlx_lm.quant import dwq

    def load_data(*_):
        # One window in nine is held out.
        all_windows = [(window, 0) for window in windows(a.model, a.calib, a.samples, a.ctx)]
        return [w for i, w in enumerate(all_windows) if i % 9], all_windows[::9]

    dwq.load_data = load_data
    mlx(dwq, a, *a.more)


def gptqmodel(a):
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # the default is one on two cores, which it then refuses
    from gptqmodel import GPTQModel, QuantizeConfig

    more = dict(word.split("=") for word in a.more)
    more = {key: {"true": True, "false": False}.get(value) if value in ("true", "false") else float(value) for key, value in more.items()}
    model = GPTQModel.load(a.model, QuantizeConfig(bits=int(a.bits), group_size=int(a.group), **more), device="cpu")
    model.quantize([{"input_ids": w, "attention_mask": [1] * len(w)} for w in windows(a.model, a.calib, a.samples, a.ctx)], batch_size=1)
    model.save(a.out)


def compressor(a, modifiers):
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(a.model)
    data = Dataset.from_dict({"input_ids": windows(a.model, a.calib, a.samples, a.ctx)})
    data = data.map(lambda row: {"attention_mask": [1] * len(row["input_ids"])})
    oneshot(model=model, dataset=data, recipe=modifiers, max_seq_length=a.ctx, num_calibration_samples=a.samples, pipeline="sequential")
    model.save_pretrained(a.out, save_compressed=True)
    AutoTokenizer.from_pretrained(a.model).save_pretrained(a.out)


def compressor_gptq(a):
    from llmcompressor.modifiers.gptq import GPTQModifier

    compressor(a, [GPTQModifier(targets="Linear", scheme=f"W{a.bits}A16", ignore=["lm_head"])])


def compressor_awq(a):
    import torch
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier

    torch.Tensor.pin_memory = lambda tensor: tensor  # it pins memory for a GPU where there is none, too
    compressor(a, [AWQModifier(), QuantizationModifier(targets="Linear", scheme=f"W{a.bits}A16_ASYM", ignore=["lm_head"])])


PEERS = {
    "mlx-rtn": mlx_rtn,
    "mlx-awq": mlx_awq,
    "mlx-gptq": mlx_gptq,
    "mlx-dwq": mlx_dwq,
    "gptqmodel": gptqmodel,
    "compressor-gptq": compressor_gptq,
    "compressor-awq": compressor_awq,
}


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("peer", choices=PEERS)
    a.add_argument("model")
    a.add_argument("out")
    a.add_argument("--bits", default="4")
    a.add_argument("--group", default="64")
    a.add_argument("--calib", required=True)
    a.add_argument("--samples", type=int, default=60)
    a.add_argument("--ctx", type=int, default=512)
    a.add_argument("--more", nargs="*", default=[], help="further words for the tool")
    a = a.parse_args()
    PEERS[a.peer](a)


if __name__ == "__main__":
    main()
