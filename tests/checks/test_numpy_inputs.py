"""NumPy arrays of float64 and int64 are converted as JAX converts them, without a warning, and give the same numbers."""

import functools
import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from quick import quick_keys
from worlds import peaks

import guidance_jax as gj

RNG, KEY = np.random.default_rng(0), jax.random.key(1)
X, LABELS = RNG.normal(size=(4, 3)), np.arange(4) % 2
ONE = jax.tree.map(lambda field: np.asarray(field, np.float64), gj.NoiseLevel(*map(jnp.float32, (0.4, 0.8, 0.6))))
EACH = jax.tree.map(lambda field: np.full(4, field), ONE)
MOMENTS = RNG.normal(size=(2, 3)), np.stack([np.eye(3)] * 2), np.ones(2), np.arange(2)
TIMES = RNG.normal(size=(5, 4, 3))


@functools.cache
def path_of_four():
    return gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())


def world(given):
    return gj.oracles.GaussianMixture(*given["moments"])


def run(given, guidance, sampler=None, path=None, start=(3,)):
    denoise = peaks if path is None else world(given).denoise
    two = gj.branches(denoise, cond=given["labels"], uncond=-np.ones_like(given["labels"]))
    return gj.sample(quick_keys(4), two, guidance, sampler or gj.ddim(), path or path_of_four(), start)


def network(x, t, cond):
    return 0.1 * x


CALLS = {
    "sample": lambda g: run(g, gj.during(gj.cfg(g["many"]), 0.1 * g["number"], 5 * g["number"]), path=g["path"], start=g["x"]),
    "linear_reuse": lambda g: run(g, gj.linear_reuse(2.0, g["x"][0])),
    "dps": lambda g: run(g, gj.dps(lambda x0: x0[:, :1], g["x"][:, :1], 0.1 * g["number"])),
    "inpaint": lambda g: run(g, gj.cfg(2.0), gj.inpaint(gj.ddpm(), g["x"], np.arange(3) < 2)),
    "feynman_kac": lambda g: (
        gj.feynman_kac(
            quick_keys(4),
            gj.branches(peaks, cond=np.ones(4, int), uncond=-np.ones(4, int)),
            gj.targets.tilted(g["number"]),
            gj.ddpm(),
            path_of_four(),
            (3,),
            size=4,
        ).x
    ),
    "diffuse": lambda g: gj.diffuse(quick_keys(4), g["x"], g["each"]),
    "denoiser": lambda g: gj.denoiser(network, predicts="v")(g["x"], g["level"], g["labels"]),
    "mixture.denoise": lambda g: world(g).denoise(g["x"], g["level"], g["labels"]),
    "mixture.score": lambda g: world(g).score(g["x"], g["each"], g["labels"]),
    "mixture.class_log_prob": lambda g: world(g).class_log_prob(g["x"], g["each"], g["labels"]),
    "mixture.log_tilted": lambda g: world(g).log_tilted(g["x"], g["level"], g["labels"], g["number"]),
    "mixture.sample_tilted": lambda g: world(g).sample_tilted(KEY, 4, g["labels"], 2.0),
    "scores.class_log_prob": lambda g: gj.scores.class_log_prob(lambda x, t: x, g["labels"])(g["x"], g["level"]),
    "scores.guided": lambda g: gj.scores.guided(g["x"], 2 * g["x"], g["many"]),
    "training.denoising_loss": lambda g: gj.training.denoising_loss(network, "v", KEY, g["x"], g["each"], g["labels"]),
    "training.classifier_loss": lambda g: gj.training.classifier_loss(lambda x, t: x, KEY, g["x"], g["each"], g["labels"]),
    "training.drop": lambda g: gj.training.drop(KEY, g["labels"], 10, 0.5),
    "training.ema": lambda g: gj.training.ema(g["x"], 2 * g["x"], 3),
    "training.min_snr": lambda g: gj.training.min_snr(g["each"], "eps"),
    "metrics.fid": lambda g: gj.metrics.fid(g["times"][0], g["times"][1]),
    "metrics.precision_recall": lambda g: gj.metrics.precision_recall(g["times"][0], g["times"][1], 1),
    "metrics.sliced_wasserstein": lambda g: gj.metrics.sliced_wasserstein(g["times"][0], g["times"][1], KEY),
    "metrics.inception_score": lambda g: gj.metrics.inception_score(g["x"]),
    "metrics.vendi": lambda g: gj.metrics.vendi(g["x"]),
    "fit_linear": lambda g: gj.fit_linear(g["times"], 2 * g["times"][::-1]),
    "schedules.discrete": lambda g: gj.levels(gj.schedules.discrete(abs(g["x"][0]) / 9), 2, gj.spacings.uniform()),
    "schedules.below": lambda g: gj.schedules.below(path_of_four(), g["number"]),
}


EAGER = "sample", "feynman_kac", "training.drop", "schedules.discrete", "schedules.below"
"""Called as they are. The others are one program each, whose inputs are known as well."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_numpy_arrays_give_the_same_numbers_as_jax_arrays(name):
    given = {
        "x": X,
        "many": np.full(4, 2.0),
        "number": np.float64(2),
        "labels": LABELS,
        "level": ONE,
        "each": EACH,
        "moments": MOMENTS,
        "times": TIMES,
        "path": jax.tree.map(lambda field: np.asarray(field, np.float64), path_of_four()),
    }
    run = (lambda call: call()) if name in EAGER else lambda call: jax.jit(call)()
    jaxtyping.config.update("jaxtyping_disable", True)  # as in a user's program
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = run(lambda: CALLS[name](given))
        converted = jax.tree.map(jnp.asarray, given)
        expected = run(lambda: CALLS[name](converted))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)
    assert {leaf.dtype.itemsize for leaf in jax.tree.leaves(found)} <= {4}
