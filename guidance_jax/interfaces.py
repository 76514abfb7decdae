"""Guidance and Sampler: the two interfaces that a method implements. Each is a pair of pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from guidance_jax.base import Context, GuidedDenoiser, Kernel, NoiseLevel, Prediction, State, Step
from guidance_jax.programs.parts import Part


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Guidance(Part):
    """A pair of pure functions that turns branches into the one prediction that the sampler uses.

    `update(prediction, state, context)` receives what earlier parts of a chain made of the base prediction. A source
    adds to it, a shaper changes it. Neither may change it where no branch differs from the base.

    Args:
      needs: The names of the branches that `update` reads, besides the base.
      init: `x [B, ...] -> ` what it remembers at the start of a run: any pytree, `()` for nothing.
      update: `(prediction, state, context) -> (prediction, state)`.
      wants: `(state, step) -> {name: True, or a boolean scalar}`: a branch that is not wanted in this step is not
        evaluated. None: every branch, always.
      derivatives: The branches whose `context.pullback` and `context.jvp` it uses; None in it stands for the base.
      own_space: The method that has a space of its own, and so has no place inside `in_space`; None if there is none.
      shapes: Whether it only changes what others have added.

    Example:
      >>> update = lambda prediction, state, context: (0.5 * prediction, state)
      >>> halve = gj.Guidance(frozenset(), lambda x: (), update)
      >>> sorted(gj.chain(halve, gj.cfg(2.0)).needs)
      ['cond', 'uncond']
    """

    needs: frozenset[str]
    init: Callable[[Array], Any]
    update: Callable[[Prediction, Any, Context], tuple[Prediction, Any]]
    wants: Callable[[Any, Step], dict[str, Any]] | None = None
    derivatives: frozenset[str | None] = frozenset()
    own_space: str | None = None
    shapes: bool = False


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Sampler(Part):
    """A pair of pure functions that goes from one noise level to the next.

    `step(denoise, state, level, next, keys)` moves `state.x` from `level` to `next`; `keys` holds one PRNG key per sample.
    It calls `denoise` as often as it needs, and passes on the state that each call returns. Every leaf of what `init(x)`
    makes is `[B, ...]`, one row per sample, or a scalar.

    Args:
      init: `x [B, ...] -> ` the memory at the start of a run.
      step: `(denoise, state, level, next, keys) -> state`.
      kernel: The Gaussian of a step, for samplers whose step is one evaluation and one draw: its deviation, `()` or
        `[B, ...]`, is 0 where nothing is drawn.
      schedule: That of the run's levels, for samplers that visit other levels than these.
      reversible: Whether `step` also goes from less noise to more, and so can be run from data to noise.

    Example:
      >>> def step(denoise, state, level, next, keys):
      ...     prediction, state = denoise(state, level)
      ...     return state._replace(x=next.alpha * prediction.x0 + next.sigma * prediction.eps)
      >>> path, keys = gj.levels(gj.schedules.flow(), 2, gj.spacings.uniform()), jax.random.split(jax.random.key(0), 1)
      >>> one = gj.branches(gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0"), cond=None)
      >>> print(gj.sample(keys, one, gj.chain(), gj.Sampler(lambda x: (), step), path, (2,)))
      [[3. 3.]]
    """

    init: Callable[[Array], Any]
    step: Callable[[GuidedDenoiser, State, NoiseLevel, NoiseLevel, jax.Array], State]
    kernel: Kernel | None = None
    schedule: Any = None
    reversible: bool = False
