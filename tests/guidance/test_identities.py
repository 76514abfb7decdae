"""Tests of identities: classifier guidance and CFG, special values of the scale, parts that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from walks import DENOISE, GIVEN, STOP, StoppedError, along, run, same, walk
from worlds import SCHEDULES, classes, keys, mixture

import guidance_jax as gj

SAMPLERS = {"ddpm": gj.ddpm(), "heun": gj.heun()}
"""One that draws, and one of two evaluations per step."""
LABELS = np.arange(6) % 3


def unconditional(m):
    return gj.branches(m.denoise, uncond=jnp.full(6, -1))


def bayes_classifier(m):
    return lambda x, level: m.class_log_prob(x, level, jnp.asarray(LABELS))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_exact_classifier_is_cfg_through_a_whole_run(x64, sampler):
    m, sampler = mixture(), SAMPLERS[sampler]

    def both(scale, levels):
        sample = lambda branches, guidance: gj.sample(keys(6), branches, guidance, sampler, levels, (3,))
        by_classifier = gj.classifier(bayes_classifier(m), scale)
        return sample(classes(m, jnp.asarray(LABELS)), gj.cfg(scale)), sample(unconditional(m), by_classifier)

    runs, scales = jax.jit(jax.vmap(both, in_axes=(0, None))), np.array([-1.0, 0.0, 0.3, 1.0, 4.0])
    for name in ("cosine", "edm", "flow", "ddpm_linear"):
        schedule = SCHEDULES[name](t_max=0.99) if name == "flow" else SCHEDULES[name]()
        by_cfg, by_classifier = runs(scales, gj.levels(schedule, 10, gj.spacings.trailing()))
        np.testing.assert_allclose(by_classifier, by_cfg, rtol=1e-8, atol=1e-8, err_msg=name)
        assert np.abs(by_cfg[4] - by_cfg[1]).max() > 0.1, name


def test_the_exact_classifier_adds_one_to_the_scale_of_a_conditional_model_and_of_cfg(x64):
    m, x = mixture(), np.random.default_rng(0).normal(size=(6, 3))

    @jax.jit
    def guided(level):
        two = classes(m, jnp.asarray(LABELS))
        at = lambda *parts: gj.guided(two, gj.chain(*parts))(jnp.asarray(x), level)
        by_classifier = lambda scale: gj.classifier(bayes_classifier(m), scale)
        return (at(by_classifier(1.5)), at(gj.cfg(2.5))), (at(gj.cfg(2.0), by_classifier(1.0)), at(gj.cfg(3.0)))

    for t in (0.9, 0.5, 0.1):
        for ours, theirs in guided(SCHEDULES["cosine"]()(t)):
            np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-8, atol=1e-8, err_msg=f"{t=}")
            np.testing.assert_allclose(ours.eps, theirs.eps, rtol=1e-8, atol=1e-8, err_msg=f"{t=}")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scale_one_is_the_conditional_model_and_scale_zero_the_unconditional_one(x64, sampler):
    """CFG++ at scale 0 is the unconditional model too."""
    sampler = SAMPLERS[sampler]
    conditional, free = (run(gj.chain(), sampler, one=GIVEN[name]) for name in ("cond", "uncond"))
    np.testing.assert_allclose(run(gj.cfg(1.0), sampler), conditional, rtol=1e-12)
    np.testing.assert_allclose(run(gj.cfg(0.0), sampler), free, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(run(gj.cfg_pp(0.0), sampler), free, rtol=1e-9, atol=1e-9)
    assert np.abs(conditional - free).max() > 0.1


def test_the_base_may_be_either_branch(x64):
    for scale in (0.0, 1.0, 3.0):
        swapped = run(gj.cfg(scale), uncond=GIVEN["uncond"], cond=GIVEN["cond"])
        np.testing.assert_allclose(swapped, run(gj.cfg(scale)), rtol=1e-10, err_msg=f"{scale=}")


def test_cfg_is_the_same_in_every_parameterisation(x64):
    """The guided prediction's eps, v, score and velocity are the same contrast of those of the branches."""
    contexts, scale = along("vector"), 3.0
    for here, guided in zip(contexts, walk(gj.cfg(scale), contexts), strict=True):
        a, s = float(here.level.alpha), float(here.level.sigma)
        outputs = {
            "eps": lambda x0, eps: eps,
            "x0": lambda x0, eps: x0,
            "v": lambda x0, eps, a=a, s=s: a * eps - s * x0,
            "score": lambda x0, eps, s=s: -eps / s,
            "velocity": lambda x0, eps: eps - x0,
        }
        pairs = [(np.asarray(p.x0), np.asarray(p.eps)) for p in (here.branches["uncond"], here.branches["cond"], guided)]
        for name, output in outputs.items():
            u, c, found = (output(*pair) for pair in pairs)
            np.testing.assert_allclose(found, u + scale * (c - u), rtol=1e-10, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(a * pairs[2][0] + s * pairs[2][1], here.x, atol=1e-12)


def test_neutral_parts_change_nothing(x64):
    contexts = along("vector")
    for neutral in (
        gj.chain(gj.cfg(3.0), gj.rescale(0.0)),
        gj.during(gj.cfg(3.0), 0.0),
        gj.add(gj.cfg(3.0)),
        gj.chain(gj.chain(gj.cfg(3.0)), gj.add(), gj.chain()),
        gj.add(gj.cfg(2.0), gj.cfg(2.0)),
        gj.chain(gj.cfg(2.0), gj.cfg(2.0)),
    ):
        same(neutral, gj.cfg(3.0), contexts, repr(neutral))
    # Where guidance is off, a shaper has no effect.
    same(gj.rescale(0.9), gj.chain(), contexts)
    outside = gj.chain(gj.during(gj.cfg(3.0), 1e5, 1e6), gj.rescale(0.9))
    same(outside, gj.chain(), contexts)
    with pytest.warns(UserWarning, match=r"during\(.*guides nowhere"), pytest.raises(StoppedError):
        run(outside, STOP)


def test_add_isolates_parts_that_chain_does_not(x64):
    """In `add`, the rescaling acts only on its own branch of the sum."""
    contexts = along("vector")
    pull = gj.classifier(lambda x, level: -(x**2).sum(1) / (1 + level.sigma**2), 2.0)
    shaped = gj.chain(gj.cfg(3.0), gj.rescale(0.7))
    parts = pull, shaped, gj.add(pull, shaped), gj.chain(pull, shaped)
    for here, *guided in zip(contexts, *(walk(part, contexts) for part in parts), strict=True):
        base, by_pull, by_shaped, together, chained = (np.asarray(p.x0) for p in (here.base, *guided))
        np.testing.assert_allclose(together, base + (by_pull - base) + (by_shaped - base), rtol=1e-9, atol=1e-11)
        assert np.abs(chained - together).max() > 1e-2


@pytest.mark.parametrize("batch", [1, 64])
def test_classifier_strength_does_not_fall_with_the_batch(x64, batch):
    """The gradient of the log-softmax is taken per sample, as a sum. `grad(mean(logit))` would be a bug."""
    weights, x = np.random.default_rng(0).normal(size=(3, 4)), np.array([0.3, -0.2, 0.5])
    log_prob = gj.scores.class_log_prob(lambda x, t: x @ weights, jnp.full(batch, 2))
    score = jax.jit(lambda x: gj.scores.classifier_score(log_prob, x, SCHEDULES["cosine"]()(0.5)))
    odds = np.exp(x @ weights)
    wanted = np.broadcast_to(weights[:, 2] - weights @ odds / odds.sum(), (batch, 3))
    np.testing.assert_allclose(score(jnp.tile(x, (batch, 1))), wanted, rtol=1e-12)


def test_the_classifier_receives_the_networks_time():
    seen = []

    def classify(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t)
        return x

    levels = gj.levels(gj.schedules.ddpm_linear(), 5, gj.spacings.leading())
    guidance = gj.classifier(gj.scores.class_log_prob(classify, jnp.zeros(6, int)), 1.0)
    one = gj.branches(DENOISE, uncond=jnp.zeros(6))
    jax.block_until_ready(gj.sample(keys(6), one, guidance, gj.ddim(), levels, (3,)))
    jax.effects_barrier()
    assert sorted(seen, reverse=True) == [800, 600, 400, 200, 0]
