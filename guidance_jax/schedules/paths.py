"""The path of noise levels that a sampler walks: of a whole run, of the end of one, or from data to noise."""

import contextlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from guidance_jax.arrays import concrete
from guidance_jax.checks.old import check_range
from guidance_jax.base import NoiseLevel, PathEnd, Schedule
from guidance_jax.checks.old import LEVELS, check_levels, check_schedule
from guidance_jax.checks.old import check_callable, check_count, check_kind, check_takes


def levels(schedule: Schedule, steps: int, spacing: Callable[[Schedule, int], Array]) -> NoiseLevel:
    """The path of a run: `steps` noise levels by a spacing, from the most noise to the least, and then the clean data.

    `t_i = spacing(schedule, steps)_i`, `(alpha_i, sigma_i) = schedule(t_i)`; at the end `alpha = 1`, `sigma = 0`.

    Where the spacing itself is known to end in clean data, at a `t_min` of sigma 0, it spaces all `steps + 1` levels:
    `flow(t_min=0)` by `uniform()` visits `t_i = 1 - i / steps`.

    Args:
      schedule: the noise schedule.
      steps: the number of steps the sampler takes.
      spacing: one of `spacings`; `(schedule, steps) -> t`, decreasing, `[steps]`.

    Returns:
      A `NoiseLevel` of arrays `[steps + 1]`; the last has alpha 1 and sigma 0.

    Raises:
      ValueError: if the noise does not strictly decrease along the path, as when a discrete schedule is asked for more
        steps than it has.

    Example:
      >>> path = levels(schedules.edm(), 3, spacings.karras())
      >>> [f"{sigma:.3f}" for sigma in path.sigma]
      ['80.000', '2.515', '0.002', '0.000']
    """
    check_schedule(schedule)
    check_count(steps, "steps")
    check_callable(spacing, "the spacing", "gj.spacings.karras() is one.")
    check_takes(spacing, "the spacing", "schedule", "steps")
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
    """The levels at so many times of a spacing.

    Raises:
      ValueError: if the spacing gives another number of them.
    """
    path = schedule(spacing(schedule, count))
    if path.t.shape != (count,):
        raise ValueError(f"the spacing gave times of shape {path.t.shape}, but must give [steps] = ({count},).")
    return path


def reverse(path: NoiseLevel) -> NoiseLevel:
    """The path from data to noise, for inversion: a path turned round, without the clean end.

    The run starts at its least noise and takes the data for what stands there. Only deterministic samplers go this way.

    Args:
      path: `[steps + 1]`, as `levels` makes it.

    Returns:
      The path turned round, `[steps]`; `[steps + 1]` where its last level is known to have some noise.

    Raises:
      ValueError: if the path is not of `[steps + 1]` levels.

    Example:
      >>> path = schedules.reverse(levels(schedules.edm(), 3, spacings.karras()))
      >>> [f"{sigma:.3f}" for sigma in path.sigma]
      ['0.002', '2.515', '80.000']

    Reference: Song et al. 2021, arXiv:2010.02502, section 4.3.
    """
    _check_path(path)
    noisy = path if concrete(path) and path.sigma[-1] > 0 else jax.tree.map(lambda field: field[:-1], path)
    return jax.tree.map(lambda field: field[::-1], noisy)


def strength(path: NoiseLevel, share: float) -> NoiseLevel:
    """The end of a path, for image-to-image: its last `int(steps * share)` steps.

    The run starts from the data, noised to the level at which they begin: `gj.diffuse`.
    Both may have the keys of a run of the whole path that made the data, since what is drawn on a `PathEnd` is drawn apart. A
    run from the result of another run on such an end, or on a path cut by hand, wants other keys:
    `jax.vmap(jax.random.fold_in, (0, None))(keys, 1)`. To go on with a run, cut its path by hand: an end draws otherwise.

    Args:
      path: `[steps + 1]`, as `levels` makes it.
      share: in (0, 1]; the larger, the less of the data is kept.

    Raises:
      ValueError: if the share is outside of (0, 1], traced, or so small that no step is left.

    Example:
      >>> path = schedules.strength(levels(schedules.edm(), 10, spacings.karras()), 0.35)
      >>> print(path.t.shape)
      (4,)

    Reference: Meng et al. 2022, arXiv:2108.01073; counted as diffusers does.
    """
    _check_path(path)
    if not concrete(share):
        raise ValueError("strength's share counts the steps that are left, but it is traced; make the path outside of jit.")
    check_range(share, "strength's share", most=1, above=0)
    steps = path.t.shape[0] - 1
    kept = int(steps * share)
    if not 0 < share <= 1 or kept < 1:
        raise ValueError(f"strength must be in (0, 1] and leave at least one step, but {share} of {steps} steps is {kept}.")
    return PathEnd(*(field[steps - kept :] for field in path))


def below(path: NoiseLevel, ratio: float) -> NoiseLevel:
    """The end of a path, for image-to-image: from its first level whose `sigma / alpha` is at most `ratio`.

    What `strength` says of keys holds here.

    Args:
      path: `[steps + 1]`, as `levels` makes it; its values known, as they decide how many steps are left.
      ratio: `sigma / alpha`, the noise under which the data are hidden.

    Raises:
      ValueError: if the path or ratio is traced, or no step is left.

    Example:
      >>> path = schedules.below(levels(schedules.edm(), 10, spacings.karras()), 5.0)
      >>> print(f"{path.sigma[0]:.2f}", path.sigma.shape)
      4.07 (7,)

    Reference: Meng et al. 2022, arXiv:2108.01073.
    """
    _check_path(path)
    check_range(ratio, "below's ratio", -np.inf, np.inf)
    if not concrete((path, ratio)):
        raise ValueError(
            "below counts the levels that are left, but they or the ratio are traced; make the path outside of jit."
        )
    kept = int((np.asarray(path.ratio) <= ratio).sum())
    if kept < 2:
        raise ValueError(
            f"no step is left of this path below sigma / alpha = {ratio}; its last begins at {path.ratio[-2]:.6g}."
        )
    return PathEnd(*(field[-kept:] for field in path))


def _check_path(path: NoiseLevel) -> None:
    check_kind(path, NoiseLevel, "the path", LEVELS)
    if jnp.ndim(path.sigma) != 1:
        raise ValueError(f"the path must be of [steps + 1] levels, got one of shape {jnp.shape(path.sigma)}; {LEVELS}")
