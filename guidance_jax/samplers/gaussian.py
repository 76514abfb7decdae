"""Samplers whose step is one evaluation and one draw from a Gaussian."""

from jax import Array
from jaxtyping import ArrayLike

from guidance_jax.base import GuidedDenoiser, Kernel, NoiseLevel, Sampler, State
from guidance_jax.checks.old import check_callable, told
from guidance_jax.noise import normal


def gaussian(kernel: Kernel, *, reversible: bool = False) -> Sampler:
    """The sampler of a Gaussian kernel: `x' = mean + deviation z`.

    Args:
      kernel: `(prediction, level, next) -> mean [B, ...], deviation`, the latter `()` or `[B, ...]`; a plain 0 draws nothing.
      reversible: whether the kernel also goes from less noise to more.

    Raises:
      TypeError: if kernel is no function, or gives no pair.
      ValueError: in a step, if its keys are of a generator by which `jax.vmap` draws with the first of them alone.

    Example:
      >>> euler = samplers.gaussian(lambda p, level, next: (next.alpha * p.x0 + next.sigma * p.eps, 0.0))
      >>> denoise = denoiser(lambda x, t, cond: 0 * x + 3, predicts="x0")
      >>> path = levels(schedules.cosine(), 2, spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, branches(denoise, cond=None), chain(), euler, path, (2,)))
      [[3. 3.]]
    """
    check_callable(kernel, "kernel", "it is (prediction, level, next) -> mean, deviation.")

    def step(denoise: GuidedDenoiser, state: State, level: NoiseLevel, next: NoiseLevel, keys: Array) -> State:
        prediction, state = denoise(state, level)
        drawn = kernel(prediction, level, next)
        if not isinstance(drawn, tuple) or len(drawn) != 2:
            raise TypeError(f"a kernel must give (mean, deviation), got {told(drawn)}; a deviation of 0.0 draws nothing.")
        mean, deviation = drawn
        return state._replace(x=mean if is_zero(deviation) else mean + deviation * normal(keys, state.x))

    return Sampler(lambda x: (), step, kernel, reversible=reversible)


def is_zero(value: ArrayLike) -> bool:
    """Whether it is a plain 0, which no tracing hides: then nothing need be drawn."""
    return isinstance(value, int | float) and value == 0
