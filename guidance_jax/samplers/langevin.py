"""Langevin steps between the steps of another sampler."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import expand, sqrt
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Prediction, State
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import CountFromZero, NonNegativePerSample
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import contraction, fold, normal


class Base(GuidedDenoiser):
    """A `GuidedDenoiser` that returns the unguided prediction of the base.

    Args:
      look: The guided prediction, the next state and the context, as in `GuidedDenoiser`.
      base: The unguided prediction of the base, and the next state. Calls use it.
      between: The unguided denoiser of an inner step.
    """

    def __call__(self, state: State, level: NoiseLevel) -> tuple[Prediction, State]:
        return self.base(state, level)


def unguided(denoise: GuidedDenoiser) -> Base:
    """The same, guided by nothing, in this step and in others."""
    return Base(denoise.look, denoise.base, lambda *step: unguided(denoise.between(*step)))


@part()
def predictor_corrector(
    predictor: Sampler, corrections: CountFromZero = 1, *, size: NonNegativePerSample = 1.0, guided: bool = False
) -> Sampler:
    """Predictor-corrector guidance: an unguided step, then Langevin steps with the guided score at the level where it ends.

    Each Langevin step is `x <- alpha' x0 + sigma' (rho eps + sqrt(1 - rho^2) z)`, `rho = exp(-e / (2 r'^2))`. Its duration is
    `e = size (r^2 - r'^2)`, r = sigma / alpha. It is exact for constant x0. At sigma' = 0 there is no Langevin step.

    The base must be the conditional branch, since the predictor follows it. With `ddim()` and `cfg(w)`, one correction of size
    1 is DDPM with `cfg((w + 1) / 2)` in the limit of small steps. With more corrections the samples approach the density
    `p(x)^(1 - w) p(x | y)^w`.

    Args:
      predictor: The sampler that takes the unguided steps. `ddim` costs one evaluation of the base per step.
      corrections: The number of Langevin steps after each step. Each costs one guided evaluation.
      size: The size of a Langevin step, `()` or `[B]`, in units of the noise that the predictor removes. 0 changes nothing.
      guided: Whether the predictor is guided too, as in the predictor-corrector sampler of Song et al.

    Raises:
      ValueError: If corrections is negative, or size is neither `()` nor `[B]`.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.predictor_corrector(gj.ddim(), 2), path, (2,)))
      [[3. 3.]]

    Reference: Bradley & Nakkiran 2024, arXiv:2408.09000, algorithm 2. For `guided`, Song et al. 2021, arXiv:2011.13456,
    algorithm 1.
    """

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        state = predictor.step(denoise if guided else unguided(denoise), state, level, next, fold(keys, 0))
        q = contraction(level, next)
        share = expand(jnp.asarray(size, state.x.dtype), state.x)
        # A step from alpha = 0 removes infinite noise, so no eps is kept.
        removed = 1 / jnp.where(q > 0, q, 1) ** 2 - 1
        kept = jnp.where(q > 0, jnp.exp(-share * removed / 2), (share == 0).astype(q.dtype))
        fresh = sqrt(1 - kept**2)

        def correct(i: Any, state: State) -> State:
            prediction, state = denoise(state, next)
            noise = kept * prediction.eps + fresh * normal(fold(keys, i + 1), state.x)
            return state._replace(x=next.alpha * prediction.x0 + next.sigma * noise)

        def several(state: State) -> State:
            return jax.lax.fori_loop(0, corrections, correct, state)

        return jax.lax.cond(next.sigma > 0, several, lambda state: state, state)

    return Sampler(predictor.init, step, schedule=predictor.schedule)
