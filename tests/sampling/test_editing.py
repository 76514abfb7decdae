"""Runs that start from data: image-to-image, inpainting, and inversion to noise and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_keys
from worlds import PEAK, path, peaked, peaks, peaks_x0

import guidance_jax as gj
from guidance_jax.noise import normal, step_keys

LABELS = jnp.arange(6) % 3
LEVELS = gj.levels(gj.schedules.cosine(), 10, gj.spacings.karras())


DIFFUSE = jax.jit(gj.diffuse)


def first(levels: gj.NoiseLevel) -> gj.NoiseLevel:
    return levels[0]


def drawn(sampler: gj.Sampler, levels: gj.NoiseLevel) -> dict[tuple[int, ...], int]:
    """How often each number that a run draws occurs, recorded where the library draws normal numbers."""
    seen: list[np.ndarray] = []
    branches = gj.branches(gj.denoiser(lambda x, t, cond: 0 * x, predicts="x0"), cond=None)

    def watched(key, size, dtype):
        numbers = plain(key, size, dtype)
        jax.debug.callback(lambda z: seen.append(z), numbers)
        return numbers

    @jax.jit
    def draws(given):
        x = gj.diffuse(given, jnp.zeros((2, 3)), first(levels))
        of_a_guidance = normal(step_keys(gj.Step(jnp.int32(0), first(levels), first(levels), given)), x)
        edited, from_noise = (
            gj.sample(given, branches, gj.chain(), chosen, levels, start) for chosen, start in ((sampler, x), (gj.ddim(), (3,)))
        )
        return edited, from_noise, of_a_guidance

    plain, jax.random.normal = jax.random.normal, watched
    try:
        jax.block_until_ready(draws(quick_keys(2)))
        jax.effects_barrier()
    finally:
        jax.random.normal = plain
    rows = [tuple(row.view(np.int32)) for z in seen for row in np.asarray(z).reshape(-1, 3)]
    return {row: rows.count(row) for row in rows}


def test_all_draws_of_diffuse_inpaint_and_a_run_are_distinct():
    sampler = gj.recur(gj.inpaint(gj.ddpm(), 0.0, jnp.array([1, 0, 0])), 3)
    counts = drawn(sampler, path(LEVELS, slice(-4, None)))
    # diffuse, a start, a guidance. 2 steps have 3 repetitions of 3 draws and 2 renoisings. The last step has 3 draws.
    assert len(counts) == 2 * (1 + 1 + 1 + 2 * 3 * 3 + 3 + 2 * 2)
    assert set(counts.values()) == {1}


def test_diffuse_noises_each_sample_by_its_own_key_to_its_level():
    x0, level = jnp.full((40000, 2), 3.0), gj.schedules.cosine()(0.6)
    given = quick_keys(40000)
    x = np.asarray(DIFFUSE(given, x0, level))
    z = (x - float(level.alpha) * 3) / float(level.sigma)
    np.testing.assert_allclose(z.mean(0), 0, atol=4 / 200)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=6 / 200)
    few, at = given[7:9], jax.jit(gj.schedules.cosine())(jnp.array([0.6, 0.1]))
    alone = DIFFUSE(few, x0[:2], level)
    np.testing.assert_array_equal(alone, x[7:9])
    # A level of each sample's own.
    each = DIFFUSE(few, x0[:2], at)
    np.testing.assert_allclose(each[0], alone[0], rtol=1e-6)
    np.testing.assert_allclose(each[1], DIFFUSE(few, x0[:2], path(at, 1))[1], rtol=1e-6)


def test_a_path_is_cut_by_strength_or_by_noise():
    for share, kept in ((1.0, 10), (0.99, 9), (0.35, 3), (0.1, 1)):
        cut = gj.schedules.strength(LEVELS, share)
        jax.tree.map(np.testing.assert_array_equal, gj.NoiseLevel(**vars(cut)), LEVELS[10 - kept :])
    ratio = np.asarray(LEVELS.ratio)
    for bound in (1e3, ratio[3], 0.9999 * ratio[3], ratio[9]):
        cut = gj.schedules.below(LEVELS, float(bound))
        np.testing.assert_array_equal(cut.ratio, ratio[ratio <= bound])
    for cut, message in (
        (lambda: gj.schedules.strength(LEVELS, 0.09), "at least one step, got 0.09 of 10 steps"),
        (lambda: gj.schedules.strength(LEVELS, 1.1), "above 0 and at most 1, got 1.1"),
        (lambda: gj.schedules.below(LEVELS, 1e-3), "the last step begins at sigma / alpha = 0.00157"),
        (lambda: jax.jit(lambda levels: gj.schedules.below(levels, 1.0))(LEVELS), "must be known, got traced values"),
    ):
        with pytest.raises(ValueError, match=message):
            cut()


@pytest.mark.slow
def test_image_to_image_keeps_the_law_of_the_data(x64):
    """Exact samples of a Gaussian that are noised to any level and denoised are exact again. More noise changes them more."""
    mean, deviation, n = 1.0, PEAK**0.5, 2000
    x0 = mean + deviation * np.random.default_rng(9).normal(size=(n, 1))
    levels, kept = gj.levels(gj.schedules.edm(0.01), 40, gj.spacings.exponential()), []
    for bound in (0.3, 3.0):
        cut = gj.schedules.below(levels, bound)
        x = DIFFUSE(quick_keys(n), x0, first(cut))
        after = np.asarray(gj.sample(quick_keys(n), peaked(jnp.full(n, 2)), gj.chain(), gj.heun(), cut, x))
        np.testing.assert_allclose(after.mean(), mean, atol=4 * deviation / n**0.5)
        np.testing.assert_allclose(after.var(), PEAK, rtol=4 * (2 / n) ** 0.5)
        kept.append(float(np.corrcoef(after.ravel(), x0.ravel())[0, 1]))
        np.testing.assert_allclose(kept[-1], deviation / (PEAK + float(first(cut).ratio) ** 2) ** 0.5, atol=0.03)
    assert kept[1] < kept[0] - 0.3


def test_momentum_and_reuse_start_with_the_run_at_any_level(x64):
    """momentum and apg count from the run's own first step, in which reuse evaluates its difference."""
    cut = gj.schedules.strength(gj.levels(gj.schedules.cosine(), 10, gj.spacings.karras()), 0.6)
    start = np.random.default_rng(1).normal(size=(6, 3))
    beta, w, every = -0.6, 3.0, 2
    labels = np.asarray(LABELS)

    def walk(contrast):
        x, running = start, np.zeros_like(start)
        alphas, sigmas = np.asarray(cut.alpha), np.asarray(cut.sigma)
        for number in range(6):
            alpha, sigma = alphas[number], sigmas[number]
            c, u = (peaks_x0(x, alpha, sigma, given, np) for given in (labels, np.full_like(labels, -1)))
            running, guided = contrast(number, running, c, u)
            x = alphas[number + 1] * guided + sigmas[number + 1] / sigma * (x - alpha * guided)
        return x

    def apg(number, running, c, u):
        running = c - u + beta * running
        parallel = (running * c).sum(1, keepdims=True) / (c * c).sum(1, keepdims=True) * c
        return running, c + (w - 1) * (running - parallel)

    def reuse(number, running, c, u):
        running = c - u if number % every == 0 else running
        return running, c + (w - 1) * running

    run = lambda guidance: gj.run(quick_keys(6), peaked(LABELS), guidance, gj.ddim(), cut, jnp.asarray(start))[0]
    np.testing.assert_allclose(run(gj.apg(w, beta=beta, max_norm=1e9)).x, walk(apg), rtol=1e-9)
    reused = run(gj.reuse(gj.cfg(w), every))
    np.testing.assert_allclose(reused.x, walk(reuse), rtol=1e-9)
    assert reused.evaluations == 6 + 3


