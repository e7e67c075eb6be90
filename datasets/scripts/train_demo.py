#!/usr/bin/env python3
"""Train the small demo model in datasets/demo from the built-in text.

Needs Python 3.11 with `jax`, `numpy`, `ml_dtypes` and `tokenizers`
(see datasets/demo/README.md for the commands). It

  1. trains a byte-level BPE tokenizer on the training corpus,
  2. trains a Llama-architecture model with AdamW on one CPU thread,
  3. writes model.safetensors (bf16) and the usual Hugging Face JSON files,
  4. reloads the written file with a plain numpy forward pass, independent of
     the training code, and prints the perplexity on the evaluation text
     beside the perplexity of a unigram model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATASETS = HERE.parent
DOMAINS = ["prose", "code", "math", "dialogue", "multilingual"]

CFG = dict(
    vocab=2048, hidden=256, inter=768, layers=3, heads=8, kv_heads=4,
    head_dim=32, theta=10000.0, eps=1e-5, context=512,
)
BOS, EOS, UNK = "<s>", "</s>", "<unk>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}User: {{ message['content'] | trim }}\n"
    "{% elif message['role'] == 'assistant' %}Assistant: {{ message['content'] | trim }}\n"
    "{% else %}{{ message['content'] | trim }}\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


# --------------------------------------------------------------------------
# tokenizer

def train_tokenizer(text_file: Path):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    specials = [AddedToken(s, special=True, normalized=False) for s in (BOS, EOS, UNK)]
    trainer = trainers.BpeTrainer(
        vocab_size=CFG["vocab"], min_frequency=2, special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )
    tok.train([str(text_file)], trainer)
    assert tok.get_vocab_size() == CFG["vocab"], tok.get_vocab_size()
    assert [tok.token_to_id(s) for s in (BOS, EOS, UNK)] == [0, 1, 2]
    return tok


def encode_stream(tok, text: str):
    """Token ids of a text of documents separated by blank lines."""
    import numpy as np

    docs = [d for d in text.split("\n\n") if d.strip()]
    # Encoding document by document keeps memory small; joining with the same
    # blank line keeps the stream equal to the original text.
    parts = [d + "\n\n" for d in docs]
    ids: list[int] = []
    for i in range(0, len(parts), 512):
        for e in tok.encode_batch(parts[i:i + 512]):
            ids.extend(e.ids)
    return np.asarray(ids, dtype=np.int32)


# --------------------------------------------------------------------------
# model in JAX (training only)

def init_params(seed: int):
    import numpy as np

    r = np.random.default_rng(seed)
    h, n = CFG["hidden"], CFG["layers"]
    q, kv, it = CFG["heads"] * CFG["head_dim"], CFG["kv_heads"] * CFG["head_dim"], CFG["inter"]
    std = 0.04
    res = std / math.sqrt(2 * n)

    def w(o, i, s=std):
        return (r.standard_normal((o, i)) * s).astype(np.float32)

    p = {"model.embed_tokens.weight": w(CFG["vocab"], h, 0.02),
         "model.norm.weight": np.ones(h, np.float32)}
    for l in range(n):
        b = f"model.layers.{l}."
        p[b + "input_layernorm.weight"] = np.ones(h, np.float32)
        p[b + "post_attention_layernorm.weight"] = np.ones(h, np.float32)
        p[b + "self_attn.q_proj.weight"] = w(q, h)
        p[b + "self_attn.k_proj.weight"] = w(kv, h)
        p[b + "self_attn.v_proj.weight"] = w(kv, h)
        p[b + "self_attn.o_proj.weight"] = w(h, q, res)
        p[b + "mlp.gate_proj.weight"] = w(it, h)
        p[b + "mlp.up_proj.weight"] = w(it, h)
        p[b + "mlp.down_proj.weight"] = w(h, it, res)
    return p


def make_step(total_steps: int, peak_lr: float, warmup: int):
    import jax
    import jax.numpy as jnp

    H, KV, D = CFG["heads"], CFG["kv_heads"], CFG["head_dim"]

    def norm(x, g):
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + CFG["eps"]) * g

    def rope(x, cos, sin):  # x: B,T,heads,D; rotate_half convention
        a, b = x[..., : D // 2], x[..., D // 2:]
        return x * cos + jnp.concatenate([-b, a], -1) * sin

    def loss_fn(p, tokens):
        inp, tgt = tokens[:, :-1], tokens[:, 1:]
        B, T = inp.shape
        inv = 1.0 / CFG["theta"] ** (jnp.arange(0, D, 2) / D)
        ang = jnp.arange(T)[:, None] * inv[None, :]
        ang = jnp.concatenate([ang, ang], -1)[None, :, None, :]
        cos, sin = jnp.cos(ang), jnp.sin(ang)
        mask = jnp.where(jnp.tril(jnp.ones((T, T), bool)), 0.0, -1e9)
        emb = p["model.embed_tokens.weight"]
        x = emb[inp]
        for l in range(CFG["layers"]):
            b = f"model.layers.{l}."
            y = norm(x, p[b + "input_layernorm.weight"])
            q = rope((y @ p[b + "self_attn.q_proj.weight"].T).reshape(B, T, H, D), cos, sin)
            k = rope((y @ p[b + "self_attn.k_proj.weight"].T).reshape(B, T, KV, D), cos, sin)
            v = (y @ p[b + "self_attn.v_proj.weight"].T).reshape(B, T, KV, D)
            q = q.reshape(B, T, KV, H // KV, D)
            s = jnp.einsum("btkgd,bskd->bkgts", q, k) / math.sqrt(D) + mask
            o = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(s, -1), v).reshape(B, T, H * D)
            x = x + o @ p[b + "self_attn.o_proj.weight"].T
            y = norm(x, p[b + "post_attention_layernorm.weight"])
            g = jax.nn.silu(y @ p[b + "mlp.gate_proj.weight"].T) * (y @ p[b + "mlp.up_proj.weight"].T)
            x = x + g @ p[b + "mlp.down_proj.weight"].T
        x = norm(x, p["model.norm.weight"])
        logits = x @ emb.T
        lse = jax.nn.logsumexp(logits, -1)
        picked = jnp.take_along_axis(logits, tgt[..., None], -1)[..., 0]
        return jnp.mean(lse - picked)

    b1, b2, wd, clip = 0.9, 0.95, 0.1, 1.0

    def step(p, m, v, t, tokens):
        loss, g = jax.value_and_grad(loss_fn)(p, tokens)
        gn = jnp.sqrt(sum(jnp.sum(x * x) for x in g.values()))
        sc = jnp.minimum(1.0, clip / (gn + 1e-6))
        frac = jnp.clip((t - warmup) / max(1, total_steps - warmup), 0.0, 1.0)
        lr = peak_lr * jnp.where(t < warmup, (t + 1) / warmup,
                                 0.02 + 0.98 * 0.5 * (1 + jnp.cos(jnp.pi * frac)))
        np_, nm, nv = {}, {}, {}
        for k in p:
            gk = g[k] * sc
            nm[k] = b1 * m[k] + (1 - b1) * gk
            nv[k] = b2 * v[k] + (1 - b2) * gk * gk
            mh = nm[k] / (1 - b1 ** (t + 1))
            vh = nv[k] / (1 - b2 ** (t + 1))
            decay = wd if p[k].ndim == 2 and "embed" not in k else 0.0
            np_[k] = p[k] - lr * (mh / (jnp.sqrt(vh) + 1e-8) + decay * p[k])
        return np_, nm, nv, loss, gn

    return jax.jit(step, donate_argnums=(0, 1, 2))


def window_batches(stream, length: int, batch: int, rng):
    """Endless shuffled passes over the stream, each with a random phase."""
    import numpy as np

    while True:
        phase = int(rng.integers(0, length))
        starts = np.arange(phase, len(stream) - length - 1, length)
        rng.shuffle(starts)
        for i in range(0, len(starts) - batch + 1, batch):
            yield np.stack([stream[s:s + length + 1] for s in starts[i:i + batch]])


# --------------------------------------------------------------------------
# files

def save_safetensors(path: Path, tensors: dict) -> None:
    import ml_dtypes
    import numpy as np

    header: dict = {"__metadata__": {"format": "pt"}}
    blobs, off = [], 0
    for name in sorted(tensors):
        data = np.ascontiguousarray(tensors[name].astype(ml_dtypes.bfloat16)).tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape),
                        "data_offsets": [off, off + len(data)]}
        off += len(data)
        blobs.append(data)
    h = json.dumps(header, separators=(",", ":")).encode()
    h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h)
        for b in blobs:
            f.write(b)


def write_json(path: Path, obj) -> None:
    path.write_text(json.dumps(obj, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_configs(out: Path) -> None:
    write_json(out / "config.json", {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": CFG["head_dim"],
        "hidden_act": "silu",
        "hidden_size": CFG["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": CFG["inter"],
        "max_position_embeddings": CFG["context"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": CFG["heads"],
        "num_hidden_layers": CFG["layers"],
        "num_key_value_heads": CFG["kv_heads"],
        "pretraining_tp": 1,
        "rms_norm_eps": CFG["eps"],
        "rope_scaling": None,
        "rope_theta": CFG["theta"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": CFG["vocab"],
    })
    write_json(out / "generation_config.json", {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.95,
        "max_length": CFG["context"],
    })
    write_json(out / "tokenizer_config.json", {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                     "single_word": False, "special": True}
            for i, s in enumerate((BOS, EOS, UNK))
        },
        "bos_token": BOS,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": CFG["context"],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
    })


# --------------------------------------------------------------------------
# independent check: numpy only, reads the written files

def load_safetensors(path: Path) -> dict:
    import numpy as np

    raw = path.read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    out = {}
    for name, e in header.items():
        if name == "__metadata__":
            continue
        assert e["dtype"] == "BF16"
        a, b = e["data_offsets"]
        u16 = np.frombuffer(raw[8 + n + a:8 + n + b], dtype="<u2").astype(np.uint32) << 16
        out[name] = u16.view(np.float32).reshape(e["shape"])
    return out


def numpy_nll(p: dict, cfg: dict, ids):
    """Sum of -log p over one window, by the Hugging Face Llama equations."""
    import numpy as np

    H, KV, D = cfg["num_attention_heads"], cfg["num_key_value_heads"], cfg["head_dim"]
    T = len(ids) - 1

    def norm(x, g):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + cfg["rms_norm_eps"]) * g

    half = D // 2
    freq = cfg["rope_theta"] ** (-2.0 * np.arange(half) / D)
    ang = np.outer(np.arange(T), freq)
    c, s = np.cos(ang).astype(np.float32)[:, None], np.sin(ang).astype(np.float32)[:, None]

    def rope(x):
        out = np.empty_like(x)
        out[..., :half] = x[..., :half] * c - x[..., half:] * s
        out[..., half:] = x[..., half:] * c + x[..., :half] * s
        return out

    causal = np.triu(np.full((T, T), -np.inf, np.float32), 1)
    x = p["model.embed_tokens.weight"][ids[:-1]]
    for l in range(cfg["num_hidden_layers"]):
        w = lambda k: p[f"model.layers.{l}.{k}.weight"]
        y = norm(x, w("input_layernorm"))
        q = rope((y @ w("self_attn.q_proj").T).reshape(T, H, D))
        k = rope((y @ w("self_attn.k_proj").T).reshape(T, KV, D))
        v = (y @ w("self_attn.v_proj").T).reshape(T, KV, D)
        o = np.empty((T, H, D), np.float32)
        for h in range(H):
            sc = q[:, h] @ k[:, h * KV // H].T / np.float32(math.sqrt(D)) + causal
            sc = np.exp(sc - sc.max(-1, keepdims=True))
            o[:, h] = sc / sc.sum(-1, keepdims=True) @ v[:, h * KV // H]
        x = x + o.reshape(T, H * D) @ w("self_attn.o_proj").T
        y = norm(x, w("post_attention_layernorm"))
        g = y @ w("mlp.gate_proj").T
        x = x + (g / (1 + np.exp(-g)) * (y @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
    z = norm(x, p["model.norm.weight"]) @ p["model.embed_tokens.weight"].T
    z = z - z.max(-1, keepdims=True)
    lp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return -float(lp[np.arange(T), ids[1:]].astype(np.float64).sum())


def verify(out: Path, text_dir: Path, train_file: Path, window: int = 256) -> None:
    import numpy as np
    from tokenizers import Tokenizer

    tok = Tokenizer.from_file(str(out / "tokenizer.json"))
    p = load_safetensors(out / "model.safetensors")
    cfg = json.loads((out / "config.json").read_text())
    counts = np.bincount(encode_stream(tok, train_file.read_text(encoding="utf-8")),
                         minlength=CFG["vocab"]) + 1.0
    uni = -np.log(counts / counts.sum())
    tm = tu = tn = tb = 0.0
    print(f"{'domain':13s} {'bytes':>7s} {'tokens':>7s} {'model':>9s} {'unigram':>9s}")
    for d in DOMAINS:
        text = (text_dir / "evaluation" / f"{d}.txt").read_text(encoding="utf-8")
        ids = np.asarray(tok.encode(text).ids)
        assert tok.decode(ids.tolist()) == text, "tokenizer does not round-trip"
        m = u = n = 0.0
        for i in range(0, len(ids) - window + 1, window):
            win = ids[i:i + window]
            m += numpy_nll(p, cfg, win)
            u += float(uni[win[1:]].sum())
            n += window - 1
        print(f"{d:13s} {len(text.encode()):7d} {len(ids):7d} {math.exp(m / n):9.3f} {math.exp(u / n):9.2f}")
        tm, tu, tn, tb = tm + m, tu + u, tn + n, tb + len(text.encode())
    size = (out / "model.safetensors").stat().st_size
    assert size <= 8 * 1024 * 1024
    print(f"summary: model perplexity {math.exp(tm / tn):.3f}, unigram perplexity {math.exp(tu / tn):.2f} "
          f"({int(tn)} predicted tokens, windows of {window}, bf16 weights, {size} bytes)")


# --------------------------------------------------------------------------

def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--train", type=Path, required=True, help="training corpus written by make_text.py --train")
    ap.add_argument("--text", type=Path, default=DATASETS / "text")
    ap.add_argument("--out", type=Path, default=DATASETS / "demo")
    ap.add_argument("--steps", type=int, default=4200)
    ap.add_argument("--batch-tokens", type=int, default=1024)
    ap.add_argument("--lr", type=float, default=3e-3)
    ap.add_argument("--warmup", type=int, default=100)
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--verify-only", action="store_true")
    a = ap.parse_args()
    if a.verify_only:
        verify(a.out, a.text, a.train)
        return

    # XLA sizes its thread pool from the CPUs it may use: narrow that while it
    # starts, then give its threads the freedom to move again.
    every = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if every:
        os.sched_setaffinity(0, set(sorted(every)[:a.threads]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import numpy as np

    jax.jit(lambda x: x + 1)(np.zeros(4)).block_until_ready()
    if every:
        for tid in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(tid), every)

    tok = train_tokenizer(a.train)
    text = a.train.read_text(encoding="utf-8")
    stream = encode_stream(tok, text)
    print(f"corpus: {len(text.encode())} bytes, {len(stream)} tokens", flush=True)

    rng = np.random.default_rng(a.seed)
    short = window_batches(stream, 256, a.batch_tokens // 256, rng)
    long = window_batches(stream, 512, a.batch_tokens // 512, rng)
    p = {k: jax.numpy.asarray(v) for k, v in init_params(a.seed).items()}
    m = {k: jax.numpy.zeros_like(v) for k, v in p.items()}
    v = {k: jax.numpy.zeros_like(x) for k, x in p.items()}
    step = make_step(a.steps, a.lr, a.warmup)
    t0, acc, cnt = time.time(), 0.0, 0
    for t in range(a.steps):
        batch = next(long if t % 4 == 3 else short)
        p, m, v, loss, gn = step(p, m, v, np.float32(t), batch)
        acc, cnt = acc + float(loss), cnt + 1
        if t % 50 == 49 or t == a.steps - 1:
            print(f"step {t + 1:5d}/{a.steps} loss {acc / cnt:.4f} ppl {math.exp(acc / cnt):.2f} "
                  f"grad {float(gn):.2f} {time.time() - t0:.0f}s", flush=True)
            acc, cnt = 0.0, 0
    print(f"trained {sum(x.size for x in p.values())} parameters", flush=True)
    a.out.mkdir(parents=True, exist_ok=True)
    tok.save(str(a.out / "tokenizer.json"))
    save_safetensors(a.out / "model.safetensors", {k: np.asarray(x) for k, x in p.items()})
    write_configs(a.out)
    verify(a.out, a.text, a.train)


if __name__ == "__main__":
    sys.exit(main())
