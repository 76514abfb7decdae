"""Conditions that are drawn anew in every step, and networks that read a perturbation from their condition."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.base import Cond, Denoiser, NoiseLevel, Prediction, Step
from guidance_jax.noise import step_keys
from guidance_jax.scales import Scale


def random_labels(classes: int) -> Callable[[Step], Array]:
    """A condition for `icg`: labels drawn uniformly in every step, independent of x.

    Args:
      classes: labels are 0..classes - 1.

    Example:
      >>> denoise = denoiser(lambda x, t, y: x + y[:, None], predicts="x0")
      >>> two = branches(denoise, cond=jnp.array([3, 1]), random=conditions.random_labels(10))

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 4.
    """

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
        inner, offset = cond
        return denoise(x, level._replace(t=level.t + offset.astype(x.dtype)), inner)

    return told


def time_noise(spread: Scale) -> Callable[[Step], Array]:
    """Offsets for `retimed`: Gaussian, drawn in every step.

    Args:
      spread: the standard deviation in the network's time, `()` or `[B]`, or a function of the level.

    Example:
      >>> noise = conditions.time_noise(lambda level: 0.1 * level.t)
      >>> cond = jnp.array([3, 1])
      >>> denoise = conditions.retimed(denoiser(lambda x, t, y: x * t[:, None], predicts="x0"))
      >>> two = branches(denoise, cond=(cond, jnp.zeros(2)), retimed=lambda step: (cond, noise(step)))

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 5.
    """

    def draw(step: Step) -> Array:
        dtype = step.level.sigma.dtype
        deviation = jnp.asarray(spread(step.level) if callable(spread) else spread, dtype)
        return deviation * jax.vmap(lambda key: jax.random.normal(key, (), dtype))(step_keys(step))

    return draw
