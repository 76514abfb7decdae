"""Tiny random models in the layout of published text-to-image models, written without PyTorch."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from guidance_jax import pretrained
from guidance_jax.pretrained import autoencoder, clip, unet

MERGES = ["d o", "do g</w>", "c a", "ca t</w>", "t h", "th e</w>", "m a", "ma t</w>", "o n</w>", "r e", "re d</w>"]
WORDS = ["<|startoftext|>", "<|endoftext|>"]


def vocabulary():
    """CLIP's vocabulary: a symbol per byte, each also at the end of a word, the merged symbols, and the two special tokens."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printed]
    signs = [chr(byte) for byte in printed] + [chr(256 + i) for i in range(len(rest))]
    tokens = [*signs, *(sign + "</w>" for sign in signs), *(merge.replace(" ", "") for merge in MERGES), *WORDS]
    return {token: i for i, token in enumerate(tokens)}


def write_tokenizer(directory, pad=WORDS[1], window=13, **more):
    """The files of a tokeniser, as in the directories of Stable Diffusion."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocabulary()))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {"bos_token": {"content": WORDS[0], **flags}, "eos_token": {"content": WORDS[1], **flags}}
    special |= {"unk_token": {"content": WORDS[1], **flags}, "pad_token": pad}
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    typed = {name: {"__type": "AddedToken", **value} if isinstance(value, dict) else value for name, value in special.items()}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": window, "do_lower_case": True, **typed, **more}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def random_arrays(module):
    """Random weights of an abstract module under their published names."""
    arrays, rng = {}, np.random.default_rng(0)
    for name, leaf in pretrained.published(module).items():
        spread = np.prod(leaf.shape[1:]) ** 0.5 if len(leaf.shape) > 1 else 5
        arrays[name] = rng.standard_normal(leaf.shape, np.float32) / spread
        if name.endswith("weight") and len(leaf.shape) == 1:
            arrays[name] += 1
    return arrays


SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "clip_sample": False,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [8, 12],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
TEXT = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": len(vocabulary()),
    "hidden_size": 12,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 13,
    "eos_token_id": 2,
}
TEXT_2 = {
    **TEXT,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 10,
    "projection_dim": 6,
}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 + 6 * 4}
FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


BUILDS = {
    "unet": lambda s: functools.partial(unet.UNet2DCondition, unet.unet_condition_config(s)),
    "vae": lambda s: functools.partial(autoencoder.AutoencoderKL, autoencoder.autoencoder_config(s)),
    "text_encoder": lambda s: functools.partial(clip.CLIPText, clip.clip_text_config(s)),
    "text_encoder_2": lambda s: functools.partial(clip.CLIPText, clip.clip_text_config(s)),
}


@functools.lru_cache(maxsize=8)
def weights(part, settings):
    """The arrays of a part, from its settings as JSON. Models that the tests write share most of their parts."""
    return random_arrays(pretrained.abstract(BUILDS[part](json.loads(settings))))


def write_model(directory, *, xl=False, **changes):
    """A model like Stable Diffusion 1, or XL. `changes` are settings of parts, such as `unet={"in_channels": 9}`."""
    settings = {"unet": UNET, "vae": VAE, "text_encoder": TEXT}
    kind = "StableDiffusionPipeline"
    if xl:
        settings |= {"unet": UNET | XL | {"cross_attention_dim": 22}, "text_encoder_2": TEXT_2}
        kind = "StableDiffusionXLPipeline"
    settings = {name: value | changes.get(name, {}) for name, value in settings.items()}
    for name, of_part in settings.items():
        (directory / name).mkdir(parents=True)
        (directory / name / "config.json").write_text(json.dumps(of_part))
        save_file(weights(name, json.dumps(of_part)), directory / name / f"{FILES[name]}.safetensors")
    classes = {"unet": UNET["_class_name"], "vae": VAE["_class_name"]}
    index = {"_class_name": kind, "safety_checker": [None, None]}
    index |= {name: ["library", classes.get(name, value.get("architectures", [""])[0])] for name, value in settings.items()}
    (directory / "model_index.json").write_text(json.dumps(index))
    for name in settings:
        if name.startswith("text"):
            write_tokenizer(directory / name.replace("text_encoder", "tokenizer"), "!" if name[-1] == "2" else WORDS[1])
    (directory / "scheduler").mkdir()
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return directory


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def picture(n, *size):
    return jnp.asarray(np.tanh(np.random.default_rng(1).standard_normal((n, *size, 3), np.float32)))
