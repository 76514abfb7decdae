"""The reference networks and the adapters."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from worlds import keys

import guidance_jax as gj

DIT = gj.networks.DiTConfig((8, 8, 1), 3, width=16, blocks=2, heads=2)
UNET = gj.networks.UNetConfig((8, 8, 1), 3, widths=(8, 16))
NETWORKS = {
    "mlp": lambda rngs: gj.networks.MLP((8, 8, 1), 3, width=16, blocks=2, rngs=rngs),
    "dit": lambda rngs: gj.networks.DiT(DIT, rngs=rngs),
    "unet": lambda rngs: gj.networks.UNet(UNET, rngs=rngs),
}


@functools.cache
def awake(name):
    """A network and its parameters with noise added, because some layers start at zero."""
    apply, params = gj.networks.from_nnx(NETWORKS[name](nnx.Rngs(0)))
    leaves, treedef = jax.tree.flatten(params)
    noisy = [p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys(len(leaves)), strict=True)]
    return apply, jax.tree.unflatten(treedef, noisy)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_depends_on_all_its_inputs_and_treats_samples_separately(name):
    apply, params = awake(name)
    apply = jax.jit(apply)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    t, labels = jnp.array([0.1, 0.4, 0.7, 0.9]), jnp.array([0, 1, 2, 3])
    out = apply(params, x, t, labels)
    assert out.shape == x.shape
    for changed in ((x + 0.1, t, labels), (x, t + 0.05, labels), (x, t, (labels + 1) % 4)):
        assert (np.abs(apply(params, *changed) - out).max((1, 2, 3)) > 1e-4).all()
    np.testing.assert_allclose(apply(params, x[1:2], t[1:2], labels[1:2]), out[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_label_outside_the_range_is_never_replaced_by_another(name):
    apply, params = awake(name)
    x, t, compiled = jnp.ones((2, 8, 8, 1)), jnp.ones(2), jax.jit(apply)
    for outside in (4, -1):
        labels = jnp.array([0, outside])
        with pytest.raises(ValueError, match=f"label {outside} is outside"):
            jax.eval_shape(lambda x, y=labels: apply(params, x, t, y), x)
        out = compiled(params, x, t, labels)
        assert np.isfinite(out[0]).all()
        assert np.isnan(out[1]).all()


def test_sampling_with_a_label_outside_the_range_raises_before_any_computation():
    apply, params = awake("mlp")
    denoise = gj.denoiser(lambda x, t, cond: apply(params, x, t, cond), predicts="v")
    branches = gj.branches(denoise, cond=jnp.array([0, 7]), uncond=jnp.array([3, 3]))
    levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
    with pytest.raises(ValueError, match=r"label 7 is outside 0\.\.3"):
        gj.sample(keys(2), branches, gj.cfg(2.0), gj.ddim(), levels, (8, 8, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_to_denoise(name):
    """Three classes of constant images. A few steps reduce the loss far below that of predicting zero."""
    apply, params = gj.networks.from_nnx(NETWORKS[name](nnx.Rngs(0)))
    labels = jnp.arange(48) % 3
    x0 = jnp.broadcast_to(labels.astype(float)[:, None, None, None] - 1, (48, 8, 8, 1))

    @jax.jit
    def loss(params, key):
        level = gj.training.noise_levels(key, gj.schedules.cosine(), 48)
        network = lambda x, t, cond: apply(params, x, t, cond)
        return gj.training.denoising_loss(network, "v", key, x0, level, labels).mean()

    @jax.jit
    def step(params, moments, i):
        gradient = jax.grad(loss)(params, jax.random.key(i))
        moments = jax.tree.map(lambda m, g: (0.9 * m[0] + 0.1 * g, 0.99 * m[1] + 0.01 * g**2), moments, gradient,
                               is_leaf=lambda node: isinstance(node, tuple))  # fmt: skip
        update = lambda p, m: p - 3e-3 * m[0] / (jnp.sqrt(m[1]) + 1e-6)
        return jax.tree.map(update, params, moments), moments

    moments = jax.tree.map(lambda p: (jnp.zeros_like(p), jnp.zeros_like(p)), params)
    before = loss(params, jax.random.key(1000))
    for i in range(60):
        params, moments = step(params, moments, i)
    assert loss(params, jax.random.key(1000)) < 0.6 * before


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x, t, cond):
        h = linen.Dense(8)(jnp.concatenate([x, t[:, None], cond[:, None].astype(x.dtype)], axis=1))
        h = linen.BatchNorm(use_running_average=True)(h)
        return linen.Dense(x.shape[1])(linen.tanh(h))


def test_linen_and_nnx_give_pure_functions_that_sample():
    x, t, cond = jnp.ones((4, 2)), jnp.ones(4), jnp.arange(4) % 3
    module = Dense()
    variables: Any = module.init(jax.random.key(0), x, t, cond)
    from_linen = gj.networks.from_linen(module, variables)
    from_nnx = gj.networks.from_nnx(gj.networks.MLP((2,), 3, width=8, blocks=1, rngs=nnx.Rngs(0)))
    np.testing.assert_allclose(
        from_linen[0](from_linen[1], x, t, cond), np.asarray(module.apply(variables, x, t, cond)), rtol=1e-6
    )
    levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
    for apply, params in (from_linen, from_nnx):

        @jax.jit
        def generate(params, labels, apply=apply):
            denoise = gj.denoiser(lambda x, t, y: apply(params, x, t, y), predicts="v")
            branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, 3))
            return gj.sample(keys(4), branches, gj.cfg(2.0), gj.ddim(), levels, (2,))

        gradient = jax.grad(lambda params: generate(params, cond).sum())(params)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
        assert any((leaf != 0).any() for leaf in jax.tree.leaves(gradient))


def test_parameters_stay_arguments_of_the_program():
    """If they are bound inside the jitted function, the weights are inputs of the program and not constants."""
    apply, params = gj.networks.from_nnx(gj.networks.MLP((2,), 3, width=64, blocks=2, rngs=nnx.Rngs(0)))
    levels = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())

    def generate(params, key):
        denoise = gj.denoiser(lambda x, t, y: apply(params, x, t, y), predicts="v")
        return gj.sample(key, gj.branches(denoise, cond=jnp.zeros(4, int)), gj.chain(), gj.ddim(), levels, (2,))

    inside = jax.make_jaxpr(generate)(params, keys(4))
    assert sum(constant.size for constant in inside.consts) < 100


def test_the_pure_function_of_a_module_is_data():
    """All copies of it compare equal, so they share compiled programs. Its other collections are leaves."""
    module = gj.networks.MLP((2,), 3, width=8, blocks=1, rngs=nnx.Rngs(0))
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
            lambda: awake("unet")[0](awake("unet")[1], jnp.ones((2, 4, 4, 1)), jnp.ones(2), jnp.zeros(2, int)),
            r"samples of \(8, 8, 1\), got x of shape \(2, 4, 4, 1\)",
        ),
        (
            lambda: awake("dit")[0](awake("dit")[1], jnp.ones((2, 4, 4, 1)), jnp.ones(2), jnp.zeros(2, int)),
            r"samples of \(8, 8, 1\), got x of shape \(2, 4, 4, 1\)",
        ),
        (lambda: gj.networks.from_linen(Dense(), {"batch_stats": {}}), 'collection "params"'),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
