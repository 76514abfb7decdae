"""`calibrate`: measures where guidance helps, from the residuals of two branches at each noise level."""

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import divide, inner, norm
from guidance_jax.base import Branches, NoiseLevel, Step
from guidance_jax.checks.door import door
from guidance_jax.checks.kinds import Branch, Keys, NonNegative, Samples
from guidance_jax.checks.running import check_run
from guidance_jax.guidance.curves import Calibration, Residuals
from guidance_jax.guidance.linear import cfg
from guidance_jax.guided import Networks, evaluate
from guidance_jax.noise import apart, diffuse
from guidance_jax.programs.compiled import compiled


@door()
def calibrate(
    keys: Keys,
    branches: Networks,
    x0: Samples,
    levels: NoiseLevel,
    *,
    power: NonNegative = 2.0,
    cond: Branch = "cond",
    uncond: Branch = "uncond",
) -> Calibration:
    """Measures where guidance helps, for `scales.calibrated`: adds noise to samples and compares the errors of two branches.

    `rho = sum |d|^p (d^ . (c - x0))^2 / sum |d|^p (d^ . (u - x0))^2` over samples, at each level; `d = c - u`, `d^ = d / |d|`.

    The expected squared error of a denoiser is the variance of x0 given x. So rho says how much the condition narrows this
    variance. Use samples of the network itself, conditional and unguided: no data are needed, and the same keys may draw them.
    Real samples also work if the network was not trained on them. A few hundred samples are enough. Results of several batches
    can be added, `a + b`.

    Args:
      keys: `[B]` PRNG keys, one per sample. Each sample draws new noise from its own key at each level.
      branches: The result of `gj.branches(...)`, or a tuple of these, with the conditions of x0.
      x0: Clean samples, `[B, ...]`.
      levels: The path of noise levels, `[steps + 1]`. All but the last are measured.
      power: The exponent p. A larger p gives more weight to samples whose two predictions differ more.
      cond: The branch to move towards.
      uncond: The branch to move away from, `weak` for `autoguidance`.

    Returns:
      A `Calibration`: `rho` and its standard error at each level, in the forms `for_classes` and `for_prompts`.

    Raises:
      ValueError: If the arguments do not match each other, a branch does not exist, the levels do not decrease, power is
        negative, or x0 is not finite.
      TypeError: If an argument is of another type.

    Example:
      >>> means, covariances = jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1))
      >>> mixture = gj.oracles.GaussianMixture(means, covariances, jnp.ones(2), jnp.arange(2))
      >>> keys, labels = jax.random.split(jax.random.key(0), 300), jnp.arange(300) % 2
      >>> two = gj.branches(mixture.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
      >>> path = gj.levels(gj.schedules.edm(), 8, gj.spacings.karras())
      >>> x0 = gj.sample(keys, two, gj.chain(), gj.ddim(), path, (1,))  # unguided, of branch cond
      >>> curve = gj.calibrate(keys, two, x0, path)
      >>> print(*(f"{rho:.1f}" for rho in curve.rho))
      0.1 0.1 0.1 0.1 0.1 1.0 0.9 1.0
      >>> guidance = gj.cfg(gj.scales.calibrated(curve, 4.0))
      >>> guided = gj.sample(keys, two, guidance, gj.ddim(), path, (1,))

    Reference: Derived here; we know no publication of this form. Related work: learned scales (arXiv:2510.00815), decaying
    scales (arXiv:2603.08155), the interval (arXiv:2404.07724) and precision-weighted products (arXiv:2404.07593).
    """
    networks, like = check_run(keys, branches, cfg(1.0, cond=cond, uncond=uncond), levels, x0)
    x0, path, power = jax.tree.map(lambda field: jnp.asarray(field, like.dtype), (x0, levels, power))
    return compiled(_measured, (cond, uncond), networks, keys, x0, path, power)


def _measured(
    names: tuple[str, str], networks: tuple[Branches, ...], keys: Array, x0: Array, path: NoiseLevel, power: Array
) -> Calibration:
    """The sums over samples at each level."""

    def at(inputs: tuple[Array, NoiseLevel, NoiseLevel]) -> Calibration:
        step = Step(*inputs, keys)
        x = diffuse(apart(keys, 1), x0, step.level)
        predictions, _, _ = evaluate(networks, x, step, step.level, dict.fromkeys(names, True))
        c, u = (predictions[name].x0 for name in names)
        d, one = c - u, jnp.ones_like(x0, shape=len(x0))
        weight = norm(d) ** power
        along = lambda residual: weight * divide(inner(d, residual), norm(d)) ** 2
        whole = lambda residual: inner(residual, residual)
        sums = (Residuals.of(square(c - x0).ravel(), square(u - x0).ravel()) for square in (along, whole))
        return Calibration(one.sum(), (one * jnp.log(step.level.ratio)).sum(), *sums)

    return jax.lax.map(at, (jnp.arange(len(path) - 1, dtype=jnp.int32), path[:-1], path[1:]))
