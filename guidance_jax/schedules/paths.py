"""The path of noise levels that a sampler walks: of a whole run, of the end of one, or from data to noise."""

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
    """The path of a run: `steps` noise levels by a spacing, from the most noise to the least, and then the clean data.

    `t_i = spacing(schedule, steps)_i`, `(alpha_i, sigma_i) = schedule(t_i)`; at the end `alpha = 1`, `sigma = 0`.

    Where the spacing itself is known to end in clean data, at a `t_min` of sigma 0, it spaces all `steps + 1` levels:
    `flow(t_min=0)` by `uniform()` visits `t_i = 1 - i / steps`.

    Args:
      schedule: The noise schedule.
      steps: The number of steps that the sampler takes.
      spacing: One of `gj.spacings`; `(schedule, steps) -> t`, decreasing, `[steps]`.

    Returns:
      A sequence of `steps + 1` noise levels, a `NoiseLevel` of arrays `[steps + 1]`; the last has alpha 1 and sigma 0.

    Raises:
      TypeError: If the spacing is missing, or is not a function.
      ValueError: If the noise does not strictly decrease along the path, as when a discrete schedule is asked for more
        steps than it has.

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
    """In float64 on the host: levels that are rounded after it have the same bits, by which noise is drawn, everywhere."""
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        host = None
    with jax.enable_x64(True), jax.default_device(host):
        yield


def _rounded(field: Array) -> Array:
    return jnp.asarray(np.asarray(field) if concrete(field) else field, jnp.result_type(float))


def _spaced(schedule: Schedule, count: int, spacing: Callable[[Schedule, int], Array]) -> NoiseLevel:
    """The levels at so many times of a spacing."""
    t = spacing(schedule, count)
    check_spaced(t, count, spacing)
    return schedule(t)


@door()
def reverse(path: Path) -> NoiseLevel:
    """The path from data to noise, for inversion: `path[::-1]`, without the clean end.

    The run starts at its least noise and takes the data for what stands there. Only deterministic samplers go this way.

    Args:
      path: `[steps + 1]`, as `levels` makes it.

    Returns:
      The reversed path, `[steps]`; `[steps + 1]` where its last level is known to have some noise.

    Raises:
      ValueError: If the path is not of `[steps + 1]` levels.

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

    The run starts from the data, noised to the level at which they begin: `gj.diffuse`.
    Both may have the keys of a run of the whole path that made the data, since what is drawn on a `PathEnd` is drawn apart. A
    run from the result of another run on such an end, or on a path cut by hand, needs other keys:
    `jax.vmap(jax.random.fold_in, (0, None))(keys, 1)`. To go on with a run, cut its path by hand, `path[3:]`: an end draws
    otherwise.

    Args:
      path: `[steps + 1]`, as `levels` makes it.
      share: In (0, 1]; the larger, the less of the data is kept.

    Raises:
      ValueError: If the share is outside of (0, 1], traced, or so small that no step is left.

    Example:
      >>> path = gj.schedules.strength(gj.levels(gj.schedules.edm(), 10, gj.spacings.karras()), 0.35)
      >>> print(len(path))
      4

    Reference: Meng et al. 2022, arXiv:2108.01073; counted as diffusers does.
    """
    steps = int((len(path) - 1) * share)
    return _end(path, steps + 1)


@door(also(check_below))
def below(path: Path, ratio: Ratio) -> NoiseLevel:
    """The end of a path, for image-to-image: from its first level whose `sigma / alpha` is at most `ratio`.

    What `strength` says of keys holds here.

    Args:
      path: `[steps + 1]`, as `levels` makes it; its values known, as they decide how many steps are left.
      ratio: `sigma / alpha`, the noise under which the data are hidden.

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
    """The last levels of a path, marked as the end of one."""
    return PathEnd(**vars(path[len(path) - count :]))
