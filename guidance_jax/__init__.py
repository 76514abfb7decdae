"""Guidance for diffusion models in JAX, as pure functions.

A network becomes a denoiser, conditions become branches, a guidance makes one prediction of them, a sampler walks the
noise levels, and `sample` owns the loop.
"""

from guidance_jax import denoisers, metrics, networks, oracles, schedules, scores, spacings, training
from guidance_jax.base import Branches, Context, Guidance, NoiseLevel, Prediction, Sampler, Schedule, State
from guidance_jax.denoisers import denoiser
from guidance_jax.guidance import add, cfg, chain, classifier, during, rescale, stateless
from guidance_jax.samplers import ddim, ddpm, dpmpp_2m, heun
from guidance_jax.sampling import branches, evaluate, evaluations, guide, sample
from guidance_jax.schedules import levels

__all__ = [
    "Branches",
    "Context",
    "Guidance",
    "NoiseLevel",
    "Prediction",
    "Sampler",
    "Schedule",
    "State",
    "add",
    "branches",
    "cfg",
    "chain",
    "classifier",
    "ddim",
    "ddpm",
    "denoiser",
    "denoisers",
    "dpmpp_2m",
    "during",
    "evaluate",
    "evaluations",
    "guide",
    "heun",
    "levels",
    "metrics",
    "networks",
    "oracles",
    "rescale",
    "sample",
    "schedules",
    "scores",
    "spacings",
    "stateless",
    "training",
]
