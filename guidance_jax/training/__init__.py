"""Parts of a training loop besides the optimiser: noise levels, losses, label dropout, averages of parameters.

Losses are per sample, `[B]`. Take their mean. Networks and classifiers are pure functions with parameters bound by the caller.
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
