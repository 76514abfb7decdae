"""Noise is drawn and small terms are summed in at least float32, for arrays of any precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_keys
from worlds import keys, path, step

import guidance_jax as gj
from guidance_jax import conditions
from guidance_jax.noise import normal, step_keys

HALVES = [jnp.bfloat16, jnp.float16]
LEVELS = gj.levels(gj.schedules.edm(), 4, gj.spacings.karras())
LEVEL = gj.schedules.edm()(0.0)
"""alpha 1, sigma 1."""

IN_EITHER = pytest.mark.parametrize("dtype", HALVES)
IN_ONE = pytest.mark.parametrize("dtype", HALVES[:1])
"""All is converted to float32 by the same functions, which the draws and the averages test with both dtypes."""


def is_drawn_wide(z, dtype):
    """Whether the values are rounded draws of float32. A draw in bfloat16 has 128 values."""
    assert z.dtype == dtype
    z = np.asarray(z, np.float64)
    assert len(np.unique(z)) > 1000
    assert np.abs(z).max() > 4
    np.testing.assert_allclose([z.mean(), z.var()], [0, 1], atol=5 * (2 / z.size) ** 0.5)


@pytest.mark.slow
@IN_EITHER
def test_diffuse_and_every_part_that_draws_per_step_draw_in_float32(dtype):
    given, x0 = keys(100), jnp.zeros((100, 1000), dtype)
    half = jax.tree.map(lambda field: field.astype(dtype), LEVEL)

    @jax.jit
    def drawn(x0, many):
        offsets = conditions.time_noise(1.0)(gj.Step(jnp.int32(0), half, half, many))
        from_half = gj.diffuse(given, x0, half), offsets, normal(step_keys(step(half, batch=100)), x0)
        return gj.diffuse(given, x0, LEVEL), normal(given, x0), *from_half

    found = drawn(x0, keys(100_000))
    for z in found:
        is_drawn_wide(z, dtype)
    wide = jax.jit(gj.diffuse)(given, x0.astype(float), LEVEL)
    np.testing.assert_array_equal(found[0], np.asarray(wide).astype(dtype))


@IN_ONE
def test_training_draws_and_averages_in_float32(dtype):
    key, level = jax.random.key(0), gj.schedules.edm()(jnp.zeros(50))
    x0 = jax.random.normal(jax.random.key(1), (50, 2000)).astype(dtype)
    x, eps = gj.training.diffuse(key, jnp.zeros_like(x0), level)
    is_drawn_wide(eps, dtype)
    is_drawn_wide(x, dtype)
    asked = []

    def network(x, t, cond):
        asked.append(x.dtype)
        return x / 2

    wide = x0.astype(float)

    @jax.jit
    def losses(x0):
        return {
            "eps": gj.training.denoising_loss(network, "eps", key, x0, level, None),
            "v": gj.training.denoising_loss(network, "v", key, x0, level, None),
            "edm": gj.training.edm_loss(network, 1.0, key, x0, level, None),
            "classifier": gj.training.classifier_loss(lambda x, t: x[:, :7], key, x0, level, jnp.zeros(50, int)),
        }

    narrow, expected = losses(x0), losses(wide)
    for name, found in narrow.items():
        # Only the inputs of the network are rounded. An average in bfloat16 would have three digits.
        assert found.dtype == jnp.float32, name
        rtol, atol = (0, 2e-2) if name == "classifier" else (3e-4, 0)
        np.testing.assert_allclose(found, expected[name], rtol=rtol, atol=atol, err_msg=name)
        assert len(np.unique(np.asarray(found))) > 45, name
    assert jnp.dtype(dtype) in asked
    assert (
        gj.training.min_snr(jax.tree.map(lambda f: f.astype(dtype), gj.schedules.edm()(jnp.array([-1.4]))), "eps").dtype
        == jnp.float32
    )


@IN_EITHER
def test_an_average_in_low_precision_does_not_stall(dtype):
    """For parameters constant at 1 and a start at 0, the average is `1 - prod decay` instead of 0 for ever."""
    params = {"w": jnp.ones(3, dtype), "count": jnp.int32(5)}

    def update(average, step):
        return gj.training.ema(average, params, step), None

    first = {"w": jnp.zeros(3), "count": jnp.int32(5)}
    average, _ = jax.lax.scan(update, first, jnp.arange(20_000, 22_000))
    np.testing.assert_allclose(average["w"], 1 - 0.999**2000, rtol=1e-3)
    started = gj.training.ema(params, jax.tree.map(lambda p: 2 * p, params), 0)
    assert started["w"].dtype == jnp.float32
    np.testing.assert_allclose(started["w"], 1.9)


@pytest.mark.slow
@IN_ONE
@pytest.mark.filterwarnings("ignore:feynman_kac")
def test_particles_resample_by_sums_in_float32(dtype):
    chosen = jax.jit(
        lambda weights: (gj.particles.systematic(jax.random.key(0), weights), gj.particles.effective_size(weights))
    )
    for weights in (np.zeros(1000), np.log(np.arange(1.0, 1001.0))):
        weights = weights.astype(dtype)
        w = np.exp(weights.astype(np.float64))
        parents, size = chosen(weights)
        assert (np.abs(np.bincount(parents, minlength=1000) - 1000 * w / w.sum()) < 1 + 1e-3).all()
        np.testing.assert_allclose(size, w.sum() ** 2 / (w**2).sum(), rtol=1e-4)

    def of_mean(x, level, mean):
        x0 = (level.alpha * x + level.sigma**2 * mean) / (level.alpha**2 + level.sigma**2)
        return gj.Prediction(x0, (x - level.alpha * x0) / level.sigma)

    both = gj.branches(of_mean, cond=0.3 * jnp.ones((64, 1)), uncond=jnp.zeros((64, 1)))
    levels = gj.levels(gj.schedules.cosine(0.02, 0.98), 4, gj.spacings.uniform())
    half = jax.tree.map(lambda field: field.astype(dtype), levels)
    target = gj.targets.product({"cond": 0.7, "uncond": 0.6})
    run = jax.jit(lambda levels: gj.feynman_kac(quick_keys(64), both, target, gj.ddpm(), levels, (2,), size=64, threshold=0.0))
    found, wide = run(half), run(jax.tree.map(lambda field: field.astype(jnp.float32), half))
    assert found.x.dtype == dtype
    np.testing.assert_allclose(found.log_normaliser, wide.log_normaliser, rtol=1e-5)


@IN_ONE
def test_a_run_is_in_float32_and_its_samples_are_rounded(dtype):
    x = jax.random.normal(jax.random.key(0), (4, 6)).astype(dtype)
    branches = gj.branches(
        gj.denoiser(lambda x, t, cond: x * cond, predicts="v"), cond=jnp.ones((4, 1)), uncond=jnp.zeros((4, 1))
    )
    drawing = gj.lgd(lambda x0: -(x0**2).sum(1).astype(dtype), 0.1, draws=3)
    guidance = gj.chain(gj.add(gj.apg(2.0), gj.feedback(0.9)), drawing)
    state, _ = gj.run(quick_keys(4), branches, guidance, gj.ddpm(), LEVELS, x)
    wide, _ = gj.run(quick_keys(4), branches, guidance, gj.ddpm(), LEVELS, x.astype(float))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating))
    np.testing.assert_array_equal(state.x, wide.x)
    assert gj.sample(quick_keys(4), branches, guidance, gj.ddpm(), LEVELS, x).dtype == dtype


OF_MIXTURES = "denoise", "score", "log_prob", "class_log_prob"


@jax.jit
def measured(x, a, b):
    means, covariances, weights = (jnp.asarray(value, x.dtype) for value in ([[-1.0], [1.0]], np.ones((2, 1, 1)), [1, 1]))
    m = gj.oracles.GaussianMixture(means, covariances, weights, jnp.arange(2))
    of_x = [getattr(m, what)(x, path(LEVELS, 1), jnp.zeros(5, int)) for what in OF_MIXTURES]
    of_sets = [measure(a, b) for measure in (gj.metrics.energy_distance, gj.metrics.kid, gj.metrics.fid)]
    return (of_x, of_sets), m.sample(jax.random.key(0), 2000)


@pytest.mark.slow
@IN_ONE
def test_measures_classifiers_and_oracles_are_computed_in_float32(dtype):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3000, 10)).astype(dtype), rng.integers(0, 10, 3000)
    c, x, (a, b) = (rng.normal(size=shape).astype(dtype) for shape in ((3, 50, 4), (5, 1), (2, 200, 3)))

    @jax.jit
    def of_logits(logits, c):
        log_prob = gj.scores.class_log_prob(lambda x, t: x, jnp.asarray(labels))(logits, LEVEL)
        score = gj.metrics.inception_score(logits)
        return score, gj.metrics.accuracy(logits, jnp.asarray(labels)), log_prob, gj.fit_linear(c, 2 * c)[1:, 0]

    score, accuracy, log_prob, slope = of_logits(logits, c)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(score, np.exp((p * np.log(p / p.mean(0))).sum(1).mean()), rtol=1e-5)
    np.testing.assert_allclose(accuracy, (logits.argmax(1) == labels).mean(), rtol=1e-6)
    np.testing.assert_allclose(log_prob, np.log(p)[np.arange(3000), labels], rtol=1e-4)
    np.testing.assert_allclose(slope, 2, rtol=1e-3)

    wide = (given.astype(np.float32) for given in (x, a, b))
    (found, samples), (expected, _) = measured(x, a, b), measured(*wide)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    assert len(np.unique(np.asarray(samples))) > 1900
