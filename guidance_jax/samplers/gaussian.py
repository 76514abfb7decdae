"""Samplers with one evaluation and one Gaussian draw per step."""

from typing import Annotated

from jax import Array
from jaxtyping import ArrayLike
from typing_extensions import TypeAliasType

from guidance_jax.base import GuidedDenoiser, Kernel, NoiseLevel, State
from guidance_jax.checks.door import part
from guidance_jax.checks.kinds import function_kind
from guidance_jax.checks.outcomes import check_pair
from guidance_jax.interfaces import Sampler
from guidance_jax.noise import normal

Drawn = TypeAliasType(
    "Drawn",
    Annotated[Kernel, function_kind("prediction", "level", "next", hint="it is (prediction, level, next) -> mean, deviation.")],
)
"""`(prediction, level, next) -> mean, deviation`."""


@part()
def gaussian(kernel: Drawn, *, reversible: bool = False) -> Sampler:
    """The sampler of a Gaussian kernel.

    `x' = mean + deviation z`

    Args:
      kernel: `(prediction, level, next) -> mean [B, ...], deviation`. The deviation is `()` or `[B, ...]`. A plain 0 draws no
        noise.
      reversible: Whether the kernel also works from less noise to more.

    Raises:
      TypeError: If kernel is not a function, or does not return a pair.
      ValueError: In a step, if `jax.vmap` would draw with only the first key of this kind of PRNG keys.

    Example:
      >>> mean = lambda prediction, next: next.alpha * prediction.x0 + next.sigma * prediction.eps
      >>> euler = gj.samplers.gaussian(lambda p, level, next: (mean(p, next), 0.0))
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> one = gj.branches(denoise, cond=None)
      >>> path = gj.levels(gj.schedules.cosine(), 2, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, one, gj.chain(), euler, path, (2,)))
      [[3. 3.]]
    """
    return from_kernel(kernel, reversible)


def from_kernel(kernel: Kernel, reversible: bool = False) -> Sampler:
    """The sampler of a Gaussian kernel, without checks of the arguments: for the samplers of this package."""

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        prediction, state = denoise(state, level)
        drawn = kernel(prediction, level, next)
        check_pair(drawn, "what a kernel returns", "(mean, deviation), with deviation 0.0 to draw nothing")
        mean, deviation = drawn
        return state._replace(x=mean if is_zero(deviation) else mean + deviation * normal(keys, state.x))

    return Sampler(lambda x: (), step, kernel, reversible=reversible)


def is_zero(value: ArrayLike) -> bool:
    """Whether a value is a Python 0, and not an array or a traced value. Then no noise needs to be drawn."""
    return isinstance(value, int | float) and value == 0
