"""Whole runs under CFG against diffusers' schedulers, from the same start and with the same noise; also the noise levels."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import STEPS, close, cumulative, diffusers, from_torch, levels_of, network, prepared, to_torch, torch, walk
from worlds import keys, sampler_noise

import guidance_jax as gj

# diffusers passes tensors to NumPy, which warns about the conversion with torch 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

W, SHAPE = 3.0, (3, 4, 8, 2)
PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "velocity"}
ALL = tuple(PREDICTS)[:3]


def ratios(scheduler):
    """Each ratio once. Heun's scheduler stores most of them twice."""
    return -torch.unique(-scheduler.sigmas)


def preserving(scheduler):
    alpha = (1 + ratios(scheduler) ** 2) ** -0.5
    return alpha, alpha * ratios(scheduler)


def scaled(scheduler):
    """Like k-diffusion, these schedulers use x / alpha."""
    return preserving(scheduler)


def exploding(scheduler):
    return torch.ones_like(ratios(scheduler)), ratios(scheduler)


def flowing(scheduler):
    return 1 - ratios(scheduler), ratios(scheduler)


DDIM = functools.partial(diffusers.DDIMScheduler, clip_sample=False)
DDPM = functools.partial(diffusers.DDPMScheduler, clip_sample=False)
DPM = functools.partial(diffusers.DPMSolverMultistepScheduler, solver_order=2, solver_type="midpoint")
UNIPC = diffusers.UniPCMultistepScheduler
EDM_DPM = functools.partial(diffusers.EDMDPMSolverMultistepScheduler, solver_order=2, solver_type="midpoint")
STABLE = {"beta_schedule": "scaled_linear", "steps_offset": 1, "set_alpha_to_one": False}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
TO_SIGMA_MIN = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
THIRD = functools.partial(diffusers.DPMSolverMultistepScheduler, solver_order=3, lower_order_final=False)
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "ddim": (DDIM, ALL, gj.ddim(), cumulative),
    "ddim, Stable Diffusion's levels": (functools.partial(DDIM, **STABLE), ALL[:1], gj.ddim(), cumulative),
    "ddim, cosine": (functools.partial(DDIM, **COSINE), ALL[2:], gj.ddim(), cumulative),
    "ddim, zero terminal SNR": (functools.partial(DDIM, **ZERO_SNR), ALL[1:], gj.ddim(), cumulative),
    "ddpm, small": (functools.partial(DDPM, variance_type="fixed_small"), ALL[1:2], gj.ddpm("small"), cumulative),
    "ddpm, small, by its log": (functools.partial(DDPM, variance_type="fixed_small_log"), ALL[:1], gj.ddpm(), cumulative),
    # If the last step begins above t = 0, diffusers adds noise at the end for the large variance. This library does not.
    "ddpm, large": (functools.partial(DDPM, variance_type="fixed_large"), ALL[:1], gj.ddpm("large"), cumulative),
    "dpmpp_2m": (DPM, ALL[::2], gj.dpmpp_2m(), preserving),
    "dpmpp_2m, order kept": (functools.partial(DPM, lower_order_final=False), ALL[:1], gj.dpmpp_2m(), preserving),
    # To a last level with noise, diffusers' last step is of first order by default. This library's is not.
    "dpmpp_2m, to sigma_min": (functools.partial(DPM, **TO_SIGMA_MIN), ALL[2:], gj.dpmpp_2m(), preserving),
    "dpmpp_2m, flow": (functools.partial(DPM, **FLOW), ("flow_prediction",), gj.dpmpp_2m(), flowing),
    # diffusers' 3M has half the last term. This library's is UniPC's predictor.
    "dpmpp_3m, as released": (THIRD, ALL[:1], gj.dpmpp_3m(curvature=0.5), preserving),
    "dpmpp_3m": (
        functools.partial(UNIPC, solver_order=3, disable_corrector=[*range(STEPS)], **TO_SIGMA_MIN),
        ALL[:1],
        gj.dpmpp_3m(),
        preserving,
    ),
    "dpmpp_sde": (functools.partial(DPM, algorithm_type="sde-dpmsolver++"), ALL[2:], gj.dpmpp_sde(), preserving),
    "unipc": (UNIPC, ALL[2:], gj.unipc(), preserving),
    # To sigma' = 0 diffusers' variant 1 gives NaN.
    "unipc, variant 1": (functools.partial(UNIPC, solver_type="bh1", **TO_SIGMA_MIN), ALL[:1], gj.unipc(variant=1), preserving),
    "unipc 1": (functools.partial(UNIPC, solver_order=1), ALL[:1], gj.unipc(1), preserving),
    "unipc 3": (functools.partial(UNIPC, solver_order=3, **TO_SIGMA_MIN), ALL[:1], gj.unipc(3), preserving),
    "unipc, flow": (functools.partial(UNIPC, **FLOW), ("flow_prediction",), gj.unipc(), flowing),
    "dpmpp_2m, edm": (EDM_DPM, ("edm",), gj.dpmpp_2m(), exploding),
    "euler": (diffusers.EulerDiscreteScheduler, ALL[:1], gj.euler(), scaled),
    "euler, flow": (functools.partial(diffusers.FlowMatchEulerDiscreteScheduler, shift=3.0), ("flow",), gj.euler(), flowing),
    "euler, edm": (diffusers.EDMEulerScheduler, ("edm",), gj.euler(), exploding),
    "euler ancestral": (diffusers.EulerAncestralDiscreteScheduler, ALL[::2], gj.euler_ancestral(), scaled),
    "heun, flow": (
        functools.partial(diffusers.FlowMatchHeunDiscreteScheduler, shift=3.0),
        ("flow",),
        gj.flow_heun(),
        flowing,
    ),
    "heun": (diffusers.HeunDiscreteScheduler, ALL[1:2], gj.heun(), scaled),
}
FLOAT32 = ("ddim", "ddpm, small", "dpmpp_2m", "dpmpp_3m", "dpmpp_sde", "unipc", "euler", "euler ancestral", "heun")
"""Each sampler once."""
RUNS = [
    (name, predicts, tolerance)
    for name, (_, kinds, *_) in SCHEDULERS.items()
    for predicts in kinds
    for tolerance in ((1e-8, 1e-5) if name in FLOAT32 and predicts == kinds[0] else (1e-8,))
]


