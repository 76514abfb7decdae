"""Langevin dynamics between the steps of another sampler."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.arrays import sqrt
from guidance_jax.checks.old import per_sample
from guidance_jax.base import GuidedDenoiser, NoiseLevel, Prediction, Sampler, State
from guidance_jax.checks.old import check_sampler
from guidance_jax.checks.old import check_count
from guidance_jax.noise import contraction, fold, normal


class Base(GuidedDenoiser):
    """Guided by nothing when it is called."""

    def __call__(self, state: State, level: NoiseLevel) -> tuple[Prediction, State]:
        return self.base(state, level)


def predictor_corrector(predictor: Sampler, corrections: int = 1, *, size: ArrayLike = 1.0, guided: bool = False) -> Sampler:
    """Predictor-corrector guidance: an unguided step, then Langevin steps by the guided score at the level where it ends.

    A Langevin step of time `e = size (r^2 - r'^2)`, r = sigma / alpha, as exactly as one x0 allows:
    `x <- alpha' x0 + sigma' (rho eps + sqrt(1 - rho^2) z)`, `rho = exp(-e / (2 r'^2))`. At sigma' = 0 there is none.

    The base, which the predictor follows, has to be the conditional branch. With `ddim()` and `cfg(w)`, one
    correction of size 1 is DDPM with `cfg((w + 1) / 2)` in the limit of small steps; with more of them the samples
    approach the density `p(x)^(1 - w) p(x | y)^w`.

    Args:
      predictor: whose steps are followed; one evaluation of the base each, for `ddim`.
      corrections: Langevin steps after each of its steps, each one guided evaluation.
      size: of a Langevin step, `()` or `[B]`, in units of the noise that the predictor's step removed; 0 changes nothing.
      guided: whether the predictor is guided too: the predictor-corrector sampler of Song et al.

    Raises:
      ValueError: if corrections is negative, or size is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), predictor_corrector(ddim(), 2), path, (2,)))
      [[3. 3.]]

    Reference: Bradley & Nakkiran 2024, arXiv:2408.09000, algorithm 2; guided, Song et al. 2021, arXiv:2011.13456, algorithm 1.
    """
    check_sampler(predictor, "the predictor")
    check_count(corrections, "predictor_corrector's corrections", 0)

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        state = predictor.step(denoise if guided else Base(*denoise), state, level, next, fold(keys, 0))
        q = contraction(level, next)
        share = per_sample(size, state.x, "predictor_corrector's size", 0)
        # The predictor's step from alpha = 0 removes infinitely much noise: nothing of eps is kept.
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
