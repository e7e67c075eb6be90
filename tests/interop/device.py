"""Holds what a device computes against what the CPU computes, and prints both times.

    device.py BITSMITH DEVICE [MODEL]

Needs a bitsmith that was built for the device. Exits 1 if results differ by more than rounding explains.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

bitsmith, device = sys.argv[1:3]
model = sys.argv[3] if len(sys.argv) > 3 else "demo"
failed = []


def run(on, *args):
    """The command's result and its seconds."""
    start = time.monotonic()
    done = subprocess.run([bitsmith, "--json", "-q", "--device", on, *args], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout), time.monotonic() - start


def judge(what, held, text):
    if not held:
        failed.append(what)
    print(f"{what}: {'ok' if held else 'FAILED'}; {text}", flush=True)


def compare(what, *args, value, close):
    """Runs a command on both and compares a value of its results."""
    (cpu, cpu_time), (there, there_time) = run("cpu", *args), run(device, *args)
    a, b = value(cpu), value(there)
    judge(what, close(a, b), f"cpu {a!r} in {cpu_time:.1f} s, {device} {b!r} in {there_time:.1f} s")


def relative(tolerance):
    return lambda a, b: abs(a - b) <= tolerance * abs(a)


with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder)
    compare(
        "perplexity", "eval", model, "--ppl", "builtin", "--limit", "16",
        value=lambda r: r["perplexity"][0]["ppl"], close=relative(1e-4),
    )
    compare(
        "text", "generate", model, "-p", "The lighthouse", "-n", "32", "--compute", "f32",
        value=lambda r: r["text"], close=lambda a, b: a == b,
    )
    for target in ["gguf:q4_k_m", "mlx:4bit"]:
        results = []
        for side, on in enumerate(["cpu", device]):
            path = out / f"{side}-{target.replace(':', '-')}{'.gguf' if target.startswith('gguf') else ''}"
            seconds = run(on, "quantize", model, "--to", target, "-o", str(path))[1]
            measured = run("cpu", "eval", str(path), "--kld", "builtin", "--against", model, "--limit", "16")[0]
            results.append((measured["kld"][0]["mean"], seconds))
        (a, cpu_time), (b, there_time) = results
        judge(target, relative(0.05)(a, b), f"mean KLD cpu {a:.3e} in {cpu_time:.1f} s, {device} {b:.3e} in {there_time:.1f} s")

sys.exit(f"differ: {', '.join(failed)}" if failed else 0)
