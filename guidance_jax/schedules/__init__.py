"""Noise schedules, which map the network's time to `(alpha, sigma)`, and the paths of noise levels that samplers follow."""

from guidance_jax.schedules.continuous import cosine, edm, flow, linear, shift
from guidance_jax.schedules.paths import below, levels, reverse, strength
from guidance_jax.schedules.schedule import Schedule
from guidance_jax.schedules.stepwise import ddpm_cosine, ddpm_linear, discrete, scaled_linear, zero_terminal_snr

__all__ = [
    "Schedule",
    "below",
    "cosine",
    "ddpm_cosine",
    "ddpm_linear",
    "discrete",
    "edm",
    "flow",
    "levels",
    "linear",
    "reverse",
    "scaled_linear",
    "shift",
    "strength",
    "zero_terminal_snr",
]
