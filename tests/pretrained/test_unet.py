"""UNet2DCondition: the published sizes, settings that are refused, precision, and the effect of each input."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from awake import awake

from guidance_jax import pretrained
from guidance_jax.pretrained.unet import Text, UNet2DCondition, UNetConditionConfig, unet_condition_config
from guidance_jax.pretrained.weights import abstract

FIRST = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SECOND = {
    **FIRST,
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
XL = {
    **SECOND,
    "_diffusers_version": "0.19.0.dev0",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
}
REFINER = {
    **XL,
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
COUNTS = {"1.5": 859_520_964, "XL": 2_567_463_684}
PUBLISHED = {"1.5": FIRST, "2.1": SECOND, "XL": XL, "refiner": REFINER, "inpainting": {**FIRST, "in_channels": 9}}


SMALL = UNetConditionConfig(
    widths=(8, 16), depths=(1, 0), heads=(2, 4), blocks=1, text=6, added=5 + 6 * 4, size_waves=4, groups=4, in_channels=3
)
B = 3


@functools.cache
def network(dtype="float32"):
    """A small network of the XL kind, and its parameters."""
    return awake(functools.partial(UNet2DCondition, SMALL), dtype=dtype)


@functools.cache
def output(dtype="float32"):
    apply, params = network(dtype)
    return np.asarray(apply(params, *inputs()))


def inputs():
    shapes = [(B, 5, 6, 3), (B, 7, 6), (B, 5), (B, 6)]
    rng = np.random.default_rng(0)
    x, states, pooled, sizes = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return x, np.array([999, 500.5, 0], np.float32), Text(states, pooled, 100 * np.abs(sizes))


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_published_configurations_have_the_published_number_of_parameters(name):
    config = unet_condition_config(PUBLISHED[name])
    network = abstract(lambda rngs: UNet2DCondition(config, rngs=rngs))
    assert pretrained.parameter_count(network) == COUNTS[name]


def test_the_other_published_configurations_differ_where_their_files_do():
    """2.1, the refiner and the network for inpainting."""
    read = {name: unet_condition_config(settings) for name, settings in PUBLISHED.items()}
    assert read["2.1"] == dataclasses.replace(read["1.5"], heads=(5, 10, 20, 20), text=1024)
    assert read["inpainting"] == dataclasses.replace(read["1.5"], in_channels=9)
    sizes = {"widths": (384, 768, 1536, 1536), "heads": (6, 12, 24, 24), "depths": (0, 4, 4, 0), "middle": 4}
    assert read["refiner"] == dataclasses.replace(read["XL"], **sizes, text=1280, added=2560)


def test_settings_that_a_published_configuration_omits_have_the_defaults_of_diffusers():
    assert unet_condition_config({"cross_attention_dim": 768}) == UNetConditionConfig(size_waves=0)
    assert unet_condition_config(FIRST) == UNetConditionConfig(size_waves=0)


@pytest.mark.parametrize(
    ("base", "name", "value"),
    [
        (FIRST, "act_fn", "gelu"),
        (FIRST, "center_input_sample", True),
        (FIRST, "class_embed_type", "projection"),
        (FIRST, "num_class_embeds", 1000),
        (FIRST, "encoder_hid_dim", 4096),
        (FIRST, "time_cond_proj_dim", 256),
        (FIRST, "mid_block_scale_factor", 1.5),
        (FIRST, "mid_block_type", "UNetMidBlock2D"),
        (FIRST, "down_block_types", ["SimpleCrossAttnDownBlock2D", *FIRST["down_block_types"][1:]]),
        (FIRST, "up_block_types", FIRST["up_block_types"][::-1]),
        (FIRST, "transformer_layers_per_block", [1, 2, [3, 4], 1]),
        (FIRST, "layers_per_block", [1, 2, 2, 2]),
        (FIRST, "only_cross_attention", [True, True, True, False]),
        (FIRST, "resnet_time_scale_shift", "scale_shift"),
        (FIRST, "addition_embed_type", "text_image"),
        (FIRST, "a_setting_of_tomorrow", 0),
        (XL, "projection_class_embeddings_input_dim", None),
        (XL, "addition_time_embed_dim", None),
    ],
)
def test_the_errors_of_unsupported_settings_name_them(base, name, value):
    with pytest.raises(ValueError, match=rf"not supported: .*{name}=|^{name} must be"):
        unet_condition_config({**base, name: value})


def test_a_config_is_checked_and_hashable():
    assert hash(SMALL) == hash(dataclasses.replace(SMALL, widths=[8, 16]))
    for changes in ({"heads": (2,)}, {"widths": (8, 18)}, {"heads": (3, 4)}, {"heads": (2, 3)}):
        with pytest.raises(ValueError, match=r"one number per level, got|must divide into (its heads|groups), got widths"):
            dataclasses.replace(SMALL, **changes)


@pytest.mark.slow
def test_every_input_affects_the_output_of_its_own_sample_only():
    apply, params = network()
    x, t, text = inputs()
    assert output().shape == (B, 5, 6, 4)

    def moved(array, *at):
        array = np.array(array)
        array[(1, *at)] += 1.0 if array.max() > 10 else 0.1
        return array

    for changed in (
        (moved(x), t, text),
        (x, moved(t), text),
        (x, t, text._replace(states=moved(text.states, 3))),
        (x, t, text._replace(pooled=moved(text.pooled))),
        (x, t, text._replace(sizes=moved(text.sizes, 5))),
    ):
        change = np.abs(np.asarray(apply(params, *changed)) - output()).max((1, 2, 3))
        assert change[1] > 1e-3
        assert max(change[0], change[2]) < 1e-5


@pytest.mark.slow
def test_bfloat16_gives_nearly_the_same_output():
    exact, out = output(), output("bfloat16")
    assert out.dtype == jnp.bfloat16
    error = np.linalg.norm(np.float32(out) - exact) / np.linalg.norm(exact)
    assert 1e-3 < error < 0.03


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": jnp.ones((B, 5, 6, 4))}, r"x must be \[B, h, w, 3\], got float32\[3,5,6,4\]"),
        ({"states": jnp.ones((B, 7, 5))}, r"text.states must be \[B, L, 6\], got float32\[3,7,5\]"),
        ({"pooled": None}, "p \\+ 4 n = 29.*got None and float32"),
        ({"pooled": jnp.ones((B, 6))}, "p \\+ 4 n = 29"),
    ],
)
def test_inputs_of_another_kind_raise(changes, message):
    apply, params = network()
    x, t, text = inputs()
    with pytest.raises(ValueError, match=message):
        apply(params, changes.pop("x", x), t, text._replace(**changes))


def test_a_text_with_more_inputs_than_the_network_has_raises():
    apply, params = awake(functools.partial(UNet2DCondition, dataclasses.replace(SMALL, added=0)))
    with pytest.raises(ValueError, match="= 0, or be None if that is 0, got float32"):
        apply(params, *inputs())