def both(scheduler, process, denoise, guidance, sampler, monkeypatch, w=W, levels=None, learned=False, **options):
    """This library's run and the scheduler's of the same network, guided by CFG at w. The variance is that of the condition."""
    levels, rng, seeds = levels or levels_of(scheduler, process), np.random.default_rng(0), keys(SHAPE[0])
    x, cond, uncond = (jnp.asarray(rng.normal(size=SHAPE), levels.t.dtype) for _ in range(3))
    x = levels.sigma[0] * x
    branches = gj.branches(denoise, cond=cond, uncond=uncond)
    mine = gj.sample(seeds, branches, guidance, sampler, levels, x)

    def output(number, x, t):
        c, u = (network(torch, x, t, to_torch(y)) for y in (cond, uncond))
        guided = u + w * (c - u)
        return torch.cat([guided, torch.tanh(c)], 1) if learned else guided

    noise = (to_torch(sampler_noise(seeds, levels, i, x)) for i in range(STEPS))
    module = sys.modules[type(scheduler).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(noise), raising=False)
    first = x / levels.alpha[0] if process is scaled else x
    return mine, from_torch(walk(scheduler, output, to_torch(first), **options))


def denoiser(predicts):
    net = functools.partial(network, jnp)
    return gj.denoisers.edm(net) if predicts == "edm" else gj.denoiser(net, PREDICTS.get(predicts, "velocity"))


