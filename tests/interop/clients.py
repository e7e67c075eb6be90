"""The real clients: llama.cpp (the library inside the package xllamacpp) and mlx-lm (CPU build of MLX).

Both give the log-probabilities of every next token after every position of a sequence, as an array of shape [length, vocabulary].
"""

import ctypes
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np


def log_softmax(logits):
    """Over the last axis, in float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def kl(p, q):
    """KL(p || q) of log-probabilities, per row, in nats."""
    return (np.exp(p) * (p - q)).sum(axis=-1)


class Opaque(ctypes.Structure):
    """Stands for a parameter structure that llama.cpp passes and returns by value and whose size changes between versions. Structures
    this large go through memory, so one that is larger than the real one is read and written only as far as the real one reaches.
    """

    _fields_ = [("words", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.c_void_p),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    ]


LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class LlamaCpp:
    """A GGUF in llama.cpp. The package's extension module exports llama.cpp's C interface; calling it instead of the package's HTTP
    server gives whole distributions (the server gives none where a token ends inside a UTF-8 sequence) and leaves no thread behind.
    """

    def __init__(self, path, ctx=512):
        import xllamacpp.xllamacpp as extension

        lib = self.lib = ctypes.CDLL(extension.__file__)
        self.messages = []
        self.log = LOG(lambda level, text, _: self.messages.append(text.decode(errors="replace")))
        lib.llama_log_set(self.log, None)
        for name in ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab", "llama_get_memory"):
            getattr(lib, name).restype = ctypes.c_void_p
        lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
        lib.llama_vocab_get_add_bos.restype = ctypes.c_bool
        lib.llama_model_default_params.restype = Opaque
        lib.llama_context_default_params.restype = Opaque
        lib.llama_backend_init()
        self.model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit("llama.cpp does not load {}:\n{}".format(path, "".join(self.messages[-30:])))
        self.model = ctypes.c_void_p(self.model)
        params = lib.llama_context_default_params()
        # The first four fields: tokens of context, tokens per logical and per physical batch, sequences.
        if list(params.words[:4]) != [512, 2048, 512, 1]:
            raise SystemExit(f"llama.cpp's context parameters have changed: {list(params.words[:8])}")
        params.words[0] = params.words[2] = ctx
        self.context = ctypes.c_void_p(lib.llama_init_from_model(self.model, params))
        if not self.context:
            raise SystemExit("llama.cpp makes no context:\n{}".format("".join(self.messages[-30:])))
        threads = len(os.sched_getaffinity(0))
        lib.llama_set_n_threads(self.context, threads, threads)
        self.vocab = ctypes.c_void_p(lib.llama_model_get_vocab(self.model))
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        self.ctx = ctx

    @property
    def bos(self):
        """The token to put before a text, or none."""
        return self.lib.llama_vocab_bos(self.vocab) if self.lib.llama_vocab_get_add_bos(self.vocab) else None

    def tokens(self, text, special=False):
        """As llama-tokenize does; `special` adds BOS and EOS where the tokenizer asks for them."""
        data = text.encode()
        room = len(data) + 8
        out = (ctypes.c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), out, room, special, False)
        assert count >= 0, count
        return out[:count]

    def logprobs(self, sequence):
        assert len(sequence) <= self.ctx
        self.lib.llama_memory_clear(ctypes.c_void_p(self.lib.llama_get_memory(self.context)), True)
        token = np.array(sequence, np.int32)
        wanted = np.ones(len(sequence), np.int8)
        batch = Batch(n_tokens=len(sequence), token=token.ctypes.data, logits=wanted.ctypes.data)
        status = self.lib.llama_decode(self.context, batch)
        if status != 0:
            raise SystemExit("llama_decode: {}\n{}".format(status, "".join(self.messages[-30:])))
        rows = [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.n_vocab,)).copy() for i in range(len(sequence))]
        return log_softmax(np.stack(rows))

    def embeddings(self, sequence, pooled):
        """Hidden states [length, width] of an encoder, or the one embedding of the text if the model pools them."""
        lib = self.lib
        lib.llama_get_embeddings_ith.restype = lib.llama_get_embeddings_seq.restype = ctypes.POINTER(ctypes.c_float)
        lib.llama_set_embeddings(self.context, ctypes.c_bool(True))
        token = np.array(sequence, np.int32)
        wanted = np.ones(len(sequence), np.int8)
        batch = Batch(n_tokens=len(sequence), token=token.ctypes.data, logits=wanted.ctypes.data)
        status = lib.llama_encode(self.context, batch)
        if status != 0:
            raise SystemExit("llama_encode: {}\n{}".format(status, "".join(self.messages[-30:])))
        width = lib.llama_model_n_embd(self.model)
        copy = lambda pointer: np.ctypeslib.as_array(pointer, (width,)).copy()
        if pooled:
            return copy(lib.llama_get_embeddings_seq(self.context, 0))
        return np.stack([copy(lib.llama_get_embeddings_ith(self.context, i)) for i in range(len(sequence))])


def dequantize(source, target):
    """Writes a GGUF with the same metadata and F32 tensors, by gguf-py's own decoders."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        value = 0 if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class MlxLm:
    """A folder (MLX, or a dense checkpoint) in mlx-lm."""

    def __init__(self, path):
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.utils import load_model

        self.mx = mx
        self.model, self.config = load_model(Path(path))
        self.n_vocab = self.config["vocab_size"]
        types = {str(p.dtype).removeprefix("mlx.core.") for _, p in tree_flatten(self.model.parameters())}
        # MLX computes in the type of scales and norms: the widest floating-point type that it meets.
        self.dtype = next(t for t in ("float32", "bfloat16", "float16") if t in types)

    def set_float32(self):
        """Computes in float32 from here on; packed weights stay as they are."""
        self.model.set_dtype(self.mx.float32)

    def logprobs(self, sequence):
        logits = self.model(self.mx.array([sequence]))[0].astype(self.mx.float32)
        return log_softmax(np.array(logits))


