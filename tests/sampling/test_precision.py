"""The library has no matrix product below float32, although TPU (bfloat16) and GPU (TF32) use lower precision by default."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import SAMPLERS, SHAPE, TABLE, B, network, run, updates, world
from jax.extend.source_info_util import summarize
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
    """The number of products of a function. Fails with the place in the source of each that has the default precision."""
    found = products(f, *given)
    wrong = {summarize(e.source_info) for e in found if e.params["precision"] != (Precision.HIGHEST, Precision.HIGHEST)}
    assert not wrong, f"{len(wrong)} products of {len(found)} have the default: {sorted(wrong)}"
    return len(found)


BEGIN, END = PATH[0], PATH[1]
W, START = world(), jnp.ones((B, *SHAPE))
BRANCHES = gj.branches(gj.denoiser(network, predicts="v"), **W.conds)


def test_methods_have_no_product_in_default_precision():
    """Nor have their gradients."""

    def loss(values):
        methods = {name: TABLE[name].make(value, W) for name, value in values.items()}
        return sum((after.x0**2).sum() for after in updates(methods, BRANCHES, W.keys, START, 0, BEGIN, END).values())

    assert exact(jax.value_and_grad(loss), {name: row.usual for name, row in TABLE.items()}) > 0


def test_samplers_have_no_product_in_default_precision():
    """In a step from their initial memory."""

    def steps(scale):
        denoise = gj.guide(BRANCHES, gj.cfg(scale), gj.Step(jnp.int32(0), BEGIN, END, W.keys))
        state = gj.State(START, (), (), jnp.int32(0), START)
        begun = {name: state._replace(memory=sampler.init(START)) for name, sampler in SAMPLERS.items()}
        return [sampler.step(denoise, begun[name], BEGIN, END, W.keys).x for name, sampler in SAMPLERS.items()]

    exact(steps, 2.0)


def test_a_run_has_no_product_in_default_precision():
    exact(lambda scale: run(gj.cfg(scale), W), 2.0)


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


def test_oracles_have_no_product_in_default_precision():
    for name, f in ORACLE.items():
        assert exact(f, X) > 0, name


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


def test_metrics_have_no_product_in_default_precision():
    assert exact(lambda *sets: [measure(*sets) for measure in MEASURES.values()], *SETS) > 0


def test_particles_have_no_product_in_default_precision():
    run = lambda scale: gj.feynman_kac(keys(4), GROUPS, gj.targets.tilted(scale), gj.heun_sde(2.0), PATH, (3,), size=4).x
    assert exact(run, 2.0) > 0


@pytest.mark.skipif(importlib.util.find_spec("diffrax") is None, reason="the extra `likelihood` is not installed")
def test_likelihoods_have_no_product_in_default_precision():
    assert exact(lambda x: gj.log_likelihood(GROUPS, gj.cfg(2.0), x, gj.schedules.cosine()), X) > 0


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
