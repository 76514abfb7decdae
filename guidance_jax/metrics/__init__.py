"""Fidelity and diversity of samples, as functions of their features `[N, D]`."""

from guidance_jax.metrics.diversity import vendi
from guidance_jax.metrics.kernels import energy_distance, kid, kid_subsets, mmd
from guidance_jax.metrics.labels import accuracy, inception_score
from guidance_jax.metrics.moments import Moments, fid, frechet_distance, merge, moments
from guidance_jax.metrics.neighbours import Neighbours, density_coverage, neighbours, precision_recall
from guidance_jax.metrics.transport import sliced_wasserstein

__all__ = [
    "Moments",
    "Neighbours",
    "accuracy",
    "density_coverage",
    "energy_distance",
    "fid",
    "frechet_distance",
    "inception_score",
    "kid",
    "kid_subsets",
    "merge",
    "mmd",
    "moments",
    "neighbours",
    "precision_recall",
    "sliced_wasserstein",
    "vendi",
]
