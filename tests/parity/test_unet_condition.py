"""UNet2DCondition against diffusers' UNet2DConditionModel: every kind, from files that diffusers saves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import close, diffusers, to_torch, torch
from safetensors.torch import save_file

from guidance_jax import networks, pretrained
from guidance_jax.pretrained.unet import Text, UNet2DCondition, unet_condition_config

B, TEXT = 3, 12
TWO = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 6, "use_linear_projection": True}
KINDS = {
    "1": {**TWO, "attention_head_dim": 2, "norm_eps": 1e-3, "flip_sin_to_cos": False, "freq_shift": 1},
    "2": {**TWO, "attention_head_dim": (4, 2), "use_linear_projection": True, "upcast_attention": True, "layers_per_block": 1},
    "inpainting": {**TWO, "attention_head_dim": 4, "in_channels": 9, "layers_per_block": 1},
    "xl": {
        **XL,
        "attention_head_dim": (1, 2, 4),
        "block_out_channels": (8, 16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "projection_class_embeddings_input_dim": 10 + 6 * 6,
        "transformer_layers_per_block": (1, 1, 2),
    },
    "refiner": {
        **XL,
        **TWO,
        "attention_head_dim": (2, 4),
        "layers_per_block": 1,
        "projection_class_embeddings_input_dim": 10 + 5 * 6,
        "transformer_layers_per_block": 2,
    },
}
SIZES = {"1": (7, 10), "2": (8, 6), "inpainting": (5, 5), "xl": (9, 6), "refiner": (6, 8)}


def published(kind, **changes):
    """A model of a kind, with random weights."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": TEXT, "sample_size": 8}
    model = diffusers.UNet2DConditionModel(**{**sizes, **KINDS[kind], **changes}).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Inputs of norms are small enough to show their epsilons. Inputs of GELUs are large enough to show their form.
            spread = (2 if ".ff." in name else 0.05) * weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.01
            weight.copy_(spread * torch.randn_like(weight))
        for module in model.modules():
            if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
                module.weight += 1
    return model


def inputs(kind):
    config = {"in_channels": 4, **KINDS[kind]}
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    text = Text(draw(B, 5, TEXT))
    if kind in ("xl", "refiner"):
        text = text._replace(pooled=draw(B, 10), sizes=jnp.abs(300 * draw(B, 6 if kind == "xl" else 5)))
    return draw(B, *SIZES[kind], config["in_channels"]), jnp.array([999.0, 500.5, 0.0]), text


def expected(model, x, t, text):
    added = {} if text.pooled is None else {"text_embeds": np.array(text.pooled), "time_ids": np.array(text.sizes)}
    added = {name: torch.from_numpy(value) for name, value in added.items()}
    with torch.no_grad():
        states = torch.from_numpy(np.array(text.states))
        out = model(to_torch(x), torch.from_numpy(np.array(t)), states, added_cond_kwargs=added).sample
    return np.moveaxis(out.numpy(), 1, -1)


def saved(directory, **options):
    """This library's network with the weights that diffusers saved."""
    config = unet_condition_config(json.loads((directory / "config.json").read_text()))
    file = next(iter(directory.glob("*.safetensors.index.json")), directory / "diffusion_pytorch_model.safetensors")
    build = lambda rngs: UNet2DCondition(config, rngs=rngs)
    return pretrained.load(build, pretrained.open_weights(file), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_diffusers(kind, tmp_path):
    model = published(kind)
    # XL's in several files.
    model.save_pretrained(tmp_path, **({"max_shard_size": "100KB"} if kind == "xl" else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (kind == "xl")
    apply, params = networks.from_nnx(saved(tmp_path))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == model.num_parameters()
    theirs = expected(model, *inputs(kind))
    close(jax.jit(apply)(params, *inputs(kind)) / theirs.std(), theirs / theirs.std(), 1e-5)


def test_the_error_names_a_missing_and_an_extra_weight(tmp_path):
    model = published("2")
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = {name: weight for name, weight in model.state_dict().items() if name != "mid_block.resnets.1.norm2.bias"}
    save_file({**weights, "up_blocks.7.conv.weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"1 missing: mid_block\.resnets\.1\.norm2\.bias; 1 left over: up_blocks\.7\.conv"):
        saved(tmp_path)
