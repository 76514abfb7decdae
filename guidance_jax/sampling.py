"""The loop over the noise levels: `sample`, `run` and `evaluations`."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from typing_extensions import TypeAliasType

from guidance_jax.base import NoiseLevel, PathEnd, State, Step
from guidance_jax.checks.door import Kind, also, door
from guidance_jax.checks.kinds import Keys, function_kind
from guidance_jax.checks.outcomes import check_step, warn_if_not_finite
from guidance_jax.checks.running import check_progress, check_run
from guidance_jax.guidance.algebra import during
from guidance_jax.guided import Networks, guide
from guidance_jax.interfaces import Guidance, Sampler
from guidance_jax.noise import IMAGE, SAMPLER, START, at_level, fold, normal
from guidance_jax.programs.compiled import compiled
from guidance_jax.programs.parts import calls_of
from guidance_jax.samplers.restart import restart

_RECORDS = function_kind("state", hint="for the path, use lambda state: state.x.")
Trace = TypeAliasType("Trace", Annotated[Callable[[State], Any], _RECORDS])
"""A function of the state after each step. Its results are recorded."""
_NAME = Kind("a str, the name that the bar shows", lambda value: isinstance(value, str))
BarName = TypeAliasType("BarName", Annotated[str, _NAME])
"""The name of a progress bar."""


@door()
def sample(
    keys: Keys,
    branches: Networks,
    guidance: Guidance,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: tuple[int, ...] | Array | State,
    *,
    trace: Trace | None = None,
    remat: bool = False,
    progress: BarName | None = None,
) -> Any:
    """Draws samples, from noise at the first level to data at the last, in one `lax.scan` over the steps.

    Call it inside your own `jax.jit`, with parameters, keys, labels and scales as arguments. Then other values do not
    recompile, and `jax.vmap` over any of them is one program.

    Args:
      keys: `[B]` PRNG keys, one per sample: `jax.random.split(jax.random.key(0), B)`. A sample depends on no other key. Each
        step draws with this key and the level at which the step starts.
      branches: The result of `branches(...)`, or a tuple of these for several networks.
      guidance: `cfg(scale)`, a `chain`, ...; `chain()` for none.
      sampler: `ddim()`, ...
      levels: The path of noise levels, `[steps + 1]`, from `levels(...)`. For inversion, use `schedules.reverse`.
      shape_or_x: The shape of one sample, to start from pure noise. Or x itself, `[B, ...]`, at the level `levels[0]`. Or the
        last `State` of a `run` to this level, to continue with what its sampler and guidance remember. With the same keys, two
        runs in sequence then equal one run. If nothing is remembered, x is enough.
      trace: A function of the state after each step, whose results are recorded: `lambda state: (state.x, state.x0)` for the
        path and its predictions.
      remat: Whether gradients through the run compute each step again. They then need only the memory of one step.
      progress: The name of a progress bar, for long runs on one device. It needs `jax-tqdm`. A `vmap` has one bar for all its
        runs, and a gradient has one bar for its forward pass.

    Returns:
      `[B, ...]`, in the dtype of x, or of the levels if there is no x. With `trace`, `(samples, trace)`, with the trace
      `[steps, ...]`.

    Raises:
      ValueError: Before any computation, if the arguments do not match each other, or a guidance reads a branch that does not
        exist. If the levels do not decrease, or do not match the sampler's schedule. If x is not finite, or a batch with a
        progress bar is on several devices.
      TypeError: Before any computation, if an argument has another type. Examples: a guidance that was not called, keys that
        are not PRNG keys, or x or levels that are not floating.
      ImportError: If progress is a name and `jax-tqdm` is not installed.

    Example:
      >>> means, covariances = jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1))
      >>> mixture = gj.oracles.GaussianMixture(means, covariances, jnp.ones(2), jnp.arange(2))
      >>> labels = jnp.array([0, 1])
      >>> two = gj.branches(mixture.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
      >>> path = gj.levels(gj.schedules.edm(), 20, gj.spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> x = gj.sample(keys, two, gj.cfg(3.0), gj.ddim(), path, (1,))
      >>> print(x.shape, x.dtype)
      (2, 1) float32
    """
    asked = {"trace": trace, "remat": remat, "progress": progress}
    state, recorded = run(keys, branches, guidance, sampler, levels, shape_or_x, **asked)
    start = shape_or_x.x if isinstance(shape_or_x, State) else shape_or_x
    dtype = jax.dtypes.canonicalize_dtype(levels.sigma.dtype if isinstance(start, tuple) else start.dtype)
    return state.x.astype(dtype) if trace is None else (state.x.astype(dtype), recorded)


@door()
def evaluations(
    keys: Keys,
    branches: Networks,
    guidance: Guidance,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: tuple[int, ...] | Array | State,
) -> Array:
    """The number of network evaluations per sample in this run: 2 per step for `cfg` with `ddim`, fewer with an interval.

    The loop counts while it runs, so the number includes correctors and excludes skipped branches. Classifiers do not count.

    Args:
      The same as of `sample`.

    Returns:
      An integer scalar. For a run that continues from a `State`, it includes the evaluations before that state.

    Raises:
      The same as of `sample`.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x, predicts="x0")
      >>> path = gj.levels(gj.schedules.edm(), 10, gj.spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> two = gj.branches(denoise, cond=None, uncond=None)
      >>> print(gj.evaluations(keys, two, gj.cfg(2.0), gj.heun(), path, (1,)))
      38
    """
    return run(keys, branches, guidance, sampler, levels, shape_or_x)[0].evaluations


@door(also(check_progress))
def run(
    keys: Keys,
    branches: Networks,
    guidance: Guidance,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: tuple[int, ...] | Array | State,
    *,
    trace: Trace | None = None,
    remat: bool = False,
    progress: BarName | None = None,
) -> tuple[State, Any]:
    """As `sample`, but returns the last state, with what sampler and guidance remember, and the trace.

    Args:
      The same as of `sample`.

    Returns:
      The last `State`, in at least float32. A run over the rest of a path can continue from it. And the trace, `[steps, ...]`,
      or None.

    Raises:
      The same as of `sample`.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: x / 2, predicts="x0")
      >>> path = gj.levels(gj.schedules.edm(), 4, gj.spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> one, trace = gj.branches(denoise, cond=None), lambda state: state.x0
      >>> state, along = gj.run(keys, one, gj.chain(), gj.ddim(), path, (2,), trace=trace)
      >>> print(state.evaluations, along.shape)
      4 (4, 3, 2)
    """
    # With restarts the run visits levels that are not in its path.
    intervals = [] if calls_of(restart, sampler) else calls_of(during, guidance)
    networks, like = check_run(keys, branches, guidance, levels, shape_or_x, sampler, intervals)
    path = jax.tree.map(lambda field: jnp.asarray(field, like.dtype), levels)
    shaped = isinstance(shape_or_x, tuple) and not isinstance(shape_or_x, State)
    start = None if shaped else shape_or_x
    plan = Plan(like.shape, like.dtype, remat, progress)
    state, recorded = compiled(_loop, plan, keys, networks, guidance, sampler, path, start, trace)
    warn_if_not_finite(state.x)
    return state, recorded


class Plan(NamedTuple):
    """The static arguments of a run.

    Args:
      shape: The shape of x, `[B, ...]`.
      dtype: The dtype of x in the loop, at least float32.
      remat: As of `sample`.
      progress: As of `sample`.
    """

    shape: tuple[int, ...]
    dtype: Any
    remat: bool
    progress: str | None


def _loop(
    plan: Plan,
    keys: Array,
    networks: Networks,
    guidance: Guidance,
    sampler: Sampler,
    path: NoiseLevel,
    given: Array | State | None,
    trace: Trace | None,
) -> tuple[State, Any]:
    # XLA unrolls a loop of one step, which then rounds differently than a longer run. So a second step is added and skipped.
    # The level is looked up by index, since XLA would simplify two equal steps.
    steps = len(path) - 1
    alone = steps == 1 and plan.progress is None
    state = _begun(plan, keys, guidance, sampler, path, given)
    # The start is drawn in the same way for all paths. On the end of a path, all other draws differ and use plain levels.
    own = fold(keys, IMAGE) if isinstance(path, PathEnd) else keys
    path = NoiseLevel(**vars(path))

    def advance(state: State, level: NoiseLevel, next: NoiseLevel) -> State:
        step = Step(jnp.asarray(state.number, jnp.int32), level, next, own)
        denoise = guide(networks, guidance, step)
        after = sampler.step(denoise, state, level, next, at_level(own, level, SAMPLER))
        check_step(after, state, step)
        return after._replace(number=step.number + 1)

    def first(state: State, number: Array) -> State:
        at = lambda field: jax.lax.dynamic_index_in_dim(jnp.repeat(field, 2), number, keepdims=False)
        return advance(state, *jax.tree.map(at, (path[:-1], path[1:])))

    def body(state: State, inputs: tuple[Any, ...]) -> tuple[State, Any]:
        if alone:
            state = jax.lax.cond(inputs[0] == 0, first, lambda state, number: state, state, inputs[0])
        else:
            state = advance(state, *inputs[1:])
        return state, None if trace is None else trace(state)

    inputs = (jnp.arange(2, dtype=jnp.int32),) if alone else (jnp.arange(steps, dtype=jnp.int32), path[:-1], path[1:])
    body = jax.checkpoint(body, prevent_cse=False) if plan.remat else body
    body = body if plan.progress is None else _bar(plan.progress, steps)(body)
    state, recorded = jax.lax.scan(body, state, inputs)
    return state, jax.tree.map(lambda a: a[:1], recorded) if alone else recorded


def _begun(
    plan: Plan, keys: Array, guidance: Guidance, sampler: Sampler, path: NoiseLevel, given: Array | State | None
) -> State:
    """The state at the start of a run: the given state, or one with the given x, or one with pure noise."""
    # In shard_map each device counts its own evaluations, as each has its own x. A guidance that stops per sample may differ.
    none = lambda x: jnp.full_like(x, 0, jnp.int32, shape=())
    if isinstance(given, State):
        evaluations = given.evaluations + none(given.x)
        return given._replace(number=jnp.asarray(given.number, jnp.int32), evaluations=evaluations)
    like = jax.ShapeDtypeStruct(plan.shape, plan.dtype)
    x = path.sigma[0] * normal(fold(keys, START), like) if given is None else given.astype(plan.dtype)
    return State(x, sampler.init(x), guidance.init(x), none(x), jnp.zeros_like(x), jnp.int32(0))


def _bar(name: str, steps: int) -> Callable[..., Any]:
    """A progress bar around the body of the loop."""
    try:
        from jax_tqdm.scan_pbar import scan_tqdm
    except ImportError as error:
        raise ImportError(f"progress={name!r} needs the package jax-tqdm: pip install jax-tqdm.") from error
    return scan_tqdm(steps, desc=name)
