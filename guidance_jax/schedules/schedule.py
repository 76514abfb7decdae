"""The class of noise schedules."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.base import NoiseLevel, Scalar
from guidance_jax.checks.door import CLASSES
from guidance_jax.checks.kinds import class_kind
from guidance_jax.checks.numbers import check_positive, check_range, check_time
from guidance_jax.programs.parts import Part


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Schedule(Part):
    """A noise schedule: `schedule(t)` is the `NoiseLevel` at time t, and `schedule.at(sigma / alpha)` is the level at a ratio.

    Args:
      alpha_sigma: `t -> (alpha, sigma)`, for t of any shape.
      inverse: `sigma / alpha -> t`.
      t_min: The time of minimum noise.
      t_max: The time of maximum noise.
      steps: The number of training steps of a discrete schedule, whose times are 0..steps - 1. None if it is continuous.
      network_time: `t -> ` the time that the network receives, if it is not t: for `shift`.

    Raises:
      ValueError: When called with a known time that is not finite, or far outside `t_min..t_max`. A common cause is a sigma in
        place of a time: `at` takes any ratio. Also if it is none of the steps of a discrete schedule, or alpha or sigma is
        negative there.

    Example:
      >>> inverse = lambda ratio: ratio / (1 + ratio)
      >>> straight = gj.Schedule(lambda t: (1 - t, t), inverse, t_min=0.0, t_max=1.0)
      >>> print(straight(0.75).ratio, straight.at(3.0).t)
      3.0 0.75
    """

    alpha_sigma: Callable[[Array], tuple[Array, Array]]
    inverse: Callable[[Array], Array]
    t_min: Scalar
    t_max: Scalar
    steps: int | None = None
    network_time: Callable[[Array], Array] | None = None

    def __call__(self, t: ArrayLike) -> NoiseLevel:
        check_time(t, self.t_min, self.t_max, self.steps)
        level = self._level(t)
        check_positive(t, level.alpha, level.sigma)
        return level

    def at(self, ratio: ArrayLike) -> NoiseLevel:
        """The level at which `sigma / alpha` is `ratio`. Beyond the ends of a discrete schedule, it is the first or last step.

        Raises:
          ValueError: If ratio is known and negative or NaN.
        """
        check_range(ratio, "schedule.at: ratio", 0, jnp.inf)
        return self._level(self.inverse(jnp.asarray(ratio, jnp.result_type(float))))

    def _level(self, t: ArrayLike) -> NoiseLevel:
        t = jnp.asarray(t, jnp.result_type(float))
        return NoiseLevel(t if self.network_time is None else self.network_time(t), *self.alpha_sigma(t))


CLASSES[Schedule] = class_kind(Schedule, "use gj.schedules.cosine().")