CORRELATION, MEANS, GIVEN = 0.8, (1.0, -0.5), 2.5


def correlated(x: jax.Array, level: gj.NoiseLevel, cond: None) -> gj.Prediction:
    """The exact denoiser of two correlated coordinates, in their sum and difference."""
    total, apart = x.sum(1) - level.alpha * sum(MEANS), x[:, 0] - x[:, 1] - level.alpha * (MEANS[0] - MEANS[1])
    gain = lambda variance: level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
    along, across = gain(1 + CORRELATION) * total / 2, gain(1 - CORRELATION) * apart / 2
    x0 = jnp.stack([MEANS[0] + along + across, MEANS[1] + along - across], 1)
    return gj.Prediction(x0, (x - level.alpha * x0) / level.sigma)


def inpainted(times: int, n: int = 1024, steps: int = 20) -> np.ndarray:
    """Samples of a correlated Gaussian with a given first coordinate."""
    levels = gj.levels(gj.schedules.cosine(0.02, 0.98), steps, gj.spacings.exponential())
    # The larger variance is exact for data of unit variance.
    sampler = gj.recur(gj.inpaint(gj.ddpm("large"), jnp.array([GIVEN, jnp.nan]), jnp.array([True, False])), times)
    return np.asarray(gj.sample(quick_keys(n), gj.branches(correlated, cond=None), gj.chain(), sampler, levels, (2,)))


