"""Small checkpoints as the layouts' own packages write them, with the values that the packages decode from them.

Usage: packed.py OUT. Needs torch 2.15.0, safetensors, compressed-tensors 0.20.0, bitsandbytes 0.50.2 and transformers 5.23.0.
"""

import json
import pathlib
import sys

import torch
from bitsandbytes import functional as bnb
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

OUT = pathlib.Path(sys.argv[1])
MODULE = "model.layers.0.mlp.up_proj"
E4M3 = torch.float8_e4m3fn


def weights(rows, cols, dtype=torch.float32):
    torch.manual_seed(rows * cols)
    w = torch.randn(rows, cols) * 0.05
    w[3, 5] = 0.7
    w[5] *= 10
    return w.to(dtype)


def write(case, quantization, tensors, decoded, extra=None):
    folder = OUT / case
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama"} | ({"quantization_config": quantization} if quantization else {})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name, value in (extra or {}).items():
        (folder / name).write_text(json.dumps(value, indent=1) + "\n")
    tensors["model.norm.weight"] = torch.ones(4)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    save_file({k: v.float().contiguous() for k, v in decoded.items()}, folder / "decoded.safetensors")


def compressed(case, form, args, w, inputs=None, extra=None):
    """One module through compressed-tensors' own parameters, compressor and decompressor."""
    args = QuantizationArgs(**args)
    rows, cols = w.shape
    group = {"group": args.group_size, "tensor_group": args.group_size}.get(args.strategy, cols)
    if args.strategy == "block":
        bh, bw = args.block_structure
        tiles = torch.nn.functional.pad(w, (0, -cols % bw, 0, -rows % bh))
        tiles = tiles.reshape(-(-rows // bh), bh, -(-cols // bw), bw)
        low, high = tiles.amin((1, 3)), tiles.amax((1, 3))
    elif args.strategy == "tensor":
        low, high = w.min(), w.max()
    else:
        groups = w.reshape(rows, cols // group, group)
        low, high = groups.amin(-1), groups.amax(-1)
    state = {"weight": w}
    if args.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(w.min(), w.max())
    scale, zero = calculate_qparams(low, high, args, state.get("weight_global_scale"))
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(state, scheme)
    back = compressor.decompress(packed, scheme)["weight"]
    weights_args = args.model_dump(mode="json")
    group = {"targets": ["Linear"], "weights": weights_args, "input_activations": inputs, "output_activations": None}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*router.*"],
        "quantization_status": "compressed",
    }
    tensors = {f"{MODULE}.{k}": v for k, v in (packed | (extra or {})).items()}
    write(case, quantization, tensors, {f"{MODULE}.weight": back})


def compressed_tensors():
    base = {"dynamic": False}
    integer = base | {"type": "int"}
    w = weights(24, 64)
    compressed("ct-int4-g32", "pack-quantized", integer | {"num_bits": 4, "strategy": "group", "group_size": 32}, w.bfloat16())
    asymmetric = integer | {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}
    compressed("ct-int4-g16-asym", "pack-quantized", asymmetric, w + 0.02)
    compressed("ct-int4-channel", "pack-quantized", integer | {"num_bits": 4, "strategy": "channel"}, w.half())
    compressed("ct-int8-g64", "pack-quantized", integer | {"num_bits": 8, "strategy": "group", "group_size": 64}, w)
    asymmetric = integer | {"num_bits": 3, "strategy": "channel", "symmetric": False}
    compressed("ct-int3-channel-asym", "pack-quantized", asymmetric, w)
    compressed("ct-int5-g32", "pack-quantized", integer | {"num_bits": 5, "strategy": "group", "group_size": 32}, w)
    compressed("ct-w8a8", "int-quantized", integer | {"num_bits": 8, "strategy": "channel"}, w.bfloat16())
    floating = base | {"type": "float"}
    compressed("ct-fp8-channel", "float-quantized", floating | {"num_bits": 8, "strategy": "channel"}, w.bfloat16())
    static = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    extra = {"input_scale": torch.tensor([0.25])}
    compressed("ct-fp8-tensor", "float-quantized", floating | {"num_bits": 8, "strategy": "tensor"}, w, static, extra)
    block = floating | {"num_bits": 8, "strategy": "block", "block_structure": [16, 32]}
    compressed("ct-fp8-block", "float-quantized", block, w)
    nvfp4 = floating | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}
    compressed("ct-nvfp4", "nvfp4-pack-quantized", nvfp4, w)
    mx = floating | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    compressed("ct-mxfp4", "mxfp4-pack-quantized", mx | {"num_bits": 4}, w)
    compressed("ct-mxfp8", "mxfp8-quantized", mx | {"num_bits": 8}, w)


def modelopt():
    """By ModelOpt's definition of NVFP4: value = code * scale * scale_2."""
    groups = weights(24, 64).reshape(24, 4, 16)
    scale_2 = groups.abs().max() / (6 * 448)
    scale = (groups.abs().amax(-1) / (6 * scale_2)).clamp(2**-9, 448).to(E4M3)
    each = (scale.float() * scale_2)[..., None]
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nearest = ((groups / each).abs()[..., None] - levels).abs().argmin(-1)
    codes = (levels[nearest] * groups.sign()).reshape(24, 64)
    back = (codes.reshape(24, 4, 16) * each).reshape(24, 64)
    planes = {"weight": pack_fp4_to_uint8(codes), "weight_scale": scale, "weight_scale_2": scale_2}
    planes["input_scale"] = torch.tensor(0.003)
    tensors = {f"{MODULE}.{k}": v for k, v in planes.items()}
    about = {
        "producer": {"name": "modelopt", "version": "0.47.0"},
        "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": ["lm_head"]},
    }
    write("modelopt-nvfp4", None, tensors, {f"{MODULE}.weight": back}, {"hf_quant_config.json": about})


