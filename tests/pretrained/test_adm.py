"""ADM: its released sizes, the errors of its arguments, and its arithmetic."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_adm import CLASSIFIER, SMALL, TINY, arrays, build

from guidance_jax import networks, pretrained
from guidance_jax.pretrained import adm

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("adm-256", 553_838_086),
        (64, 65_438_568),
        (256, 54_096_360),
    ],
)
def test_the_released_sizes_have_the_published_parameter_counts(name, count):
    build = adm.ADMClassifier if isinstance(name, int) else adm.ADM
    config = (adm.RELEASED | adm.CLASSIFIERS)[name]
    network: Any = pretrained.abstract(lambda rngs: build(config, rngs=rngs))
    assert pretrained.parameter_count(network) == count
    if name == "adm-256":
        network.label_emb = None
        assert pretrained.parameter_count(network) == 552_814_086  # the unconditional one


@pytest.fixture(scope="module")
def network():
    """The pure function, its parameters, inputs and the output."""
    apply, params = networks.from_nnx(pretrained.load(build(TINY), pretrained.from_arrays(arrays(build(TINY)))))
    x = np.random.default_rng(0).normal(size=(3, 4, 8, 3)).astype(np.float32)
    inputs = x, np.array([0, 500, 999], np.float32), np.array([0, 4, 2], np.int32)
    apply = jax.jit(apply)
    return apply, params, inputs, np.asarray(apply(params, *inputs))


@pytest.mark.slow
def test_bfloat16_is_close_and_stays_bfloat16(network):
    *_, inputs, exact = network
    half = pretrained.load(build(TINY), pretrained.from_arrays(arrays(build(TINY))), dtype=jnp.bfloat16)
    found = jax.jit(lambda half, *inputs: half(*inputs))(half, *inputs)
    assert found.dtype == jnp.bfloat16
    error = np.abs(np.float32(found) - exact)
    assert 1e-4 < error.max() < 0.1 * np.abs(exact).max()
    classify = pretrained.load(
        build(CLASSIFIER, adm.ADMClassifier),
        pretrained.from_arrays(arrays(build(CLASSIFIER, adm.ADMClassifier))),
        dtype=jnp.bfloat16,
    )
    assert jax.eval_shape(classify, jnp.zeros((2, 8, 8, 3)), jnp.zeros(2)).dtype == jnp.float32


def test_a_sample_does_not_depend_on_its_batch(network):
    apply, params, (x, t, labels), out = network
    others = np.arange(3) != 1
    changed = apply(params, x * np.float32(1 + others[:, None, None, None]), t + np.float32(others), (labels + others) % 5)
    change = np.abs(np.asarray(changed) - out).max((1, 2, 3))
    assert change[1] < 1e-5
    assert (change[others] > 0.01).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"channel_mult": (1, 1, 1, 1, 1, 1)},
            r"image_size must halve evenly.*got image_size 16 and channel_mult \(1, 1, 1, 1, 1, 1\)",
        ),
        ({"model_channels": 40}, "multiples of the norms' 32 groups, got .* and model_channels 40"),
        ({"num_head_channels": 48}, "must divide into the heads.*num_head_channels 48"),
        ({"num_head_channels": None, "num_heads": 3}, "must divide into the heads.*num_heads 3"),
        ({"num_res_blocks": 0}, "ADMConfig: num_res_blocks must be an integer, at least 1, got 0"),
    ],
)
def test_sizes_that_define_no_network_raise(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.slow
def test_calls_that_do_not_fit_the_network_raise(network):
    apply, params, *_ = network
    apply = apply.__wrapped__  # Without jit, which would hide the values of labels.
    small = lambda *inputs, **changes: jax.eval_shape(lambda: build(dataclasses.replace(SMALL, **changes))()(*inputs))
    x, t, labels = jnp.zeros((2, 16, 16, 3)), jnp.zeros(2), jnp.array([1, 3])
    with pytest.raises(ValueError, match="multiples of 2 for this network"):
        small(jnp.zeros((2, 16, 15, 3)), t, labels)
    with pytest.raises(ValueError, match="num_classes=5 got labels None"):
        apply(params, x, t)
    with pytest.raises(ValueError, match="label 5 is outside"):
        apply(params, x, t, jnp.array([5, 0]))
    with pytest.raises(ValueError, match="num_classes=None got labels"):
        small(x, t, labels, num_classes=None)
    with pytest.raises(ValueError, match=r"samples of \(16, 16, 3\), got x of shape \(2, 32, 8, 3\)"):
        jax.eval_shape(lambda: build(SMALL, adm.ADMClassifier)()(jnp.zeros((2, 32, 8, 3)), t))
    for lost in ("num_classes", "num_head_channels"):
        with pytest.raises(ValueError, match="ADMClassifier: config must have num_classes and num_head_channels"):
            adm.ADMClassifier(dataclasses.replace(SMALL, **{lost: None}), rngs=nnx.Rngs(0))
