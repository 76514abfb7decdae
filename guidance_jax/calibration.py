"""Where guidance helps, measured: the residuals of two branches at every noise level, from samples with their conditions."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, Float

from guidance_jax.arrays import divide, inner, norm
from guidance_jax.base import NoiseLevel, Step
from guidance_jax.checks.old import check_branches, check_keys, check_levels, check_networks, check_scalar, check_start
from guidance_jax.curves import Calibration, Residuals
from guidance_jax.guided import Networks, evaluate
from guidance_jax.guidance.linear import cfg
from guidance_jax.checks.old import check_array
from guidance_jax.noise import apart, diffuse


def calibrate(
    keys: Array,
    branches: Networks,
    x0: Float[Array, "b ..."],
    levels: NoiseLevel,
    *,
    power: ArrayLike = 2.0,
    cond: str = "cond",
    uncond: str = "uncond",
) -> Calibration:
    """Measure where guidance helps, for `scales.calibrated`: noise samples, and see how far either branch is from them.

    `rho = sum |d|^p (d^ . (c - x0))^2 / sum |d|^p (d^ . (u - x0))^2` over samples, at each level; `d = c - u`, `d^ = d / |d|`.

    The squared error of a denoiser is the variance of x0 given x, so rho says how much narrower the condition makes it. The
    samples are the network's own, conditional and unguided: no data are needed, and these same keys may draw them. Real ones
    that it was not trained on do as well. A few hundred are enough; those of several batches add up, `a + b`.

    Args:
      keys: `[B]` PRNG keys, one per sample: each sample's noise comes from its own, at every level anew.
      branches: what `branches(...)` made, or a tuple of those, with the conditions of x0.
      x0: `[B, ...]`, clean samples.
      levels: the path of noise levels, `[steps + 1]`; measured at all but the last.
      power: p, `()`, not negative. The more, the more samples count whose classes lie apart.
      cond: the branch that guidance goes to.
      uncond: the branch that it comes from, `weak` for `autoguidance`.

    Returns:
      A `Calibration`: `rho` and its standard error at each level, in the form `for_classes` and in that `for_prompts`.

    Raises:
      ValueError: if the arguments do not fit each other, there is no such branch, the levels do not decrease, power is
        negative, or x0 has a value that is not finite.
      TypeError: if an argument is no such thing.

    Example:
      >>> mixture = oracles.GaussianMixture(jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.arange(2))
      >>> keys, labels = jax.random.split(jax.random.key(0), 300), jnp.arange(300) % 2
      >>> two = branches(mixture.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
      >>> path = levels(schedules.edm(), 8, spacings.karras())
      >>> x0 = sample(keys, two, chain(), dpmpp_2m(), path, (1,))  # the conditional branch, unguided
      >>> curve = calibrate(keys, two, x0, path)
      >>> print(*(f"{rho:.1f}" for rho in curve.rho))
      0.2 0.2 0.2 0.2 0.2 1.0 0.9 1.0
      >>> guided = sample(keys, two, cfg(scales.calibrated(curve, 4.0)), dpmpp_2m(), path, (1,))

    Reference: Derived here; no publication of this form is known to us. Near it are learned scales (arXiv:2510.00815), decaying
    scales (arXiv:2603.08155), the interval (arXiv:2404.07724) and precision-weighted products (arXiv:2404.07593).
    """
    networks = check_networks(branches)
    check_keys(keys)
    check_levels(levels)
    check_array(x0, "calibrate's x0", jnp.generic, "samples, [B, ...], as gj.sample gives them")
    shape, dtype = check_start(keys, levels, x0)
    check_scalar(power, "calibrate's power", least=0)
    dtype = dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32
    x0, path = jnp.asarray(x0, dtype), jax.tree.map(lambda field: jnp.asarray(field, dtype), levels)
    check_branches(networks, cfg(1.0, cond=cond, uncond=uncond), jax.ShapeDtypeStruct(shape, dtype), keys)

    def at(inputs: tuple[Array, NoiseLevel, NoiseLevel]) -> Calibration:
        step = Step(*inputs, keys)
        x = diffuse(apart(keys, 1), x0, step.level)
        predictions, _, _ = evaluate(networks, x, step, step.level, {cond: True, uncond: True})
        c, u = predictions[cond].x0, predictions[uncond].x0
        d, one = c - u, jnp.ones_like(x0, shape=len(x0))
        weight = norm(d) ** jnp.asarray(power, dtype)
        along = lambda residual: weight * divide(inner(d, residual), norm(d)) ** 2
        whole = lambda residual: inner(residual, residual)
        sums = (Residuals.of(square(c - x0).ravel(), square(u - x0).ravel()) for square in (along, whole))
        return Calibration(one.sum(), (one * jnp.log(step.level.ratio)).sum(), *sums)

    start, end = (jax.tree.map(lambda field, part=part: field[part], path) for part in (slice(-1), slice(1, None)))
    return jax.lax.map(at, (jnp.arange(len(start.t), dtype=jnp.int32), start, end))
