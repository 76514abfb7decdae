"""The Restart sampler against an independent NumPy version from its paper, closed forms of a Gaussian, and an exact mixture."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import readings
from one_program import one_program
from quick import QUICK, quick_keys
from sampler_rows import MEAN_C, VAR_C, guided, one, two_gaussians
from worlds import PEAK, gaussian, path, peaks

import guidance_jax as gj
from guidance_jax.noise import INNER, SAMPLER, apart, at_level, step_keys

EDM = gj.schedules.edm()
MEAN, VARIANCE = 1.3, 0.25
SOLVERS = {"euler": (gj.euler, readings.edm(False), 1), "heun": (gj.heun, readings.edm(True), 2)}
SCHEDULES = {
    "flow": gj.schedules.flow(t_max=0.99),
    "ddpm_linear": gj.schedules.ddpm_linear(),
}
PAPERS = [(3, 1, 19.35, 40.79), (3, 1, 1.09, 1.92), (3, 5, 0.59, 1.09), (3, 5, 0.30, 0.59), (5, 6, 0.06, 0.30)]
"""The steps, K, t_min and t_max of the released command for ImageNet, with 36 steps and 203 evaluations."""


def denoise(x, alpha, sigma):
    return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


GAUSSIAN = gj.Branches(gaussian(MEAN, VARIANCE), {"cond": None})


def known(tree):
    return jax.tree.map(np.asarray, tree)


def spaced(high, low, steps):
    """Karras et al. 2022, equation 5, rho = 7."""
    root = lambda value: value ** (1 / 7)
    return (root(high) + np.arange(steps + 1) / steps * (root(low) - root(high))) ** 7


def restarted(step, x, level, steps, high, scale, z):
    """x after restarts from a level, in the paper's variables `x / alpha` and `sigma / alpha`. z holds the noise of each
    restart.
    """
    y, low = x / level[0], level[1] / level[0]
    for noise in z:
        y = y + scale * np.sqrt(high**2 - low**2) * noise
        for now, after in itertools.pairwise(spaced(high, low, steps)):
            y, _ = step(denoise, y, None, (1.0, now), (1.0, after), 0.0)
    return level[0] * y


def drawn(n, level=None, steps=0, times=0):
    """The normal numbers of a run's start, `[n]`, or of the restarts in the step that begins at a level, `[times, n]`."""
    own, numbers = one_program(_own, n, level), [0] if level is None else [2 * (1 + k * steps) + 1 for k in range(times)]
    noise = one_program(_noise, jax.random.wrap_key_data(own, impl=QUICK), np.array(numbers))
    return noise[0] if level is None else noise


def _own(n, level):
    own = quick_keys(n) if level is None else apart(at_level(quick_keys(n), level, SAMPLER), INNER)
    return jax.random.key_data(own)


def _noise(own, numbers):
    draw = lambda key, number: jax.random.normal(jax.random.fold_in(key, number), (1,))[0]
    return jax.vmap(jax.vmap(draw, (0, None)), (None, 0))(own, numbers)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "name"), [("heun", "flow"), ("euler", "ddpm_linear")])
def test_samples_are_those_of_the_paper_for_the_same_noise(x64, solver, name):
    make, step, cost = SOLVERS[solver]
    n, steps, times, high, scale = 5, 3, 2, 4.0, 1.1
    levels = known(gj.levels(SCHEDULES[name], 9, gj.spacings.karras()))
    pairs = [(float(a), float(s)) for a, s in zip(levels.alpha, levels.sigma, strict=True)]
    traces = []

    @jax.jit
    def generate(low, high, scale):
        traces.append(1)
        sampler = gj.restart(make(), SCHEDULES[name], steps, times, low, high, noise_scale=scale)
        state, _ = gj.run(quick_keys(n), GAUSSIAN, gj.chain(), sampler, levels, (1,))
        return state.x.ravel(), state.evaluations

    places = [i for i in range(1, len(levels) - 1) if levels.ratio[i] < high / 2]
    assert len(places) >= 3
    for place in places:
        for low in (levels.ratio[place], 0.9995 * levels.ratio[place], 0.5 * levels.ratio[place - 1 : place + 1].sum()):
            samples, evaluations = generate(np.minimum(low, 3.9), high, scale)
            x = pairs[0][1] * drawn(n)
            for i, (now, after) in enumerate(itertools.pairwise(pairs), start=1):
                x, _ = step(denoise, x, None, now, after, 0.0)
                if i == place:
                    x = restarted(step, x, after, steps, high, scale, drawn(n, path(levels, i - 1), steps, times))
            np.testing.assert_allclose(samples, x, rtol=1e-9, err_msg=f"{place} {low}")
            assert evaluations == cost * (len(levels) - 2) + 1 + cost * steps * times
    assert len(traces) == 1


