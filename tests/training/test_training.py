"""Tests of losses at their exact minima, label dropout, and averaging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from worlds import OUTPUTS, SCHEDULES, mixture, network

import guidance_jax as gj

N = 4096


def test_the_exact_denoiser_minimises_the_loss(x64):
    """The loss at the exact output, and its increase for a known offset: E|out + d|^2 = E|out|^2 + d^2 at the minimum."""
    m, schedule = mixture(), gj.schedules.cosine(0.1, 0.9)
    labels = jnp.asarray(np.arange(N) % 3)

    @jax.jit
    def losses(offset):
        x0, level = m.sample(jax.random.key(0), N, labels), gj.training.noise_levels(jax.random.key(1), schedule, N)

        def loss(predicts):
            apply = lambda x, t, cond: network(m, schedule, predicts)(x, t, cond) + offset
            return gj.training.denoising_loss(apply, predicts, jax.random.key(2), x0, level, labels)

        return {predicts: loss(predicts) for predicts in OUTPUTS}, level.sigma

    (low, sigma), (exact, _), (high, _) = (jax.tree.map(np.asarray, losses(offset)) for offset in (-0.5, 0.0, 0.5))
    for predicts in OUTPUTS:
        known = (0.5 * (sigma if predicts == "score" else np.ones(N))) ** 2
        for off in (low, high):
            rise = off[predicts] - exact[predicts] - known
            assert abs(rise.mean()) < 5 * rise.std() / np.sqrt(N), predicts


@pytest.mark.slow
def test_the_loss_is_zero_for_a_single_point(x64):
    """For data of one point every exact output is known, so each loss is 0."""
    x0 = jnp.ones((8, 3))
    for name in ("ddpm_linear", "edm", "flow"):
        schedule = SCHEDULES[name]()

        def output(predicts, schedule=schedule):
            def apply(x, t, cond):
                level = jax.tree.map(lambda field: field[:, None], schedule(t))
                eps = (x - level.alpha * x0) / level.sigma
                return OUTPUTS[predicts](gj.Prediction(x0, eps), level)

            return apply

        @jax.jit
        def losses(schedule=schedule, output=output):
            level = gj.training.noise_levels(jax.random.key(1), schedule, 8)
            loss = lambda network, predicts: gj.training.denoising_loss(network, predicts, jax.random.key(2), x0, level, None)
            return {predicts: (loss(output(predicts), predicts), loss(lambda x, t, c: x + 5, predicts)) for predicts in OUTPUTS}

        for predicts, (exact, wrong) in losses().items():
            np.testing.assert_allclose(exact, 0, atol=1e-10, err_msg=f"{name} {predicts}")
            assert (np.asarray(wrong) > 1e-9).all(), f"{name} {predicts}"


def test_edm_loss_is_the_weighted_denoising_error(x64):
    """Karras et al. 2022, equation 2 with weight (sigma^2 + s^2) / (sigma s)^2."""
    schedule, s = gj.schedules.edm(0.1, 10.0), 0.5
    x0 = jax.random.normal(jax.random.key(0), (6, 3))
    level = gj.training.noise_levels(jax.random.key(1), schedule, 6)
    f = lambda x, t, cond: jnp.sin(x) * t[:, None]

    @jax.jit
    def program():
        x, _ = gj.training.diffuse(jax.random.key(2), x0, level)
        error = ((gj.denoisers.edm(f, s)(x, level, None).x0 - x0) ** 2).mean(1)
        return gj.training.edm_loss(f, s, jax.random.key(2), x0, level, None), error

    loss, error = map(np.asarray, program())
    weight = (level.sigma**2 + s**2) / (level.sigma * s) ** 2
    np.testing.assert_allclose(loss, np.asarray(weight) * error, rtol=1e-10)


def test_the_exact_posterior_minimises_the_classifier_loss(x64):
    m, schedule = mixture(), gj.schedules.cosine()
    clean = gj.NoiseLevel(*map(jnp.asarray, (0.0, 1.0, 0.0)))
    scores = lambda x, level: jnp.stack([m.class_log_prob(x, level, jnp.full(N, y)) for y in range(3)], axis=1)

    @jax.jit
    @jax.value_and_grad
    def loss(sharpness):
        x0 = m.sample(jax.random.key(0), N)
        labels = jax.random.categorical(jax.random.key(3), scores(x0, clean))
        level = gj.training.noise_levels(jax.random.key(1), schedule, N)
        classify = lambda x, t: sharpness * scores(x, schedule(t))
        return gj.training.classifier_loss(classify, jax.random.key(2), x0, level, labels).mean()

    (blunt, _), (exact, slope), (sharp, _) = map(loss, (0.8, 1.0, 1.25))
    assert exact < blunt
    assert exact < sharp
    np.testing.assert_allclose(slope, 0, atol=0.03)


def test_noise_levels_cover_the_schedule_evenly():
    for name, schedule in SCHEDULES.items():
        schedule = schedule()
        t = np.sort(gj.training.noise_levels(jax.random.key(4), schedule, 500).t)
        assert float(schedule.t_min) <= t[0], name
        assert t[-1] <= float(schedule.t_max), name
        width = (float(schedule.t_max) - float(schedule.t_min)) / 500
        assert np.diff(t).max() <= (2.01 * width if schedule.steps is None else 3), name
        if schedule.steps:
            assert (t == np.round(t)).all()


@pytest.mark.parametrize("name", ["cosine", "edm", "flow"])
def test_min_snr_weights_the_error_in_x0(x64, name):
    """An output with a known offset has the offset in x0 that the denoiser computes from it."""
    schedule, x = SCHEDULES[name](), jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))

    @jax.jit
    def program():
        level = schedule(schedule.t_min + jnp.array([0.05, 0.3, 0.5, 0.8, 0.95]) * (schedule.t_max - schedule.t_min))
        x0 = lambda offset, predicts: gj.denoiser(lambda x, t, cond: jnp.sin(x) + offset, predicts)(x, level, None).x0
        errors = {predicts: ((x0(0.1, predicts) - x0(0.0, predicts)) ** 2).mean(1) for predicts in OUTPUTS}
        return level, errors, {predicts: gj.training.min_snr(level, predicts) for predicts in OUTPUTS}

    level, errors, weights = jax.tree.map(np.asarray, program())
    snr = (level.alpha / level.sigma) ** 2
    assert (snr < 5).any()
    assert (snr > 5).any()
    for predicts in OUTPUTS:
        loss = 0.1**2 * (level.sigma**2 if predicts == "score" else np.ones(5))
        expected = np.minimum(snr, 5.0) * errors[predicts]
        np.testing.assert_allclose(weights[predicts] * loss, expected, rtol=1e-9, err_msg=predicts)


def test_min_snr_is_finite_at_the_ends():
    ends = gj.NoiseLevel(*(jnp.array(x) for x in ([0.0, 1.0], [1.0, 0.0], [0.0, 1.0])))
    expected = {"eps": (0, 1), "score": (0, 1), "x0": (5, 0), "v": (0, 0), "velocity": (0, 0)}
    found = jax.jit(lambda: {predicts: gj.training.min_snr(ends, predicts) for predicts in expected})()
    for predicts, weight in expected.items():
        np.testing.assert_allclose(found[predicts], weight, err_msg=predicts)


def test_log_normal_levels_are_normal_in_the_logarithm_and_stay_in_the_schedule(x64):
    @jax.jit
    def drawn():
        draw, key = gj.training.log_normal_levels, jax.random.key(0)
        return draw(key, gj.schedules.cosine(), 2000, mean=-0.4, deviation=1.0), draw(key, gj.schedules.edm(0.3, 0.31), 200)

    level, narrow = jax.tree.map(np.asarray, drawn())
    log_ratio = np.sort(np.log(level.sigma / level.alpha))
    quantiles = scipy.stats.norm.ppf((np.arange(2000) + 0.5) / 2000) - 0.4
    np.testing.assert_allclose(log_ratio[20:-20], quantiles[20:-20], atol=0.03)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-12)
    np.testing.assert_allclose([narrow.sigma.min(), narrow.sigma.max()], [0.3, 0.31], rtol=1e-6)
    with pytest.raises(ValueError, match="one of 1000 steps"):
        gj.training.log_normal_levels(jax.random.key(0), gj.schedules.ddpm_linear(), 4)


def test_drop_accepts_any_pytree_and_drops_whole_samples():
    cond = {"label": jnp.arange(4000) % 10, "text": jnp.ones((4000, 3, 2))}
    dropped = gj.training.drop(jax.random.key(0), cond, {"label": 10, "text": jnp.zeros((3, 2))}, rate=0.2)
    cond, dropped = jax.tree.map(np.asarray, (cond, dropped))
    gone = dropped["label"] == 10
    np.testing.assert_array_equal((dropped["text"] == 0).all((1, 2)), gone)
    np.testing.assert_array_equal((dropped["text"] == 1).all((1, 2)), ~gone)
    np.testing.assert_array_equal(dropped["label"][~gone], cond["label"][~gone])
    assert abs(gone.mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 4000)


def test_ema_is_the_warmed_up_average(x64):
    average, expected = jnp.array(5.0), 5.0
    for step, value in enumerate((1.0, 2.0, -1.0)):
        keep = min(0.15, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
        average = gj.training.ema(average, jnp.array(value), step, decay=0.15)
        np.testing.assert_allclose(average, expected, rtol=1e-12)


def test_ema_of_half_precision_is_in_float32():
    half = jnp.asarray(np.ones(2), jnp.bfloat16)
    average = gj.training.ema(half, jnp.bfloat16(0.5) * half, 10**6, decay=0.999)
    assert average.dtype == jnp.float32
    np.testing.assert_allclose(average, 0.9995, rtol=1e-6)


def test_bad_input_raises():
    x0, level = jnp.ones((2, 3)), gj.schedules.cosine()(jnp.array([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"predicts must be 'eps' or .*got 'noise'"):
        gj.training.denoising_loss(lambda x, t, c: x, "noise", jax.random.key(0), x0, level, None)
    with pytest.raises(ValueError, match=r"network's output must be \[2, 3\], got float32\[2,2\]"):
        gj.training.denoising_loss(lambda x, t, c: x[:, :2], "eps", jax.random.key(0), x0, level, None)
    with pytest.raises(ValueError, match=r"label 7 is outside 0\.\.2"):
        gj.training.classifier_loss(lambda x, t: x, jax.random.key(0), x0, level, jnp.array([7, 0]))
