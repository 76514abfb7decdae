"""Every sampler with the independent NumPy version from its paper, and two Gaussians for its runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import readings

import guidance_jax as gj
from guidance_jax.base import Prediction

MEAN_C, VAR_C, MEAN_U, VAR_U, SCALE = 1.3, 0.5, -0.4, 2.0, 3.0
SHARE, STEPS, RUNS = 0.3, 7, 12


def one(mean, variance):
    return lambda x, alpha, sigma: mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


def guided(x, alpha, sigma):
    """The guided x0 of the two Gaussians: `u + w (c - u)`."""
    c, u = one(MEAN_C, VAR_C)(x, alpha, sigma), one(MEAN_U, VAR_U)(x, alpha, sigma)
    return u + SCALE * (c - u)


def two_gaussians(batch, schedule=None):
    """Branches whose CFG is `guided`. Each predicts a variance between the small and the large one. With a schedule, they
    compute their level from t.
    """

    def denoise(x, level, cond):
        known = level if schedule is None else schedule(level.t)
        alpha, sigma = known.alpha, known.sigma
        x0 = one(cond[:, :1], cond[:, 1:])(x, alpha, sigma)
        return Prediction(x0, (x - alpha * x0) / sigma, jnp.full_like(x, SHARE))

    both = (MEAN_C, VAR_C), (MEAN_U, VAR_U)
    cond, uncond = (jnp.broadcast_to(jnp.array(parameters, float), (batch, 2)) for parameters in both)
    return gj.branches(denoise, cond=cond, uncond=uncond)


class Row(NamedTuple):
    make: Callable[[Any], gj.Sampler]
    reading: Callable[..., tuple[float, object]]
    evaluations: int = 1
    """In a step that does not end at sigma' = 0; there it is one."""
    schedule: str | None = None
    """The one to test it on, where it is made of one."""
    fold: int | None = None
    """With what the step's keys are folded once more before it draws."""


CHURN = {"amount": 2.0 / STEPS, "low": 0.05, "high": 50.0, "noise_scale": 1.1}
EDM = {"s_churn": 2.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.1, "steps": STEPS}
ROWS = {
    "ddim": Row(lambda schedule: gj.ddim(), readings.ddim(0.0)),
    "ddim eta": Row(lambda schedule: gj.ddim(0.6), readings.ddim(0.6)),
    "ddim ancestral": Row(lambda schedule: gj.ddim(1.0), readings.ddim(1.0)),
    "ddpm small": Row(lambda schedule: gj.ddpm(), readings.ddpm(lambda beta, tilde: np.log(tilde))),
    "ddpm large": Row(lambda schedule: gj.ddpm("large"), readings.ddpm(lambda beta, tilde: np.log(beta))),
    "ddpm learned": Row(
        lambda schedule: gj.ddpm("learned"),
        readings.ddpm(lambda beta, tilde: SHARE * np.log(beta) + (1 - SHARE) * np.log(tilde)),
    ),
    "euler": Row(lambda schedule: gj.euler(), readings.edm(False)),
    "euler churn": Row(lambda schedule: gj.churn(gj.euler(), schedule, **CHURN), readings.edm(False, **EDM), 1, "ddpm_linear"),
    "euler_ancestral": Row(lambda schedule: gj.euler_ancestral(1.0, noise_scale=1.0), readings.euler_ancestral(1.0, 1.0)),
    "euler_ancestral eta above one": Row(
        lambda schedule: gj.euler_ancestral(2.5, noise_scale=1.1), readings.euler_ancestral(2.5, 1.1)
    ),
    "euler_ancestral eta": Row(lambda schedule: gj.euler_ancestral(0.6, noise_scale=1.1), readings.euler_ancestral(0.6, 1.1)),
    "heun": Row(lambda schedule: gj.heun(), readings.edm(True), 2),
    "heun churn": Row(lambda schedule: gj.churn(gj.heun(), schedule, **CHURN), readings.edm(True, **EDM), 2, "flow"),
    "flow_heun": Row(lambda schedule: gj.flow_heun(), readings.flow_heun, 2),
    "dpmpp_2s": Row(lambda schedule: gj.dpmpp_2s(schedule), readings.dpmpp_2s(), 2, "cosine"),
    "dpmpp_2s eta": Row(
        lambda schedule: gj.dpmpp_2s(schedule, eta=0.7, noise_scale=1.1),
        readings.dpmpp_2s(0.7, 1.1),
        2,
        "ddpm_linear",
    ),
    "dpmpp_2m": Row(lambda schedule: gj.dpmpp_2m(), readings.dpmpp_2m),
    "dpmpp_3m": Row(lambda schedule: gj.dpmpp_3m(), readings.dpmpp_3m),
    "dpmpp_sde": Row(lambda schedule: gj.dpmpp_sde(1.0, noise_scale=1.0), readings.dpmpp_sde(1.0, 1.0)),
    "dpmpp_sde eta": Row(lambda schedule: gj.dpmpp_sde(0.6, noise_scale=1.1), readings.dpmpp_sde(0.6, 1.1)),
    "heun_sde": Row(lambda schedule: gj.heun_sde(1.0), readings.heun_sde(1.0), 2),
    "heun_sde eta": Row(lambda schedule: gj.heun_sde(0.6), readings.heun_sde(0.6), 2),
    "predictor_corrector": Row(
        lambda schedule: gj.predictor_corrector(gj.ddim(), size=0.3, guided=True), readings.predictor_corrector(0.3), 2, fold=1
    ),
    "unipc 1": Row(lambda schedule: gj.unipc(1), readings.unipc(1, 2)),
    "unipc 2": Row(lambda schedule: gj.unipc(), readings.unipc(2, 2)),
    "unipc 3": Row(lambda schedule: gj.unipc(3), readings.unipc(3, 2)),
    "unipc 3, variant 1": Row(lambda schedule: gj.unipc(3, variant=1), readings.unipc(3, 1)),
}