def two_levels(*sigma):
    return gj.NoiseLevel(*(jnp.asarray(field, float) for field in (np.log(sigma) / 4, np.ones(2), np.array(sigma))))


def slope(path):
    """The factor of `y - m` in Heun's steps along a path: `dy / dr = r (y - m) / (v + r^2)`."""
    product, rate = 1.0, lambda r: r / (VARIANCE + r**2)
    for now, after in itertools.pairwise(path):
        h = after - now
        product *= 1 + h / 2 * (rate(now) + rate(after) * (1 + h * rate(now)))
    return product


def law(sampler, levels, mean, variance, steps, n=12):
    """The mean and variance of the last x, for a Gaussian start with given mean and variance.

    The sampler is affine in the start and in the noise of its 3 restarts. The coefficients are solved for, so the result is
    exact.
    """
    start = np.random.default_rng(0).normal(size=n)
    x = (mean + np.sqrt(variance) * start)[:, None]
    found = one_program(gj.sample, quick_keys(n), GAUSSIAN, gj.chain(), sampler, levels, x).ravel()
    design = np.stack([np.ones(n), start, *drawn(n, path(known(levels), 0), steps, 3)], axis=1)
    coefficients, _, rank, _ = np.linalg.lstsq(design, found, rcond=None)
    assert rank == 5
    np.testing.assert_allclose(design @ coefficients, found, atol=1e-10)
    return coefficients[0], np.sum(coefficients[1:] ** 2)


@pytest.mark.slow
def test_restarts_contract_the_error_of_a_wrong_start_as_in_the_closed_form(x64):
    """For data N(m, v), the exact ODE from R to r multiplies `x - m` by `g = sqrt((v + r^2) / (v + R^2))`. So K restarts reduce
    an error of the mean to `g^K` of it and an error of the variance to `g^(2 K)`. `N(m, v + r^2)` is the fixed point.
    """
    low, high, offset = 0.3, 2.0, 5.0
    levels = two_levels(1.01 * low, low)
    exact, g = VARIANCE + low**2, np.sqrt((VARIANCE + low**2) / (VARIANCE + high**2))
    for steps, within in ((1, None), (64, 3e-4)):
        sampler = gj.restart(gj.heun(), EDM, steps, 3, low, high)
        mean, variance = law(sampler, levels, MEAN + offset, 9 * exact, steps)
        # The exact recursion for this number of steps.
        once, again = slope([1.01 * low, low]), slope(spaced(high, low, steps))
        np.testing.assert_allclose(mean - MEAN, once * again**3 * offset, rtol=1e-9)
        expected = once**2 * 9 * exact
        for _ in range(3):
            expected = again**2 * (expected + high**2 - low**2)
        np.testing.assert_allclose(variance, expected, rtol=1e-9)
        # The recursion of the exact ODE, in the limit.
        if within:
            np.testing.assert_allclose(mean - MEAN, once * g**3 * offset, rtol=3 * within)
            np.testing.assert_allclose(variance - exact, g**6 * (once**2 * 9 - 1) * exact, atol=within * exact)
    kept = law(sampler, levels, MEAN, exact / once**2, steps)
    np.testing.assert_allclose(kept, (MEAN, exact), rtol=3e-4)


