"""Tests of spacings against hand-computed and published times, and of the end of a path."""

import jax
import numpy as np
import pytest

import guidance_jax as gj


def test_spacings_visit_the_published_times():
    ddpm, flow = gj.schedules.ddpm_linear(), gj.schedules.flow()
    np.testing.assert_array_equal(gj.spacings.leading(1)(ddpm, 50)[:3], [981, 961, 941])  # Stable Diffusion's first
    np.testing.assert_array_equal(gj.spacings.trailing()(ddpm, 10), np.arange(999, 0, -100))
    np.testing.assert_array_equal(gj.spacings.uniform()(ddpm, 3), [999, 500, 0])  # 499.5 rounds to even
    np.testing.assert_array_equal(gj.spacings.leading()(ddpm, 1000), np.arange(999, -1, -1))
    np.testing.assert_allclose(gj.spacings.trailing()(flow, 4), [1, 0.7505, 0.501, 0.2515], rtol=1e-6)
    edm = gj.schedules.edm()
    ramp = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(edm(gj.spacings.karras()(edm, 18)).sigma, ramp, rtol=2e-5)
    narrow = gj.levels(ddpm, 9, gj.spacings.karras(sigma_min=0.1, sigma_max=10.0))
    np.testing.assert_allclose(np.asarray(narrow.ratio)[[0, 8]], [10, 0.1], rtol=1e-4)


def sensitive():
    """The numbers of steps up to 1000 for which float32 rounds to other times, or a sum of strides falls short of T."""
    for n in range(2, 1001):
        stride = np.float32(1000) - np.arange(n, dtype=np.float32) * np.float32(1000 / n)
        wide = np.linspace(0, 999, n).round(), np.arange(1000, 0, -1000 / n).round()
        narrow = np.linspace(np.float32(0), np.float32(999), n, dtype=np.float32).round(), stride.round()
        if not all(map(np.array_equal, wide, narrow)):
            yield n


@pytest.mark.parametrize("wide", [False, True])
def test_whole_steps_are_those_of_numpy_in_float64(wide):
    """As in diffusers. Its trailing spacing gives one step too many, -1, when the sum of its strides falls short of T."""
    ddpm, uniform, trailing = gj.schedules.ddpm_linear(), gj.spacings.uniform(), gj.spacings.trailing()
    numbers = list(sensitive())
    assert len(numbers) > 200
    with jax.enable_x64(wide):
        for n in numbers[:: 5 if wide else 1]:
            assert np.array_equal(uniform(ddpm, n), np.linspace(0, 999, n).round()[::-1]), n
            assert np.array_equal(trailing(ddpm, n), (np.arange(1000, 0, -1000 / n).round() - 1)[:n]), n
        for n in (*range(2, 20), 333, 334, 499, 500, 501, 999, 1000):
            assert np.array_equal(gj.spacings.leading(1)(ddpm, n), np.arange(n)[::-1] * (1000 // n) + 1), n
        assert uniform(ddpm, 1) == trailing(ddpm, 1) == 999


ENDINGS = {
    "uniform": (gj.spacings.uniform(), lambda n: np.linspace(1, 0, n + 1)),
    "leading": (gj.spacings.leading(), lambda n: np.arange(n, -1, -1) / (n + 1)),
    "quadratic": (gj.spacings.quadratic(), lambda n: np.linspace(1, 0, n + 1) ** 2),
    "trailing": (gj.spacings.trailing(), lambda n: [*(1 - np.arange(n) / n), 1 / n]),
    "karras": (gj.spacings.karras(1.0, sigma_max=3.0), lambda n: (r := 3 * np.linspace(1, 0, n + 1)) / (1 + r)),
}


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ENDINGS)
def test_a_path_to_clean_data_contains_it_once(spacing):
    flow, (make, times) = gj.schedules.flow(t_min=0.0), ENDINGS[spacing]
    for steps in (2, 5):
        path = gj.levels(flow, steps, make)
        np.testing.assert_allclose(path.t, times(steps), rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(path.sigma) == 0, np.arange(steps + 1) == steps)
    within = jax.jit(lambda: gj.levels(flow, 5, make))()
    np.testing.assert_allclose(within.t, path.t, rtol=1e-6)
    for schedule in (gj.schedules.cosine(0.0, 1.0), gj.schedules.linear(0.0, t_min=0.0), gj.schedules.shift(flow, 3.0)):
        path = gj.levels(schedule, 5, gj.spacings.karras(sigma_max=80.0) if spacing == "karras" else make)
        np.testing.assert_array_equal(np.asarray(path.sigma) == 0, [False] * 5 + [True])


def test_exponential_is_even_in_the_log_and_the_limit_of_karras_for_large_rho(x64):
    for schedule in (gj.schedules.edm(), gj.schedules.cosine(), gj.schedules.flow(t_max=0.99)):
        even, limit = (schedule(make(schedule, 12)) for make in (gj.spacings.exponential(), gj.spacings.karras(1e7)))
        ratio = np.asarray(even.sigma) / np.asarray(even.alpha)
        high, low = float(schedule(schedule.t_max).ratio), float(schedule(schedule.t_min).ratio)
        np.testing.assert_allclose(ratio, np.geomspace(high, low, 12), rtol=1e-9)
        np.testing.assert_allclose(np.asarray(limit.sigma) / np.asarray(limit.alpha), ratio, rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 20, 21, 25, 50, 100])
def test_quadratic_has_the_times_of_ddims_released_code_without_repetitions(steps):
    published = (np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2).astype(int)
    times = np.asarray(gj.spacings.quadratic(0.8)(gj.schedules.ddpm_linear(), steps))[::-1]
    assert (np.diff(times) > 0).all()
    same = np.cumsum(np.diff(published, prepend=-1) == 0) == 0
    # After the first repetition these times are a little ahead, until the parabola exceeds the number of the step.
    np.testing.assert_array_equal(times[same], published[same])
    np.testing.assert_array_equal(times, np.maximum(published, np.arange(steps)))
    assert gj.spacings.quadratic()(gj.schedules.ddpm_linear(), steps)[0] == 999


def test_quadratic_is_even_in_the_root_of_t(x64):
    t = np.asarray(gj.spacings.quadratic(0.5)(gj.schedules.flow(t_min=0.1), 5))
    np.testing.assert_allclose(t, 0.1 + 0.45 * np.array([1, 0.75, 0.5, 0.25, 0]) ** 2, rtol=1e-12)


def test_a_karras_path_of_a_discrete_schedule_repeats_no_time():
    path = gj.levels(gj.schedules.ddpm_linear(), 500, gj.spacings.karras())
    assert len(np.unique(path.t[:-1])) == 500
