"""Adaptive projected guidance, as a chain of shapers."""

import jax.numpy as jnp

from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import BoundScale, Branch, Scale
from guidance_jax.guidance.algebra import chain, relative_to
from guidance_jax.guidance.linear import cfg
from guidance_jax.guidance.scales import at_level
from guidance_jax.guidance.shaping import amplify, clip_norm, momentum, project
from guidance_jax.interfaces import Guidance


@part()
def apg(
    scale: Scale,
    *,
    beta: Scale = -0.5,
    max_norm: BoundScale = 15.0,
    eta: Scale = 0.0,
    cond: Branch = "cond",
    uncond: Branch = "uncond",
) -> Guidance:
    """Adaptive projected guidance: CFG whose difference has momentum, a bounded norm, and no component along the prediction.

    `m <- d + beta m`, `d' = m min(1, max_norm / |m|)`, `D = c + (scale - 1) (perp(d', c) + eta (d' - perp(d', c)))`

    Here `d = c - u`, and `perp(d', c)` is the component of d' perpendicular to c. With beta 0, infinite max_norm and eta 1 this
    is CFG.

    Args:
      scale: 1 is the conditional model.
      beta: The momentum. The paper uses -0.75 to -0.5.
      max_norm: The maximum norm of d', in the units of x0. The paper uses 2.5 to 15.
      eta: The fraction of the parallel component that is kept. The paper uses 0.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If a parameter is neither `()` nor `[B]`, or out of range.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 0.0]]), uncond=jnp.array([[1.0, -1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.apg(4.0, beta=0.0, max_norm=0.5), gj.ddim(), path, (2,)))
      [[1.  1.5]]

    Reference: Sadat et al. 2024, arXiv:2410.02416, algorithm 1, with x0 as the prediction. This adds `scale - 1` times the
    difference to c. diffusers adds `scale` times the difference to u.
    """
    difference = cfg(2.0, cond=cond, uncond=uncond)
    more = amplify(lambda level: jnp.asarray(at_level(scale, level)) - 1)
    return relative_to(cond, chain(difference, momentum(beta), clip_norm(max_norm), project(eta), more))
