"""The published autoencoder's sizes, configuration and precision, and decoding by tiles."""

import functools
from typing import Any

import awake
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from guidance_jax import pretrained
from guidance_jax.pretrained.autoencoder import AutoencoderConfig, AutoencoderKL, autoencoder_config, current_name, tiled

TINY = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1)


@functools.cache
def tiny(dtype=jnp.float32):
    return awake.module(functools.partial(AutoencoderKL, TINY), dtype)


Z: Any = np.random.default_rng(1).normal(size=(2, 20, 7, 4)).astype(np.float32)
DECODE = nnx.jit(AutoencoderKL.decode)
BY_TILES = nnx.jit(lambda network, z: tiled(network.decode, 12, 4)(z))


def test_stable_diffusions_autoencoder_has_its_published_number_of_parameters():
    network = pretrained.abstract(lambda rngs: AutoencoderKL(AutoencoderConfig(), rngs=rngs))
    assert pretrained.parameter_count(network) == 83_653_863


def test_a_configuration_is_read():
    read = autoencoder_config(
        {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.6.0",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": 512,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        }
    )
    assert read == AutoencoderConfig()
    assert autoencoder_config({}).block_out_channels == (64,)
    assert autoencoder_config({"shift_factor": 0.06}).shift_factor == 0.06


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("act_fn", "gelu"),
        ("down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        ("up_block_types", ["AttnUpDecoderBlock2D"]),
        ("latents_mean", [0.1, 0.2, 0.0, 0.0]),
        ("latents_std", [0.1, 0.2, 0.0, 0.0]),
        ("_class_name", "VQModel"),
        ("time_scale", 2),
    ],
)
def test_the_error_of_an_unsupported_setting_names_it(name, value):
    with pytest.raises(ValueError, match=name if name != "_class_name" else "VQModel"):
        autoencoder_config({name: value})


def test_older_names_are_those_of_attention_only():
    assert current_name("encoder.mid_block.attentions.0.query.weight") == "encoder.mid_block.attentions.0.to_q.weight"
    assert current_name("encoder.mid_block.attentions.0.value.bias") == "encoder.mid_block.attentions.0.to_v.bias"
    for name in ("encoder.mid_block.attentions.0.to_out.0.bias", "encoder.mid_block.attentions.0.group_norm.weight", "key"):
        assert current_name(name) == name


@pytest.mark.slow
def test_bfloat16_weights_compute_in_bfloat16_with_and_without_tiles():
    near, image = np.asarray(DECODE(tiny(jnp.bfloat16), Z)), np.asarray(DECODE(tiny(), Z))
    assert near.dtype == jnp.bfloat16
    assert np.abs(np.float32(near) - image).mean() < 0.03 * image.std()
    assert jax.eval_shape(BY_TILES, tiny(jnp.bfloat16), Z).dtype == jnp.bfloat16
    moments = jax.eval_shape(tiny(jnp.bfloat16).encode, jax.ShapeDtypeStruct((1, 4, 6, 3), jnp.float32))
    assert {moment.dtype for moment in moments} == {jnp.dtype(jnp.bfloat16)}


def test_the_log_variance_is_bounded():
    network = awake.module(functools.partial(AutoencoderKL, TINY))
    conv: Any = network.quant_conv
    conv.bias[...] = jnp.array([0, 0, 0, 0, 99.0, -99.0, 0, 0])
    mean, log_variance = map(np.asarray, nnx.jit(AutoencoderKL.encode)(network, jnp.zeros((1, 4, 6, 3))))
    assert (mean.shape, log_variance.shape) == ((1, 2, 3, 4), (1, 2, 3, 4))
    np.testing.assert_array_equal(log_variance[0, 0, 0, :2], [20, -30])


def looking(reach, factor=2):
    """A nonlinear decoder in which each pixel of the image depends only on the latents up to `reach` away."""
    side = 2 * reach + 1
    kernel: Any = np.random.default_rng(0).normal(size=(side, side, 3, 2)).astype(np.float32)

    def decode(z):
        h = jax.lax.conv_general_dilated(z, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        phase = jnp.arange(factor, dtype=h.dtype)
        rows = (h[:, :, None] + phase[None, None, :, None, None]).reshape(len(h), -1, *h.shape[2:])
        return jnp.tanh((rows[:, :, :, None] * (1 + phase)[None, None, None, :, None]).reshape(*rows.shape[:2], -1, 2))

    return decode


@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [((23, 40), 12, 4), ((12, 13), 12, 7), ((31, 9), 9, 4), ((31, 9), 12, 4), ((24, 36), 12, 7)],
)
def test_tiles_do_not_change_a_decoder_that_looks_at_most_a_quarter_of_the_overlap_away(size, tile, overlap):
    near, further = looking(reach=1), looking(reach=2 + overlap // 4)
    run = jax.jit(lambda z: [(tiled(decode, tile, overlap)(z), decode(z)) for decode in (near, further)])
    found = run(np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32))
    (by_tiles, whole), (seamed, seamless) = jax.tree.map(np.asarray, found)
    np.testing.assert_allclose(by_tiles, whole, rtol=1e-5, atol=1e-5)
    assert np.abs(seamed - seamless).max() > 1e-2