class Bitsmith:
    """Our binary."""

    def __init__(self, binary):
        self.binary = binary

    def json(self, *args):
        done = subprocess.run([self.binary, *map(str, args), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"bitsmith {' '.join(map(str, args))}: exit code {done.returncode}\n{done.stderr}{done.stdout}")
        return json.loads(done.stdout)

    def tokens(self, model, texts, special=False):
        sequences = []
        with tempfile.TemporaryDirectory() as work:
            for i, text in enumerate(texts):
                file = Path(work, f"{i}.txt")
                file.write_bytes(text.encode())
                sequences += self.json("tokenize", model, "--file", file, *["--special"] * special)["sequences"]
        return sequences

    def logprobs(self, model, sequences, vocab):
        """One array [length, vocab] per sequence; NaN where a token is missing from the answer."""
        with tempfile.TemporaryDirectory() as work:
            file = Path(work, "tokens.json")
            file.write_text(json.dumps({"sequences": [list(map(int, s)) for s in sequences]}))
            answer = self.json("logits", model, "--tokens", file, "--top", vocab)["sequences"]
        out = []
        for sequence, rows in zip(sequences, answer, strict=True):
            table = np.full((len(sequence), vocab), np.nan)
            for row in rows:
                ids, values = zip(*row["top"])
                table[row["position"], list(ids)] = values
            out.append(table)
        return out

    def embed(self, model, sequences):
        """For each sequence, hidden states [length, width] and the embedding of the text or None."""
        with tempfile.TemporaryDirectory() as work:
            file = Path(work, "tokens.json")
            file.write_text(json.dumps({"sequences": [list(map(int, s)) for s in sequences]}))
            answer = self.json("embed", model, "--tokens", file)["sequences"]
        return [(np.array(a["states"]), a["embedding"] and np.array(a["embedding"])) for a in answer]
