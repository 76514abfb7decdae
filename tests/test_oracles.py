"""Tests of the exact mixtures against SciPy and against their own derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from worlds import keys, mixture

import guidance_jax as gj

denoised = jax.jit(lambda m, x, level, labels: m.denoise(x, level, labels))


def level_of(alpha, sigma):
    alpha, sigma = (jnp.asarray(np.asarray(part), float) for part in (alpha, sigma))
    return gj.NoiseLevel(alpha, alpha, sigma)


def covariances(m):
    return np.einsum("kij,kj,klj->kil", m.axes, m.variances, m.axes)


def test_log_prob_is_that_of_scipy(x64):
    m, x = mixture(), 2 * np.random.default_rng(1).normal(size=(7, 3))
    log_prob, weights = jax.jit(m.log_prob), np.exp(m.log_weights)
    for alpha, sigma in ((0.8, 0.6), (1.0, 2.7), (0.7, 0.3)):
        noisy = [
            multivariate_normal(alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(3)).pdf(x)
            for mean, covariance in zip(m.means, covariances(m), strict=True)
        ]
        for label in (-1, 0, 2):
            chosen = (np.asarray(m.labels) == label) | (label == -1)
            expected = np.log((weights * chosen) @ noisy / (weights @ chosen))
            found = log_prob(jnp.asarray(x), level_of(alpha, sigma), jnp.asarray(np.full(7, label)))
            np.testing.assert_allclose(found, expected, rtol=1e-10, err_msg=f"class {label} at {alpha}, {sigma}")


def test_score_and_denoiser_are_derivatives_of_log_prob(x64):
    """At levels of all kinds of process: variance preserving, exploding, and straight."""
    m, part = mixture(), (np.arange(12) + 0.5) / 12
    alpha = np.concatenate([np.cos(np.pi / 2 * part), np.ones(12), 1 - part])
    sigma = np.concatenate([np.sin(np.pi / 2 * part), np.geomspace(0.002, 80, 12), part])
    x, labels = jnp.asarray(np.random.default_rng(1).normal(size=(36, 3))), jnp.asarray(np.arange(36) % 4 - 1)

    @jax.jit
    def program(x, level):
        score = jax.grad(lambda x: m.log_prob(x, level, labels).sum())(x)
        prediction = m.denoise(x, level, labels)
        return score, m.score(x, level, labels), prediction, gj.scores.score(prediction, level)

    score, ours, prediction, of_prediction = program(x, level_of(alpha, sigma))
    np.testing.assert_allclose(ours, score, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(of_prediction, score, rtol=1e-8, atol=1e-10)
    rebuilt = alpha[:, None] * np.asarray(prediction.x0) + sigma[:, None] * np.asarray(prediction.eps)
    np.testing.assert_allclose(rebuilt, x, atol=1e-10)


@functools.cache
def of_scale():
    """A program of a scale: the mixture of data of that scale, and samples of each class."""

    one = mixture()
    spread = jnp.asarray(covariances(one), float)

    @jax.jit
    def program(scale):
        m = gj.oracles.GaussianMixture(scale * one.means, scale**2 * spread, jnp.exp(one.log_weights), one.labels)
        return m, m.sample(jax.random.key(0), 23 * 32, jnp.arange(23 * 32) % 4 - 1)

    return program


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_both_halves_of_a_prediction_add_up_to_x_except_for_rounding(scale):
    """In float32, from pure noise to clean data, for data of any scale."""
    m, x0 = of_scale()(scale)
    ratio = np.concatenate([scale * np.geomspace(1e-3, 1e3, 21), [0.0, np.inf]])
    alpha, sigma = (np.repeat(field, 32).astype(np.float32) for field in (np.cos(np.arctan(ratio)), np.sin(np.arctan(ratio))))
    alpha[-32:] = 0
    labels = jnp.asarray(np.arange(len(alpha)) % 4 - 1, int)
    draw = np.random.default_rng(0).normal(size=(len(alpha), 3)).astype(np.float32)
    x = alpha[:, None] * np.asarray(x0) + sigma[:, None] * draw
    prediction = denoised(m, jnp.asarray(x), level_of(alpha, sigma), labels)
    signal, noise = (
        a[:, None].astype(np.float64) * np.asarray(half, np.float64)
        for a, half in ((alpha, prediction.x0), (sigma, prediction.eps))
    )
    rounding = np.finfo(np.float32).eps * (np.abs(x) + np.abs(signal) + np.abs(noise))
    assert (np.abs(x - signal - noise) <= rounding).all()


def test_a_thousand_steps_of_ddim_do_not_drift():
    """In float32 against float64. The error would be 1e-3 if each half were rounded separately."""

    def run():
        m, labels = mixture(), jnp.arange(32) % 4 - 1
        path = gj.levels(gj.schedules.edm(), 1000, gj.spacings.karras())
        x = 80 * jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32), float)
        return np.asarray(gj.sample(keys(32), gj.branches(m.denoise, cond=labels), gj.chain(), gj.ddim(), path, x))

    found = run()
    with jax.enable_x64(True):
        assert np.abs(found - run()).max() < 5e-5


def test_bayes_rule_holds_and_the_posterior_sums_to_one(x64):
    m, x, uncond = mixture(), jnp.asarray(2 * np.random.default_rng(1).normal(size=(9, 3))), jnp.asarray(np.full(9, -1))

    @jax.jit
    def program(level, labels):
        pull = gj.scores.classifier_score(lambda x, level: m.class_log_prob(x, level, labels), x, level)
        conditional, unconditional = m.score(x, level, labels), m.score(x, level, uncond)
        return (
            jnp.exp(m.class_log_prob(x, level, labels)),
            (conditional, gj.scores.bayes(unconditional, pull)),
            (gj.scores.implicit_classifier(conditional, unconditional), pull),
            (gj.scores.guided(conditional, unconditional, 3.0), gj.scores.bayes(unconditional, pull, 3.0)),
        )

    for sigma in (0.05, 0.7, 20.0):
        posterior, *pairs = zip(*(program(level_of(1.0, sigma), jnp.asarray(np.full(9, y))) for y in range(3)), strict=True)
        np.testing.assert_allclose(np.sum(posterior, axis=0), 1, rtol=1e-12)
        for each, rtol, atol in zip(pairs, (1e-10, 1e-7, 1e-7), (1e-10, 1e-10, 1e-9), strict=True):
            for found, expected in each:
                np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


def test_predictions_and_scores_are_finite_at_both_ends(x64):
    m, x = mixture(), np.random.default_rng(1).normal(size=(4, 3))
    labels = np.array([-1, 0, 1, 2])
    ends = [level_of(1.0, 0.0), level_of(0.0, 1.0)]
    clean, noise = (denoised(m, jnp.asarray(x), level, jnp.asarray(labels)) for level in ends)
    np.testing.assert_allclose(clean.x0, x, atol=1e-12)
    np.testing.assert_allclose(clean.eps, 0, atol=1e-12)
    chosen = (labels[:, None] == np.asarray(m.labels)) | (labels[:, None] == -1)
    weights = chosen * np.exp(m.log_weights)
    np.testing.assert_allclose(noise.x0, weights @ np.asarray(m.means) / weights.sum(1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(noise.eps, x, atol=1e-12)


def test_samples_have_the_mixtures_moments(x64):
    m, n = mixture(), 200_000
    sample = jax.jit(lambda label: m.sample(jax.random.key(0), n, label))
    for label in (-1, 1):
        x = np.asarray(sample(label))
        chosen = np.asarray(m.labels) == label if label >= 0 else np.full(5, True)
        w = np.exp(np.asarray(m.log_weights)) * chosen / np.exp(np.asarray(m.log_weights))[chosen].sum()
        mean = w @ np.asarray(m.means)
        offsets = np.asarray(m.means) - mean
        covariance = np.einsum("k,kij->ij", w, covariances(m) + np.einsum("ki,kj->kij", offsets, offsets))
        assert np.abs(x.mean(0) - mean).max() < 5 * np.sqrt(np.diag(covariance).max() / n)
        assert np.abs(np.cov(x.T) - covariance).max() < 10 * np.diag(covariance).max() / np.sqrt(n)


GRID = np.stack(np.meshgrid(*[(np.arange(200) + 0.5) / 20 - 5] * 2), -1).reshape(-1, 2).astype(np.float32)


@functools.cache
def tilted():
    """A program of a scale: log densities on `GRID`, and samples of the tilted law and of the conditional one."""
    n, clean = 40_000, level_of(1.0, 0.0)
    m = gj.oracles.GaussianMixture(
        jnp.array([[-1.5, 0.0], [1.0, 0.8], [1.8, -0.6]]),
        jnp.asarray(np.array([[0.3, 0.6], [0.4, 0.3], [0.5, 0.5]])[:, :, None] * np.eye(2), float),
        jnp.array([0.3, 0.3, 0.4]),
        jnp.array([0, 0, 1]),
    )

    @jax.jit
    def program(scale):
        grid, label = jnp.asarray(GRID), jnp.zeros(len(GRID), int)
        laws = m.log_prob(grid, clean, label), m.log_prob(grid, clean, label - 1), m.log_tilted(grid, clean, label, scale)
        return laws, m.sample_tilted(jax.random.key(0), n, 0, scale), m.sample(jax.random.key(0), n, 0)

    return program


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 3.0, 6.0])
def test_tilted_samples_have_the_tilted_density(scale):
    """Moments and the weight of a mode, by quadrature of `log_prob`. Those of p(x | y) differ far more than the tolerance."""
    (conditional, unconditional, ours), *samples = tilted()(scale)
    log_density = (1 - scale) * np.asarray(unconditional, np.float64) + scale * np.asarray(conditional, np.float64)
    np.testing.assert_allclose(ours, log_density, rtol=1e-4, atol=1e-4)
    p = np.exp(log_density)
    statistics = lambda x: np.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] < -0.25], axis=1)
    exact = (p[:, None] * statistics(GRID)).sum(0) / p.sum()
    for found, inside in zip(samples, (True, scale == 1), strict=True):
        values = statistics(np.asarray(found))
        errors = np.abs(values.mean(0) - exact) / (values.std(0) / np.sqrt(len(values)))
        assert (errors < 4).all() if inside else errors.max() > 20, errors


def test_tilted_samples_accept_traced_scales_and_labels():
    m, labels = mixture(), jnp.array([0, 1, 2, 0, 1, -1])
    draw = lambda labels, scale: m.sample_tilted(jax.random.key(0), 6, labels, scale)
    run = jax.jit(lambda labels, scale: (draw(labels, scale), draw(np.array([0, 1, 2, 0, 1, -1]), 3.0)))
    np.testing.assert_allclose(*run(labels, 3.0), rtol=1e-5)
    # A traced scale is not checked, so a scale without a law gives NaN.
    assert np.isnan(run(labels, 0.5)[0]).all()
    with pytest.raises(ValueError, match="scale"):
        m.sample_tilted(jax.random.key(0), 6, labels, 0.5)


def test_a_mixture_is_a_pytree_and_accepts_traced_parameters():
    m, level, x = mixture(), level_of(1.0, 1.5), jnp.ones((2, 3))
    labels = jnp.array([0, -1])
    closed_over = jax.jit(lambda x: m.denoise(x, level, labels).x0)(x)
    np.testing.assert_allclose(denoised(m, x, level, labels).x0, closed_over, rtol=1e-5)

    def log_prob(means):
        shifted = gj.oracles.GaussianMixture(means, jnp.stack([jnp.eye(3)] * 2), jnp.ones(2), jnp.arange(2))
        return shifted.log_prob(x, level, labels).sum()

    assert np.isfinite(jax.jit(jax.grad(log_prob))(jnp.ones((2, 3)))).all()


def test_bad_input_raises():
    eye = jnp.stack([jnp.eye(2)] * 2)
    good = {"means": jnp.zeros((2, 2)), "covariances": eye, "weights": jnp.ones(2), "labels": jnp.arange(2)}
    for change, message in [
        ({"covariances": -eye}, "positive definite"),
        ({"weights": jnp.array([1.0, -1.0])}, "weights must be positive"),
        ({"labels": jnp.array([0, 2])}, "every class"),
    ]:
        with pytest.raises(ValueError, match=message):
            gj.oracles.GaussianMixture(**(good | change))
    m = gj.oracles.GaussianMixture(**good)
    level = level_of(1.0, 1.5)
    with pytest.raises(ValueError, match=r"label 2 is outside -1\.\.1"):
        m.denoise(jnp.zeros((1, 2)), level, jnp.array([2]))
    with pytest.raises(ValueError, match="label -3"):
        m.sample(jax.random.key(0), 4, -3)
    with pytest.raises(ValueError, match=r"x must be \[B, 2\]"):
        m.log_prob(jnp.zeros((1, 3)), level, jnp.array([0]))
    with pytest.raises(ValueError, match="label 5"):
        gj.sample(keys(1), gj.branches(m.denoise, cond=jnp.array([5])), gj.chain(), gj.ddim(), _levels(), (2,))


def _levels():
    return gj.levels(gj.schedules.edm(), 4, gj.spacings.karras())
