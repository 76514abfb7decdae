"""UniPC."""

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
    past: Past
    weight: Array
    """`weight x0 + offset` is what the prediction at the end of the step before adds to x there: its correction."""
    offset: Array


Order = TypeAliasType("Order", Annotated[int, count(1, "1, 2 or 3", high=3)])
"""1, 2 or 3."""
Variant = TypeAliasType("Variant", Annotated[int, count(1, "1 or 2", high=2)])
"""1 or 2."""


@part()
def unipc(order: Order = 2, *, variant: Variant = 2) -> Sampler:
    """UniPC: a multistep predictor, whose end is corrected by the prediction that the next step asks for there anyway.

    With h the step's length in `log(alpha / sigma)`, u in [0, 1] the way along it, and P the polynomial through the last
    `order` predictions, the predictor is `x' = (sigma' / sigma) x + alpha' h * integral of e^(-h (1 - u)) P(u)`. Once x0' is
    predicted there, the polynomial that goes through it too takes the place of P:
    `x' <- x' + alpha' h * integral of e^(-h (1 - u)) N(u) / N(1) * (x0' - P(1))`, N the product of u's distances from the past
    predictions. The network is not asked again at the corrected x'.

    As in the paper, a predictor of order 2 and a corrector that knows one past prediction take `B(h) / 2` for the weight of u,
    `h * integral of e^(-h (1 - u)) u`, with `B = 1 - e^-h` (variant 2, for guided sampling) or `B = h` (variant 1). The first
    steps are of lower order, and those of infinite length of the first, uncorrected.

    One evaluation a step. It is of order `order + 1`: 3 for 2, and 4 for 3 if the first steps are short enough for the low
    order that they have.

    Args:
      order: Of the predictor: 1, 2 or 3. In few steps of strong guidance, 2 is steadier than 3.
      variant: 1 or 2, the paper's B1 and B2.

    Raises:
      ValueError: If order or variant is none of these.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path, keys = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, gj.branches(denoise, cond=None), gj.chain(), gj.unipc(), path, (2,)))
      [[3. 3.]]

    Reference: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2, on the x0-prediction.
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
        """What the predictor adds to the DDIM step, and the weight and offset of its correction, but for alpha'."""
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
