"""Guidance: from the predictions of several branches, or a gradient, to the one prediction that the sampler uses."""

from guidance_jax.guidance.algebra import add, chain, during, stateless
from guidance_jax.guidance.contrast import cfg
from guidance_jax.guidance.gradient import classifier
from guidance_jax.guidance.shaping import rescale

__all__ = ["add", "cfg", "chain", "classifier", "during", "rescale", "stateless"]
