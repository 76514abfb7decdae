"""UniPC: a multistep predictor-corrector without additional evaluations."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.base import GuidedDenoiser, NoiseLevel, State
from guidance_jax.checks.door import part
from guidance_jax.checks.numbers import count
from guidance_jax.interfaces import Sampler
from guidance_jax.samplers.multistep import Past, ages, differences, finite, implied, integrals, length, nothing, remember


class Memory(NamedTuple):
    """The memory of `unipc`: past predictions, and the pending correction `weight x0 + offset` of the last step.

    Args:
      past: The predictions before the current step.
      weight: The factor of the next x0-prediction in the correction, `()`.
      offset: The constant term of the correction, `[B, ...]`.
    """

    past: Past
    weight: Array
    offset: Array


Order = TypeAliasType("Order", Annotated[int, count(1, "1, 2 or 3", high=3)])
"""1, 2 or 3."""
Variant = TypeAliasType("Variant", Annotated[int, count(1, "1 or 2", high=2)])
"""1 or 2."""


@part()
def unipc(order: Order = 2, *, variant: Variant = 2) -> Sampler:
    """UniPC: a multistep predictor, and a corrector that reuses the prediction of the next step.

    The predictor is `x' = (sigma' / sigma) x + alpha' h * integral of e^(-h (1 - u)) P(u)`. h is the length of the step in
    `log(alpha / sigma)`, and u in [0, 1] is the position in the step. P is the polynomial through the last `order` predictions.

    The next step evaluates the network at x', which gives x0'. The corrector replaces P by the polynomial that also passes
    through x0': `x' <- x' + alpha' h * integral of e^(-h (1 - u)) N(u) / N(1) * (x0' - P(1))`. N(u) is the product of the
    distances of u from the past predictions. The network is not evaluated again at the corrected x'.

    A predictor of order 2, and a corrector with one past prediction, use `B(h) / 2` in place of the integral
    `h * integral of e^(-h (1 - u)) u`, as in the paper. `B = 1 - e^-h` is variant 2, for guided sampling. `B = h` is variant 1.
    The first steps have a lower order. Steps of infinite length have order 1 and no correction.

    One evaluation per step. The order of the method is `order + 1`. With `order=3` this needs short first steps, since these
    have a lower order.

    Args:
      order: The order of the predictor: 1, 2 or 3. With few steps and strong guidance, 2 is more stable than 3.
      variant: 1 or 2, B1 and B2 in the paper.

    Raises:
      ValueError: If order or variant is none of these.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), gj.unipc(), path, (2,)))
      [[3. 3.]]

    Reference: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2, for the x0-prediction.
    """

    def init(x: Array) -> Memory:
        return Memory(nothing(x, order - 1), jnp.zeros((), x.dtype), jnp.zeros_like(x))

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        x, memory = state.x, state.memory
        prediction, state = denoise(state, level)
        x0, h = implied(prediction, x, level), length(level, next)
        correction = memory.weight * x0 + memory.offset
        ahead, weight, offset = pick(jnp.isfinite(h), foresee(x0, memory.past, h), (0, 0, 0))
        x = (
            next.alpha * prediction.x0
            + next.sigma * prediction.eps
            + next.sigma / level.sigma * correction
            + next.alpha * ahead
        )
        return state._replace(x=x, memory=Memory(remember(memory.past, x0, h), next.alpha * weight, next.alpha * offset))

    def foresee(x0: Array, past: Past, h: Array) -> tuple[Array, ...]:
        """The change that the predictor adds to the DDIM step, and the correction's weight and offset, each without alpha'."""
        w0, w1, w2, w3 = integrals(h)
        half = (w0 if variant == 2 else finite(h)) / 2
        first = jnp.zeros_like(x0), half, -half * x0
        if order == 1:
            return first
        (slope, *others), (a, *older) = differences(x0, past, h), ages(past, h)
        weight = (w2 + a * w1) / (1 + a)
        second = half * slope, weight, (w1 - half) * slope - weight * (x0 + slope)
        lower = pick(jnp.isfinite(past.length[0]), second, first)
        if order == 2:
            return lower
        (curvature,), (b,) = others, older
        weight = (w3 + (a + b) * w2 + a * b * w1) / ((1 + a) * (1 + b))
        third = w1 * slope + (w2 + a * w1) * curvature, weight, -weight * (x0 + slope + (1 + a) * curvature)
        return pick(jnp.isfinite(past.length[0] + past.length[1]), third, lower)

    def pick(which: Array, *cases: tuple[ArrayLike, ...]) -> tuple[Array, ...]:
        return tuple(jnp.where(which, one, other) for one, other in zip(*cases, strict=True))

    return Sampler(init, step)