@pytest.mark.slow
def test_inpainting_approaches_the_conditional_law_only_with_recurrence():
    mean, variance = MEANS[1] + CORRELATION * (GIVEN - MEANS[0]), 1 - CORRELATION**2
    errors = []
    for times in (1, 16):
        x = inpainted(times)
        np.testing.assert_array_equal(x[:, 0], GIVEN)
        errors.append((abs(float(x[:, 1].mean()) - mean), abs(float(x[:, 1].var()) / variance - 1)))
    assert errors[0][0] > 0.4
    assert errors[0][1] > 0.3
    # Three standard errors of 1,024 samples.
    assert errors[1][0] < 3 * (variance / 1024) ** 0.5, errors
    assert errors[1][1] < 3 * (2 / 1024) ** 0.5, errors


@pytest.mark.parametrize(("variance", "said"), [("small", 0.59), ("large", 1.0)])
def test_inpainting_has_the_samplers_own_bias(variance, said):
    """The unknown half of N(0, I) is the sampler's result for N(0, 1). Each step is affine, so its variance is a product."""
    levels, n = gj.levels(gj.schedules.cosine(), 20, gj.spacings.karras()), 4096

    def denoise(x, level, cond):
        total = level.alpha**2 + level.sigma**2
        return gj.Prediction(level.alpha / total * x, level.sigma / total * x)

    sampler = gj.inpaint(gj.ddpm(variance), jnp.array([1.0, jnp.nan]), jnp.array([True, False]))
    x = np.asarray(gj.sample(quick_keys(n), gj.branches(denoise, cond=None), gj.chain(), sampler, levels, (2,)))
    alpha, sigma = (np.asarray(field, np.float64) for field in (levels.alpha, levels.sigma))
    exact = sigma[0] ** 2
    for i in range(20):
        total, q = alpha[i] ** 2 + sigma[i] ** 2, sigma[i + 1] * alpha[i] / (sigma[i] * alpha[i + 1])
        slope = (alpha[i + 1] * alpha[i] + q * sigma[i + 1] * sigma[i]) / total
        large = sigma[i] ** 2 * (alpha[i + 1] ** 2 + sigma[i + 1] ** 2) / total
        drawn = {"small": sigma[i + 1] ** 2, "large": large if i < 19 else 0.0}[variance] * (1 - q**2)
        exact = slope**2 * exact + drawn
    assert exact == pytest.approx(said, abs=0.01)
    np.testing.assert_allclose(x[:, 1].var(), exact, rtol=4 * (2 / n) ** 0.5)


def test_inpainting_sets_the_known_part_before_and_after_every_step():
    """At each level, the network and the trace receive the known data noised to that level, with new noise."""
    seen, n = [], 2000

    def network(x, t, cond):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return 0 * x + 7

    known, mask = np.array([[2.0, -1.0], [5.0, 5.0]]), np.array([[1.0], [0.0]])
    branches = gj.branches(gj.denoiser(network, predicts="x0"), cond=None)
    levels, sampler = path(LEVELS, slice(-5, None)), gj.inpaint(gj.ddim(), known, mask)
    x, trace = gj.sample(quick_keys(n), branches, gj.chain(), sampler, levels, (2, 2), trace=lambda state: state.x)
    jax.effects_barrier()
    noises = []
    for x_there, level in zip([*seen, *trace[:-1]], [*range(4), *range(1, 4)], strict=True):
        at = path(levels, level)
        z = (np.asarray(x_there)[:, 0] - float(at.alpha) * known[0]) / float(at.sigma)
        np.testing.assert_allclose(z.mean(0), 0, atol=4 / n**0.5)
        np.testing.assert_allclose(z.std(0), 1, atol=4 / (2 * n) ** 0.5)
        noises.append(z.ravel())
    assert np.abs(np.corrcoef(noises) - np.eye(7)).max() < 4.5 / (2 * n) ** 0.5
    np.testing.assert_array_equal(x, jnp.broadcast_to(jnp.array([[2.0, -1.0], [7.0, 7.0]]), (n, 2, 2)))


