#!/usr/bin/env python3
"""Models with a vision tower against transformers, llama.cpp and mlx-lm: a tiny random one of each kind, made by transformers.

    vision_models.py BITSMITH TOKENIZER_FOLDER [--llama-cpp SOURCE_TREE] [--mlx-vlm FOLDER] [--only NAME]... [-v]

For each, with the names that transformers writes and with those of the hub:
 - logits of a text in bitsmith, from the checkpoint and from all that is made of it, against transformers';
 - the projector file against the one that llama.cpp's converter makes, where a source tree is given: tensors, types, shapes, bytes and
   metadata; and for all, what llama.cpp makes of an image with it against transformers' image features;
 - the text model's GGUF in llama.cpp, the MLX folder in mlx-lm or, where its folder is given, in mlx-vlm, the plain folder in
   transformers with text and image.
Exits 1 if a comparison fails.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import safetensors.torch
import torch
import transformers
from clients import Bitsmith, LlamaCpp, MlxLm, Opaque
from transformers_models import Checks, log_softmax

VOCAB, LENGTH = 2048, 48
ENCODED = 2e-2
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
VIT = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "patch_size": 14}
QWEN_VISION = {
    "depth": 4, "hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "out_hidden_size": 128, "patch_size": 14,
    "fullatt_block_indexes": [1, 3], "window_size": 112,
}  # fmt: skip
QWEN_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}


def llava(text):
    return {
        "model_type": "llava",
        "text_config": {**TEXT, "model_type": text},
        "vision_config": {**VIT, "model_type": "clip_vision_model", "num_hidden_layers": 3, "image_size": 56, "projection_dim": 32},
        "image_token_index": 2000,
        "image_seq_length": 16,
    }


def siglip(kind, size):
    return {**VIT, "model_type": kind, "num_hidden_layers": 2, "image_size": size, "vision_use_head": False}


MODELS = {
    "llava": llava("llama"),
    "llava-mistral": {**llava("mistral"), "vision_feature_layer": -1},
    "llava-qwen2": {**llava("qwen2"), "vision_feature_layer": 2},
    "gemma3": {
        "model_type": "gemma3",
        "text_config": {**TEXT, "model_type": "gemma3_text", "head_dim": 48, "query_pre_attn_scalar": 48, "sliding_window": 24, "num_hidden_layers": 7},
        "vision_config": siglip("siglip_vision_model", 112),
        "mm_tokens_per_image": 4,
        "image_token_index": 2000,
    },
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        "text_config": {**TEXT, "model_type": "qwen2_5_vl_text", "rope_parameters": QWEN_ROPE, "rms_norm_eps": 1e-6},
        "vision_config": QWEN_VISION,
        "image_token_id": 2000,
        "vision_start_token_id": 2001,
        "video_token_id": 2002,
    },
    "idefics3": {
        "model_type": "idefics3",
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": siglip("idefics3_vision", 56),
        "scale_factor": 2,
        "image_token_id": 2000,
    },
    "smolvlm": {
        "model_type": "smolvlm",
        "text_config": {**TEXT, "model_type": "llama", "tie_word_embeddings": True},
        "vision_config": siglip("smolvlm_vision", 56),
        "scale_factor": 2,
        "image_token_id": 2000,
        "tie_word_embeddings": True,
    },
}
NOT_IN_MLX_VLM = {
    "gemma3": "it pools to 256 patches, whatever the configuration says, and a tiny tower has fewer",
    "llava-mistral": "it has no Mistral in Llava",
    "smolvlm": "it wants an output matrix where the embedding stands for it",
}
CLASSES = {
    "llava": "LlavaForConditionalGeneration", "gemma3": "Gemma3ForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration", "smolvlm": "SmolVLMForConditionalGeneration",
}  # fmt: skip
PROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.3, 0.35], "do_normalize": True}
# Sides of images, of the sizes that towers take so that nothing is scaled.
SIDES = {"gemma3": 112, "qwen2_5_vl": 112}


def make(folder, config, tokenizer):
    """The model, saved as transformers saves it, in float32. Weights of the tower are rounded to bfloat16, which loses nothing later."""
    torch.manual_seed(3)
    keys = dict(config)
    cls = getattr(transformers, CLASSES[keys.pop("model_type")])
    parsed = cls.config_class(**keys)
    parsed._attn_implementation = "eager"
    model = cls(parsed).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim >= 2:
                p.normal_(0, 1.5 / (p[0].numel() if "projection_weight" not in name else p.shape[0]) ** 0.5)
            elif "norm" in name or "ln_q" in name or "layrnorm" in name:
                p.add_(0.3 * torch.randn_like(p))
            else:
                p.normal_(0, 0.2)
            p.copy_(p.bfloat16())
        model.tie_weights()
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tokenizer, name), folder)
    processor = {**PROCESSOR, "size": {"longest_edge": 56}} if "scale_factor" in config else dict(PROCESSOR)
    if config["model_type"] == "gemma3":
        processor["image_seq_length"] = config["mm_tokens_per_image"]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "SomeProcessor"}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0]['content'] }}"}))
    return model


def as_on_the_hub(source, folder):
    """The same checkpoint with the names that towers of CLIP and SigLIP have on the hub."""
    shutil.copytree(source, folder)
    tensors = safetensors.torch.load_file(source / "model.safetensors")
    renamed = {k.replace("vision_tower.", "vision_tower.vision_model.", 1) if k.startswith("vision_tower.") else k: v for k, v in tensors.items()}
    safetensors.torch.save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logprobs(model, sequences):
    with torch.no_grad():
        return [log_softmax(model(input_ids=torch.tensor([s])).logits[0].float().numpy()) for s in sequences]


def pixels(side):
    """An image, and what a tower takes: [1, 3, side, side]."""
    image = np.random.default_rng(5).integers(0, 256, (side, side, 3), dtype=np.uint8)
    normal = (image / 255.0 - np.array(PROCESSOR["image_mean"])) / np.array(PROCESSOR["image_std"])
    return image, torch.tensor(normal.transpose(2, 0, 1)[None], dtype=torch.float32)


def features(model, kind, values):
    """Embeddings of an image in the text model's space."""
    with torch.no_grad():
        if kind == "qwen2_5_vl":
            patch, merge, side = 14, 2, values.shape[-1] // 14
            # Two equal frames; patches in the order in which they are merged.
            v = values.repeat(2, 1, 1, 1).reshape(1, 2, 3, side // merge, merge, patch, side // merge, merge, patch)
            flat = v.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(side * side, -1)
            found = model.get_image_features(flat, image_grid_thw=torch.tensor([[1, side, side]]))
        elif kind in ("idefics3", "smolvlm"):
            found = model.get_image_features(values[None])
        else:
            found = model.get_image_features(values)
    found = getattr(found, "pooler_output", found)
    found = found[0] if isinstance(found, (tuple, list)) else found
    return found.reshape(-1, found.shape[-1]).float().numpy()


def as_llama_cpp_sees(model, values):
    """Image features of Llava as llama.cpp computes them: it puts the class token after the patches, though positions and the choice of
    patches count on it before them.
    """
    tower, layer = model.model.vision_tower, model.config.vision_feature_layer
    with torch.no_grad():
        e = tower.embeddings
        patches = e.patch_embedding(values).flatten(2).transpose(1, 2)
        x = torch.cat([patches, e.class_embedding.expand(1, 1, -1)], 1) + e.position_embedding.weight[None]
        x = tower.pre_layrnorm(x)
        n = len(tower.encoder.layers)
        for block in tower.encoder.layers[: layer if layer >= 0 else n + 1 + layer]:
            x = block(x, attention_mask=None)
            x = x[0] if isinstance(x, tuple) else x
        return model.model.multi_modal_projector(x[:, 1:])[0].numpy()


class Text(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char_p), ("length", ctypes.c_size_t), ("add_special", ctypes.c_bool), ("parse_special", ctypes.c_bool)]


