"""Writes tests/golden/torch with real PyTorch: small checkpoints in every shape that torch.save gives a state dict, and what they hold.

    python tests/golden/scripts/torch_checkpoints.py tests/golden/torch
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import torch

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(7)

base = torch.randn(6, 8)
tensors = OrderedDict(
    {
        "f32": torch.randn(3, 4),
        "f16": torch.randn(2, 4).half(),
        "bf16": torch.nn.Parameter(torch.randn(2, 4).bfloat16()),
        "transposed": base.t(),
        "rows": base[2:4],
        "columns": base[:, 1:6:2],
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "ids": torch.arange(5),
        "small": torch.tensor([1.0, -2.0, 0.5]).to(torch.float8_e4m3fn),
    }
)
torch.save(tensors, out / "plain.bin")
torch.save(tensors, out / "protocol4.bin", pickle_protocol=4)
linear = torch.nn.Linear(4, 2)
torch.save({"state_dict": linear.state_dict(), "epoch": 3, "optimizer": {"lr": torch.tensor(0.1)}}, out / "wrapped.pt")
torch.save({"block": {"0": {"weight": torch.ones(2, 2)}}, "bias": torch.zeros(2)}, out / "nested.pth")
torch.save(tensors["f32"], out / "bare.pt")
torch.save(linear, out / "module.pt")
torch.save(tensors, out / "legacy.bin", _use_new_zipfile_serialization=False)


def described(state):
    return {
        name: {"shape": list(t.shape), "dtype": str(t.dtype), "values": t.detach().float().flatten().tolist()}
        for name, t in state.items()
    }


expected = {"plain": described(tensors), "wrapped": described(linear.state_dict())}
(out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
print(torch.__version__)
