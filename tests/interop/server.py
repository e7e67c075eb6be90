"""Folders for GPU servers in compressed-tensors and transformers: planes that rounding to nearest makes are the package's own, and the
model that transformers loads is the one that bitsmith reads back.

Usage: server.py BITSMITH DENSE FOLDER... Needs torch, transformers, accelerate and compressed-tensors. Folders must have been made with
`--method rtn` of the checkpoint DENSE. Exits 1 if one differs.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# Differences of log-probabilities: of summation in f32, and of NVFP4 weights that transformers rounds to BF16.
TOLERANCE = {"nvfp4-pack-quantized": 0.1}
IDS = [5, 6, 7, 200, 31, 900, 44, 3, 17, 1200, 66, 8]


def tensors(folder):
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


def packed_alike(dense, found, scheme, form):
    """Number of modules whose planes are not those that the package makes."""
    args, different = scheme.weights, 0
    for name in [n for n in dense if n.endswith("_proj.weight")]:
        module, w = name.removesuffix(".weight"), dense[name]
        groups = w.reshape(len(w), -1, args.group_size or w.shape[1])
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        # The package's kernels divide in f32 whatever the weights' type; on a CPU torch would not.
        state = {"weight": w.float(), "weight_scale": scale.float(), "weight_zero_point": zero}
        planes = BaseCompressor.get_value_from_registry(form).compress(state, scheme) | {"weight_scale": scale}
        same = lambda k, v: found[f"{module}.{k}"].view(torch.uint8).equal(v.contiguous().view(torch.uint8))
        different += not all(same(k, v) for k, v in planes.items())
    return different


def difference(bitsmith, folder, form):
    """Largest difference between log-probabilities, weights alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([IDS])
    for module in model.modules():
        module.quantization_enabled = False
    with torch.no_grad():
        # Weights are unpacked when they are first used: NVFP4 to BF16, others to the type of their scales.
        if form == "nvfp4-pack-quantized":
            model(ids)
        torch.nn.Module.float(model)
        theirs = model(ids).logits.double().log_softmax(-1)[0]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"sequences": [IDS]}, file)
        file.flush()
        call = [bitsmith, "--json", "logits", folder, "--tokens", file.name, "--top", str(theirs.shape[1])]
        found = json.loads(subprocess.run(call, capture_output=True, check=True).stdout)["sequences"][0]
    ours = torch.zeros_like(theirs)
    for row, position in zip(ours, found):
        tokens, logs = zip(*position["top"])
        row[list(tokens)] = torch.tensor(logs, dtype=torch.double)
    return (ours - theirs).abs().max().item()


def main():
    bitsmith, dense, *folders = sys.argv[1:]
    dense, failed = tensors(pathlib.Path(dense)), 0
    for folder in map(pathlib.Path, folders):
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        scheme, form = QuantizationScheme(**config["config_groups"]["group_0"]), config["format"]
        results = []
        if scheme.weights.strategy != "tensor_group":
            different = packed_alike(dense, tensors(folder), scheme, form)
            results.append((different == 0, f"{different} modules differ from the package's"))
        # compressed-tensors 0.20 expects zero points unpacked when it loads what it packed itself.
        if scheme.weights.symmetric:
            most = difference(bitsmith, folder, form)
            results.append((most < TOLERANCE.get(form, 1e-3), f"log-probabilities differ by {most:.2g} at most"))
        failed += not all(ok for ok, _ in results)
        print(folder.name, "ok" if all(ok for ok, _ in results) else "FAILED", "; ".join(text for _, text in results), sep="\t")
    sys.exit(failed > 0)


main()
