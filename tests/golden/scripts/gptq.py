"""Golden vectors of packed checkpoints, made by the packing code of AutoGPTQ, GPTQModel and AutoAWQ themselves (CPU only).

usage: gptq.py AUTO_GPTQ AWQ GPTQMODEL GOLDEN
  the folders `auto_gptq`, `awq` and `gptqmodel` of the unpacked distributions, and tests/golden.
Needs torch, numpy and safetensors. Imports that packing does not use are replaced by empty modules.
"""

import ast
import hashlib
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

AUTO_GPTQ, AWQ, GPTQMODEL, GOLDEN = (Path(p) for p in sys.argv[1:])


class Anything(types.ModuleType):
    """A module that has whatever is asked of it."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__class_getitem__": lambda item: None})


def stub(*names):
    for name in names:
        sys.modules[name] = Anything(name)


def package(name, path):
    module = types.ModuleType(name)
    module.__path__ = [str(path)]
    sys.modules[name] = module


def load(name, file):
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=[str(Path(file).parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


stub("transformers", "transformers.pytorch_utils", "accelerate")
sys.modules["transformers"].pytorch_utils = sys.modules["transformers.pytorch_utils"]

cuda_linear = load("auto_gptq_linear", AUTO_GPTQ / "nn_modules/qlinear/qlinear_cuda.py").QuantLinear
quantizer = load("auto_gptq_quantizer", AUTO_GPTQ / "quantization/quantizer.py")

for name in ["awq", "awq.utils", "awq.modules", "awq.modules.linear"]:
    package(name, AWQ.joinpath(*name.split(".")[1:]))
package("awq.modules.triton", AWQ / "modules/none")
awq_linear = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
awq_decode = importlib.import_module("awq.utils.packing_utils").dequantize_gemm

for name in ["gptqmodel", "gptqmodel.adapter", "gptqmodel.models", "gptqmodel.nn_modules", "gptqmodel.utils"]:
    package(name, GPTQMODEL.joinpath(*name.split(".")[1:]))
stub("gptqmodel.adapter.adapter", "gptqmodel.models._const", "gptqmodel.quantization", "gptqmodel.utils.backend",
     "gptqmodel.utils.logger", "gptqmodel.utils.safe", "gptqmodel.utils.env")
sys.modules["gptqmodel.utils.logger"].setup_logger = lambda: types.SimpleNamespace(debug=lambda *a: None)
sys.modules["gptqmodel.utils.env"].env_flag = lambda name, *a: name == "GPTQMODEL_DISABLE_PACK_EXT"
modern_linear = load("gptqmodel.nn_modules.qlinear", GPTQMODEL / "nn_modules/qlinear/__init__.py").PackableQuantLinear


def function(file, name, **known):
    """One function of a file that needs more than there is to be imported."""
    tree = ast.parse(file.read_text())
    [node] = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    exec(compile(ast.Module([node], []), str(file), "exec"), known)
    return known[name]


class Modern(torch.nn.Module):
    """What `pack_block` reads of a GPTQModel module."""

    def __init__(self, bits):
        super().__init__()
        self.bits, self.pack_dtype, self.pack_dtype_bits, self.maxq = bits, torch.int32, 32, 2**bits - 1
        self.pack_np_dtype, self.pack_np_math_dtype, self.planar = np.int32, np.uint32, False


modern_to_v1 = function(
    GPTQMODEL / "utils/model.py", "convert_gptq_v2_to_v1_format_module", torch=torch, BaseQuantLinear=Modern, QuantizeConfig=None,
    log=types.SimpleNamespace(info=types.SimpleNamespace(once=lambda text: None)),
)
Modern.qzero_format = lambda self, format: None


def weights():
    """64 rows of 64 weights of several kinds, from the rows that the other golden files use."""
    rows = np.fromfile(GOLDEN / "ggml/weights.f32", "<f4").reshape(16, 1024)
    return torch.from_numpy(rows[[0, 4, 6, 15]].reshape(64, 64).copy())


def grid(w, bits, group, symmetric, order=None, least=0):
    """Round-to-nearest by AutoGPTQ's quantizer: dequantized weights, scales and zero points (out, groups), group of each column.
    Zero points are at least `least`."""
    order = torch.arange(w.shape[1]) if order is None else order
    group = w.shape[1] if group == -1 else group
    q, scales, zeros = torch.empty_like(w), [], []
    index = torch.empty(w.shape[1], dtype=torch.int32)
    for k in range(w.shape[1] // group):
        columns = order[k * group : (k + 1) * group]
        find = quantizer.Quantizer()
        find.configure(bits, perchannel=True, sym=symmetric)
        find.find_params(w[:, columns], weight=True)
        find.zero.clamp_(min=least)
        q[:, columns] = quantizer.quantize(w[:, columns], find.scale, find.zero, find.maxq)
        scales.append(find.scale.flatten())
        zeros.append(find.zero.flatten())
        index[columns] = k
    return q, torch.stack(scales, 1), torch.stack(zeros, 1), index


def linear(q, dtype=torch.float32):
    layer = torch.nn.Linear(q.shape[1], q.shape[0], bias=False)
    layer.weight.data = q.to(dtype)
    return layer


def sha256(tensor):
    return hashlib.sha256(tensor.contiguous().float().numpy().astype("<f4").tobytes()).hexdigest()


def gptq_values(planes, bits, group):
    """AutoGPTQ's own decoding, in f32: the product with the identity."""
    module = cuda_linear(bits, group, 64, 64, False)
    for name, tensor in planes.items():
        setattr(module, name, tensor)
    module.scales = module.scales.float()
    module.autogptq_cuda_available = False
    with torch.no_grad():
        return module(torch.eye(64)).t()


