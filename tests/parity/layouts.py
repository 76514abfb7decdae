"""The layouts in which tokenisers and whole directories are published, old and new, as they are in the files."""

import json
import shutil

from published import MERGES, WORDS, vocabulary
from reference import torch
from safetensors.torch import load_file

WINDOW = 40
START, END = WORDS
PLAIN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
OLD = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
STRIPPING = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False}


def typed(content, **flags):
    return {"__type": "AddedToken", "content": content, **OLD, **flags}


# The files of CompVis/stable-diffusion-v1-4, the first to be published. Those of 1.5 are alike.
FIRST_CONFIG = {
    "add_prefix_space": False,
    "bos_token": typed(START),
    "do_lower_case": True,
    "eos_token": typed(END),
    "errors": "replace",
    "model_max_length": WINDOW,
    "name_or_path": "openai/clip-vit-large-patch14",
    "pad_token": END,
    "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": typed(END),
}
FIRST_MAP = {
    "bos_token": {"content": START, **OLD},
    "eos_token": {"content": END, **OLD},
    "pad_token": END,
    "unk_token": {"content": END, **OLD},
}
# The files of stabilityai/stable-diffusion-2, -2-base and -2-1. The two files do not agree.
SECOND_MAP = FIRST_MAP | {"pad_token": "!"}
# The layout of transformers 4.34 and later: all in one file.
LATER_DECODER = {
    "0": {"content": "!", **PLAIN, "special": True},
    "523": {"content": START, **OLD, "special": True},
    "524": {"content": END, **PLAIN, "special": True},
}
STRINGS = {"bos_token": START, "eos_token": END, "pad_token": "!", "unk_token": END}
LATER_CONFIG = FIRST_CONFIG | STRINGS | {"added_tokens_decoder": LATER_DECODER, "clean_up_tokenization_spaces": True}
INVERTED = {"525": {"content": "<dog>", **PLAIN, "special": False}, "526": {"content": "Red-Cat", **OLD, "special": False}}
FLAGGED = {
    "525": {"content": "<dog>", **STRIPPING, "special": False},
    "526": {"content": "mat", **OLD, "single_word": True, "special": False},
    "527": {"content": "Ünder", **OLD, "rstrip": True, "special": True},
    "524": {"content": END, **STRIPPING, "special": True},
}
LAYOUTS = {
    "no settings": {},
    "1.4": {"tokenizer_config": FIRST_CONFIG, "special_tokens_map": FIRST_MAP},
    "2.1": {"tokenizer_config": FIRST_CONFIG, "special_tokens_map": SECOND_MAP},
    "map alone": {"special_tokens_map": SECOND_MAP},
    "config alone": {"tokenizer_config": FIRST_CONFIG | {"pad_token": "!"}},
    "pad as a dictionary": {
        "tokenizer_config": FIRST_CONFIG,
        "special_tokens_map": FIRST_MAP | {"pad_token": {"content": "!", **OLD}},
    },
    "xl": {"tokenizer_config": LATER_CONFIG, "special_tokens_map": SECOND_MAP},
    "the config wins": {"tokenizer_config": LATER_CONFIG, "special_tokens_map": FIRST_MAP},
    "no longest": {"tokenizer_config": FIRST_CONFIG | {"model_max_length": 1000000000000000019884624838656}},
    "added tokens": {
        "tokenizer_config": FIRST_CONFIG,
        "special_tokens_map": FIRST_MAP,
        "added_tokens": {"<dog>": 525, "Red-Cat": 527, "Zed": 526, START: 523},
    },
    "added special tokens": {
        "tokenizer_config": FIRST_CONFIG,
        "special_tokens_map": SECOND_MAP | {"additional_special_tokens": ["<dog>", "Red-Cat"]},
        "added_tokens": {"<dog>": 525, "Zed": 526},
    },
    "special tokens in the config": {
        "tokenizer_config": FIRST_CONFIG | {"additional_special_tokens": ["<dog>", typed("the cat", rstrip=True)]},
        "special_tokens_map": SECOND_MAP | {"additional_special_tokens": ["Zed"]},
    },
    "decoder": {"tokenizer_config": LATER_CONFIG | {"added_tokens_decoder": LATER_DECODER | INVERTED}},
    "decoder with special tokens": {
        "tokenizer_config": LATER_CONFIG
        | {"added_tokens_decoder": LATER_DECODER | INVERTED, "additional_special_tokens": ["<dog>", "Red-Cat"]},
        "special_tokens_map": SECOND_MAP | {"additional_special_tokens": ["<dog>", "Red-Cat"]},
        "added_tokens": {"wow": 527},
    },
    "flags": {"tokenizer_config": LATER_CONFIG | {"added_tokens_decoder": LATER_DECODER | FLAGGED}},
    "of transformers 5": {"tokenizer_config": FIRST_CONFIG | STRINGS | {"extra_special_tokens": ["<dog>", "cat's"]}},
    "named": {
        "tokenizer_config": FIRST_CONFIG | {"mask_token": "<mask>", "image_token": "<image>", "cls_token": typed("<cls>")},
        "special_tokens_map": {"pad_token": "!", "sep_token": {"content": "Zed", **OLD}, "video_token": "wow"},
    },
    "on the left": {"tokenizer_config": FIRST_CONFIG | {"padding_side": "left", "truncation_side": "left"}},
    "split": {"tokenizer_config": LATER_CONFIG | {"split_special_tokens": True}},
}
OLD_UNET = {
    *("_class_name", "act_fn", "attention_head_dim", "block_out_channels", "center_input_sample", "cross_attention_dim"),
    *("down_block_types", "downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block"),
    *("mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels", "sample_size", "up_block_types"),
}
OLD_VAE = {
    *("_class_name", "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels"),
    *("layers_per_block", "norm_num_groups", "out_channels", "sample_size", "up_block_types"),
}
OLD_SCHEDULER = {
    "_class_name",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "num_train_timesteps",
    "set_alpha_to_one",
    "trained_betas",
}
"""The settings in the files from before version 0.9."""


