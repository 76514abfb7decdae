"""Samplers: each goes from one noise level to the next. Every function here gives a `Sampler`."""

from guidance_jax.samplers.around import post_step, recur
from guidance_jax.samplers.ddim import ddim
from guidance_jax.samplers.ddpm import ddpm
from guidance_jax.samplers.dpmpp import dpmpp_2m
from guidance_jax.samplers.gaussian import gaussian
from guidance_jax.samplers.heun import heun

__all__ = ["ddim", "ddpm", "dpmpp_2m", "gaussian", "heun", "post_step", "recur"]
