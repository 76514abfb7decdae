"""Conditions that are drawn in every step, and denoisers that read a time offset from their condition."""

from collections.abc import Callable

import jax
from jax import Array

from guidance_jax.base import Cond, Denoiser, NoiseLevel, Prediction, Step
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import Count, Denoise, NonNegativeScale
from guidance_jax.checks.outcomes import check_pair
from guidance_jax.guidance.scales import at_level, per_sample
from guidance_jax.noise import normal, step_keys

__all__ = ["random_labels", "retimed", "time_noise"]


@part()
def random_labels(classes: Count) -> Callable[[Step], Array]:
    """A condition for `icg`: labels drawn uniformly in every step, independent of x.

    `p(y) = 1 / classes`

    Args:
      classes: The number of classes. Labels are 0..classes - 1.

    Raises:
      ValueError: If classes is below 1.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, y: x + y[:, None].astype(x.dtype), predicts="x0")
      >>> two = gj.branches(denoise, cond=jnp.array([3, 1]), random=gj.conditions.random_labels(10))
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> path = gj.levels(gj.schedules.edm(), 4, gj.spacings.karras())
      >>> print(gj.sample(keys, two, gj.icg(2.0), gj.ddim(), path, (3,)).shape)
      (2, 3)

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 4.
    """

    def draw(step: Step) -> Array:
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, classes))(step_keys(step))

    return draw


@part()
def retimed(denoise: Denoise) -> Denoiser:
    """A denoiser for `tsg`: its condition is `(cond, offset [B])`, and the network receives the time plus the offset.

    `D'(x, t, (cond, offset)) = D(x, t + offset, cond)`

    Args:
      denoise: The denoiser.

    Raises:
      TypeError: If denoise is not a function. When called, if the condition is not such a pair.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: x * t[:, None], predicts="x0")
      >>> later, level = gj.conditions.retimed(denoise), gj.schedules.flow()(0.5)
      >>> print(later(jnp.ones((2, 1)), level, (None, jnp.array([0.0, 0.25]))).x0)
      [[0.5 ]
       [0.75]]

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 5. The paper perturbs the time embedding; this perturbs the time.
    """

    def later(x: Array, level: NoiseLevel, cond: tuple[Cond, Array]) -> Prediction:
        check_pair(cond, "the condition of a retimed denoiser", "(cond, offset [B])")
        inner, offset = cond
        return denoise(x, level.replace(t=level.t + offset.astype(x.dtype)), inner)

    return later


@part()
def time_noise(spread: NonNegativeScale) -> Callable[[Step], Array]:
    """Offsets for `retimed`: Gaussian, drawn in every step.

    `offset = spread z`, with z standard normal

    Args:
      spread: The standard deviation, in units of the network's time.

    Raises:
      ValueError: If spread is negative or not finite. When called, if it is neither `()` nor `[B]`.

    Example:
      >>> noise = gj.conditions.time_noise(lambda level: 0.1 * level.t)
      >>> y, zero = jnp.array([3, 1]), jnp.zeros(2)
      >>> denoise = gj.denoiser(lambda x, t, y: x * t[:, None], predicts="x0")
      >>> later = gj.conditions.retimed(denoise)
      >>> two = gj.branches(later, cond=(y, zero), retimed=lambda step: (y, noise(step)))
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.uniform())
      >>> print(gj.sample(keys, two, gj.tsg(2.0), gj.ddim(), path, (3,)).shape)
      (2, 3)

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 5.
    """

    def draw(step: Step) -> Array:
        z = normal(step_keys(step), jax.ShapeDtypeStruct(step.keys.shape, step.level.sigma.dtype))
        return per_sample(at_level(spread, step.level), z, "time_noise: spread") * z

    return draw