def write(directory, layout, model=None, window=WINDOW):
    """Writes the files of a tokeniser in a layout. If `model` is its text, one file holds the vocabulary with all the rest."""
    directory.mkdir(parents=True)
    if model is None:
        (directory / "vocab.json").write_text(json.dumps(vocabulary()))
        (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    else:
        (directory / "tokenizer.json").write_text(model)
    for name, content in layout.items():
        if content.get("model_max_length") == WINDOW:
            content = content | {"model_max_length": window}
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def aged(directory):
    """A saved pipeline in the layout of Stable Diffusion 1.x before version 0.9: fewer settings, pickles, older names."""
    settings = json.loads((directory / "unet" / "config.json").read_text())
    settings = {name: settings[name] for name in settings if name in OLD_UNET} | {"_diffusers_version": "0.2.2"}
    (directory / "unet" / "config.json").write_text(json.dumps(settings | {"sample_size": 32}))
    settings = json.loads((directory / "vae" / "config.json").read_text())
    settings = {name: settings[name] for name in settings if name in OLD_VAE} | {"_diffusers_version": "0.2.2"}
    (directory / "vae" / "config.json").write_text(json.dumps(settings))
    settings = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())
    settings = {name: settings[name] for name in settings if name in OLD_SCHEDULER} | {"_diffusers_version": "0.2.2"}
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings | {"tensor_format": "pt"}))
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        file = directory / part / f"{stem}.safetensors"
        tensors = load_file(file)
        file.unlink()
        if part == "vae":
            tensors = {older(name): tensor for name, tensor in tensors.items()}
        if part == "text_encoder":
            tensors["text_model.embeddings.position_ids"] = torch.arange(13)[None]
        torch.save(tensors, directory / part / f"{stem if part != 'text_encoder' else 'pytorch_model'}.bin")
    retokenised(directory, "tokenizer", "1.4")


def older(name):
    """The older name of a weight of the autoencoder's attention, whose layers were renamed in version 0.18."""
    for new, old in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")):
        name = name.replace(new, old) if ".attentions." in name else name
    return name


def retokenised(directory, name, layout):
    """A saved pipeline with its tokeniser in another layout."""
    shutil.rmtree(directory / name)
    write(directory / name, LAYOUTS[layout], window=13)
