"""Guidance methods. Each turns the predictions of branches, or a gradient, into the one prediction that the sampler uses."""

from guidance_jax.guidance.algebra import add, chain, during, in_space, masked, on_channels, relative_to, unless_one
from guidance_jax.guidance.apg import apg
from guidance_jax.guidance.feedback import feedback
from guidance_jax.guidance.formula import direction, source, stateless
from guidance_jax.guidance.gradient import classifier, mean_shift, reg
from guidance_jax.guidance.linear import autoguidance, cfg, cfg_pp, compose, dual_cfg, icg, perturbed, tsg
from guidance_jax.guidance.nonlinear import beta_cfg, cfg_zero_star, mambo_g, perp_neg, power_law, recfg, tcfg
from guidance_jax.guidance.posterior import dps, freedom, lgd, mpgd, pigdm, tfg, universal
from guidance_jax.guidance.shaping import amplify, clip_norm, dynamic_threshold, momentum, project, rescale
from guidance_jax.guidance.skipping import adaptive, fit_linear, linear_reuse, reuse
from guidance_jax.guidance.spectral import fdg, fresca

__all__ = [
    "adaptive",
    "add",
    "amplify",
    "apg",
    "autoguidance",
    "beta_cfg",
    "cfg",
    "cfg_pp",
    "cfg_zero_star",
    "chain",
    "classifier",
    "clip_norm",
    "compose",
    "direction",
    "dps",
    "dual_cfg",
    "during",
    "dynamic_threshold",
    "fdg",
    "feedback",
    "fit_linear",
    "freedom",
    "fresca",
    "icg",
    "in_space",
    "lgd",
    "linear_reuse",
    "mambo_g",
    "masked",
    "mean_shift",
    "momentum",
    "mpgd",
    "on_channels",
    "perp_neg",
    "perturbed",
    "pigdm",
    "power_law",
    "project",
    "recfg",
    "reg",
    "relative_to",
    "rescale",
    "reuse",
    "source",
    "stateless",
    "tcfg",
    "tfg",
    "tsg",
    "universal",
    "unless_one",
]
