"""What training needs beside an optimiser: noise levels, losses, label dropout, averaged parameters.

Losses are per sample, `[B]`; take their mean. Networks and classifiers are pure functions, parameters bound by the caller.
"""

from guidance_jax.training.averages import ema
from guidance_jax.training.levels import diffuse, log_normal_levels, noise_levels
from guidance_jax.training.losses import classifier_loss, denoising_loss, drop, edm_loss, min_snr

__all__ = [
    "classifier_loss",
    "denoising_loss",
    "diffuse",
    "drop",
    "edm_loss",
    "ema",
    "log_normal_levels",
    "min_snr",
    "noise_levels",
]