@pytest.mark.parametrize(("name", "predicts", "tolerance"), RUNS, indirect=["tolerance"])
def test_the_run_agrees(name, predicts, tolerance, monkeypatch):
    make, _, sampler, process = SCHEDULERS[name]
    scheduler = prepared(make(prediction_type=predicts) if predicts in PREDICTS else make())
    mine, theirs = both(scheduler, process, denoiser(predicts), gj.cfg(W), sampler, monkeypatch)
    close(mine, theirs, tolerance)


@pytest.mark.parametrize("tolerance", [1e-8], indirect=True)
@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_ddim_with_noise_agrees(eta, tolerance, monkeypatch):
    mine, theirs = both(prepared(DDIM()), cumulative, denoiser("epsilon"), gj.cfg(W), gj.ddim(eta), monkeypatch, eta=eta)
    close(mine, theirs, tolerance)


def test_ddpm_with_a_learned_variance_agrees(tolerance, monkeypatch):
    scheduler = prepared(DDPM(variance_type="learned_range"))

    def twice(x, t, cond):
        out = network(jnp, x, t, cond)
        return jnp.concatenate([out, jnp.tanh(out)], -1)

    denoise = gj.denoisers.learned_variance(twice, "eps")
    close(*both(scheduler, cumulative, denoise, gj.cfg(W), gj.ddpm("learned"), monkeypatch, learned=True), tolerance)


def test_dpmpp_2s_agrees(tolerance, monkeypatch):
    """diffusers counts its evaluations as steps, also those at halfway levels."""
    scheduler = prepared(diffusers.DPMSolverSinglestepScheduler(use_exponential_sigmas=True), STEPS - 1)
    scheduler.sigmas[1:-1:2] = (scheduler.sigmas[:-2:2] * scheduler.sigmas[2::2]) ** 0.5
    levels = levels_of(scheduler, preserving)
    t, log_ratio = levels.t[-2::-1], jnp.log(levels.ratio[-2::-1])
    angle = lambda at: jnp.arctan(jnp.exp(jnp.interp(at, t, log_ratio)))
    schedule = gj.Schedule(
        lambda at: (jnp.cos(angle(at)), jnp.sin(angle(at))), lambda ratio: jnp.interp(jnp.log(ratio), log_ratio, t), t[0], t[-1]
    )
    whole = jax.tree.map(lambda field: field[jnp.array([*range(0, STEPS, 2), STEPS - 1])], levels)
    close(
        *both(scheduler, preserving, denoiser("epsilon"), gj.cfg(W), gj.dpmpp_2s(schedule), monkeypatch, levels=whole),
        tolerance,
    )


@pytest.mark.parametrize("tolerance", [1e-8], indirect=True)
@pytest.mark.parametrize("predicts", ALL)
def test_dynamic_thresholding_agrees(predicts, tolerance, monkeypatch):
    """In diffusers eps follows the thresholded x0 only on request. In this library it always does."""
    scheduler = prepared(
        DDIM(prediction_type=predicts, thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e3)
    )
    guidance = gj.chain(gj.cfg(W), gj.dynamic_threshold(90.0))
    mine, theirs = both(
        scheduler, cumulative, denoiser(predicts), guidance, gj.ddim(), monkeypatch, use_clipped_model_output=True
    )
    close(mine, theirs, tolerance)


@pytest.mark.parametrize("tolerance", [1e-8], indirect=True)
@pytest.mark.parametrize(
    ("kind", "sampler", "options"),
    [
        (diffusers.DDIMScheduler, gj.ddim(), {"use_clipped_model_output": True}),
        (diffusers.DDPMScheduler, gj.ddpm(), {}),
    ],
    ids=["ddim", "ddpm"],
)
def test_clipping_agrees_without_guidance(kind, sampler, options, tolerance, monkeypatch):
    """diffusers clips the guided x0. This library clips the x0 of each branch."""
    scheduler, denoise = prepared(kind(clip_sample=True)), gj.denoisers.clip(denoiser("epsilon"))
    mine, theirs = both(scheduler, cumulative, denoise, gj.chain(), sampler, monkeypatch, w=1.0, **options)
    close(mine, theirs, tolerance)


