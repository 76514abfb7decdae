"""Scales that depend on the noise level against the curves of their papers."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from walks import W, close, context, draw, walk
from worlds import SCHEDULES

import guidance_jax as gj


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "clamp_linear", "cosine", "power_cosine", "beta"])
@pytest.mark.parametrize("schedule", ["flow", "edm", "ddpm_linear"])
def test_a_scale_schedule_is_the_curve_of_its_paper(x64, name, schedule):
    schedule, s = SCHEDULES[schedule](), W - 1
    more = {"clamp_linear": {"min": 2.0}, "power_cosine": {"power": 4.0}, "beta": {"a": 2.5, "b": 1.5}}.get(name, {})
    curve = getattr(gj.scales, name)(schedule, W, **more)

    def weight(u):
        """The paper's weight, by the remaining time u = t / T, in the paper's scale, w - 1."""
        if name == "linear":
            return 2 * (1 - u) * s
        if name == "clamp_linear":
            return np.maximum(1.0, 2 * (1 - u) * s)
        if name == "cosine":
            return (np.cos(np.pi * u) + 1) * s
        if name == "power_cosine":
            return (1 - np.cos(np.pi * (1 - u) ** 4)) / 2 * s
        return scipy.stats.beta.pdf(1 - u, 2.5, 1.5) * s

    for u in (0.0, 0.13, 0.5, 0.8, 1.0):
        level = schedule(schedule.t_min + u * (schedule.t_max - schedule.t_min))
        np.testing.assert_allclose(curve(level), 1 + weight(u), rtol=1e-9, atol=1e-9)
    if name in ("linear", "cosine", "beta"):
        middles = (np.arange(2000) + 0.5) / 2000
        levels = schedule(schedule.t_min + middles * (schedule.t_max - schedule.t_min))
        mean = (getattr(gj.scales, name)(schedule, 3.0, **more)(levels) - 1).mean()
        np.testing.assert_allclose(mean, 2.0, rtol=1e-4 if name == "beta" else 1e-9)
    x, x0, _ = draw("vector")
    level = schedule(schedule.t_min + 0.3 * (schedule.t_max - schedule.t_min))
    here = context(x, x0, level)
    (by_curve,), (by_number,) = walk(gj.cfg(curve), [here]), walk(gj.cfg(1 + weight(0.3)), [here])
    close(by_curve.x0, by_number.x0)
    close(by_curve.eps, by_number.eps)
