"""From branches, a guidance and a sampler to samples: the only loop."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.base import (
    Branches,
    Cond,
    Context,
    Denoiser,
    Guidance,
    GuidedDenoiser,
    NoiseLevel,
    Prediction,
    Sampler,
    State,
    Step,
)
from guidance_jax.checks import check_branches, check_keys, check_levels, check_start
from guidance_jax.guidance.algebra import wants
from guidance_jax.noise import normal

Networks = Branches | tuple[Branches, ...]
Pullback = Callable[[Array], Array]


def branches(denoise: Denoiser, *, batched: bool = True, **conds: Cond) -> Branches:
    """Named conditions of one denoiser, evaluated in one batched call; the first is the base.

    Args:
      denoise: `(x, level, cond) -> Prediction`.
      batched: False evaluates one condition after the other, in the memory of one: for networks that do not fit twice.
      **conds: a condition each, any pytree of `[B, ...]` leaves, all of one structure; or a function of the `Step` that
        gives it, for conditions drawn anew in every step.

    Raises:
      ValueError: if there is no condition.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x, predicts="x0")
      >>> labels = jnp.array([3, 1])
      >>> list(branches(denoise, cond=labels, uncond=jnp.full_like(labels, 10)).conds)
      ['cond', 'uncond']
    """
    if not conds:
        raise ValueError("branches(denoise) has no condition; name at least one: branches(denoise, cond=labels).")
    return Branches(denoise, conds, batched)


def sample(
    keys: Array,
    branches: Networks,
    guidance: Guidance,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: tuple[int, ...] | Array,
) -> Array:
    """Draw samples: from noise at the first level to the last, one `lax.scan` over the steps.

    Call it inside your own `jax.jit`, parameters, keys, labels and scales as arguments: then none of them recompiles, and
    `jax.vmap` over any of them is one program.

    Args:
      keys: `[B]` PRNG keys, one a sample: `jax.random.split(jax.random.key(0), B)`. A sample depends on its own key alone.
      branches: what `branches(...)` made, or a tuple of those for several networks.
      guidance: `cfg(scale)`, a `chain`, ...; `chain()` for none.
      sampler: `ddim()`, ...
      levels: the path of noise levels, `[steps + 1]`, as `levels(...)` makes it.
      shape_or_x: the shape of one sample, to start from pure noise; or x itself, `[B, ...]`, at the level `levels[0]`.

    Returns:
      `[B, ...]`, in the dtype of x, or that of the levels.

    Raises:
      ValueError: before anything is computed, if the arguments do not fit each other, a guidance reads a branch that is
        not there, the levels do not decrease, or x has a value that is not finite.
      TypeError: if keys are no PRNG keys or x is not floating.

    Example:
      >>> mixture = oracles.GaussianMixture(jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.arange(2))
      >>> labels = jnp.array([0, 1])
      >>> two = branches(mixture.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
      >>> path = levels(schedules.edm(), 20, spacings.karras())
      >>> x = sample(jax.random.split(jax.random.key(0), 2), two, cfg(3.0), ddim(), path, (1,))
      >>> print(x.shape, x.dtype)
      (2, 1) float32
    """
    return _run(keys, branches, guidance, sampler, levels, shape_or_x, lambda state, dtype: state.x.astype(dtype))


def evaluations(
    keys: Array,
    branches: Networks,
    guidance: Guidance,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: tuple[int, ...] | Array,
) -> Array:
    """How many network evaluations a sample costs in this very run: 2 a step for `cfg` with `ddim`, fewer in an interval.

    The loop counts as it runs, so skipped branches and correctors are seen as they happen. Classifiers are not counted.

    Args:
      The same as of `sample`.

    Returns:
      An integer scalar.

    Example:
      >>> denoise = denoiser(lambda x, t, cond: 0 * x, predicts="x0")
      >>> path = levels(schedules.edm(), 10, spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(evaluations(keys, branches(denoise, cond=None, uncond=None), cfg(2.0), heun(), path, (1,)))
      38
    """
    return _run(keys, branches, guidance, sampler, levels, shape_or_x, lambda state, dtype: state.evaluations)


def evaluate(
    branches: Networks, x: Array, step: Step, level: NoiseLevel, wanted: dict[str, Any], pullback: bool = False
) -> tuple[dict[str, Prediction], Array | int, Pullback | None]:
    """The predictions of the base and of every wanted branch at x: one call a network, the branches merged into its batch.

    Args:
      branches: one `Branches`, or a tuple of them.
      x: `[B, ...]`.
      step: the step of the sampler, for conditions that are functions of it.
      level: the level of x, scalar.
      wanted: `{name: True, or a boolean scalar}`. Where the scalar is false the branch is not evaluated, and the base's
        prediction stands in its place.
      pullback: whether to keep what gradients through the base's x0 need; the base is then evaluated apart from the rest.

    Returns:
      `{name: Prediction}` of the base and of every name in `wanted`, the number of evaluations per sample, and the function
      from a cotangent of the base's x0 to its gradient in x, or None.

    Example:
      >>> two = branches(denoiser(lambda x, t, cond: x * cond, predicts="x0"), a=jnp.ones((1, 1)), b=jnp.zeros((1, 1)))
      >>> level = schedules.edm()(0.0)
      >>> step = Step(jnp.int32(0), level, level, jax.random.split(jax.random.key(0), 1))
      >>> predictions, count, _ = evaluate(two, jnp.ones((1, 1)), step, level, {"b": True})
      >>> print(predictions["a"].x0, predictions["b"].x0, count)
      [[1.]] [[0.]] 2
    """
    networks = _networks(branches)
    base = next(iter(networks[0].conds))
    wanted = {name: now for name, now in wanted.items() if name != base}
    gates = list({id(now): now for now in wanted.values() if now is not True}.values())
    first, pull = _base(networks[0], base, x, step, level) if pullback else ({}, None)

    def ask(open_gates: Sequence[bool]) -> Callable[[Array], tuple[dict[str, Prediction], Array]]:
        passed = {id(gate) for gate, is_open in zip(gates, open_gates, strict=True) if is_open}
        asked = {base} | {name for name, now in wanted.items() if now is True or id(now) in passed}

        def call(x: Array) -> tuple[dict[str, Prediction], Array]:
            predictions = dict(first)
            for network in networks:
                conds = {name: cond for name, cond in network.conds.items() if name in asked and name not in predictions}
                if conds:
                    predictions |= _together(network, x, step, level, conds)
            return {name: predictions.get(name, predictions[base]) for name in (base, *wanted)}, jnp.int32(len(asked))

        return call

    if not gates:
        return *ask(())(x), pull
    # One program for each combination of open gates; the index counts them in binary, the last gate fastest.
    cases = [ask(combination) for combination in itertools.product((False, True), repeat=len(gates))]
    index = jnp.int32(0)
    for gate in gates:
        index = 2 * index + gate.astype(jnp.int32)
    return *jax.lax.switch(index, cases, x), pull


def guide(branches: Networks, guidance: Guidance, step: Step) -> GuidedDenoiser:
    """The guided denoiser of one step of the sampler: what the sampler calls.

    Which branches are wanted is decided for the step as a whole, by its number and the level at which it begins.

    Args:
      branches: one `Branches`, or a tuple of them.
      guidance: what makes one prediction of them.
      step: its number, the levels at which it begins and ends, and the run's keys.

    Returns:
      `(state, level of state.x) -> (prediction, state)`.

    Example:
      >>> one = branches(denoiser(lambda x, t, cond: x / 2, predicts="x0"), cond=None)
      >>> level, after = schedules.edm()(0.0), schedules.edm()(-0.5)
      >>> denoise = guide(one, chain(), Step(jnp.int32(0), level, after, jax.random.split(jax.random.key(0), 1)))
      >>> prediction, state = denoise(State(jnp.ones((1, 1)), (), (), jnp.int32(0)), level)
      >>> print(prediction.x0, state.evaluations)
      [[0.5]] 1
    """
    networks = _networks(branches)
    base = next(iter(networks[0].conds))

    def denoise(state: State, level: NoiseLevel) -> tuple[Prediction, State]:
        wanted = wants(guidance, state.guidance, step)
        predictions, count, pullback = evaluate(networks, state.x, step, level, wanted, guidance.pullback)
        context = Context(state.x, level, step, predictions[base], predictions, pullback)
        prediction, remembered = guidance.update(context.base, state.guidance, context)
        return prediction, state._replace(guidance=remembered, evaluations=state.evaluations + count)

    return denoise


def _networks(branches: Networks) -> tuple[Branches, ...]:
    return (branches,) if isinstance(branches, Branches) else branches


def _base(network: Branches, name: str, x: Array, step: Step, level: NoiseLevel) -> tuple[dict[str, Prediction], Pullback]:
    """The base's prediction and the pullback of its x0, by one forward pass."""

    def forward(x: Array) -> tuple[Array, dict[str, Prediction]]:
        prediction = _together(network, x, step, level, {name: network.conds[name]})
        return prediction[name].x0, prediction

    _, pull, prediction = jax.vjp(forward, x, has_aux=True)
    return prediction, lambda cotangent: pull(cotangent)[0]


def _together(network: Branches, x: Array, step: Step, level: NoiseLevel, conds: dict[str, Cond]) -> dict[str, Prediction]:
    """One denoiser under several conditions, in one call. Stacked behind the batch axis, so that a sharded batch stays put."""
    count, batch = len(conds), x.shape[0]
    given = [cond(step) if callable(cond) else cond for cond in conds.values()]
    if count == 1:
        return {name: _cast(network.denoise(x, level, given[0]), x.dtype) for name in conds}
    if not network.batched:
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *given)
        parts = jax.lax.map(lambda at: _cast(network.denoise(x, level, at[1]), x.dtype), (jnp.arange(count), stacked))
        return {name: jax.tree.map(lambda part, i=i: part[i], parts) for i, name in enumerate(conds)}

    def merge(*parts: Array) -> Array:
        stacked = jnp.stack(parts, axis=1)
        return stacked.reshape(batch * count, *stacked.shape[2:])

    prediction = network.denoise(merge(*[x] * count), level, jax.tree.map(merge, *given))
    parts = jax.tree.map(lambda merged: merged.reshape(batch, count, *merged.shape[1:]), _cast(prediction, x.dtype))
    return {name: jax.tree.map(lambda part, i=i: part[:, i], parts) for i, name in enumerate(conds)}


def _cast(prediction: Prediction, dtype: Any) -> Prediction:
    return jax.tree.map(lambda field: field.astype(dtype), prediction)


def _run(
    keys: Array,
    branches: Networks,
    guidance: Guidance,
    sampler: Sampler,
    levels: NoiseLevel,
    shape_or_x: tuple[int, ...] | Array,
    result: Callable[[State, Any], Array],
) -> Array:
    networks = _networks(branches)
    check_levels(levels)
    check_keys(keys)
    shape, dtype_out = check_start(keys, levels, shape_or_x)
    dtype = dtype_out if jnp.dtype(dtype_out).itemsize >= 4 else jnp.float32
    like = jax.ShapeDtypeStruct(shape, dtype)
    path = jax.tree.map(lambda field: jnp.asarray(field, dtype), levels)
    check_branches(networks, guidance, like, keys)

    @jax.jit
    def run(keys: Array, given: Array | None) -> Array:
        # The start draws with the keys folded with 0, step i with i + 1: the start is the same for any number of steps.
        folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        x = path.sigma[0] * normal(folded(keys, 0), like) if given is None else given.astype(dtype)

        def body(state: State, inputs: tuple[Array, NoiseLevel, NoiseLevel]) -> tuple[State, None]:
            step = Step(*inputs, keys)
            denoise = guide(networks, guidance, step)
            return sampler.step(denoise, state, step.level, step.next, folded(keys, step.number + 1)), None

        state = State(x, sampler.init(x), guidance.init(x), jnp.int32(0))
        inputs = (
            jnp.arange(len(path.t) - 1, dtype=jnp.int32),
            *(jax.tree.map(lambda a, part=part: a[part], path) for part in (slice(-1), slice(1, None))),
        )
        state, _ = jax.lax.scan(body, state, inputs)
        return result(state, dtype_out)

    return run(keys, None if isinstance(shape_or_x, tuple) else shape_or_x)