manifest = {}


def keep(case, planes, values, **about):
    folder = GOLDEN / "gptq"
    save_file({f"m.{name}": tensor.contiguous() for name, tensor in planes.items()}, folder / f"{case}.safetensors")
    manifest[case] = {"decoded_sha256": sha256(values), **about}


w = weights()
order = torch.from_numpy(np.random.default_rng(7).permutation(64))
for bits, group, symmetric, act in [
    (2, 32, True, False), (3, 32, True, False), (4, 32, True, False), (8, 32, True, False), (4, -1, True, False),
    (2, 32, False, False), (3, 32, False, False), (4, 32, False, False), (8, 32, False, False), (4, 32, True, True), (3, 32, False, True),
]:
    # AutoGPTQ stores zero points minus one and cannot store 0.
    q, scales, zeros, index = grid(w, bits, group, symmetric, order if act else None, least=1)
    packed = cuda_linear(bits, group, 64, 64, False)
    # The module stores scales in the type of the weight.
    packed.pack(linear(q, torch.float16), scales.clone(), zeros.clone(), index)
    planes = {name: getattr(packed, name) for name in ["qweight", "qzeros", "scales", "g_idx"]}
    planes["g_idx"] = planes["g_idx"].to(torch.int32)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric, "desc_act": act}
    name = f"autogptq-{bits}bit-g{group}{'-sym' if symmetric else ''}{'-act' if act else ''}"
    keep(name, planes, gptq_values(planes, bits, group), config=config)

    if not act and group != -1:
        q, scales, zeros, index = grid(w, bits, group, symmetric)
        modern = Modern(bits)
        modern_linear.pack_block(modern, linear(q), scales.clone(), zeros.clone(), index)
        planes = {n: getattr(modern, n) for n in ["qweight", "qzeros", "scales", "g_idx"]}
        values = modern.scales.float().t()[:, index.long()] * (
            torch.round(q / scales[:, index.long()])
        )
        name = name.replace("autogptq", "gptqmodel")
        keep(name, planes, values, config={**config, "checkpoint_format": "gptq_v2"})
        if bits != 3 and not symmetric:
            # With zero points 0, which borrow from their neighbours.
            assert bits != 2 or (zeros == 0).any()
            modern_to_v1(modern, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32))
            planes["qzeros"] = modern.qzeros
            keep(f"{name}-v1", planes, values, config={**config, "checkpoint_format": "gptq"})

q, scales, zeros, _ = grid(w, 4, 32, False)
packed = awq_linear.from_linear(linear(q), 4, 32, False, scales.t().contiguous(), zeros.t().contiguous())
planes = {name: getattr(packed, name) for name in ["qweight", "qzeros", "scales"]}
values = awq_decode(packed.qweight, packed.qzeros, packed.scales.float(), 4, 32).t()
config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
keep("autoawq-4bit-g32", planes, values, config=config)

(GOLDEN / "gptq/manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
