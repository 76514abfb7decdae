"""What the likelihood receives: data, a guidance that makes an ODE, conditions that stay, and the packages that solve it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.base import Branches, Guidance, NoiseLevel, Prediction, Schedule
from guidance_jax.checks.door import Kind
from guidance_jax.checks.running import check_branches, check_networks, check_shapes, check_start

NO_ODE = (
    "the guidance renoises with another eps than its x0 implies, as CFG++ does: its small steps have no ODE for a limit, so "
    "there is no likelihood. cfg has one."
)
ONE_BY_ONE = (
    "log_likelihood takes one sample at a time, with a batch axis of 1. Where a scale, a classifier's labels or another array "
    "that the guidance holds is one per sample, jax.vmap log_likelihood over it, x[None] and the conditions."
)


is_shape = lambda value: isinstance(value, Sequence) and not isinstance(value, str)
SHAPE = Kind("the shape of one sample", is_shape, hint="(28, 28, 1) is one.")


def check_diffrax() -> None:
    """Raises unless the package that solves ODEs is installed.

    Raises:
      ImportError: telling how to install it.
    """
    try:
        import diffrax  # noqa: F401
    except ImportError as error:
        raise ImportError("log_likelihood needs the package diffrax: pip install diffrax.") from error


def check_probes(probes: int | None, keys: Any) -> None:
    """Raises where Hutchinson's estimate is asked for without a probe, or without keys that draw it.

    Raises:
      ValueError: naming both.
    """
    if probes is not None and (keys is None or probes < 1):
        raise ValueError(
            f"probes={probes} with keys={'None' if keys is None else 'given'}: Hutchinson's estimate takes at least one "
            "probe, and keys to draw them: keys=jax.random.split(jax.random.key(0), B)."
        )


def check_data(
    networks: Any, guidance: Guidance, x: Any, schedule: Schedule, keys: Array
) -> tuple[tuple[Branches, ...], jax.ShapeDtypeStruct]:
    """Raises unless data have a likelihood under these networks and this guidance.

    Returns:
      The networks, and what x is like in the solver: of float32 at least.
    """
    kind: Any = jax.typeof(x)
    axes = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else getattr(kind, "vma", ())
    if axes:
        raise ValueError(
            f"log_likelihood got jax.shard_map's default check, over {', '.join(map(str, axes))}, which diffrax's loops do not "
            "pass; use jax.shard_map(..., check_vma=False), or a batch that is sharded outside of it."
        )
    networks = check_networks(networks)
    like = check_start(keys, schedule(schedule.t_min), x)
    check_branches(networks, guidance, like, keys)
    check_shapes(guidance, jax.ShapeDtypeStruct((1, *like.shape[1:]), like.dtype))
    for name, cond in ((name, cond) for network in networks for name, cond in network.conds.items()):
        if callable(cond):
            raise ValueError(
                f"branch {name!r} has a condition that is drawn anew in every step, which no ODE does; give an array."
            )
    remembered = jax.tree.leaves(jax.eval_shape(guidance.init, like))
    if remembered:
        raise ValueError(
            f"the guidance remembers {len(remembered)} arrays from step to step (momentum, reuse, adaptive and feedback do), "
            "but the slope of an ODE depends on x and the level alone; use one without memory: apg(scale, beta=0) has none."
        )
    return networks, like


def check_guided(prediction: Prediction, x: Array) -> None:
    """Raises unless the guided prediction of one sample is shaped as it.

    Raises:
      ValueError: naming both shapes.
    """
    if prediction.x0.shape != x.shape or prediction.eps.shape != x.shape:
        raise ValueError(f"the guided x0 of one sample has shape {prediction.x0.shape[1:]}, but x {x.shape[1:]}.")


def check_ode(u: Array, prediction: Prediction, x: Array, level: NoiseLevel) -> Array:
    """u; an error while it runs where eps is known to be another than x0 implies, which NaN is not."""
    import equinox

    signal, noise = level.alpha * prediction.x0, level.sigma * prediction.eps
    rest, parts = jnp.abs(x - signal - noise).max(), (jnp.abs(x) + jnp.abs(signal) + jnp.abs(noise)).max()
    return equinox.error_if(u, rest > 1e-3 * parts, NO_ODE)
