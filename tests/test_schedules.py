"""Schedules against the papers' formulae in NumPy, spacings against hand-computed times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import SCHEDULES

import guidance_jax as gj


def reference(name: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(alpha, sigma)` as the papers write them."""
    if name == "cosine":
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    if name == "linear":
        integral = 0.1 * t + (20.0 - 0.1) * t**2 / 2
        return np.sqrt(np.exp(-integral)), np.sqrt(1 - np.exp(-integral))
    if name == "edm":
        return np.ones_like(t), np.exp(4 * t)
    if name == "flow":
        return 1 - t, t
    if name == "ddpm_linear":
        betas = np.linspace(1e-4, 0.02, 1000)
    else:
        f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.array([min(1 - f((i + 1) / 1000) / f(i / 1000), 0.999) for i in range(1000)])
    alpha_bar = np.cumprod(1 - betas)[t.astype(int)]
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_the_papers(x64, name):
    schedule = SCHEDULES[name]()
    t = np.linspace(float(schedule.t_min), float(schedule.t_max), 37)
    t = np.round(t) if schedule.steps else t
    level = schedule(t)
    alpha, sigma = reference(name, t)
    np.testing.assert_allclose(level.alpha, alpha, atol=1e-10)
    np.testing.assert_allclose(level.sigma, sigma, atol=1e-10)
    finite = np.isfinite(level.ratio)
    np.testing.assert_allclose(schedule.inverse(level.ratio)[finite], t[finite], atol=1e-9 * (schedule.steps or 1))
    assert (np.diff(level.ratio) > 0).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("spacing", ["uniform", "leading", "trailing", "karras"])
def test_every_path_ends_clean_and_decreases(name, spacing):
    schedule = SCHEDULES[name](t_max=0.99) if (name, spacing) == ("flow", "karras") else SCHEDULES[name]()
    for steps in (1, 2, 7, 250):
        path = gj.levels(schedule, steps, getattr(gj.spacings, spacing)())
        assert [field.shape for field in path] == [(steps + 1,)] * 3
        assert (path.alpha[-1], path.sigma[-1]) == (1, 0)
        assert (np.diff(path.ratio) < 0).all()
        assert np.isfinite(path.t).all()


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
    np.testing.assert_allclose(narrow.ratio[jnp.array([0, 8])], [10, 0.1], rtol=1e-4)


def test_a_karras_path_of_a_discrete_schedule_repeats_no_time():
    path = gj.levels(gj.schedules.ddpm_linear(), 500, gj.spacings.karras())
    assert len(np.unique(path.t[:-1])) == 500


def test_schedules_take_traced_parameters():
    def last_alpha(beta_max):
        return gj.levels(gj.schedules.linear(beta_max=beta_max), 4, gj.spacings.trailing()).alpha[0]

    slope = jax.jit(jax.grad(last_alpha))(20.0)
    step = 1e-2
    numeric = (last_alpha(20 + step) - last_alpha(20 - step)) / (2 * step)
    np.testing.assert_allclose(slope, numeric, rtol=1e-2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gj.levels(gj.schedules.ddpm_linear(), 1001, gj.spacings.uniform()), "1000 training steps"),
        (lambda: gj.levels(gj.schedules.edm(), 0, gj.spacings.karras()), "steps must be at least 1"),
        (lambda: gj.levels(gj.schedules.flow(), 9, gj.spacings.karras()), "finite largest"),
        (lambda: gj.levels(gj.schedules.cosine(), 3, lambda s, n: jnp.array([0.1, 0.5, 0.9])), "decrease"),
        (lambda: gj.levels(gj.schedules.cosine(), 3, lambda s, n: jnp.array([0.9, 0.5, 0.5])), "decrease"),
        (lambda: gj.levels(gj.schedules.cosine(), 3, lambda s, n: jnp.array([0.9])), r"\[steps\] = \(3,\)"),
        (lambda: gj.schedules.discrete(np.array([0.1, 1.5])), "every rate in"),
    ],
)
def test_bad_input_is_told(build, message):
    with pytest.raises(ValueError, match=message):
        build()