def test_restarts_keep_the_law_of_a_mixture_and_restore_it_from_one_class(x64):
    """x is at sigma = 0.5. Its law is the exact one, or that of a single class. Each moment agrees to 4.5 standard errors."""
    n, low = 6000, 0.5
    levels = two_levels(1.01 * low, low)

    def exact(seed, peaks, sigma=1.01 * low):
        rng = np.random.default_rng(seed)
        return rng.choice(peaks, size=(n, 2)) + np.sqrt(PEAK + sigma**2) * rng.normal(size=(n, 2))

    def errors(x):
        """The errors of the means and second moments, in standard errors."""
        features = lambda x: np.concatenate([x, x**2, x[:, :1] * x[:, 1:]], axis=1)
        found, wanted = features(x), features(exact(100, [-1.0, 1.0], low))
        deviation = np.sqrt((found.var(0) + wanted.var(0)) / n)
        return np.abs(found.mean(0) - wanted.mean(0)) / deviation

    both = gj.branches(peaks, cond=np.full(n, -1))
    run = lambda x, scale=1.0: one_program(
        gj.sample,
        quick_keys(n, 3),
        both,
        gj.chain(),
        gj.restart(gj.heun(), EDM, 24, 3, low, 20.0, noise_scale=scale),
        levels,
        x,
    )
    assert errors(run(exact(0, [-1.0, 1.0]))).max() < 4.5
    wrong = exact(0, [1.0])
    assert errors(wrong).max() > 40
    assert errors(run(wrong)).max() < 4.5
    assert errors(run(wrong, scale=0.0)).max() > 40


@pytest.mark.slow
def test_the_number_of_evaluations_is_that_of_the_paper():
    """43 on CIFAR-10 and 203 on ImageNet. Adjacent intervals do not restart within each other, in either order."""
    one = gj.Branches(lambda x, level, cond: gj.Prediction(x / 2, x / 2), {"cond": None})
    of = lambda sampler, levels: gj.evaluations(quick_keys(1), one, gj.chain(), sampler, levels, (1,))
    count = lambda sampler, n: one_program(of, sampler, gj.levels(EDM, n, gj.spacings.karras()))
    assert count(gj.restart(gj.heun(), EDM, 2, 2, 0.06, 0.3), 18) == 43
    sampler = gj.heun()
    for interval in PAPERS:
        sampler = gj.restart(sampler, EDM, *interval)
    assert count(sampler, 36) == 203
    # The two that are adjacent, in the other order.
    assert count(gj.restart(gj.restart(gj.heun(), EDM, *PAPERS[3]), EDM, *PAPERS[2]), 36) == 71 + 2 * 2 * 3 * 5


def test_without_restarts_it_is_the_inner_sampler(x64):
    """There is no restart if low is below the last positive level or above the first. Between two levels there is one."""
    levels = gj.levels(EDM, 6, gj.spacings.karras(sigma_min=0.1))
    run = lambda sampler: one_program(gj.run, quick_keys(2), GAUSSIAN, gj.chain(), sampler, levels, (1,))[0]
    plain = run(gj.heun())
    for low, high, more in ((1e-4, 1.0, 0), (90.0, 100.0, 0), (0.2, 0.21, 12)):
        found = run(gj.restart(gj.heun(), EDM, 3, 2, low, high))
        assert found.evaluations == plain.evaluations + more, low
        if not more:
            np.testing.assert_allclose(found.x, plain.x, rtol=1e-12, err_msg=str(low))