@pytest.mark.parametrize("tolerance", [1e-8], indirect=True)
@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (gj.schedules.ddpm_linear(), {}),
        # As in ADM, the rates here are for 1,000 steps and scale with 1000 / steps.
        (gj.schedules.ddpm_linear(250), {"num_train_timesteps": 250, "beta_start": 4e-4, "beta_end": 0.08}),
        (gj.schedules.ddpm_cosine(), {"beta_schedule": "squaredcos_cap_v2"}),
        (gj.schedules.discrete(np.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2), {"beta_schedule": "scaled_linear"}),
    ],
    ids=["linear", "250 steps", "cosine", "scaled linear"],
)
def test_the_schedules_agree(schedule, options, tolerance):
    scheduler = diffusers.DDPMScheduler(**options)
    level = schedule(jnp.arange(len(scheduler.alphas_cumprod)))
    close(level.alpha, scheduler.alphas_cumprod.numpy() ** 0.5, tolerance)
    close(level.sigma, (1 - scheduler.alphas_cumprod.numpy()) ** 0.5, tolerance)


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 30, 50, 250, 999, 1000])
def test_the_spacings_agree(steps):
    schedule = gj.schedules.ddpm_linear()
    for spacing, name, offset in (
        (gj.spacings.uniform(), "linspace", 0),
        (gj.spacings.leading(), "leading", 0),
        (gj.spacings.leading(1), "leading", 1),
        (gj.spacings.trailing(), "trailing", 0),
    ):
        scheduler = diffusers.DDIMScheduler(timestep_spacing=name, steps_offset=offset)
        scheduler.set_timesteps(steps)
        np.testing.assert_array_equal(spacing(schedule, steps), scheduler.timesteps.numpy(), err_msg=name)


@pytest.mark.parametrize("tolerance", [1e-6], indirect=True)
def test_karras_levels_agree(tolerance):
    edm = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    edm.set_timesteps(STEPS)
    schedule = gj.schedules.edm(0.01, 50.0)
    mine = gj.levels(schedule, STEPS, gj.spacings.karras(5.0))
    np.testing.assert_allclose(mine.sigma, edm.sigmas.numpy(), rtol=tolerance)
    np.testing.assert_allclose(mine.t[:-1], edm.timesteps.numpy(), rtol=tolerance)
    dpm = DPM(use_karras_sigmas=True)
    dpm.set_timesteps(STEPS)
    mine = gj.levels(gj.schedules.ddpm_linear(), STEPS, gj.spacings.karras())
    np.testing.assert_allclose(mine.ratio, dpm.sigmas.numpy(), rtol=tolerance)


KARRAS = {"use_karras_sigmas": True, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(("make", "sampler"), [(DPM, gj.dpmpp_2m()), (UNIPC, gj.unipc())], ids=["dpmpp_2m", "unipc"])
def test_solvers_on_karras_levels_agree_if_the_network_rounds_its_time(make, sampler, monkeypatch):
    """diffusers' solvers give the network whole times there. This network oscillates in t, so that fractions show."""
    levels = gj.levels(gj.schedules.scaled_linear(), STEPS, gj.spacings.karras())

    def difference(at):
        denoise = gj.denoiser(lambda x, t, cond: network(jnp, x, at(t), cond), "eps")
        scheduler = prepared(make(**KARRAS))
        mine, theirs = both(scheduler, preserving, denoise, gj.cfg(W), sampler, monkeypatch, levels=levels)
        return np.abs(mine - theirs).max() / np.abs(theirs).max()

    assert difference(jnp.round) <= 1e-5
    assert difference(lambda t: t) > 1e-2
