"""The autoencoder against diffusers' AutoencoderKL, read from the directory that its `save_pretrained` writes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import close, diffusers, from_torch, to_torch, torch

from guidance_jax import pretrained
from guidance_jax.pretrained.autoencoder import AutoencoderKL, autoencoder_config, current_name

XL = {"scaling_factor": 0.13025, "layers_per_block": 2}
SD3 = {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 1.5,
    "shift_factor": 0.06,
}
CONFIGS = {
    "three levels": ((8, 16, 24), XL),
    "16 latents": ((16, 8), SD3),
    "no attention, grey": ((8,), {"mid_block_add_attention": False, "in_channels": 1, "out_channels": 1, "norm_num_groups": 2}),
}


def random_reference(name):
    """The autoencoder with random weights, none near zero."""
    widths, settings = CONFIGS[name]
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        **{"norm_num_groups": 4} | settings,
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape) * (0.5 if weight.ndim == 1 else weight[0].numel() ** -0.5))
    return model


def loaded(directory, **options):
    config = autoencoder_config(json.loads((directory / "config.json").read_text()))
    weights = pretrained.open_weights(directory / "diffusion_pytorch_model.safetensors")
    return pretrained.load(lambda rngs: AutoencoderKL(config, rngs=rngs), weights, **options), config


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tmp_path_factory):
    model, directory = random_reference(request.param), tmp_path_factory.mktemp("vae")
    model.save_pretrained(directory)
    return model, *loaded(directory), directory


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("size", [(12, 20), (17, 13)])
def test_encodings_agree(both, size):
    model, ours, config, _ = both
    x = draw(3, *size, config.in_channels)
    mean, log_variance = nnx.jit(AutoencoderKL.encode)(ours, 3 * x)
    with torch.no_grad():
        theirs = model.encode(to_torch(3 * x)).latent_dist
    close(mean, from_torch(theirs.mean), 1e-5)
    close(log_variance, from_torch(theirs.logvar), 1e-5)


def test_decodings_agree(both):
    model, ours, config, _ = both
    z = draw(3, 5, 7, config.latent_channels)
    with torch.no_grad():
        theirs = model.decode(to_torch(z)).sample
    close(nnx.jit(AutoencoderKL.decode)(ours, z), from_torch(theirs), 1e-5)


def test_the_scales_of_the_latents_are_read(both):
    model, _, config, _ = both
    assert config.scaling_factor == model.config.scaling_factor
    assert config.shift_factor == (model.config.shift_factor or 0)


@pytest.mark.parametrize("pixel", [False, True], ids=["dense", "convolutions of one pixel"])
def test_a_file_with_older_names_gives_the_same_decodings(pixel, tmp_path):
    model = random_reference("three levels")
    z = draw(2, 3, 5, 4)
    weights = {}
    for name, weight in model.state_dict().items():
        if ".attentions." in name:
            for older, current in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
                name = name.replace(f".{current}.", f".{older}.")
            weight = weight[:, :, None, None] if pixel and weight.ndim == 2 else weight
        weights[name] = weight.contiguous()
    assert sum("proj_attn" in name for name in weights) == 4
    torch.save(weights, tmp_path / "old.pt")
    config = autoencoder_config(model.config)
    ours = pretrained.load(
        lambda rngs: AutoencoderKL(config, rngs=rngs), pretrained.open_weights(tmp_path / "old.pt"), rename=current_name
    )
    with torch.no_grad():
        close(nnx.jit(AutoencoderKL.decode)(ours, z), from_torch(model.decode(to_torch(z)).sample), 1e-5)
