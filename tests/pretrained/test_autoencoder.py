"""The published autoencoder's sizes, configuration and precision, and decoding by tiles."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import guidance_jax as gj
from guidance_jax import pretrained
from guidance_jax.pretrained.autoencoder import AutoencoderConfig, AutoencoderKL, autoencoder_config, current_name, tiled

TINY = AutoencoderConfig(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1)


def awake(dtype=jnp.float32):
    """The tiny network with random weights, also gains and biases."""
    rng = np.random.default_rng(0)
    graph, state = nnx.split(nnx.eval_shape(lambda: AutoencoderKL(TINY, rngs=nnx.Rngs(0))))

    def weight(p):
        values = rng.normal(size=p.shape) * (np.prod(p.shape[:-1]) ** -0.5 if len(p.shape) > 1 else 0.3)
        return jnp.asarray(values + (len(p.shape) == 1), dtype)

    return nnx.merge(graph, jax.tree.map(weight, state))


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


def test_bfloat16_weights_compute_in_bfloat16_with_and_without_tiles():
    network, half, z = awake(), awake(jnp.bfloat16), jax.random.normal(jax.random.key(1), (2, 20, 7, 4))
    for decode in (DECODE, BY_TILES):
        image, near = decode(network, z), decode(half, z)
        assert near.dtype == jnp.bfloat16
        assert np.abs(near.astype(jnp.float32) - image).mean() < 0.03 * np.asarray(image).std()
    moments = jax.eval_shape(half.encode, jax.ShapeDtypeStruct((1, 4, 6, 3), jnp.float32))
    assert {moment.dtype for moment in moments} == {jnp.dtype(jnp.bfloat16)}


def test_the_log_variance_is_bounded():
    network = awake()
    conv: Any = network.quant_conv
    conv.bias[...] = jnp.array([0, 0, 0, 0, 99.0, -99.0, 0, 0])
    mean, log_variance = nnx.jit(AutoencoderKL.encode)(network, jnp.zeros((1, 4, 6, 3)))
    assert (mean.shape, log_variance.shape) == ((1, 2, 3, 4), (1, 2, 3, 4))
    np.testing.assert_array_equal(log_variance[0, 0, 0, :2], [20, -30])


def looking(reach, factor=2):
    """A nonlinear decoder in which each pixel of the image depends only on the latents up to `reach` away."""
    side = 2 * reach + 1
    kernel = jax.random.normal(jax.random.key(0), (side, side, 3, 2))

    def decode(z):
        h = jax.lax.conv_general_dilated(z, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        phase = jnp.arange(factor, dtype=h.dtype)
        rows = (h[:, :, None] + phase[None, None, :, None, None]).reshape(len(h), -1, *h.shape[2:])
        return jnp.tanh((rows[:, :, :, None] * (1 + phase)[None, None, None, :, None]).reshape(*rows.shape[:2], -1, 2))

    return decode


@pytest.mark.parametrize("size", [(23, 40), (12, 13), (31, 9), (24, 36)])
@pytest.mark.parametrize(("tile", "overlap"), [(12, 4), (12, 7), (9, 4)])
def test_tiles_do_not_change_a_decoder_that_looks_at_most_a_quarter_of_the_overlap_away(size, tile, overlap):
    decode, z = looking(reach=1), jax.random.normal(jax.random.key(1), (2, *size, 3))
    np.testing.assert_allclose(jax.jit(tiled(decode, tile, overlap))(z), decode(z), rtol=1e-5, atol=1e-5)
    further = looking(reach=2 + overlap // 4)
    seams = np.abs(tiled(further, tile, overlap)(z) - further(z)).max()
    assert seams > 1e-2


def test_every_pixel_has_weight_one_even_if_tiles_do_not_overlap():
    z = jnp.ones((1, 23, 17, 1))
    for tile, overlap in [(5, 0), (1, 0), (6, 1), (8, 7), (16, 5)]:
        np.testing.assert_allclose(tiled(lambda z: z.repeat(3, 1).repeat(3, 2), tile, overlap)(z), 1, rtol=1e-6)


def test_seams_are_gradual():
    """A decoder whose output is the mean of its tile makes seams most visible. The image has a ramp from tile to tile."""
    mean = lambda z: jnp.broadcast_to(z.mean((1, 2), keepdims=True), (len(z), 2 * z.shape[1], 2 * z.shape[2], 1))
    z = jnp.arange(48.0)[None, :, None, None].repeat(4, axis=2)
    image = np.asarray(tiled(mean, 16, 8)(z))[0, :, 0, 0]
    between = np.diff(image)
    assert (between >= -1e-4).all()
    # The means differ by 8 over half the overlap, which is 8 pixels of the image.
    assert between.max() < 1.01 * 8 / 8
    np.testing.assert_allclose(image[[0, -1]], [7.5, 39.5], rtol=1e-5)


def test_the_tiles_of_an_autoencoder_are_decoded_separately():
    network, z = awake(), jax.random.normal(jax.random.key(1), (2, 20, 7, 4))
    image = BY_TILES(network, z)
    assert image.shape == (2, 40, 14, 3)
    np.testing.assert_allclose(image[:, :18], DECODE(network, z[:, :12])[:, :18], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(image[:, 22:], DECODE(network, z[:, 8:])[:, 6:], rtol=1e-4, atol=1e-4)
    assert np.abs(image - DECODE(network, z)).max() > 1e-2
    np.testing.assert_array_equal(BY_TILES(network, z[:, :12]), DECODE(network, z[:, :12]))


def test_tiles_need_one_program_and_the_same_memory_for_any_size_of_latents():
    apply, params = gj.networks.from_nnx(awake(), "decode")
    traces = []

    def decode(params, z):
        traces.append(z.shape)
        return apply(params, z)

    def memory(decode, side):
        used: Any = jax.jit(decode).lower(params, jnp.zeros((1, side, side, 4))).compile().memory_analysis()
        return used.temp_size_in_bytes

    by_tiles = lambda params, z: tiled(lambda z: decode(params, z), 16, 4)(z)
    small, large = (memory(by_tiles, side) for side in (32, 96))
    # Once for its shape, once for the loop.
    assert traces == [(1, 16, 16, 4)] * 4
    assert large < 1.1 * small, (small, large)
    assert memory(apply, 96) > 5 * large


def test_gradients_pass_through_tiles():
    decode, z = looking(reach=1), jax.random.normal(jax.random.key(1), (1, 14, 11, 3))
    gradient = lambda decode: jax.grad(lambda z: (decode(z) ** 2).sum())(z)
    np.testing.assert_allclose(gradient(tiled(decode, 8, 4)), gradient(decode), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("tile", "overlap"), [(8, 8), (8, -1), (0, 0)])
def test_tiles_that_do_not_advance_raise(tile, overlap):
    with pytest.raises(ValueError, match=r"tiled: (overlap|tile) must"):
        tiled(lambda z: z, tile, overlap)


def test_a_decoder_that_enlarges_the_two_sides_differently_raises():
    with pytest.raises(ValueError, match="both sides alike"):
        tiled(lambda z: z.repeat(2, axis=1), 4, 2)(jnp.zeros((1, 8, 8, 1)))