@pytest.mark.slow
def test_a_guidance_acts_in_the_steps_of_a_restart_that_begin_in_its_interval(x64):
    """With a bound within (0.1, 1): the beginning of the step of the restart decides, not the beginning of the run's step."""
    two, bound = two_gaussians(2), 0.5
    levels = known(gj.levels(EDM, 10, gj.spacings.karras()))
    place = int(np.flatnonzero(levels.ratio < 0.3)[0])
    low, high, steps, times = levels.ratio[place], 1.0, 6, 2
    sampler = gj.restart(gj.ddim(), EDM, steps, times, low, high, noise_scale=0.0)
    guidance = gj.during(gj.cfg(3.0), bound)
    state, _ = one_program(gj.run, quick_keys(2), two, guidance, sampler, levels, (1,))

    between = spaced(high, float(low), steps)
    above = int((levels.ratio[:-1] > bound).sum()) + times * int((between[:-1] > bound).sum())
    assert 0 < (between[:-1] > bound).sum() < steps
    assert state.evaluations == len(levels) - 1 + steps * times + above

    def walk(x, ratios):
        for now, after in itertools.pairwise(ratios):
            x0 = (guided if now > bound else one(MEAN_C, VAR_C))(x, 1.0, now)
            x = x0 + after / now * (x - x0)
        return x

    x = walk(levels.sigma[0] * drawn(2), levels.ratio[: place + 1])
    for _ in range(times):
        x = walk(x, between)
    np.testing.assert_allclose(state.x.ravel(), walk(x, levels.ratio[place:]), rtol=1e-9)


@pytest.mark.slow
def test_a_multistep_sampler_starts_anew_and_continues_from_the_last_restart(x64):
    levels = known(gj.levels(EDM, 10, gj.spacings.karras()))
    place, steps, high = 6, 4, 3.0
    assert levels.ratio[place] < high
    inside = jax.tree.map(np.array, EDM.at(spaced(high, float(levels.ratio[place]), steps)))
    for field, value in zip(vars(inside).values(), vars(path(levels, place)).values(), strict=True):
        field[-1] = value
    two = two_gaussians(3)
    go = lambda levels, x: one_program(gj.run, quick_keys(3), two, gj.cfg(2.0), gj.dpmpp_2m(), levels, x)[0]
    state = go(inside, go(path(levels, slice(None, place + 1)), (1,)).x)
    by_hand = go(path(levels, slice(place, None)), state).x
    sampler = gj.restart(gj.dpmpp_2m(), EDM, steps, 1, levels.ratio[place], high, noise_scale=0.0)
    samples = one_program(gj.sample, quick_keys(3), two, gj.cfg(2.0), sampler, levels, (1,))
    np.testing.assert_allclose(samples, by_hand, rtol=1e-9)


def test_a_sample_does_not_depend_on_its_batch_and_each_restart_has_its_own_noise(x64):
    levels, sampler = gj.levels(EDM, 8, gj.spacings.karras()), gj.restart(gj.ddpm(), EDM, 2, 2, 0.5, 5.0)
    run = lambda keys: one_program(gj.sample, keys, GAUSSIAN, gj.chain(), sampler, levels, (1,))
    together = run(quick_keys(4))
    for i in range(4):
        np.testing.assert_allclose(run(quick_keys(4)[i : i + 1])[0], together[i], rtol=1e-10)
    still = gj.Branches(lambda x, level, cond: gj.Prediction(x / level.alpha, 0 * x), {"cond": None})
    n, times = 2000, 4  # No step moves x, so the variances of the restarts' noise add up.
    sampler = gj.restart(gj.ddim(), EDM, 1, times, 1.0, 2.0)
    x = one_program(gj.sample, quick_keys(n), still, gj.chain(), sampler, two_levels(1.01, 1.0), np.zeros((n, 1)))
    assert abs(x.var() / (3 * times) - 1) < 5 * np.sqrt(2 / n)


@pytest.mark.slow
def test_values_are_data_under_jit_vmap_and_grad_from_alpha_zero(x64):
    """The last bounds are passed in the first step, from alpha = 0."""
    flow = gj.schedules.flow()
    levels = known(gj.levels(flow, 6, gj.spacings.trailing()))
    assert levels.alpha[0] == 0

    def summed(low, high, scale, levels):
        sampler = gj.restart(gj.heun(), flow, 2, 2, low, high, noise_scale=scale)
        return gj.sample(quick_keys(2), GAUSSIAN, gj.chain(), sampler, levels, (1,)).sum()

    h = 1e-6
    lows, highs = np.array([0.3, 0.6, 0.6, 0.6, 9.0, 50.0]), np.array([2.0, 3.0, 3.0 - h, 3.0 + h, 20.0, 60.0])
    generate = jax.jit(jax.vmap(jax.value_and_grad(summed, (0, 1, 2, 3)), (0, 0, None, None)))
    sums, slopes = known(generate(lows, highs, 1.1, levels))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((sums, slopes)))
    np.testing.assert_allclose(slopes[1][1], (sums[3] - sums[2]) / (2 * h), rtol=1e-5)
    assert slopes[0][1] == 0
    np.testing.assert_allclose(sums[1], jax.jit(summed)(0.6, 3.0, 1.1, levels), rtol=1e-10)
    assert levels.ratio[1] < 50


