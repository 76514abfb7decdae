"""What the likelihood receives: data, a guidance that makes an ODE, conditions that stay, and the packages that solve it."""

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

NO_ODE = "the guidance renoises with another eps than its x0 implies, as CFG++ does, so it has no ODE; use cfg, which has one."
ONE_BY_ONE = "log_likelihood takes one sample at a time: jax.vmap it over x[None], conditions, and the guidance's arrays [B]."
MEMORY = "the guidance remembers {count} arrays from step to step, and no ODE does; use one without memory: apg(scale, beta=0)."
is_shape = lambda value: isinstance(value, Sequence) and not isinstance(value, str)
SHAPE = Kind("the shape of one sample", is_shape, hint="(28, 28, 1) is one.")


def check_diffrax() -> None:
    """Raises unless the package that solves ODEs is installed."""
    demand(find_spec("diffrax") is not None, "log_likelihood needs the package diffrax: pip install diffrax.", ImportError)


def check_probes(probes: int | None, keys: Any) -> None:
    """Raises where Hutchinson's estimate is asked for without keys that draw its probes."""
    right = probes is None or keys is not None
    demand(right, f"probes={probes} needs keys to draw them, got keys=None; use keys=jax.random.split(jax.random.key(0), B).")


def check_data(
    networks: Any, guidance: Guidance, x: Any, schedule: Any, keys: Array
) -> tuple[tuple[Branches, ...], jax.ShapeDtypeStruct]:
    """The networks, and what x is like in the solver, of float32 at least; raises unless they have a likelihood."""
    kind: Any = jax.typeof(x)
    axes = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else getattr(kind, "vma", ())
    message = "diffrax's loops do not pass jax.shard_map's check, here over {axes}; use jax.shard_map(..., check_vma=False)."
    demand(not axes, message, axes=", ".join(map(str, axes)))
    networks = check_networks(networks)
    like = check_start(keys, schedule(schedule.t_min), x)
    check_branches(networks, guidance, like, keys)
    check_shapes(guidance, jax.ShapeDtypeStruct((1, *like.shape[1:]), like.dtype))
    drawn = [name for network in networks for name, cond in network.conds.items() if callable(cond)]
    demand(not drawn, "branches {drawn} have conditions drawn anew in every step, which no ODE does; give arrays.", drawn=drawn)
    remembered = jax.tree.leaves(jax.eval_shape(guidance.init, like))
    demand(not remembered, MEMORY, count=len(remembered))
    return networks, like


def check_ode(u: Array, prediction: Prediction, x: Array, level: NoiseLevel) -> Array:
    """u; an error while it runs where eps is known to be another than x0 implies, which NaN is not."""
    import equinox

    signal, noise = level.alpha * prediction.x0, level.sigma * prediction.eps
    rest, parts = jnp.abs(x - signal - noise).max(), (jnp.abs(x) + jnp.abs(signal) + jnp.abs(noise)).max()
    return equinox.error_if(u, rest > 1e-3 * parts, NO_ODE)