def test_a_fractional_mask_blends_and_an_empty_mask_changes_nothing():
    run = lambda sampler: gj.sample(quick_keys(6), peaked(LABELS), gj.cfg(2.0), sampler, LEVELS, (3,))
    plain = run(gj.dpmpp_2m())
    np.testing.assert_allclose(run(gj.inpaint(gj.dpmpp_2m(), jnp.nan, 0.0)), plain, rtol=1e-4, atol=1e-5)
    known = np.arange(18.0, dtype=np.float32).reshape(6, 3)
    denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
    half = gj.inpaint(gj.heun(), jnp.asarray(known), jnp.array([0.0, 0.25, 1.0]))
    x = gj.sample(quick_keys(6), gj.branches(denoise, cond=None), gj.chain(), half, LEVELS, (3,))
    np.testing.assert_allclose(x, np.stack([0 * known[:, 0] + 3, 0.75 * 3 + 0.25 * known[:, 1], known[:, 2]], 1))


def test_runs_that_cannot_be_inpainted_or_repeated_raise():
    run = lambda sampler: gj.sample(quick_keys(6), peaked(LABELS), gj.chain(), sampler, LEVELS, (3,))
    for build, message in (
        (lambda: gj.inpaint(gj.ddim(), 0.0, jnp.array([0, 2])), r"mask must be a mask, in \[0, 1\], got \[0 2\]"),
        (lambda: gj.inpaint(gj.ddim(), 0.0, jnp.array([0, jnp.nan])), r"mask must be a mask, in \[0, 1\], got \[ ?0. nan\]"),
        (lambda: run(gj.inpaint(gj.ddim(), 0.0, jnp.ones(4))), r"mask has shape \(4,\).*to x, \(6, 3\)"),
        (lambda: run(gj.inpaint(gj.ddim(), jnp.ones((1, 1, 3)), 1.0)), r"known has shape \(1, 1, 3\)"),
        (lambda: run(gj.recur(gj.dpmpp_2m(), 2)), "remembers the step before.*ddim"),
        (lambda: run(gj.recur(gj.inpaint(gj.dpmpp_2m(), 0.0, 1.0), 2)), "remembers the step before"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    np.testing.assert_array_equal(run(gj.recur(gj.dpmpp_2m(), 1)), run(gj.dpmpp_2m()))


SCALES = jnp.array([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])


DATA = np.random.default_rng(2).normal(size=(6, 3)) / 2 + np.asarray(LABELS)[:, None] - 1


def way(sampler, steps, schedule):
    """Both directions of a run between data and noise, as one program."""
    levels = path(gj.levels(schedule, steps + 1, gj.spacings.uniform()), slice(-1))
    run = lambda levels, x: gj.sample(quick_keys(6), peaked(LABELS), gj.cfg(SCALES.astype(float)), sampler, levels, x)
    return lambda x: run(gj.schedules.reverse(levels), x), lambda x: run(levels, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "order", "back", "schedule"),
    [(gj.ddim(), 1, 1, gj.schedules.edm(0.05, 20.0)), (gj.heun(), 2, 3, gj.schedules.cosine(0.03, 0.97))],
    ids=["ddim", "heun"],
)
def test_inversion_has_the_samplers_order_with_and_without_guidance(x64, sampler, order, back, schedule):
    """The way back cancels the leading error of a method of even order, so Heun's round trip gains one order."""
    data = jnp.asarray(DATA)
    exact = np.asarray(way(gj.heun(), 3200, schedule)[0](data))
    errors = []
    for steps in (300, 600):
        invert, sample = way(sampler, steps, schedule)
        noise = invert(data)
        errors.append([np.abs(d.reshape(2, 9)).max(1) for d in (np.asarray(noise) - exact, np.asarray(sample(noise)) - DATA)])
    measured = np.log2(np.divide(*errors))
    assert (abs(measured[0] - order) < 0.25).all(), measured
    assert (abs(measured[1] - back) < 0.25).all(), measured


def test_an_interval_contains_the_same_steps_in_both_directions(x64):
    """Intervals are half-open at step boundaries, so Heun keeps its order there and back, with the evaluations of sampling."""
    levels = path(gj.levels(gj.schedules.edm(0.05, 20.0), 13, gj.spacings.uniform()), slice(-1))
    guidance = gj.during(gj.cfg(2.0), levels.ratio[9], levels.ratio[4])
    asked, sets = [], []

    def denoise(x, level, cond):
        jax.debug.callback(lambda x, sigma: asked.append((len(x) // 6, round(float(sigma), 4))), x, level.sigma)
        return peaks(x, level, cond)

    for way in (levels, gj.schedules.reverse(levels)):
        asked.clear()
        jax.block_until_ready(gj.sample(quick_keys(6), peaked(LABELS, denoise), guidance, gj.heun(), way, jnp.ones((6, 3))))
        jax.effects_barrier()
        sets.append(sorted(asked))
    assert sets[0] == sets[1]
    assert sum(count == 2 for count, _ in sets[0]) == 2 * 5


def test_encodings_of_one_gaussian_are_the_exact_map_of_the_data(x64):
    """`x_T = alpha_T m + s_T / s_0 (x - alpha_0 m)`, `s^2 = alpha^2 v + sigma^2`: the ODE's exact flow."""
    levels = gj.levels(gj.schedules.cosine(0.01, 0.99), 400, gj.spacings.uniform())
    back, mean = gj.schedules.reverse(levels), 1.0
    x = np.linspace(-1, 3, 7)[:, None]
    encode = lambda sampler: gj.sample(quick_keys(7), peaked(jnp.full(7, 2)), gj.chain(), sampler, back, jnp.asarray(x))
    (alpha, end_alpha), (sigma, end_sigma) = (np.asarray(field)[[0, -1]] for field in (back.alpha, back.sigma))
    grown = np.sqrt((end_alpha**2 * PEAK + end_sigma**2) / (alpha**2 * PEAK + sigma**2))
    exact = end_alpha * mean + grown * (x - alpha * mean)
    np.testing.assert_allclose(encode(gj.heun()), exact, atol=2e-4)
    np.testing.assert_allclose(encode(gj.ddim()), exact, atol=2e-2)


def test_encodings_of_a_mixture_are_standard_normal():
    n, rng = 2000, np.random.default_rng(3)
    data = rng.choice([-1.0, 1.0], size=(n, 2)) + PEAK**0.5 * rng.normal(size=(n, 2))
    levels = gj.levels(gj.schedules.cosine(0.02, 0.998), 40, gj.spacings.karras())
    back = gj.schedules.reverse(levels)
    x = DIFFUSE(quick_keys(n), data.astype(np.float32), first(back))
    noise = gj.sample(quick_keys(n), peaked(jnp.full(n, -1)), gj.cfg(1.0), gj.heun(), back, x)
    z = np.asarray(noise) / float(levels.sigma[0])
    np.testing.assert_allclose(z.mean(0), 0, atol=4 / n**0.5)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=4 * (2 / n) ** 0.5)
    np.testing.assert_allclose((z**4).mean(0), 3, atol=4 * (96 / n) ** 0.5)
    uniform = np.asarray(jax.scipy.stats.norm.cdf(np.sort(z[:, 0])))
    assert np.abs(uniform - (np.arange(n) + 0.5) / n).max() < 1.63 / n**0.5


def test_wrong_runs_from_data_to_noise_raise():
    up = gj.schedules.reverse(LEVELS)
    run = lambda sampler, levels, start: gj.sample(quick_keys(6), peaked(LABELS), gj.chain(), sampler, levels, start)
    data = jnp.ones((6, 3))
    clean = LEVELS[::-1]
    for sampler, levels, start, message in (
        (gj.ddpm(), up, data, r"this sampler cannot; use ddim\(\) or heun\(\)"),
        (gj.ddim(0.5), up, data, "this sampler cannot"),
        (gj.dpmpp_2m(), up, data, "this sampler cannot"),
        (gj.recur(gj.ddim(), 2), up, data, "this sampler cannot"),
        (gj.inpaint(gj.ddim(), 0.0, 1.0), up, data, "this sampler cannot"),
        (gj.heun(), up, (3,), r"starts from data: use x, \[B, ...\]"),
        (gj.ddim(), clean, data, r"must start with sigma > 0; use gj.schedules.reverse"),
    ):
        with pytest.raises(ValueError, match=message):
            run(sampler, levels, start)
    assert np.isfinite(run(gj.ddim(), up, data)).all()
