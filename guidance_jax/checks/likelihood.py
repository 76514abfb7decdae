"""Argument validation for `log_likelihood` and `encode`."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.base import Branches, NoiseLevel, Prediction
from guidance_jax.checks.door import Kind
from guidance_jax.checks.running import check_branches, check_networks, check_shapes, check_start
from guidance_jax.checks.traced import demand
from guidance_jax.interfaces import Guidance

NO_ODE = "the guidance must have an ODE, but its eps differs from the eps that its x0 implies, as in CFG++; use cfg."
ONE_BY_ONE = "log_likelihood solves one sample at a time; use jax.vmap over x[None], conditions and the guidance's arrays [B]."
MEMORY = "the guidance must have no memory, but it keeps {count} arrays between steps; use one without: apg(scale, beta=0)."
is_shape = lambda value: isinstance(value, Sequence) and not isinstance(value, str)
SHAPE = Kind("the shape of one sample", is_shape, hint="use (28, 28, 1).")


def check_diffrax() -> None:
    """Raises an error unless diffrax is installed, which solves the ODE."""
    demand(find_spec("diffrax") is not None, "log_likelihood needs the package diffrax: pip install diffrax.", ImportError)


def check_probes(probes: int | None, keys: Any) -> None:
    """Raises an error if Hutchinson's estimate has no keys to draw its probes."""
    right = probes is None or keys is not None
    demand(right, f"probes={probes} needs keys, got keys=None; use keys=jax.random.split(jax.random.key(0), B).")


def check_data(
    networks: Any, guidance: Guidance, x: Any, schedule: Any, keys: Array
) -> tuple[tuple[Branches, ...], jax.ShapeDtypeStruct]:
    """The networks, and the shape and dtype of x in the solver. Raises an error unless these have a likelihood."""
    kind: Any = jax.typeof(x)
    axes = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else getattr(kind, "vma", ())
    message = "the loops of diffrax fail the check of jax.shard_map over {axes}; use jax.shard_map(..., check_vma=False)."
    demand(not axes, message, axes=", ".join(map(str, axes)))
    networks = check_networks(networks)
    like = check_start(keys, schedule(schedule.t_min), x)
    check_branches(networks, guidance, like, keys)
    check_shapes(guidance, jax.ShapeDtypeStruct((1, *like.shape[1:]), like.dtype))
    drawn = [name for network in networks for name, cond in network.conds.items() if callable(cond)]
    message = "conditions must be the same in every step, but branches {drawn} draw theirs; use arrays."
    demand(not drawn, message, drawn=drawn)
    remembered = jax.tree.leaves(jax.eval_shape(guidance.init, like))
    demand(not remembered, MEMORY, count=len(remembered))
    return networks, like


def check_ode(u: Array, prediction: Prediction, x: Array, level: NoiseLevel) -> Array:
    """Returns u. When the program runs, raises an error if eps differs from the eps that x0 implies; NaN raises none."""
    import equinox

    signal, noise = level.alpha * prediction.x0, level.sigma * prediction.eps
    rest, parts = jnp.abs(x - signal - noise).max(), (jnp.abs(x) + jnp.abs(signal) + jnp.abs(noise)).max()
    return equinox.error_if(u, rest > 1e-3 * parts, NO_ODE)
