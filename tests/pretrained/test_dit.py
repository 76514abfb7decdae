"""The published DiT's sizes, names, precision and errors."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from guidance_jax import pretrained
from guidance_jax.pretrained.dit import DiT, DiTConfig, averaged, dit_config

TINY = DiTConfig(input_size=6, hidden_size=16, depth=1, num_heads=2, num_classes=7)
SHAPES = {
    "pos_embed": (1, 9, 16),
    "x_embedder.proj.weight": (16, 4, 2, 2),
    "x_embedder.proj.bias": (16,),
    "t_embedder.mlp.0.weight": (16, 256),
    "t_embedder.mlp.0.bias": (16,),
    "t_embedder.mlp.2.weight": (16, 16),
    "t_embedder.mlp.2.bias": (16,),
    "y_embedder.embedding_table.weight": (8, 16),
    "blocks.0.attn.qkv.weight": (48, 16),
    "blocks.0.attn.qkv.bias": (48,),
    "blocks.0.attn.proj.weight": (16, 16),
    "blocks.0.attn.proj.bias": (16,),
    "blocks.0.mlp.fc1.weight": (64, 16),
    "blocks.0.mlp.fc1.bias": (64,),
    "blocks.0.mlp.fc2.weight": (16, 64),
    "blocks.0.mlp.fc2.bias": (16,),
    "blocks.0.adaLN_modulation.1.weight": (96, 16),
    "blocks.0.adaLN_modulation.1.bias": (96,),
    "final_layer.linear.weight": (32, 16),
    "final_layer.linear.bias": (32,),
    "final_layer.adaLN_modulation.1.weight": (32, 16),
    "final_layer.adaLN_modulation.1.bias": (32,),
}
"""The state dict of the published code's DiT of these sizes."""


def weights():
    rng = np.random.default_rng(0)
    return {name: (0.3 * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def load(tensors, **options):
    return pretrained.load(lambda rngs: DiT(TINY, rngs=rngs), tensors, **options)


def inputs():
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 4)).astype(np.float32)
    return x, np.array([999, 0, 400], np.float32), np.array([0, 7, 3], np.int32)


RUN = nnx.jit(lambda network, *given: network(*given))


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        # The positions, 294,912 numbers at size 256, count as parameters, as in the log of the published code.
        ("DiT-XL/2", 256, 675_129_632),
        ("DiT-S/8", 256, 33_148_160),
    ],
)
def test_full_sizes_have_their_published_number_of_parameters(name, size, count):
    network = pretrained.abstract(lambda rngs: DiT(dit_config(name, size), rngs=rngs))
    assert pretrained.parameter_count(network) == count


def test_every_published_name_gives_its_sizes():
    sizes = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
    for name, (depth, width, heads) in sizes.items():
        for patch in (2, 4, 8):
            config = dit_config(f"DiT-{name}/{patch}", 512)
            assert config == DiTConfig(64, patch, 4, width, depth, heads)
    assert dit_config() == DiTConfig()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dit_config("DiT-XL/3"), "DiT-XL/2, got name 'DiT-XL/3'"),
        (lambda: dit_config("XXL/2"), "XXL/2"),
        (lambda: dit_config("DiT-XL/2", 250), "image_size must divide by 8, got image_size 250"),
        (lambda: DiTConfig(input_size=9), "patches of patch_size, got input_size 9 and patch_size 2"),
        (lambda: DiTConfig(hidden_size=1154), "1154"),
    ],
)
def test_sizes_that_do_not_fit_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_weights_have_the_published_names_and_no_others():
    network = load(pretrained.from_arrays(weights()))
    np.testing.assert_array_equal(network.blocks[0].mlp.fc1.kernel, weights()["blocks.0.mlp.fc1.weight"].T)
    given = weights() | {"blocks.1.attn.proj.bias": np.zeros(16)}
    del given["pos_embed"]
    with pytest.raises(ValueError, match=r"1 missing: pos_embed; 1 left over: blocks\.1\.attn\.proj\.bias"):
        load(pretrained.from_arrays(given))


def test_the_averaged_weights_are_chosen():
    both = {f"{kind}.{name}": values + (kind == "model") for kind in ("model", "ema") for name, values in weights().items()}
    network = load(averaged(pretrained.from_arrays(both)))
    np.testing.assert_array_equal(network.pos_embed, weights()["pos_embed"])
    released = pretrained.from_arrays(weights())
    assert averaged(released) == released


def test_bfloat16_weights_compute_in_bfloat16():
    whole, half = (load(pretrained.from_arrays(weights()), dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    out, near = (np.asarray(RUN(network, *inputs())) for network in (whole, half))
    assert near.dtype == jnp.bfloat16
    assert np.abs(np.float32(near) - out).mean() < 0.03 * out.std()


def test_latents_of_another_size_and_labels_outside_the_range_raise():
    network, (x, t, labels) = load(pretrained.from_arrays(weights())), map(jnp.asarray, inputs())
    for wrong in (x[:, :4], x[..., :3], x[:, :, :2]):
        with pytest.raises(ValueError, match=r"samples of \(6, 6, 4\), got x of shape"):
            network(wrong, t, labels)
    with pytest.raises(ValueError, match="label 8 is outside"):
        network(x, t, labels + 1)
    out = np.asarray(RUN(network, x, t, labels - 1))
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1:]).all()
