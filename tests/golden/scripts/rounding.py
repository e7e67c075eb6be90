"""Matrices and the planes that compressed-tensors and ModelOpt make of them without calibration.

Usage: rounding.py OUT. Needs torch 2.15.0, safetensors, compressed-tensors 0.20.0 and nvidia-modelopt 0.47.0.
"""

import pathlib
import sys

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
from safetensors.torch import save_file

OUT = pathlib.Path(sys.argv[1])


def weights(dtype):
    """Rows of several kinds: normal, one-sided, with an outlier, tiny, zero in part."""
    torch.manual_seed(7)
    w = torch.randn(24, 64) * 0.05
    w[1] = w[1].abs()
    w[2] = -w[2].abs()
    w[3, 5] = 3.0
    w[4] *= 1e-6
    w[5, :32] = 0
    w[6] *= 100
    return w.to(dtype)


def write(case, w, planes):
    planes = {f"X.{name}": plane.contiguous() for name, plane in planes.items()}
    save_file({"dense": w} | planes, OUT / f"{case}.safetensors")


def compressed(case, form, dtype, **args):
    args = QuantizationArgs(dynamic=False, **args)
    w = weights(dtype)
    groups = w.reshape(len(w), -1, args.group_size or w.shape[1])
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    # The package's kernels divide in f32 whatever the weights' type; on a CPU torch would not.
    state = {"weight": w.float(), "weight_scale": scale.float(), "weight_zero_point": zero}
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    planes = BaseCompressor.get_value_from_registry(form).compress(state, scheme)
    write(case, w, planes | {"weight_scale": scale})


def modelopt(case, dtype):
    w = weights(dtype)
    packed, scale, scale_2 = NVFP4QTensor.quantize(w.clone(), 16)
    write(case, w, {"weight": packed._quantized_data, "weight_scale": scale, "weight_scale_2": scale_2})


OUT.mkdir(parents=True, exist_ok=True)
for dtype, name in [(torch.bfloat16, "bf16"), (torch.float32, "f32")]:
    integers = dict(form="pack-quantized", dtype=dtype, type="int")
    compressed(f"int4-g32-{name}-sym", num_bits=4, strategy="group", group_size=32, **integers)
    compressed(f"int4-g32-{name}", num_bits=4, strategy="group", group_size=32, symmetric=False, **integers)
    compressed(f"int8-g64-{name}-sym", num_bits=8, strategy="channel", **integers)
    compressed(f"fp8-g64-{name}", "float-quantized", dtype, num_bits=8, type="float", strategy="channel")
    modelopt(f"nvfp4-{name}", dtype)
