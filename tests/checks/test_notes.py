"""An error inside a user's function gets a note that states the library's arguments and the usual fix."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from worlds import keys

import guidance_jax as gj

B = 2
LABELS = jnp.asarray(np.arange(B), int)


@functools.cache
def path():
    return gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())


class Dropping(nnx.Module):
    def __init__(self):
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x, t, cond):
        return self.dropout(x)


def run(network=None, denoise=None, guidance=None, cond: Any = LABELS):
    denoise = denoise or gj.denoiser(network or (lambda x, t, cond: x), predicts="x0")
    return gj.sample(keys(B), gj.branches(denoise, cond=cond, uncond=cond), guidance or gj.cfg(2.0), gj.ddim(), path(), (3,))


def classify(x, t):
    return x[:, :10] @ jnp.ones((10, 2))


def at_a_time(x, t: Any):
    """A log_prob that uses its level as a time."""
    return x * t[:, None]


def sine_of_a_time(x, t: Any):
    return x * jnp.sin(t)


def thrice(t: Any):
    """A scale that uses its level as a time."""
    return 3.0 * t


CALLS = {
    "labels as floats": (
        lambda: run(lambda x, t, cond: jnp.ones((4, 3))[cond], cond=LABELS.astype(float)),
        "by the network, called with x float32[2,3], t float32[2], cond float32[2].",
    ),
    "a condition without its key": (
        lambda: run(lambda x, t, cond: x * cond["mask"], cond={"labels": LABELS}),
        "cond {labels: int32[2]}",
    ),
    "a network for a denoiser": (lambda: run(denoise=lambda x, t, cond: x * t[:, None]), "gj.denoiser(network, predicts=...)"),
    "a classifier of other images": (
        lambda: run(guidance=gj.classifier(gj.scores.class_log_prob(classify, LABELS), 1.0)),
        "by the classifier, called with x float32[2,3], t float32[2].",
    ),
    "a classifier for its log_prob": (
        lambda: run(guidance=gj.classifier(at_a_time, 1.0)),
        "by log_prob, which receives a noise level and not a time (for a classifier (x, t) -> logits [B, classes], use",
    ),
    "a classifier for its log_prob, by a network": (
        lambda: run(guidance=gj.mean_shift(sine_of_a_time, 1.0)),
        "by log_prob, which receives a noise level and not a time",
    ),
    "a log_prob of other images": (
        lambda: run(guidance=gj.universal(lambda x0: classify(x0, 0)[:, 0], 1.0)),
        "by log_prob, called with x0 float32[2,3].",
    ),
    "a measure of other images": (
        lambda: run(guidance=gj.dps(lambda x0: classify(x0, 0), jnp.ones((B, 2)), 1.0)),
        "by measure, called with x0 float32[2,3].",
    ),
    "a scale by an if": (
        lambda: run(guidance=gj.cfg(lambda level: 3.0 if level.ratio > 1 else 1.0)),
        "use jnp.where",
    ),
    "a scale of the time": (lambda: run(guidance=gj.cfg(thrice)), "It receives a noise level: use level.t"),
    "a network in NumPy": (lambda: run(lambda x, t, cond: np.tanh(np.asarray(x))), "It must be JAX code"),
    "dropout in training": (lambda: run(Dropping()), "module.eval()"),
    "dropout in training, as a function": (
        lambda: run(functools.partial(*gj.networks.from_nnx(Dropping()))),
        "module.eval()",
    ),
    "a nonlinear function of predictions": (
        lambda: run(guidance=gj.source(lambda c, u: u + jnp.tanh(c - u), "cond", "uncond")),
        "Any other function takes x0: jnp.tanh(c.x0 - u.x0).",
    ),
    "a power of predictions": (
        lambda: run(guidance=gj.direction(lambda c, u: (c - u) ** 2, "cond", "uncond")),
        "Any other function takes x0",
    ),
    "an array that a prediction is not": (
        lambda: run(guidance=gj.source(lambda c, u: u * (c - u).mean(), "cond", "uncond")),
        "Any other function takes x0",
    ),
    "a guidance that asks for no branch": (
        lambda: run(guidance=gj.stateless(lambda prediction, context: context.branches["uncond"])),
        "stateless(update, needs=('uncond',))",
    ),
    "a Linen module of other inputs": (
        lambda: run(lambda x, t, cond: linen.Dense(3).bind({"params": {"kernel": jnp.ones((9, 3))}})(x)),
        "by the network, called with x float32[2,3]",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_error_has_its_note(name):
    call, words = CALLS[name]
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    assert words in " ".join([str(raised.value), *getattr(raised.value, "__notes__", ())])
