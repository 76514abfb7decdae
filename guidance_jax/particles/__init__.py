"""Particles that sample a target density: targets, and sequential Monte Carlo."""

from guidance_jax.particles.resampling import effective_size, systematic
from guidance_jax.particles.smc import Particles, feynman_kac

__all__ = ["Particles", "effective_size", "feynman_kac", "systematic"]
