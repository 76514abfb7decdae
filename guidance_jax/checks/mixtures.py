"""Argument validation for `GaussianMixture`: its components, and the points, levels and labels of its methods."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.base import NoiseLevel
from guidance_jax.checks.numbers import check_finite, check_form
from guidance_jax.checks.paths import check_level
from guidance_jax.checks.traced import concrete, demand
from guidance_jax.checks.values import check_labels


def check_components(means: Any, covariances: Any, weights: Any, labels: Any) -> None:
    """Raises an error unless these are the components of a mixture."""
    check_form(means, "GaussianMixture: means", "K D", hint="for one dimension, use [K, 1].")
    k, d = means.shape
    check_form(labels, "GaussianMixture: labels", f"{k}", jnp.integer, hint="cast them with .astype(int).")
    forms = ("means", means, "K D"), ("covariances", covariances, f"{k} {d} {d}"), ("weights", weights, f"{k}")
    for name, value, form in forms:
        check_form(value, f"GaussianMixture: {name}", form, hint=f"means are [{k}, {d}].")
        check_finite(value, f"GaussianMixture: {name}")
    demand(lambda: weights > 0, "GaussianMixture: weights must be positive, got {weights}.", weights=weights)
    alike = lambda c=covariances: abs(c - c.swapaxes(1, 2)) <= 1e-3 * abs(c) + 1e-5 * abs(c).max()
    demand(alike, "GaussianMixture: covariances must be symmetric, got {covariances}.", covariances=covariances)
    every = not concrete(labels) or set(np.asarray(labels).tolist()) == set(range(int(np.asarray(labels).max()) + 1))
    message = "GaussianMixture: labels must contain every class from 0 to the last, got {labels}; -1 means all classes."
    demand(every, message, labels=labels)


def check_positive_definite(variances: Array) -> None:
    """Raises an error if an eigenvalue of a covariance is not positive."""
    demand(lambda: variances > 0, "GaussianMixture: covariances must be positive definite, got eigenvalues {v}.", v=variances)


def check_point(x: Array, level: NoiseLevel, label: Array, dimension: int) -> None:
    """Raises an error unless x, its level and its labels match each other and the mixture."""
    demand(x.ndim == 2 and x.shape[1] == dimension, f"x must be [B, {dimension}] for this mixture, got x of shape {x.shape}.")
    demand(label.shape == x.shape[:1], f"label must be [B] = {x.shape[:1]}, one per sample of x, got shape {label.shape}.")
    check_level(level, x)


def check_prior(label: Array, labels: Array) -> None:
    """Raises an error if a known label belongs to no component."""
    if concrete(labels):
        check_labels(label, int(np.asarray(labels).max()) + 1, "this mixture", lowest=-1)
