"""Paths of noise levels that samplers follow: a whole run, the end of a run, or the reverse from data to noise."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.base import NoiseLevel, PathEnd
from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import Count, Path, Ratio, Share, Spacing
from guidance_jax.checks.paths import check_below, check_levels, check_spaced, check_strength
from guidance_jax.checks.traced import concrete
from guidance_jax.schedules.schedule import Schedule


@door()
def levels(schedule: Schedule, steps: Count, spacing: Spacing) -> NoiseLevel:
    """The path of a run: `steps` noise levels from maximum to minimum noise, then the clean data.

    `t_i = spacing(schedule, steps)_i`, `(alpha_i, sigma_i) = schedule(t_i)`. The last level has `alpha = 1`, `sigma = 0`.

    If `t_min` is known to have sigma 0 and the spacing ends there, the spacing gives all `steps + 1` levels. For example,
    `flow(t_min=0)` with `uniform()` visits `t_i = 1 - i / steps`.

    Args:
      schedule: The noise schedule.
      steps: The number of steps that the sampler takes.
      spacing: One of `gj.spacings`, or any `(schedule, steps) -> t`, decreasing, `[steps]`.

    Returns:
      A sequence of `steps + 1` noise levels: a `NoiseLevel` of arrays `[steps + 1]`. The last has alpha 1 and sigma 0.

    Raises:
      TypeError: If the spacing is missing, or is not a function.
      ValueError: If the noise does not strictly decrease along the path. One cause is more steps than a discrete schedule has.

    Example:
      >>> path = gj.levels(gj.schedules.edm(), 3, gj.spacings.karras())
      >>> [f"{level.sigma:.3f}" for level in path]
      ['80.000', '2.515', '0.002', '0.000']
    """
    with jax.ensure_compile_time_eval():
        least = schedule(schedule.t_min).sigma
        with _exactly() if concrete(least) else contextlib.nullcontext():
            clean_end = concrete(least) and least == 0 and _spaced(schedule, steps, spacing).sigma[-1] == 0
            path = _spaced(schedule, steps + 1 if clean_end else steps, spacing)
            if not clean_end:
                clean = NoiseLevel(path.t[-1:], jnp.ones_like(path.alpha[-1:]), jnp.zeros_like(path.sigma[-1:]))
                path = jax.tree.map(lambda *parts: jnp.concatenate(parts), path, clean)
        path = jax.tree.map(_rounded, path)
    check_levels(path)
    return path


@contextlib.contextmanager
def _exactly() -> Iterator[None]:
    """Compute in float64 on the host. The rounded levels then have the same bits on every device.

    The bits matter because noise is drawn by them.
    """
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        host = None
    with jax.enable_x64(True), jax.default_device(host):
        yield


def _rounded(field: Array) -> Array:
    return jnp.asarray(np.asarray(field) if concrete(field) else field, jnp.result_type(float))


def _spaced(schedule: Schedule, count: int, spacing: Callable[[Schedule, int], Array]) -> NoiseLevel:
    """The levels at `count` times of a spacing."""
    t = spacing(schedule, count)
    check_spaced(t, count, spacing)
    return schedule(t)


@door()
def reverse(path: Path) -> NoiseLevel:
    """The path from data to noise, for inversion: `path[::-1]`, without the clean end.

    The run starts from the data at the minimum noise level. Only deterministic samplers can follow a reversed path.

    Args:
      path: `[steps + 1]` noise levels, from `levels`.

    Returns:
      The reversed path, `[steps]`. It has `[steps + 1]` levels if the last level is known to have noise.

    Raises:
      ValueError: If the path is not `[steps + 1]` levels.

    Example:
      >>> path = gj.schedules.reverse(gj.levels(gj.schedules.edm(), 3, gj.spacings.karras()))
      >>> [f"{level.sigma:.3f}" for level in path]
      ['0.002', '2.515', '80.000']

    Reference: Song et al. 2021, arXiv:2010.02502, section 4.3.
    """
    noisy = path if concrete(path) and path.sigma[-1] > 0 else path[:-1]
    return noisy[::-1]


@door(also(check_strength))
def strength(path: Path, share: Share) -> NoiseLevel:
    """The end of a path, for image-to-image: its last `int(steps * share)` steps.

    Start the run from data noised to the first level of the end: `gj.diffuse(keys, x0, path[0])`.

    Keys: the run draws other noise on a `PathEnd` than on a whole path. You can use the keys of the whole run that made the
    data. If another run on such an end, or on a path cut by hand, made the data, use new keys:
    `jax.vmap(jax.random.fold_in, (0, None))(keys, 1)`. To continue an interrupted run with the same noise, cut its path by
    hand: `path[3:]`.

    Args:
      path: `[steps + 1]` noise levels, from `levels`.
      share: The share of the steps, in (0, 1]. A larger share keeps less of the data.

    Raises:
      ValueError: If the share is outside (0, 1], is traced, or leaves no step.

    Example:
      >>> path = gj.levels(gj.schedules.edm(), 10, gj.spacings.karras())
      >>> print(len(gj.schedules.strength(path, 0.35)))
      4

    Reference: Meng et al. 2022, arXiv:2108.01073. The number of steps is the same as in diffusers.
    """
    steps = int((len(path) - 1) * share)
    return _end(path, steps + 1)


@door(also(check_below))
def below(path: Path, ratio: Ratio) -> NoiseLevel:
    """The end of a path, for image-to-image: from its first level with `sigma / alpha <= ratio`.

    For keys, see `strength`.

    Args:
      path: `[steps + 1]` noise levels, from `levels`. Its values must not be traced, since they decide the number of steps.
      ratio: The maximum `sigma / alpha` of the first level.

    Raises:
      ValueError: If the path or ratio is traced, or no step is left.

    Example:
      >>> path = gj.schedules.below(gj.levels(gj.schedules.edm(), 10, gj.spacings.karras()), 5.0)
      >>> print(f"{path[0].sigma:.2f}", len(path))
      4.07 7

    Reference: Meng et al. 2022, arXiv:2108.01073.
    """
    with jax.ensure_compile_time_eval():
        left = int((np.asarray(path.ratio) <= np.asarray(ratio)).sum())
    return _end(path, left)


def _end(path: NoiseLevel, count: int) -> PathEnd:
    """The last `count` levels of a path, as a `PathEnd`."""
    return PathEnd(**vars(path[len(path) - count :]))
