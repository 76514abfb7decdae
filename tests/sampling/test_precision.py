"""The library has no matrix product below float32, although TPU (bfloat16) and GPU (TF32) use lower precision by default."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import SAMPLERS, TABLE, run, world
from jax.lax import Precision
from jaxprs import products
from worlds import keys

import guidance_jax as gj

EYE = jnp.asarray(np.eye(3), float)
WORLD = gj.oracles.GaussianMixture(EYE, jnp.asarray(np.stack([np.eye(3)] * 3), float), EYE.sum(0), jnp.array([0, 1, 2]))
X, LABELS, LEVEL = jnp.asarray(np.ones((4, 3)), float), jnp.array([1] * 4), gj.NoiseLevel(*map(jnp.float32, (0.3, 0.89, 0.45)))
PATH = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
GROUPS = gj.branches(WORLD.denoise, cond=LABELS, uncond=jnp.array([-1] * 4))
SETS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 4)), float)


def exact(f, *given):
    found = [e.params["precision"] for e in products(f, *given)]
    assert set(found) <= {(Precision.HIGHEST, Precision.HIGHEST)}, f"{found.count(None)} of {len(found)} have the default"
    return len(found)


@pytest.mark.parametrize("name", TABLE)
def test_methods_have_no_product_in_default_precision(name):
    w, row = world(), TABLE[name]
    loss = lambda value: (run(row.make(value, w), w) ** 2).sum()
    exact(jax.value_and_grad(loss), row.usual)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_have_no_product_in_default_precision(name):
    w = world()
    exact(lambda scale: run(gj.cfg(scale), w, SAMPLERS[name]), 2.0)


ORACLE = {
    "denoise": lambda x: WORLD.denoise(x, LEVEL, LABELS),
    "score": lambda x: WORLD.score(x, LEVEL, LABELS),
    "log_prob": lambda x: WORLD.log_prob(x, LEVEL, LABELS),
    "class_log_prob": lambda x: WORLD.class_log_prob(x, LEVEL, LABELS),
    "its gradient": jax.grad(lambda x: WORLD.class_log_prob(x, LEVEL, LABELS).sum()),
    "log_tilted": lambda x: WORLD.log_tilted(x, LEVEL, LABELS, 2.0),
    "sample": lambda x: WORLD.sample(jax.random.key(0), 4, LABELS),
    "sample_tilted": lambda x: WORLD.sample_tilted(jax.random.key(0), 4, LABELS, 2.0),
}


@pytest.mark.parametrize("name", ORACLE)
def test_oracles_have_no_product_in_default_precision(name):
    assert exact(ORACLE[name], X) > 0


MEASURES = {
    "precision_recall": gj.metrics.precision_recall,
    "density_coverage": lambda a, b: gj.metrics.density_coverage(a, b),
    "fid": gj.metrics.fid,
    "kid": gj.metrics.kid,
    "kid_subsets": lambda a, b: gj.metrics.kid_subsets(a, b, jax.random.key(0), subsets=2, size=4),
    "energy_distance": jax.grad(lambda a, b: gj.metrics.energy_distance(a, b)),
    "mmd": jax.grad(lambda a, b: gj.metrics.mmd(a, b, 1.0)),
    "sliced_wasserstein": lambda a, b: gj.metrics.sliced_wasserstein(a, b, jax.random.key(0)),
    "vendi": lambda a, b: gj.metrics.vendi(a),
}


@pytest.mark.parametrize("name", MEASURES)
def test_metrics_have_no_product_in_default_precision(name):
    exact(MEASURES[name], *SETS)


def test_particles_have_no_product_in_default_precision():
    exact(lambda scale: gj.feynman_kac(keys(4), GROUPS, gj.targets.tilted(scale), gj.heun_sde(2.0), PATH, (3,), size=4).x, 2.0)


@pytest.mark.skipif(importlib.util.find_spec("diffrax") is None, reason="the extra `likelihood` is not installed")
def test_likelihoods_have_no_product_in_default_precision():
    exact(lambda x: gj.log_likelihood(GROUPS, gj.cfg(2.0), x, gj.schedules.cosine()), X)


def test_a_product_in_default_precision_is_detected():
    """In a branch of a loop, in a derivative, in a convolution."""
    matrix = jnp.eye(3)
    looped = lambda x: jax.lax.scan(
        lambda x, _: (jax.lax.cond(x.sum() > 0, lambda x: x @ matrix, lambda x: x, x), None), x, None, 2
    )
    convolved = lambda x: jax.lax.conv_general_dilated(x[None, None], jnp.ones((1, 1, 2, 2)), (1, 1), "SAME")
    for f in (looped, jax.grad(lambda x: (x @ matrix).sum()), convolved):
        with pytest.raises(AssertionError, match="have the default"):
            exact(f, X)
    assert exact(functools.partial(jnp.matmul, precision=Precision.HIGHEST), X, matrix) == 1
