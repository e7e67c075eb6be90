#!/usr/bin/env python3
"""Measures batches: batch.py [plan] [status] [share], all of them by default. Exit code 1 if a limit is exceeded.

plan    200 models times 20 targets, planned from headers of sparse files: seconds and memory.
status  how far a plan of 100,000 nodes is: seconds.
share   8 targets of the demo model as one batch, beside 8 runs of `bitsmith run`: the ratio of their times, by method.
"""
import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEMO = ROOT / "datasets" / "demo"
TARGETS = """gguf:q2_k gguf:q3_k_s gguf:q3_k_m gguf:q3_k_l gguf:q4_0 gguf:q4_k_s gguf:q4_k_m gguf:q5_0 gguf:q5_k_s gguf:q5_k_m gguf:q6_k
gguf:q8_0 gguf:iq4_xs gguf:iq4_nl gguf:bf16 mlx:3bit mlx:4bit mlx:6bit mlx:8bit mlx:mxfp4""".split()
EIGHT = "gguf:q4_0 gguf:q4_k_m gguf:q5_k_m gguf:q6_k gguf:q8_0 gguf:q3_k_m mlx:4bit mlx:8bit".split()


def sparse(folder, layers):
    """A Llama of 1B weights whose weights are holes in its file."""
    hidden, ffn, kv, vocab = 2048, 8192, 512, 2048
    folder.mkdir()
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        os.link(DEMO / name, folder / name) if os.stat(DEMO).st_dev == os.stat(folder).st_dev else shutil.copy(DEMO / name, folder)
    config = json.loads((DEMO / "config.json").read_text())
    config |= dict(hidden_size=hidden, intermediate_size=ffn, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
                   num_hidden_layers=layers, vocab_size=vocab, tie_word_embeddings=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,)}
    for i in range(layers):
        parts = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
                 "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
                 "mlp.down_proj": (hidden, ffn), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in parts.items()}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name + ".weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        f.truncate(8 + len(head) + at)


def call(bitsmith, *words, cwd, cache):
    """Seconds, peak memory in MiB and CPU seconds of a call that succeeds, with all that it calls."""
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    start = time.monotonic()
    child = subprocess.Popen([bitsmith, *words, "-q"], cwd=cwd, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{' '.join(words)}: status {status}")
    return seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime


def plan(bitsmith, work):
    names = [f"m{i}" for i in range(200)]
    for i, name in enumerate(names):
        sparse(work / name, 12 + i % 8)
    recipe = f"models = {json.dumps(names)}\nto = {json.dumps(TARGETS)}\nmethod = 'reference'\ncalib = 'builtin'\n"
    (work / "plan.toml").write_text(recipe)
    seconds, mib, _ = call(bitsmith, "batch", "plan.toml", "--plan", cwd=work, cache=work / "cache")
    nodes = len(json.loads((work / "plan.plan.json").read_text())["nodes"])
    print(f"plan of 200 models x 20 targets, {nodes} nodes: {seconds:.2f} s, {mib:.0f} MiB")
    return seconds < 10 and mib < 300


def status(bitsmith, work):
    """A plan of 100,000 nodes, half of them done: the plan above, with its models repeated."""
    document = json.loads((work / "plan.plan.json").read_text())
    few, document["nodes"] = document["nodes"], []
    while len(document["nodes"]) < 100_000:
        base = len(document["nodes"])
        for node in few:
            key = hashlib.sha256(f"{base} {node['key']}".encode()).hexdigest()
            document["nodes"].append(node | {"key": key, "deps": [base + d for d in node.get("deps", [])]})
    document["nodes"] = document["nodes"][:100_000]
    (work / "many.plan.json").write_text(json.dumps(document))
    records = work / "many" / "records"
    for node in document["nodes"][:50_000]:
        folder = records / node["key"][:2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{node['key']}.json").touch()
    seconds, mib, _ = call(bitsmith, "batch", "many.plan.json", "--store", "many", "--status", cwd=work, cache=work / "cache")
    print(f"status of 100,000 nodes, half of them done: {seconds:.2f} s, {mib:.0f} MiB")
    return seconds < 2


METHODS = {"reference": ("reference", ""), "rtn": ("rtn", ""), "independent": ("awq+gptq", "independent = true\n"), "best": ("awq+gptq", "")}


def share(bitsmith, work, methods):
    ok = True
    for method, more in map(METHODS.get, methods):
        (work / "share.toml").write_text(
            f"models = ['demo']\nto = {json.dumps(EIGHT)}\nmethod = '{method}'\n{more}" + ("calib = 'builtin'\n" if method == "reference" else ""))
        name = f"{method}{' independent' if more else ''}"
        shutil.rmtree(work / "together", ignore_errors=True)
        shutil.rmtree(work / "apart", ignore_errors=True)
        together, _, cpu = call(bitsmith, "batch", "share.toml", "--out", "together", cwd=work, cache=work / "cache1")
        apart = cpu_apart = 0.0
        flags = ["--method", method] + (["--independent"] if more else []) + (["--calib", "builtin"] if method == "reference" else [])
        for target in EIGHT:
            seconds, _, own = call(bitsmith, "run", "demo", "--to", target, *flags, "--fresh", "--out", f"apart/{target.replace(':', '-')}",
                              cwd=work, cache=work / "cache2")
            apart, cpu_apart = apart + seconds, cpu_apart + own
        ratio = together / apart
        print(f"8 targets of the demo model, {name}: {together:.1f} s together, {apart:.1f} s apart, ratio {ratio:.2f}; "
              f"CPU {cpu:.1f} s and {cpu_apart:.1f} s", flush=True)
        # With error feedback every target has a calibration of its own, so that less can be shared.
        ok &= ratio <= 0.6 or method == "awq+gptq"
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["plan", "status", "share", []])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--bitsmith", default=ROOT / "target" / "release" / "bitsmith", type=pathlib.Path)
    args = parser.parse_args()
    what = args.what or ["plan", "status", "share"]
    if "status" in what and "plan" not in what:
        what.insert(0, "plan")
    with tempfile.TemporaryDirectory() as folder:
        own = {"share": [args.methods]}
        results = [globals()[w](args.bitsmith.resolve(), pathlib.Path(folder), *own.get(w, [])) for w in what]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
