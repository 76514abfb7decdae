"""An error within a function of the user's own tells what the library called it with, and the usual mend."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx
from worlds import keys

import guidance_jax as gj

B = 2
LABELS = jnp.arange(B)
PATH = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())


class Dropping(nnx.Module):
    def __init__(self):
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x, t, cond):
        return self.dropout(x)


def run(network=None, denoise=None, guidance=None, cond: Any = LABELS):
    denoise = denoise or gj.denoiser(network or (lambda x, t, cond: x), predicts="x0")
    return gj.sample(keys(B), gj.branches(denoise, cond=cond, uncond=cond), guidance or gj.cfg(2.0), gj.ddim(), PATH, (3,))


def classify(x, t):
    return x[:, :10] @ jnp.ones((10, 2))


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
    "a scale by an if": (
        lambda: run(guidance=gj.cfg(lambda level: 3.0 if level.ratio > 1 else 1.0)),
        "choose with jnp.where",
    ),
    "dropout in training": (lambda: run(Dropping()), "module.eval()"),
    "dropout in training, as a function": (
        lambda: run(functools.partial(*gj.networks.from_nnx(Dropping()))),
        "module.eval()",
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
def test_it_is_told(name):
    call, words = CALLS[name]
    with pytest.raises(Exception) as raised:  # noqa: PT011
        call()
    assert words in " ".join(raised.value.__notes__)


def test_a_label_outside_that_is_traced_gives_nan_and_not_no_guidance():
    """Its gather has no gradient: the sample would come out unguided."""

    def generate(labels):
        guidance = gj.classifier(gj.scores.class_log_prob(lambda x, t: x, labels), 2.0)
        return gj.sample(
            keys(B), gj.branches(lambda x, level, cond: gj.Prediction(x, 0 * x), uncond=LABELS), guidance, gj.ddim(), PATH, (3,)
        )

    found = jax.jit(generate)(jnp.array([1, 7]))
    assert jnp.isfinite(found[0]).all()
    assert jnp.isnan(found[1]).all()


@pytest.mark.parametrize("first", ["cond", "uncond"])
def test_what_adaptive_leaves_is_the_conditional_model_whatever_the_base(first):
    mixture = gj.oracles.GaussianMixture(jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)) / 4, jnp.ones(2), jnp.arange(2))
    conds = {"cond": LABELS, "uncond": jnp.full(B, -1)}
    ordered: dict[str, Any] = {name: conds[name] for name in sorted(conds, reverse=first == "uncond")}
    two, given = gj.branches(mixture.denoise, **ordered), (gj.ddim(), PATH, (1,))
    found = gj.sample(keys(B), two, gj.adaptive(gj.cfg(5.0), -2.0), *given)  # it ends after the first step
    conditional = gj.branches(mixture.denoise, cond=LABELS)
    first_step, rest = (jax.tree.map(lambda field, part=part: field[part], PATH) for part in (slice(2), slice(1, None)))
    start = gj.sample(keys(B), two, gj.cfg(5.0), gj.ddim(), first_step, (1,))
    expected = gj.sample(keys(B), conditional, gj.chain(), gj.ddim(), rest, start)
    assert jnp.allclose(found, expected, atol=1e-5)
