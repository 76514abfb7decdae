"""Tests of identities: classifier guidance and CFG, special values of the scale, parts that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import SCHEDULES, classes, keys, mixture, step

import guidance_jax as gj

SAMPLERS = {"ddim": gj.ddim(), "ddpm": gj.ddpm(), "heun": gj.heun(), "dpmpp_2m": gj.dpmpp_2m()}
LABELS = jnp.arange(6) % 3


def run(branches, guidance, sampler=None, steps=10, schedule=None):
    levels = gj.levels(schedule or gj.schedules.cosine(), steps, gj.spacings.trailing())
    return gj.sample(keys(6), branches, guidance, sampler or gj.ddim(), levels, (3,))


def unconditional(m):
    return gj.branches(m.denoise, uncond=jnp.full_like(LABELS, -1))


def bayes_classifier(m):
    return lambda x, level: m.class_log_prob(x, level, LABELS)


@pytest.mark.parametrize("schedule", ["cosine", "edm", "flow", "ddpm_linear"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_exact_classifier_is_cfg_through_a_whole_run(x64, sampler, schedule):
    m, sampler = mixture(), SAMPLERS[sampler]
    schedule = SCHEDULES[schedule](t_max=0.99) if schedule == "flow" else SCHEDULES[schedule]()

    @jax.vmap
    def both(scale):
        by_classifier = gj.classifier(bayes_classifier(m), scale)
        return (
            run(classes(m, LABELS), gj.cfg(scale), sampler, schedule=schedule),
            run(unconditional(m), by_classifier, sampler, schedule=schedule),
        )

    by_cfg, by_classifier = both(jnp.array([-1.0, 0.0, 0.3, 1.0, 4.0]))
    np.testing.assert_allclose(by_classifier, by_cfg, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_scale_one_is_the_conditional_model_and_scale_zero_the_unconditional_one(x64, sampler):
    m, sampler = mixture(), SAMPLERS[sampler]
    conditional = run(gj.branches(m.denoise, cond=LABELS), gj.chain(), sampler)
    np.testing.assert_allclose(run(classes(m, LABELS), gj.cfg(1.0), sampler), conditional, rtol=1e-12)
    np.testing.assert_allclose(run(classes(m, LABELS), gj.chain(), sampler), conditional, rtol=1e-12)
    free = run(unconditional(m), gj.chain(), sampler)
    np.testing.assert_allclose(run(classes(m, LABELS), gj.cfg(0.0), sampler), free, rtol=1e-10, atol=1e-10)
    unguided = run(unconditional(m), gj.classifier(bayes_classifier(m), 0.0), sampler)
    np.testing.assert_allclose(unguided, free, rtol=1e-12)
    assert np.abs(conditional - free).max() > 0.1


def test_the_base_may_be_either_branch(x64):
    m = mixture()
    swapped = gj.branches(m.denoise, uncond=jnp.full_like(LABELS, -1), cond=LABELS)
    for scale in (0.0, 1.0, 3.0):
        np.testing.assert_allclose(run(swapped, gj.cfg(scale)), run(classes(m, LABELS), gj.cfg(scale)), rtol=1e-10)


def test_cfg_is_the_same_in_every_parameterisation(x64):
    """The guided prediction's eps, v, score and velocity are the same contrast of those of the branches."""
    m, scale = mixture(), 3.0
    level = gj.schedules.cosine()(0.6)
    x = jax.random.normal(jax.random.key(0), (6, 3))
    c, u = m.denoise(x, level, LABELS), m.denoise(x, level, jnp.full_like(LABELS, -1))
    context = gj.Context(x, level, step(level), c, {"cond": c, "uncond": u})
    guided, _ = gj.cfg(scale).update(c, (), context)
    a, s = level.alpha, level.sigma
    outputs = [
        lambda p: p.eps,
        lambda p: p.x0,
        lambda p: a * p.eps - s * p.x0,
        lambda p: -p.eps / s,
        lambda p: p.eps - p.x0,
    ]
    for output in outputs:
        contrast = output(u) + scale * (output(c) - output(u))
        np.testing.assert_allclose(output(guided), contrast, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(a * guided.x0 + s * guided.eps, x, atol=1e-12)


def test_neutral_parts_change_nothing(x64):
    m = mixture()
    plain = run(classes(m, LABELS), gj.cfg(3.0))
    for same in (
        gj.chain(gj.cfg(3.0), gj.rescale(0.0)),
        gj.during(gj.cfg(3.0), 0.0),
        gj.add(gj.cfg(3.0)),
        gj.chain(gj.chain(gj.cfg(3.0)), gj.add(), gj.chain()),
        gj.add(gj.cfg(2.0), gj.cfg(2.0)),
        gj.chain(gj.cfg(2.0), gj.cfg(2.0)),
        gj.chain(gj.cfg(2.0), gj.classifier(bayes_classifier(m), 1.0)),
    ):
        np.testing.assert_allclose(run(classes(m, LABELS), same), plain, rtol=1e-9, atol=1e-9)
    # Where guidance is off, a shaper has no effect.
    conditional = run(classes(m, LABELS), gj.chain())
    with pytest.warns(UserWarning, match=r"rescale\(fraction=0\.9\) only changes what others add"):
        np.testing.assert_allclose(run(classes(m, LABELS), gj.rescale(0.9)), conditional, rtol=1e-10)
    outside = gj.chain(gj.during(gj.cfg(3.0), 1e5, 1e6), gj.rescale(0.9))
    with pytest.warns(UserWarning, match=r"during\(.*guides nowhere"):
        np.testing.assert_allclose(run(classes(m, LABELS), outside), conditional, rtol=1e-10)


def test_rescale_is_the_formula_of_its_paper(x64):
    """Lin et al. 2024, equations 15 and 16, on x0 and per sample."""
    m, scale, phi = mixture(), jnp.linspace(1, 9, 6), 0.7
    level = gj.schedules.cosine()(0.6)
    x = jax.random.normal(jax.random.key(0), (6, 3))
    c, u = m.denoise(x, level, LABELS), m.denoise(x, level, jnp.full_like(LABELS, -1))
    context = gj.Context(x, level, step(level), c, {"cond": c, "uncond": u})
    guided, _ = gj.chain(gj.cfg(scale), gj.rescale(phi)).update(c, ((), ()), context)
    for i in range(6):
        x_cfg = np.asarray(u.x0[i] + scale[i] * (c.x0[i] - u.x0[i]))
        x_rescaled = x_cfg * np.std(c.x0[i], ddof=1) / np.std(x_cfg, ddof=1)
        np.testing.assert_allclose(guided.x0[i], phi * x_rescaled + (1 - phi) * x_cfg, rtol=1e-10)
    np.testing.assert_allclose(level.alpha * guided.x0 + level.sigma * guided.eps, x, atol=1e-12)


def test_add_isolates_parts_that_chain_does_not(x64):
    """In `add`, the rescaling acts only on its own branch of the sum."""
    m = mixture()
    level = gj.schedules.cosine()(0.6)
    x = jax.random.normal(jax.random.key(0), (6, 3))
    c, u = m.denoise(x, level, LABELS), m.denoise(x, level, jnp.full_like(LABELS, -1))
    context = gj.Context(x, level, step(level), c, {"cond": c, "uncond": u})
    pull, shaped = gj.classifier(bayes_classifier(m), 2.0), gj.chain(gj.cfg(3.0), gj.rescale(0.7))
    by_pull, _ = pull.update(c, (), context)
    by_shaped, _ = shaped.update(c, ((), ()), context)
    together, _ = gj.add(pull, shaped).update(c, ((), ((), ())), context)
    np.testing.assert_allclose(together.x0, c.x0 + (by_pull.x0 - c.x0) + (by_shaped.x0 - c.x0), rtol=1e-10)
    chained, _ = gj.chain(pull, shaped).update(c, ((), ((), ())), context)
    assert np.abs(chained.x0 - together.x0).max() > 1e-2


def test_classifier_strength_does_not_fall_with_the_batch(x64):
    """The gradient of the log-softmax is taken per sample, as a sum. `grad(mean(logit))` would be a bug."""
    weights = jax.random.normal(jax.random.key(0), (3, 4))
    level = gj.schedules.cosine()(0.5)
    for batch in (1, 2, 64):
        x = jnp.broadcast_to(jnp.array([[0.3, -0.2, 0.5]]), (batch, 3))
        log_prob = gj.scores.class_log_prob(lambda x, t: x @ weights, jnp.full(batch, 2))
        gradient = gj.scores.classifier_score(log_prob, x, level)
        probabilities = jax.nn.softmax(x[0] @ weights)
        np.testing.assert_allclose(gradient[-1], weights[:, 2] - weights @ probabilities, rtol=1e-12)


def test_the_classifier_receives_the_networks_time(x64):
    seen = []

    def classify(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t)
        return x

    levels = gj.levels(gj.schedules.ddpm_linear(), 5, gj.spacings.leading())
    labels = jnp.zeros(6, int)
    log_prob = gj.scores.class_log_prob(classify, labels)
    m = mixture()
    jax.block_until_ready(gj.sample(keys(6), unconditional(m), gj.classifier(log_prob, 1.0), gj.ddim(), levels, (3,)))
    jax.effects_barrier()
    assert sorted(seen, reverse=True) == [800, 600, 400, 200, 0]
