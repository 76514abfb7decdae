"""The reference networks and the adapters."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from awake import awake
from flax import linen, nnx
from quick import QUICK
from worlds import keys

import guidance_jax as gj
from guidance_jax import pretrained

DIT = gj.networks.DiTConfig((8, 8, 1), 3, width=16, blocks=2, heads=2)
UNET = gj.networks.UNetConfig((8, 8, 1), 3, widths=(8, 16))
NETWORKS = {
    "mlp": functools.partial(gj.networks.MLP, (8, 8, 1), 3, width=16, blocks=1),
    "dit": functools.partial(gj.networks.DiT, DIT),
    "unet": functools.partial(gj.networks.UNet, UNET),
}
X = np.random.default_rng(1).normal(size=(4, 8, 8, 1)).astype(np.float32)
T, LABELS = np.array([0.1, 0.4, 0.7, 0.9], np.float32), np.array([0, 1, 2, 3], np.int32)


@functools.cache
def network(name):
    return awake(NETWORKS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_input_affects_the_output_of_its_own_sample_only(name):
    apply, params = network(name)
    out, one = np.asarray(apply(params, X, T, LABELS)), np.arange(4) == 1
    assert out.shape == X.shape
    for changed in ((X + np.float32(0.1) * one[:, None, None, None], T, LABELS), (X, T + np.float32(0.05) * one, LABELS),
                    (X, T, LABELS + one)):  # fmt: skip
        change = np.abs(apply(params, *changed) - out).max((1, 2, 3))
        assert change[1] > 1e-4
        assert change[~one].max() < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_a_label_outside_the_range_is_never_replaced_by_another(name):
    apply, params = network(name)
    known = lambda labels: jax.eval_shape(lambda x, t: apply.__wrapped__(params, x, t, labels), X, T)
    for outside in (4, -1):
        labels = jnp.asarray(np.array([0, outside, 2, outside], np.int32))
        with pytest.raises(ValueError, match=f"label {outside} is outside"):
            known(labels)
        out = np.asarray(apply(params, X, T, labels))
        assert np.isfinite(out[::2]).all()
        assert np.isnan(out[1::2]).all()


def test_sampling_with_a_label_outside_the_range_raises_before_any_computation():
    apply, params = network("mlp")
    denoise = gj.denoiser(lambda x, t, cond: apply.__wrapped__(params, x, t, cond), predicts="v")
    branches = gj.branches(denoise, cond=jnp.array([0, 7]), uncond=jnp.array([3, 3]))
    levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
    with pytest.raises(ValueError, match=r"label 7 is outside 0\.\.3"):
        gj.sample(keys(2), branches, gj.cfg(2.0), gj.ddim(), levels, (8, 8, 1))


SMALLEST = {
    "mlp": NETWORKS["mlp"],
    "dit": functools.partial(gj.networks.DiT, dataclasses.replace(DIT, blocks=1, patch=4)),
    "unet": functools.partial(gj.networks.UNet, dataclasses.replace(UNET, widths=(8,), patch=2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_network_learns_to_denoise(name):
    """Three classes of constant images. A few steps reduce the loss far below that of predicting zero."""
    apply, _ = gj.networks.from_nnx(pretrained.abstract(SMALLEST[name]))
    params = jax.jit(lambda: gj.networks.from_nnx(SMALLEST[name](rngs=nnx.Rngs(0)))[1])()
    labels = jnp.asarray(np.arange(48) % 3)
    x0 = jnp.asarray(np.broadcast_to(np.asarray(labels, np.float32)[:, None, None, None] - 1, (48, 8, 8, 1)))

    def loss(params, key):
        level = gj.training.noise_levels(key, gj.schedules.cosine(), 48)
        network = lambda x, t, cond: apply(params, x, t, cond)
        return gj.training.denoising_loss(network, "v", key, x0, level, labels).mean()

    @jax.jit
    def step(params, moments, seed):
        value, gradient = jax.value_and_grad(loss)(params, jax.random.key(seed, impl=QUICK))
        moments = jax.tree.map(lambda m, g: (0.9 * m[0] + 0.1 * g, 0.99 * m[1] + 0.01 * g**2), moments, gradient,
                               is_leaf=lambda node: isinstance(node, tuple))  # fmt: skip
        update = lambda p, m: p - 3e-3 * m[0] / (jnp.sqrt(m[1]) + 1e-6)
        return jax.tree.map(update, params, moments), moments, value

    start = jax.tree.map(lambda p: (np.zeros(p.shape, np.float32),) * 2, params)
    before, moments = step(params, start, 1000)[2], start
    for i in range(60):
        params, moments, _ = step(params, moments, i)
    assert step(params, start, 1000)[2] < 0.6 * before


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x, t, cond):
        h = linen.Dense(8)(jnp.concatenate([x, t[:, None], cond[:, None].astype(x.dtype)], axis=1))
        h = linen.BatchNorm(use_running_average=True)(h)
        return linen.Dense(x.shape[1])(linen.tanh(h))


@pytest.mark.slow
def test_linen_and_nnx_give_pure_functions_that_sample():
    x, t, cond = np.ones((4, 2), np.float32), np.ones(4, np.float32), np.arange(4, dtype=np.int32) % 3
    module = Dense()
    variables: Any = jax.jit(module.init)(jax.random.key(0), x, t, cond)
    from_linen = gj.networks.from_linen(module, variables)
    from_nnx = network_of_points()
    np.testing.assert_allclose(jax.jit(from_linen[0])(from_linen[1], x, t, cond), by_hand(variables, x, t, cond), rtol=1e-5)
    levels = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())
    for apply, params in (from_linen, from_nnx):

        def generate(params, labels, apply=apply):
            denoise = gj.denoiser(lambda x, t, y: apply(params, x, t, y), predicts="v")
            branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, 3))
            return gj.sample(keys(4), branches, gj.cfg(2.0), gj.ddim(), levels, (2,)).sum()

        gradient = jax.jit(jax.grad(generate))(params, cond)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def by_hand(variables, x, t, cond):
    """What `Dense` computes, in NumPy, with the initial statistics: mean 0 and variance 1."""
    params = jax.tree.map(np.asarray, variables["params"])
    dense = lambda name, h: h @ params[name]["kernel"] + params[name]["bias"]
    h = dense("Dense_0", np.concatenate([x, t[:, None], cond[:, None]], axis=1)) / np.sqrt(1 + 1e-5)
    return dense("Dense_1", np.tanh(h * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"]))


def network_of_points(width=8):
    return awake(functools.partial(gj.networks.MLP, (2,), 3, width=width, blocks=1))


def test_parameters_stay_arguments_of_the_program():
    """If they are bound inside the jitted function, the weights are inputs of the program and not constants."""
    apply, params = network_of_points(width=64)
    levels = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())

    def generate(params, key):
        denoise = gj.denoiser(lambda x, t, y: apply(params, x, t, y), predicts="v")
        return gj.sample(key, gj.branches(denoise, cond=jnp.zeros(4, int)), gj.chain(), gj.ddim(), levels, (2,))

    inside = jax.make_jaxpr(generate)(params, keys(4))
    assert sum(np.size(constant) for constant in inside.consts) < 100


def test_the_pure_function_of_a_module_is_data():
    """All copies of it compare equal, so they share compiled programs. Its other collections are leaves."""
    module = pretrained.abstract(functools.partial(gj.networks.MLP, (2,), 3, width=8, blocks=1))
    assert gj.networks.from_nnx(module)[0] == gj.networks.from_nnx(module)[0]
    dense = Dense()
    variables = {"params": {}, "batch_stats": {"mean": jnp.ones(3)}}
    apply, _ = gj.networks.from_linen(dense, variables)
    assert apply == gj.networks.from_linen(dense, variables)[0]
    assert len(jax.tree.leaves(apply)) == 1


def test_bad_input_raises():
    dit = lambda **changes: dataclasses.replace(DIT, **changes)
    unet = lambda **changes: dataclasses.replace(UNET, **changes)
    for build, message in [
        (
            lambda: dit(shape=(9, 8, 1), patch=2),
            "DiTConfig: shape must divide into squares of patch pixels, got shape .9, 8, 1. and patch 2",
        ),
        (lambda: dit(width=10, heads=4), "DiTConfig: width must divide into heads, got width 10 and heads 4"),
        (lambda: dit(perturbed=(0, 2)), r"perturbed must name blocks.*got perturbed \(0, 2\) and blocks 2"),
        (lambda: dit(blocks=0), "DiTConfig: blocks must be an integer, at least 1, got 0"),
        (lambda: dit(tokens=-1), "tokens must be an integer, at least 0, got -1"),
        (lambda: dit(dtype="float16"), "'float32' or 'bfloat16', got 'float16'"),
        (
            lambda: unet(shape=(6, 6, 1), widths=(8, 8, 8)),
            r"halve evenly.*shape \(6, 6, 1\) and patch 1 and widths \(8, 8, 8\)",
        ),
        (
            lambda: unet(shape=(28, 28, 1), widths=(8, 8), patch=4),
            r"halve evenly.*shape \(28, 28, 1\) and patch 4 and widths \(8, 8\)",
        ),
        (lambda: unet(widths=(8, 12)), r"multiples of groups, got widths \(8, 12\) and groups 8"),
        (lambda: unet(widths=()), r"at least one level, got widths \(\)"),
        (lambda: unet(attention=(2,)), r"attention must name levels.*got attention \(2,\) and widths"),
        (lambda: unet(attention=(0,), heads=3), "must divide into heads, got widths .* and heads 3"),
        (lambda: unet(classes=0), "UNetConfig: classes must be an integer, at least 1, got 0"),
        (lambda: unet(patch=3), "squares of patch pixels, got shape .* and patch 3"),
        (lambda: unet(dtype="float64"), "got 'float64'"),
        (
            lambda: gj.networks.UNetClassifier(unet(heads=3), rngs=nnx.Rngs(0)),
            "UNetClassifier: the last of config.widths must divide into config.heads",
        ),
        (
            lambda: network("unet")[0](network("unet")[1], jnp.ones((2, 4, 4, 1)), jnp.ones(2), jnp.zeros(2, int)),
            r"samples of \(8, 8, 1\), got x of shape \(2, 4, 4, 1\)",
        ),
        (
            lambda: network("dit")[0](network("dit")[1], jnp.ones((2, 4, 4, 1)), jnp.ones(2), jnp.zeros(2, int)),
            r"samples of \(8, 8, 1\), got x of shape \(2, 4, 4, 1\)",
        ),
        (lambda: gj.networks.from_linen(Dense(), {"batch_stats": {}}), 'collection "params"'),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