def test_every_pixel_has_weight_one_even_if_tiles_do_not_overlap():
    cases = [(5, 0), (1, 0), (6, 1), (8, 7), (16, 5)]
    decode = lambda z: z.repeat(3, 1).repeat(3, 2)
    run = jax.jit(lambda z: [tiled(decode, tile, overlap)(z) for tile, overlap in cases])
    for case, image in zip(cases, run(np.ones((1, 23, 17, 1), np.float32)), strict=True):
        np.testing.assert_allclose(image, 1, rtol=1e-6, err_msg=str(case))


def test_seams_are_gradual():
    """A decoder whose output is the mean of its tile makes seams most visible. The image has a ramp from tile to tile."""
    mean = lambda z: jnp.broadcast_to(z.mean((1, 2), keepdims=True), (len(z), 2 * z.shape[1], 2 * z.shape[2], 1))
    z = np.arange(48, dtype=np.float32)[None, :, None, None].repeat(4, axis=2)
    image = np.asarray(jax.jit(tiled(mean, 16, 8))(z))[0, :, 0, 0]
    between = np.diff(image)
    assert (between >= -1e-4).all()
    # The means differ by 8 over half the overlap, which is 8 pixels of the image.
    assert between.max() < 1.01 * 8 / 8
    np.testing.assert_allclose(image[[0, -1]], [7.5, 39.5], rtol=1e-5)


@pytest.mark.slow
def test_the_tiles_of_an_autoencoder_are_decoded_separately():
    image = np.asarray(BY_TILES(tiny(), Z))
    first, second = (np.asarray(DECODE(tiny(), z)) for z in (Z[:, :12], Z[:, 8:]))
    assert image.shape == (2, 40, 14, 3)
    np.testing.assert_allclose(image[:, :18], first[:, :18], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(image[:, 22:], second[:, 6:], rtol=1e-4, atol=1e-4)
    assert np.abs(image - DECODE(tiny(), Z)).max() > 1e-2


def test_latents_that_fit_into_one_tile_are_decoded_as_they_are():
    z, decode = np.random.default_rng(1).normal(size=(2, 12, 9, 3)).astype(np.float32), looking(reach=2)
    once, by_tiles = (str(jax.make_jaxpr(f)(z)) for f in (decode, tiled(decode, 12, 4)))
    assert by_tiles == once


def test_tiles_need_one_program_and_the_same_memory_for_any_size_of_latents():
    traces, within = [], looking(reach=2)

    def decode(z):
        traces.append(z.shape)
        return within(z)

    def memory(decode, side):
        used: Any = jax.jit(decode).lower(jnp.zeros((1, side, side, 3))).compile().memory_analysis()
        return used.temp_size_in_bytes

    small, large = (memory(tiled(lambda z: decode(z), 16, 4), side) for side in (32, 96))
    # Once for its shape, once for the loop.
    assert traces == [(1, 16, 16, 3)] * 4
    assert large < 1.1 * small, (small, large)
    assert memory(within, 96) > 5 * large


def test_gradients_pass_through_tiles():
    decode, z = looking(reach=1), np.random.default_rng(1).normal(size=(1, 14, 11, 3)).astype(np.float32)
    gradient = lambda decode: jax.grad(lambda z: (decode(z) ** 2).sum())
    ours, theirs = jax.jit(lambda z: (gradient(tiled(decode, 8, 4))(z), gradient(decode)(z)))(z)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tile", "overlap"), [(8, 8), (8, -1), (0, 0)])
def test_tiles_that_do_not_advance_raise(tile, overlap):
    with pytest.raises(ValueError, match=r"tiled: (overlap|tile) must"):
        tiled(lambda z: z, tile, overlap)


def test_a_decoder_that_enlarges_the_two_sides_differently_raises():
    with pytest.raises(ValueError, match="both sides alike"):
        tiled(lambda z: z.repeat(2, axis=1), 4, 2)(jnp.zeros((1, 8, 8, 1)))
