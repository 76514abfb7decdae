"""Samplers, which move samples from one noise level to the next. Every function here returns a `Sampler`."""

from guidance_jax.samplers.around import inpaint, post_step, projected, recur
from guidance_jax.samplers.churn import churn
from guidance_jax.samplers.ddim import ddim
from guidance_jax.samplers.ddpm import ddpm
from guidance_jax.samplers.dpmpp import dpmpp_2m, dpmpp_2s, dpmpp_3m
from guidance_jax.samplers.dpmpp_sde import dpmpp_sde
from guidance_jax.samplers.euler import euler, euler_ancestral
from guidance_jax.samplers.forget import forget
from guidance_jax.samplers.gaussian import gaussian
from guidance_jax.samplers.heun import flow_heun, heun
from guidance_jax.samplers.langevin import predictor_corrector
from guidance_jax.samplers.restart import restart
from guidance_jax.samplers.stochastic import heun_sde
from guidance_jax.samplers.unipc import unipc

__all__ = [
    "churn",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "flow_heun",
    "forget",
    "gaussian",
    "heun",
    "heun_sde",
    "inpaint",
    "post_step",
    "predictor_corrector",
    "projected",
    "recur",
    "restart",
    "unipc",
]
