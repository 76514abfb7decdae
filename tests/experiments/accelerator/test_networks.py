"""Random weights of the networks, and the published sizes of those that are measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.accelerator import networks
from experiments.tools import stable_diffusion
from guidance_jax.pretrained.adm import ADM, CLASSIFIERS, RELEASED, ADMClassifier
from guidance_jax.pretrained.dit import DiT, dit_config
from guidance_jax.pretrained.unet import UNet2DCondition


class Small(nnx.Module):
    def __init__(self, *, rngs):
        self.first, self.norm = nnx.Linear(64, 400, rngs=rngs), nnx.GroupNorm(400, 4, rngs=rngs)
        self.convolution = nnx.Conv(4, 90, (3, 3), rngs=rngs)

    def __call__(self, x):
        return self.first(x)


def test_weights_keep_the_variance_gains_are_one_and_biases_zero():
    apply, shapes = networks.described(lambda rngs: Small(rngs=rngs), "bfloat16")
    params = networks.drawn(shapes)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(lambda s: (s.shape, s.dtype), shapes)
    found = {".".join(map(str, path)): np.asarray(leaf.get_value(), "float32") for path, leaf in nnx.to_flat_state(params)}
    assert abs(found["first.kernel"].std() * np.sqrt(64) - 1) < 0.02
    assert abs(found["convolution.kernel"].std() * np.sqrt(3 * 3 * 4) - 1) < 0.05
    assert (found["norm.scale"] == 1).all()
    assert not any(found[name].any() for name in ("first.bias", "norm.bias", "convolution.bias"))
    assert apply(params, jnp.ones((2, 64), "bfloat16")).shape == (2, 400)
    assert networks.count(shapes) == 64 * 400 + 3 * 400 + 3 * 3 * 4 * 90 + 90


def test_rows_of_a_weight_that_is_larger_than_the_pool_differ(monkeypatch):
    monkeypatch.setattr(networks, "POOL", 101)
    _, shapes = networks.described(lambda rngs: nnx.Linear(50, 50, rngs=rngs), "float32")
    kernel = np.asarray(networks.drawn(shapes)["kernel"].get_value())
    assert len({tuple(row) for row in kernel}) == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "published"),
    [
        (lambda rngs: UNet2DCondition(stable_diffusion.SIZES, rngs=rngs), 859_520_964),
        (lambda rngs: DiT(dit_config(), rngs=rngs), 675_129_632),
        (lambda rngs: ADM(RELEASED["adm-256"], rngs=rngs), 553_838_086),
        (lambda rngs: ADMClassifier(CLASSIFIERS[256], rngs=rngs), 54_096_360),
    ],
)
def test_the_networks_have_their_published_sizes(build, published):
    assert networks.count(networks.described(build, "bfloat16")[1]) == published