def encode(llama, mmproj, image):
    """Embeddings of an image as llama.cpp computes them: of every chunk that its preprocessor makes."""
    lib = llama.lib
    for name in ("mtmd_init_from_file", "mtmd_bitmap_init", "mtmd_input_chunks_init", "mtmd_input_chunks_get"):
        getattr(lib, name).restype = ctypes.c_void_p
    lib.mtmd_default_marker.restype = ctypes.c_char_p
    lib.mtmd_input_chunks_size.restype = lib.mtmd_input_chunk_get_n_tokens.restype = ctypes.c_size_t
    lib.mtmd_get_output_embd.restype = ctypes.POINTER(ctypes.c_float)
    lib.mtmd_context_params_default.restype = Opaque
    lib.mtmd_log_set(llama.log, None)
    params = lib.mtmd_context_params_default()
    ctypes.cast(ctypes.byref(params), ctypes.POINTER(ctypes.c_bool))[0] = False
    context = lib.mtmd_init_from_file(os.fsencode(mmproj), llama.model, params)
    if not context:
        raise SystemExit("llama.cpp does not load {}:\n{}".format(mmproj, "".join(llama.messages[-12:])))
    context = ctypes.c_void_p(context)
    side = image.shape[0]
    bitmap = ctypes.c_void_p(lib.mtmd_bitmap_init(side, side, image.tobytes()))
    chunks = ctypes.c_void_p(lib.mtmd_input_chunks_init())
    marker = lib.mtmd_default_marker()
    text = Text(marker, len(marker), True, True)
    status = lib.mtmd_tokenize(context, chunks, ctypes.byref(text), ctypes.byref(bitmap), ctypes.c_size_t(1))
    if status != 0:
        raise SystemExit(f"mtmd_tokenize: {status}")
    width, found = lib.llama_model_n_embd(llama.model), []
    for i in range(lib.mtmd_input_chunks_size(chunks)):
        chunk = ctypes.c_void_p(lib.mtmd_input_chunks_get(chunks, ctypes.c_size_t(i)))
        if lib.mtmd_input_chunk_get_type(chunk) != 1:
            continue
        status = lib.mtmd_encode_chunk(context, chunk)
        if status != 0:
            raise SystemExit(f"mtmd_encode_chunk: {status}")
        n = lib.mtmd_input_chunk_get_n_tokens(chunk)
        found.append(np.ctypeslib.as_array(lib.mtmd_get_output_embd(context), (n, width)).copy())
    lib.mtmd_free(context)
    return found


