"""The two interfaces that a method implements: `Guidance` and `Sampler`. Each is a pair of pure functions."""

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

    `update(prediction, state, context)` receives the base prediction, or the result of the earlier parts of a chain. A source
    adds to it. A shaper changes what others have added. Neither may change it where no branch differs from the base.

    Args:
      needs: The names of the branches that `update` reads, besides the base.
      init: `x [B, ...] -> ` the state at the start of a run: any pytree, or `()` for no state.
      update: `(prediction, state, context) -> (prediction, state)`.
      wants: `(state, step) -> {name: True, or a boolean scalar}`. A branch that is not wanted in a step is not evaluated. None
        wants every branch in every step.
      derivatives: The branches whose `context.pullback` and `context.jvp` it uses. None in it stands for the base.
      own_space: The name of the method, if it fixes its own space and cannot be used inside `in_space`. Otherwise None.
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
    """A pair of pure functions that moves samples from one noise level to the next.

    `step(denoise, state, level, next, keys)` moves `state.x` from `level` to `next`. `keys` holds one PRNG key per sample.
    A step may call `denoise` several times, and passes on the state that each call returns. The leaves of the memory are
    `[B, ...]`, one row per sample, or scalars.

    Args:
      init: `x [B, ...] -> ` the memory at the start of a run.
      step: `(denoise, state, level, next, keys) -> state`.
      kernel: `(prediction, level, next) -> (mean, deviation)`: the Gaussian of a step, for samplers with one evaluation and one
        draw per step. The deviation is `()` or `[B, ...]`, and 0 where nothing is drawn. Otherwise None.
      schedule: The schedule of the run, for samplers that visit levels outside the path. Otherwise None.
      reversible: Whether `step` also works from less noise to more. Then it can run from data to noise.

    Example:
      >>> def step(denoise, state, level, next, keys):
      ...     prediction, state = denoise(state, level)
      ...     return state._replace(x=next.alpha * prediction.x0 + next.sigma * prediction.eps)
      >>> path = gj.levels(gj.schedules.flow(), 2, gj.spacings.uniform())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> one = gj.branches(gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0"), cond=None)
      >>> print(gj.sample(keys, one, gj.chain(), gj.Sampler(lambda x: (), step), path, (2,)))
      [[3. 3.]]
    """

    init: Callable[[Array], Any]
    step: Callable[[GuidedDenoiser, State, NoiseLevel, NoiseLevel, jax.Array], State]
    kernel: Kernel | None = None
    schedule: Any = None
    reversible: bool = False