def fp8():
    """As the checkpoints of `quant_method: fp8`: no package writes them; this is their definition."""
    for case, shape, tile in [("fp8-tiles", (40, 64), (16, 32)), ("fp8-partial-tiles", (40, 72), (16, 32))]:
        w = weights(*shape)
        down, across = -(-shape[0] // tile[0]), -(-shape[1] // tile[1])
        padded = torch.zeros(down * tile[0], across * tile[1])
        padded[: shape[0], : shape[1]] = w
        scale = padded.reshape(down, tile[0], across, tile[1]).abs().amax((1, 3)) / 448
        each = scale.repeat_interleave(tile[0], 0).repeat_interleave(tile[1], 1)[: shape[0], : shape[1]]
        codes = (w / each).to(E4M3)
        tensors = {f"{MODULE}.weight": codes, f"{MODULE}.weight_scale_inv": scale}
        config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": list(tile)}
        write(case, config, tensors, {f"{MODULE}.weight": codes.float() * each})


def bitsandbytes():
    for case, kind, shape, blocksize, double in [
        ("bnb-nf4", "nf4", (24, 64), 64, False),
        ("bnb-nf4-double", "nf4", (48, 128), 64, True),
        ("bnb-nf4-ragged", "nf4", (10, 48), 32, False),
        ("bnb-fp4", "fp4", (24, 64), 64, False),
    ]:
        w = weights(*shape)
        codes, state = bnb.quantize_4bit(w, blocksize=blocksize, compress_statistics=double, quant_type=kind)
        back = bnb.dequantize_4bit(codes, state)
        tensors = {f"{MODULE}.weight": codes} | {f"{MODULE}.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        write(case, config, tensors, {f"{MODULE}.weight": back})
    codes, rows, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(weights(24, 64).half(), 0.0)
    back = bnb.int8_vectorwise_dequant(codes, rows)
    tensors = {f"{MODULE}.weight": codes, f"{MODULE}.SCB": rows, f"{MODULE}.weight_format": torch.tensor(0, dtype=torch.uint8)}
    write("bnb-int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, tensors, {f"{MODULE}.weight": back})


def gpt_oss():
    torch.manual_seed(1)
    experts = "model.layers.0.mlp.experts"
    blocks = torch.randint(0, 256, (2, 6, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 130, (2, 6, 2), dtype=torch.uint8)
    # Dequantized matrices are transposed there.
    back = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    tensors = {f"{experts}.down_proj_blocks": blocks, f"{experts}.down_proj_scales": scales}
    write("gpt-oss", {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, tensors, {f"{experts}.down_proj": back})


compressed_tensors()
modelopt()
fp8()
bitsandbytes()
gpt_oss()