# What differs from llama.cpp's converter, and why.
OURS = {
    "general.name": "the folder's name as it is",
    "general.quantized_by": "who made the file",
    "general.size_label": "of all tensors, with more digits",
    "general.basename": "only from names with a size in them",
    "general.finetune": "only from names with a size in them",
    "general.version": "only from names with a size in them",
}


def same_projector(name, ours, theirs, checks):
    a, b = gguf.GGUFReader(ours), gguf.GGUFReader(theirs)
    fields = [{k: (f.types, f.contents()) for k, f in r.fields.items() if not k.startswith("GGUF.") and k not in OURS} for r in (a, b)]
    different = {k for k in fields[0].keys() | fields[1].keys() if fields[0].get(k) != fields[1].get(k)}
    checks.note(not different, f"{name}: metadata of the projector file: {[(k, fields[0].get(k), fields[1].get(k)) for k in sorted(different)]}")
    tensors = [{t.name: (t.tensor_type, tuple(t.shape), t.data.tobytes()) for t in r.tensors} for r in (a, b)]
    missing = tensors[0].keys() ^ tensors[1].keys()
    checks.note(not missing, f"{name}: tensors of the projector file: {sorted(missing)}")
    different = [k for k in tensors[0].keys() & tensors[1].keys() if tensors[0][k] != tensors[1][k]]
    shown = [(k, [t[k][:2] for t in tensors]) for k in different]
    checks.note(not different, f"{name}: {len(tensors[0])} tensors equal byte for byte: {shown}")


