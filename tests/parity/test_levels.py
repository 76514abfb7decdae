"""Schedules and spacings against the noise levels and times of diffusers' schedulers, for several numbers of steps."""

import jax.numpy as jnp
import numpy as np
import pytest
from reference import close, diffusers, torch

import guidance_jax as gj

# diffusers passes tensors to NumPy, which warns about the conversion with torch 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO = STABLE | {"rescale_betas_zero_snr": True}
COUNTS = [2, 28]
scaled_linear = gj.schedules.scaled_linear()
zero_terminal = gj.schedules.zero_terminal_snr(scaled_linear)


@pytest.mark.parametrize("tolerance", [1e-8], indirect=True)
@pytest.mark.parametrize(("schedule", "options"), [(scaled_linear, STABLE), (zero_terminal, ZERO)], ids=["stable", "zero"])
def test_the_levels_of_every_training_step_agree(schedule, options, tolerance):
    bar = diffusers.DDIMScheduler(**options).alphas_cumprod.numpy()
    level = schedule(jnp.arange(1000))
    close(level.alpha, bar**0.5, tolerance)
    close(level.sigma, (1 - bar) ** 0.5, tolerance)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize(
    ("spacing", "options"),
    [
        (gj.spacings.leading(1), {"timestep_spacing": "leading", "steps_offset": 1}),
        (gj.spacings.trailing(), {"timestep_spacing": "trailing"}),
        (gj.spacings.uniform(), {"timestep_spacing": "linspace"}),
    ],
    ids=["leading", "trailing", "uniform"],
)
def test_the_path_of_zero_terminal_snr_agrees(spacing, options, steps):
    scheduler = diffusers.DDIMScheduler(**ZERO, **options)
    scheduler.set_timesteps(steps)
    path = gj.levels(zero_terminal, steps, spacing)
    np.testing.assert_array_equal(path.t[:-1], scheduler.timesteps.numpy())
    bar = scheduler.alphas_cumprod[scheduler.timesteps].numpy()
    # In float32, the first alphas of diffusers are rounded and those of this library are not.
    np.testing.assert_allclose(path.alpha[:-1], bar**0.5, rtol=2e-4)
    if options["timestep_spacing"] != "leading":
        assert path.alpha[0] == bar[0] == 0


@pytest.mark.parametrize("tolerance", [1e-6], indirect=True)
@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize(
    ("spacing", "option"),
    [(gj.spacings.karras(), "use_karras_sigmas"), (gj.spacings.exponential(), "use_exponential_sigmas")],
    ids=["karras", "exponential"],
)
def test_respaced_levels_of_a_discrete_schedule_agree(spacing, option, steps, tolerance):
    """Euler's scheduler gives the network the same fractional times. DPM-Solver's rounds or truncates them."""
    for make in (diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler, diffusers.DPMSolverMultistepScheduler):
        scheduler = make(**STABLE, **{option: True})
        scheduler.set_timesteps(steps)
        path = gj.levels(scaled_linear, steps, spacing)
        sigmas, times = (np.asarray(field, np.float64) for field in (scheduler.sigmas, scheduler.timesteps))
        if make is diffusers.HeunDiscreteScheduler:
            sigmas, times = (np.concatenate([field[:1], field[1::2]]) for field in (sigmas, times))
        np.testing.assert_allclose(path.ratio, sigmas, rtol=2e-5)
        rounding = 1.0 if make is diffusers.DPMSolverMultistepScheduler else 0.02
        np.testing.assert_allclose(path.t[:-1], times[:steps], atol=rounding)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_the_levels_of_edm_agree(name, steps):
    scheduler = diffusers.EDMEulerScheduler(sigma_schedule=name)
    scheduler.set_timesteps(steps)
    path = gj.levels(gj.schedules.edm(), steps, getattr(gj.spacings, name)())
    np.testing.assert_allclose(path.sigma, scheduler.sigmas.numpy(), rtol=1e-5)
    np.testing.assert_allclose(path.t[:-1], scheduler.timesteps.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("factor", [1.0, 3.0, 6.0])
def test_the_levels_of_a_shifted_flow_agree(factor, steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=factor)
    scheduler.set_timesteps(steps)
    # The last time in diffusers is shifted twice: it shifts the first training step, spaces from 1 to it, and shifts again.
    flow = gj.schedules.flow(scheduler.sigma_min)
    path = gj.levels(gj.schedules.shift(flow, factor), steps, gj.spacings.uniform())
    np.testing.assert_allclose(path.sigma, scheduler.sigmas.numpy(), rtol=2e-6)
    np.testing.assert_allclose(1000 * path.t[:-1], scheduler.timesteps.numpy(), rtol=2e-6)


@pytest.mark.parametrize("steps", COUNTS)
def test_a_dynamically_shifted_flow_agrees(steps):
    """Flux's schedule: the times `linspace(1, 1 / steps)`, called trailing here, and a factor of exp(mu)."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=1.15)
    path = gj.levels(gj.schedules.shift(gj.schedules.flow(t_min=0.0), np.exp(1.15)), steps, gj.spacings.trailing())
    np.testing.assert_allclose(path.sigma, scheduler.sigmas.numpy(), rtol=2e-6)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.58, 0.8, 1.0])
def test_image_to_image_counts_its_steps_and_noises_as_diffusers_does(strength, steps):
    scheduler = diffusers.DDIMScheduler(**STABLE, steps_offset=1)
    scheduler.set_timesteps(steps)
    # Counted as in `get_timesteps` of its pipelines, which need another large package to import.
    count = min(int(steps * strength), steps)
    times = scheduler.timesteps[max(steps - count, 0) * scheduler.order :]
    path = gj.levels(scaled_linear, steps, gj.spacings.leading(1))
    if count == 0:
        with pytest.raises(ValueError, match="leave at least one step"):
            gj.schedules.strength(path, strength)
        return
    path = gj.schedules.strength(path, strength)
    np.testing.assert_array_equal(path.t[:-1], times.numpy())
    x0, z = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    theirs = scheduler.add_noise(torch.from_numpy(x0), torch.from_numpy(z), times[:1])
    np.testing.assert_allclose(path.alpha[0] * x0 + path.sigma[0] * z, theirs.numpy(), atol=2e-6)
