"""Tests of the exact mixtures against SciPy and against their own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from worlds import SCHEDULES, keys, mixture

import guidance_jax as gj


@pytest.mark.parametrize("label", [-1, 0, 2])
@pytest.mark.parametrize("schedule", ["cosine", "edm", "flow"])
def test_log_prob_is_that_of_scipy(x64, schedule, label):
    m = mixture()
    level = SCHEDULES[schedule]()(0.3)
    x = jax.random.normal(jax.random.key(1), (7, 3)) * 2
    alpha, sigma = float(level.alpha), float(level.sigma)
    covariances = np.einsum("kij,kj,klj->kil", m.axes, m.variances, m.axes)
    weights, total = np.exp(m.log_weights), 0.0
    density = np.zeros(7)
    for k in range(5):
        if label in (-1, int(m.labels[k])):
            noisy = multivariate_normal(alpha * m.means[k], alpha**2 * covariances[k] + sigma**2 * np.eye(3))
            density += weights[k] * noisy.pdf(x)
            total += weights[k]
    np.testing.assert_allclose(m.log_prob(x, level, jnp.full(7, label)), np.log(density / total), rtol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_score_and_denoiser_are_derivatives_of_log_prob(x64, schedule):
    m = mixture()
    level = gj.training.noise_levels(jax.random.key(0), SCHEDULES[schedule](), 12)
    x = jax.random.normal(jax.random.key(1), (12, 3))
    labels = jnp.arange(12) % 4 - 1
    score = jax.grad(lambda x: m.log_prob(x, level, labels).sum())(x)
    np.testing.assert_allclose(m.score(x, level, labels), score, rtol=1e-8, atol=1e-10)
    prediction = m.denoise(x, level, labels)
    np.testing.assert_allclose(gj.scores.score(prediction, level), score, rtol=1e-8, atol=1e-10)
    rebuilt = level.alpha[:, None] * prediction.x0 + level.sigma[:, None] * prediction.eps
    np.testing.assert_allclose(rebuilt, x, atol=1e-10)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_both_halves_of_a_prediction_add_up_to_x_except_for_rounding(scale):
    """In float32, from pure noise to clean data, for data of any scale."""
    m = mixture()
    m = gj.oracles.GaussianMixture(
        scale * m.means, scale**2 * jnp.einsum("kde,ke,kfe->kdf", m.axes, m.variances, m.axes), jnp.exp(m.log_weights), m.labels
    )
    ratio = np.concatenate([scale * np.geomspace(1e-3, 1e3, 21), [0.0, np.inf]])
    alpha, sigma = (np.repeat(field, 32).astype(np.float32) for field in (np.cos(np.arctan(ratio)), np.sin(np.arctan(ratio))))
    alpha[-32:] = 0
    labels = jnp.arange(len(alpha)) % 4 - 1
    draw = np.random.default_rng(0).normal(size=(len(alpha), 3)).astype(np.float32)
    x = alpha[:, None] * np.asarray(m.sample(jax.random.key(0), len(alpha), labels)) + sigma[:, None] * draw
    prediction = m.denoise(jnp.asarray(x), gj.NoiseLevel(*map(jnp.asarray, (alpha, alpha, sigma))), labels)
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
    m = mixture()
    x = jax.random.normal(jax.random.key(1), (9, 3)) * 2
    uncond = jnp.full(9, -1)
    for sigma in (0.05, 0.7, 20.0):
        level = gj.schedules.edm()(jnp.log(sigma) / 4)
        posterior = [jnp.exp(m.class_log_prob(x, level, jnp.full(9, y))) for y in range(3)]
        np.testing.assert_allclose(sum(posterior), 1, rtol=1e-12)
        for y in range(3):
            labels = jnp.full(9, y)
            pull = gj.scores.classifier_score(lambda x, level, y=labels: m.class_log_prob(x, level, y), x, level)
            conditional, unconditional = m.score(x, level, labels), m.score(x, level, uncond)
            np.testing.assert_allclose(conditional, gj.scores.bayes(unconditional, pull), rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(gj.scores.implicit_classifier(conditional, unconditional), pull, atol=1e-10)
            guided = gj.scores.guided(conditional, unconditional, 3.0)
            np.testing.assert_allclose(guided, gj.scores.bayes(unconditional, pull, 3.0), atol=1e-9)


def test_predictions_and_scores_are_finite_at_both_ends(x64):
    m = mixture()
    x = jax.random.normal(jax.random.key(1), (4, 3))
    labels = jnp.array([-1, 0, 1, 2])
    ends = [gj.NoiseLevel(*map(jnp.asarray, (0.0, 1.0, 0.0))), gj.NoiseLevel(*map(jnp.asarray, (1.0, 0.0, 1.0)))]
    clean, noise = (m.denoise(x, level, labels) for level in ends)
    np.testing.assert_allclose(clean.x0, x, atol=1e-12)
    np.testing.assert_allclose(clean.eps, 0, atol=1e-12)
    means = [m.means[jnp.isin(m.labels, jnp.arange(3) if y < 0 else jnp.array([y]))] for y in (-1, 0, 1, 2)]
    weights = [m.log_weights[jnp.isin(m.labels, jnp.arange(3) if y < 0 else jnp.array([y]))] for y in (-1, 0, 1, 2)]
    expected = [(jax.nn.softmax(w)[:, None] * mu).sum(0) for w, mu in zip(weights, means, strict=True)]
    np.testing.assert_allclose(noise.x0, jnp.stack(expected), atol=1e-12)
    np.testing.assert_allclose(noise.eps, x, atol=1e-12)


def test_samples_have_the_mixtures_moments(x64):
    m, n = mixture(), 200_000
    for label in (-1, 1):
        x = np.asarray(m.sample(jax.random.key(0), n, label))
        chosen = np.asarray(m.labels) == label if label >= 0 else np.full(5, True)
        w = np.exp(np.asarray(m.log_weights)) * chosen / np.exp(np.asarray(m.log_weights))[chosen].sum()
        covariances = np.einsum("kij,kj,klj->kil", m.axes, m.variances, m.axes)
        mean = w @ np.asarray(m.means)
        offsets = np.asarray(m.means) - mean
        covariance = np.einsum("k,kij->ij", w, covariances + np.einsum("ki,kj->kij", offsets, offsets))
        assert np.abs(x.mean(0) - mean).max() < 5 * np.sqrt(np.diag(covariance).max() / n)
        assert np.abs(np.cov(x.T) - covariance).max() < 10 * np.diag(covariance).max() / np.sqrt(n)


@pytest.mark.parametrize("scale", [1.0, 3.0, 6.0])
def test_tilted_samples_have_the_tilted_density(scale):
    """Moments and the weight of a mode, by quadrature of `log_prob`. Those of p(x | y) differ far more than the tolerance."""
    means = jnp.array([[-1.5, 0.0], [1.0, 0.8], [1.8, -0.6]])
    spreads = jnp.array([[0.3, 0.6], [0.4, 0.3], [0.5, 0.5]])
    m = gj.oracles.GaussianMixture(means, jax.vmap(jnp.diag)(spreads), jnp.array([0.3, 0.3, 0.4]), jnp.array([0, 0, 1]))
    side = (np.arange(200) + 0.5) / 20 - 5
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), jnp.float32)
    clean, label = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0))), jnp.zeros(len(grid), int)
    conditional, unconditional = m.log_prob(grid, clean, label), m.log_prob(grid, clean, label - 1)
    log_density = (1 - scale) * unconditional + scale * conditional
    np.testing.assert_allclose(m.log_tilted(grid, clean, label, scale), log_density, rtol=1e-4, atol=1e-4)
    p, n = np.exp(np.asarray(log_density, np.float64)), 40_000
    statistics = lambda x: np.stack([x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] < -0.25], axis=1)
    exact = (p[:, None] * statistics(np.asarray(grid))).sum(0) / p.sum()
    for found, inside in (
        (m.sample_tilted(jax.random.key(0), n, 0, scale), True),
        (m.sample(jax.random.key(0), n, 0), scale == 1),
    ):
        values = statistics(np.asarray(found))
        errors = np.abs(values.mean(0) - exact) / (values.std(0) / np.sqrt(n))
        assert (errors < 4).all() if inside else errors.max() > 20, errors


def test_tilted_samples_accept_traced_scales_and_labels():
    m = mixture()
    run = jax.jit(lambda scale, labels: m.sample_tilted(jax.random.key(0), 6, labels, scale))
    labels = jnp.array([0, 1, 2, 0, 1, -1])
    np.testing.assert_allclose(run(3.0, labels), m.sample_tilted(jax.random.key(0), 6, labels, 3.0), rtol=1e-5)
    # A traced scale is not checked, so a scale without a law gives NaN.
    assert np.isnan(run(0.5, labels)).all()
    with pytest.raises(ValueError, match="scale"):
        m.sample_tilted(jax.random.key(0), 6, labels, 0.5)


def test_a_mixture_is_a_pytree_and_accepts_traced_parameters():
    m, level, x = mixture(), gj.schedules.edm()(0.1), jnp.ones((2, 3))
    labels = jnp.array([0, -1])
    through_jit = jax.jit(lambda m, x: m.denoise(x, level, labels).x0)(m, x)
    np.testing.assert_allclose(through_jit, m.denoise(x, level, labels).x0, rtol=1e-5)

    def log_prob(means):
        shifted = gj.oracles.GaussianMixture(means, jnp.stack([jnp.eye(3)] * 2), jnp.ones(2), jnp.arange(2))
        return shifted.log_prob(x, level, labels).sum()

    assert jnp.isfinite(jax.jit(jax.grad(log_prob))(jnp.ones((2, 3)))).all()


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
    level = gj.schedules.edm()(0.1)
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