def check(name, bitsmith, args, work, checks):
    config = MODELS[name]
    kind = config["model_type"]
    written = work / "written"
    model = make(written, config, args.tokenizer)
    hub = as_on_the_hub(written, work / "hub")
    random = np.random.default_rng(1)
    sequences = [[int(t) for t in random.integers(2, 1900, n)] for n in (LENGTH, 7)]
    want = logprobs(model, sequences)
    image, values = pixels(SIDES.get(kind, 56))
    seen = features(model, kind, values)

    def ours(path, label):
        checks.equal(f"{name}: {label} in bitsmith", bitsmith.logprobs(path, sequences, VOCAB), want)

    ours(written, "checkpoint as transformers writes it")
    ours(hub, "checkpoint with the hub's names")

    # GGUF
    model_file = work / "gguf" / "text.gguf"
    document = bitsmith.json("convert", hub, "--to", "gguf:f32", "-o", model_file)["artifacts"][0]
    ours(model_file, "gguf:f32")
    companion = document["companions"][0]
    mmproj = model_file.parent / companion["file"]
    named = mmproj.name.startswith("mmproj-") and mmproj.name.endswith("-BF16.gguf") and companion["kind"] == "mmproj"
    checks.note(named and mmproj.stat().st_size == companion["bytes"], f"{name}: {mmproj.name}")
    manifest = json.loads(Path(f"{model_file}.bitsmith.json").read_text())
    checks.note(manifest["companions"] == [companion], f"{name}: the manifest names the projector file")
    again = bitsmith.json("convert", written, "--to", "gguf:f32", "-o", work / "again" / "text.gguf")["artifacts"][0]["companions"][0]
    other = gguf.GGUFReader(work / "again" / again["file"])
    same = {t.name: t.data.tobytes() for t in other.tensors} == {t.name: t.data.tobytes() for t in gguf.GGUFReader(mmproj).tensors}
    checks.note(same, f"{name}: the same projector from both kinds of names")
    llama = LlamaCpp(model_file)
    checks.alike(f"{name}: gguf:f32 in llama.cpp", [llama.logprobs(s) for s in sequences], want, False)
    found = encode(llama, mmproj, image)
    expected = as_llama_cpp_sees(model, values) if kind == "llava" else seen
    checks.equal(f"{name}: image in llama.cpp ({len(found)} parts)", found[:1], [expected], ENCODED)
    if args.llama_cpp and kind != "llava":
        out = work / "theirs.gguf"
        script = [sys.executable, str(args.llama_cpp / "convert_hf_to_gguf.py"), str(hub), "--mmproj", "--outtype", "bf16", "--outfile", str(out)]
        ended = subprocess.run(script, capture_output=True, text=True)
        if ended.returncode != 0:
            raise SystemExit(f"convert_hf_to_gguf.py: {ended.stderr[-1500:]}")
        same_projector(name, mmproj, out, checks)

    # Folders
    plain = work / "hf"
    bitsmith.json("convert", written, "--to", "hf:f32", "-o", plain)
    ours(plain, "hf:f32")
    back = type(model).from_pretrained(plain, dtype=torch.float32, attn_implementation="eager").eval()
    checks.equal(f"{name}: hf:f32 in transformers", logprobs(back, sequences), want)
    checks.equal(f"{name}: image, hf:f32 in transformers", [features(back, kind, values)], [seen], 1e-5)
    copied = {p.name for p in plain.iterdir()} >= {"preprocessor_config.json", "processor_config.json", "chat_template.json"}
    checks.note(copied, f"{name}: hf:f32 has the processor's files")
    for target in ("mlx:8bit", "gptq:8bit-g32", "compressed:int8", "compressed:fp8"):
        folder = work / target.replace(":", "-")
        bitsmith.json("quantize", written, "--to", target, "--method", "rtn", "-o", folder)
        got = bitsmith.logprobs(folder, sequences, VOCAB)
        far = max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))
        checks.note(far < 0.2, f"{name}: {target} in bitsmith: largest relative difference {far:.1e}")
        tower = safetensors.torch.load_file(folder / "model.safetensors")
        kept = [t for n, t in tower.items() if "vision" in n or "visual" in n]
        checks.note(len(kept) > 20 and all(t.dtype == torch.bfloat16 for t in kept), f"{name}: {target} has the tower in BF16")
    # And back out of MLX's form.
    bitsmith.json("convert", work / "mlx-8bit", "--to", "gguf:bf16", "-o", work / "kept" / "text.gguf")
    kept = gguf.GGUFReader(next((work / "kept").glob("mmproj-*.gguf")))
    same = {t.name: t.data.tobytes() for t in kept.tensors} == {t.name: t.data.tobytes() for t in gguf.GGUFReader(mmproj).tensors}
    checks.note(same, f"{name}: the same projector out of the MLX folder")
    mlx = work / "mlx"
    bitsmith.json("convert", written, "--to", "mlx:f32", "-o", mlx)
    ours(mlx, "mlx:f32")
    if kind in ("gemma3",):
        reader = MlxLm(mlx)
        checks.alike(f"{name}: mlx:f32 in mlx-lm", [reader.logprobs(s) for s in sequences], want, False)
    if args.mlx_vlm and name in NOT_IN_MLX_VLM:
        print(f"{name}: not in mlx-vlm: {NOT_IN_MLX_VLM[name]}")
    elif args.mlx_vlm:
        in_mlx_vlm(name, args.mlx_vlm, mlx, sequences, want, checks)
        in_mlx_vlm(name, args.mlx_vlm, work / "mlx-8bit", sequences, None, checks)


def in_mlx_vlm(name, package, folder, sequences, want, checks):
    sys.path.append(str(package))
    import mlx.core as mx
    from mlx_vlm.utils import load_model

    model = load_model(folder)
    got = [log_softmax(np.array(model.language_model(mx.array([s])).logits[0].astype(mx.float32))) for s in sequences]
    if want is None:
        checks.note(all(np.isfinite(g).all() for g in got), f"{name}: {folder.name} in mlx-vlm")
    else:
        checks.alike(f"{name}: {folder.name} in mlx-vlm", got, want, False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bitsmith")
    parser.add_argument("tokenizer")
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--mlx-vlm", type=Path)
    parser.add_argument("--only", action="append")
    parser.add_argument("-v", "--verbose", action="store_true")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    checks = Checks(args.verbose)
    for name in args.only or MODELS:
        with tempfile.TemporaryDirectory() as work:
            try:
                check(name, Bitsmith(args.bitsmith), args, Path(work), checks)
            except (Exception, SystemExit) as e:
                checks.note(False, f"{name}: {type(e).__name__}: {e}")
    print(f"{checks.passed} comparisons passed, {checks.failed} failed")
    sys.exit(checks.failed > 0)


if __name__ == "__main__":
    main()
