"""Conditions that are drawn anew in every step, and networks that read a perturbation from their condition."""

from collections.abc import Callable

import jax
from jax import Array

from guidance_jax.checks.old import per_sample
from guidance_jax.base import Cond, Denoiser, NoiseLevel, Prediction, Step
from guidance_jax.checks.old import check_count, check_kind
from guidance_jax.noise import normal, step_keys
from guidance_jax.scales import Scale, at_level

__all__ = ["random_labels", "retimed", "time_noise"]


def random_labels(classes: int) -> Callable[[Step], Array]:
    """A condition for `icg`: labels drawn uniformly in every step, independent of x.

    Args:
      classes: labels are 0..classes - 1.

    Raises:
      ValueError: if classes is below 1.

    Example:
      >>> denoise = denoiser(lambda x, t, y: x + y[:, None].astype(x.dtype), predicts="x0")
      >>> two = branches(denoise, cond=jnp.array([3, 1]), random=conditions.random_labels(10))
      >>> keys, path = jax.random.split(jax.random.key(0), 2), levels(schedules.edm(), 4, spacings.karras())
      >>> print(sample(keys, two, icg(2.0), ddim(), path, (3,)).shape)
      (2, 3)

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 4.
    """
    check_count(classes, "random_labels' classes")

    def draw(step: Step) -> Array:
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, classes))(step_keys(step))

    return draw


def retimed(denoise: Denoiser) -> Denoiser:
    """A denoiser whose condition is `(cond, offset [B])`: the network is told the time plus the offset. For `tsg`.

    Args:
      denoise: the denoiser.

    Example:
      >>> told = conditions.retimed(denoiser(lambda x, t, cond: x * t[:, None], predicts="x0"))
      >>> print(told(jnp.ones((2, 1)), schedules.flow()(0.5), (None, jnp.array([0.0, 0.25]))).x0)
      [[0.5 ]
       [0.75]]

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 5, which moves the time's embedding; this moves the time.
    """

    def told(x: Array, level: NoiseLevel, cond: tuple[Cond, Array]) -> Prediction:
        check_kind(cond, tuple, "the condition of a retimed denoiser", "(cond, offset [B]) is one.")
        inner, offset = cond
        return denoise(x, level._replace(t=level.t + offset.astype(x.dtype)), inner)

    return told


def time_noise(spread: Scale) -> Callable[[Step], Array]:
    """Offsets for `retimed`: Gaussian, drawn in every step.

    Args:
      spread: the standard deviation in the network's time, `()` or `[B]`, or a function of the level.

    Raises:
      ValueError: when called, if spread is neither `()` nor `[B]`, negative or not finite.

    Example:
      >>> noise = conditions.time_noise(lambda level: 0.1 * level.t)
      >>> cond = jnp.array([3, 1])
      >>> denoise = conditions.retimed(denoiser(lambda x, t, y: x * t[:, None], predicts="x0"))
      >>> two = branches(denoise, cond=(cond, jnp.zeros(2)), retimed=lambda step: (cond, noise(step)))
      >>> keys, path = jax.random.split(jax.random.key(0), 2), levels(schedules.flow(), 4, spacings.uniform())
      >>> print(sample(keys, two, tsg(2.0), ddim(), path, (3,)).shape)
      (2, 3)

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 5.
    """

    def draw(step: Step) -> Array:
        z = normal(step_keys(step), jax.ShapeDtypeStruct(step.keys.shape, step.level.sigma.dtype))
        return per_sample(at_level(spread, step.level, "time_noise's spread"), z, "time_noise's spread") * z

    return draw
