"""What an exact mixture receives: its components, and the points, levels and labels at which it is evaluated."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete
from guidance_jax.base import NoiseLevel
from guidance_jax.checks.numbers import check_finite
from guidance_jax.checks.paths import check_level
from guidance_jax.checks.running import check_labels
from guidance_jax.checks.words import told


def check_components(means: Any, covariances: Any, weights: Any, labels: Any) -> None:
    """Raises unless they are the components of a mixture, where their values are known.

    Raises:
      TypeError: if one is not an array of numbers, or the labels are not integers.
      ValueError: if the shapes do not fit, or a value is out of range.
    """
    for name, value in (("means", means), ("covariances", covariances), ("weights", weights)):
        if not jnp.issubdtype(getattr(value, "dtype", bool), jnp.floating):
            raise TypeError(f"GaussianMixture: {name} must be an array of floating numbers, got {told(value)}.")
        check_finite(value, f"GaussianMixture: {name}")
    if not hasattr(labels, "dtype") or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"GaussianMixture: labels must be integers, [K], got {told(labels)}; cast them with .astype(int).")
    if means.ndim != 2:
        raise ValueError(f"GaussianMixture: means have shape {means.shape}, but must be [K, D]; one number each is [K, 1].")
    k, d = means.shape
    shapes = {"covariances": (covariances, (k, d, d)), "weights": (weights, (k,)), "labels": (labels, (k,))}
    for name, (value, shape) in shapes.items():
        if value.shape != shape:
            raise ValueError(f"GaussianMixture: {name} have shape {value.shape}, but means {means.shape} ask for {shape}.")
    if concrete(weights) and not (np.asarray(weights) > 0).all():
        raise ValueError(f"GaussianMixture: weights must be positive, got {weights}.")
    if concrete(covariances):
        both = np.asarray(covariances), np.asarray(covariances).transpose(0, 2, 1)
        if not np.allclose(*both, rtol=1e-3, atol=1e-5 * np.abs(both[0]).max()):
            raise ValueError(f"GaussianMixture: covariances must be symmetric, got {covariances}.")
    if concrete(labels) and set(np.asarray(labels).tolist()) != set(range(int(np.asarray(labels).max()) + 1)):
        raise ValueError(f"GaussianMixture: labels must name every class from 0 to the last, got {labels}; -1 stands for all.")


def check_positive_definite(variances: Array) -> None:
    """Raises where a known eigenvalue of a covariance is not positive.

    Raises:
      ValueError: naming the least.
    """
    if concrete(variances) and not (np.asarray(variances) > 0).all():
        raise ValueError(
            f"GaussianMixture: covariances must be positive definite, but their least eigenvalue is {variances.min()}."
        )


def check_point(x: Array, level: NoiseLevel, label: Array, dimension: int) -> None:
    """Raises unless x, its level and its labels fit each other and the mixture.

    Raises:
      ValueError: naming the shape that does not.
      TypeError: if the level is none.
    """
    if x.ndim != 2 or x.shape[1] != dimension:
        raise ValueError(f"x has shape {x.shape}, but this mixture lives in [B, {dimension}].")
    if label.shape != x.shape[:1]:
        raise ValueError(f"label has shape {label.shape}, but x {x.shape} needs one per sample: {x.shape[:1]}.")
    check_level(level, x)


def check_prior(label: Array, labels: Array) -> None:
    """Raises where a label is known and of no component.

    Raises:
      ValueError: naming it.
      TypeError: if the labels are not integers.
    """
    if concrete(labels):
        check_labels(label, int(np.asarray(labels).max()) + 1, "this mixture", lowest=-1)