def test_restart_works_within_other_samplers():
    """The restarts are unguided like the predictor that contains them, and padding stays 0 in a restart."""
    levels, two = gj.levels(EDM, 8, gj.spacings.karras()), two_gaussians(2)
    inner = gj.restart(gj.ddim(), EDM, 2, 3, 0.5, 5.0)
    count = lambda sampler: one_program(gj.evaluations, quick_keys(2), two, gj.cfg(2.0), sampler, levels, (1,))
    assert count(inner) == 2 * (8 + 6)
    assert count(gj.predictor_corrector(inner)) == 8 + 6 + 2 * 7
    seen = []

    def network(x, t, cond):
        seen.append(jax.debug.callback(lambda x: seen.append(np.abs(x).max()), x[:, 2]))
        return x + 1

    one = gj.branches(gj.denoiser(network, predicts="x0"), cond=None)
    sampler = gj.trees.zero_padding(inner, jnp.array([[1, 1, 0]]))
    x = gj.sample(quick_keys(2), one, gj.chain(), sampler, levels, (3,))
    jax.effects_barrier()
    assert (x[:, 2] == 0).all()
    assert {float(value) for value in seen if value is not None} == {0.0}


def test_restarts_follow_once_per_run_also_if_churn_raises_later_steps_above_low():
    levels = gj.levels(EDM, 8, gj.spacings.karras())
    inner = gj.restart(gj.ddim(), EDM, 2, 1, np.asarray(levels.ratio)[4], 20.0)
    count = lambda sampler: one_program(gj.evaluations, quick_keys(12), GAUSSIAN, gj.chain(), sampler, levels, (1,))
    assert count(inner) == count(gj.churn(inner, EDM, 0.2)) == 8 + 2
    with pytest.raises(ValueError, match="this sampler remembers the step before"):
        count(gj.recur(inner, 3))


def test_conditions_draw_anew_in_each_restart():
    levels, seen = gj.levels(EDM, 4, gj.spacings.karras()), []

    def drawn(step):
        draw = jax.vmap(jax.random.uniform)(step_keys(step))
        jax.debug.callback(lambda draw: seen.append(float(draw[0])), draw, ordered=True)
        return draw

    random = gj.branches(gj.denoiser(lambda x, t, cond: 0 * x + cond[:, None], predicts="x0"), cond=drawn)
    gj.sample(quick_keys(1), random, gj.chain(), gj.restart(gj.ddim(), EDM, 2, 3, levels.ratio[2], 20.0), levels, (1,))
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 4 + 6


def test_an_interval_that_only_the_restarts_visit_does_not_warn(recwarn):
    levels, two = gj.levels(EDM, 3, gj.spacings.karras()), two_gaussians(2)
    sampler = gj.restart(gj.ddim(), EDM, 4, 2, 1.0, 50.0)
    assert gj.evaluations(quick_keys(2), two, gj.during(gj.cfg(3.0), 5.0, 60.0), sampler, levels, (1,)) > 3 + 8
    assert not recwarn.list


def test_counts_are_structure_and_other_numbers_are_data():
    sampler = gj.restart(gj.heun(), gj.schedules.edm(0.01, 50.0), 2, 3, 0.1, 1.0, noise_scale=1.003)
    assert jax.tree.leaves(sampler) == [0.01, 50.0, 0.1, 1.0, 1.003]
    assert repr(gj.restart(gj.heun(), EDM, 2, 3, 0.1, 1.0)) == "restart(heun(), edm(), steps=2, times=3, low=0.1, high=1.0)"
    assert not sampler.reversible
