"""Evaluation of branches, and guided denoisers for samplers and for loops of your own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.base import Branches, Cond, Context, Derivative, GuidedDenoiser, NoiseLevel, Prediction, State, Step, pytree
from guidance_jax.checks.door import also, door
from guidance_jax.checks.kinds import Denoise, Flag, Wanted
from guidance_jax.checks.outcomes import Asked, Slopes, check_update, predicted
from guidance_jax.checks.running import (
    check_conditions,
    check_conditions_of,
    check_inputs,
    check_memory,
    check_named,
    check_networks,
    check_shapes,
    check_state_given,
)
from guidance_jax.guidance.algebra import wants
from guidance_jax.interfaces import Guidance
from guidance_jax.noise import INNER, apart, fold
from guidance_jax.programs.parts import build

Networks = Branches | tuple[Branches, ...]
Derivatives = Mapping[str | None, Derivative]


@door(also(check_conditions))
def branches(denoise: Denoise, *, batched: Flag = True, **conds: Cond) -> Branches:
    """Named conditions of one denoiser, evaluated in one batched call. The first branch is the base.

    Args:
      denoise: `(x, level, cond) -> Prediction`.
      batched: Whether one call evaluates all conditions. If False, each condition has its own call, which needs less memory.
      **conds: The conditions by name. Each is a pytree of `[B, ...]` leaves, and all have the same structure. For conditions
        that differ in every step, use a function of the `Step` that returns the condition.

    Raises:
      ValueError: If there is no condition.
      TypeError: If denoise is not a function.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: 0 * x, predicts="x0")
      >>> labels = jnp.array([3, 1])
      >>> list(gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, 10)).conds)
      ['cond', 'uncond']
    """
    return Branches(denoise, conds, batched)


class Memory(NamedTuple):
    """What a guided denoiser remembers between its calls.

    Args:
      guidance: The memory of the guidance, any pytree.
      number: The number of calls so far, `()`. Each call counts as one step.
    """

    guidance: Any
    number: Array


@pytree
@dataclasses.dataclass(frozen=True, eq=False)
class Guided:
    """A guided denoiser for a loop of your own: `(x, level) -> Prediction`. It may be jitted.

    Args:
      branches: One `Branches`, or a tuple of them.
      guidance: The guidance that combines the branches.
      keys: `[B]` PRNG keys for a guidance that draws; fixed keys if None.
    """

    branches: Networks
    guidance: Guidance
    keys: Array | None = None

    def init(self, x: Array) -> Memory:
        """The memory before the first call, for x `[B, ...]`."""
        return Memory(self.guidance.init(x), jnp.int32(0))

    def __call__(self, x: Array, level: NoiseLevel, memory: Memory | None = None, *, next: NoiseLevel | None = None) -> Any:
        """The guided prediction at x. With a memory, it returns `(prediction, next memory)`."""
        check_inputs(x, level, "guided")
        check_shapes(self.guidance, x)
        check_memory(self.guidance, x, memory)
        guidance, number = self.init(x) if memory is None else memory
        keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), len(x)) if self.keys is None else self.keys
        step = Step(number, level, level if next is None else next, keys)
        prediction, guidance, _, _ = look(check_networks(self.branches), self.guidance, step, x, level, guidance)
        return prediction if memory is None else (prediction, Memory(guidance, number + 1))


@door()
def guided(branches: Networks, guidance: Guidance, keys: Array | None = None) -> Guided:
    """One guided denoiser, `(x, level) -> Prediction`, for a loop of your own: an ODE solver, another library's sampler.

    For the level at your own time, use `schedule(t)`, or `schedule.at(sigma / alpha)`.

    A guidance with a memory (`momentum`, `reuse`, `adaptive`) receives its memory and returns the next one:
    `memory = denoise.init(x)`, then `prediction, memory = denoise(x, level, memory)`. Each call counts as one step.

    Args:
      branches: The result of `gj.branches(...)`, or a tuple of these for several networks.
      guidance: `cfg(scale)`, a `chain`, ...
      keys: `[B]` PRNG keys, one per sample, for a guidance that draws (`lgd`, `icg`); fixed keys if None.

    Returns:
      `(x [B, ...], level, memory=None, *, next=None) -> Prediction`. `next` is the level at which the step ends; if None, it
      is `level`. `mean_shift`, `freedom` and `tfg` use it.

    Raises:
      ValueError: If a branch is missing. When called, if the level does not match x, or the memory of the guidance is missing.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> denoise, x = jax.jit(gj.guided(two, gj.cfg(3.0))), jnp.ones((1, 2))
      >>> for level, after in zip(path[:-1], path[1:]):
      ...     prediction = denoise(x, level)
      ...     x = after.alpha * prediction.x0 + after.sigma * prediction.eps  # Euler's method
      >>> print(x)
      [[3. 1.]]
    """
    check_named(guidance.needs | guidance.derivatives, check_networks(branches))
    build((branches, guidance))
    return Guided(branches, guidance, keys)


def look(
    networks: tuple[Branches, ...], guidance: Guidance, step: Step, x: Array, level: NoiseLevel, remembered: Any
) -> tuple[Prediction, Any, Context, Array | int]:
    """The guided prediction at x, the next memory of the guidance, its context, and the number of evaluations."""
    wanted = wants(guidance, remembered, step)
    predictions, count, derivatives = evaluate(networks, x, step, level, wanted, guidance.derivatives)
    base = predictions[next(iter(networks[0].conds))]
    context = Context(x, level, step, base, Asked(predictions), derivatives)
    updated = guidance.update(base, remembered, context)
    check_update(updated, remembered, x)
    return *updated, context, count


@door()
def guide(branches: Networks, guidance: Guidance, step: Step) -> GuidedDenoiser:
    """The guided denoiser that a sampler calls in one step.

    The number of the step and the level at its start decide which branches are evaluated. All evaluations in a step use them.

    Args:
      branches: One `Branches`, or a tuple of them.
      guidance: The guidance that combines the branches into one prediction.
      step: The number of the step, the levels at which it starts and ends, and the keys of the run.

    Returns:
      A `GuidedDenoiser`: `denoise(state, level) -> (prediction, state)`, with the level of `state.x`.

    Raises:
      ValueError: If there is no branch. When called, as `evaluate`, and if the result of the guidance is not shaped as x.
      TypeError: When called, if the first argument is not a `State`. For x itself, use `gj.guided`.

    Example:
      >>> one = gj.branches(gj.denoiser(lambda x, t, cond: x / 2, predicts="x0"), cond=None)
      >>> level, after = gj.schedules.edm()(0.0), gj.schedules.edm()(-0.5)
      >>> step = gj.Step(jnp.int32(0), level, after, jax.random.split(jax.random.key(0), 1))
      >>> denoise = gj.guide(one, gj.chain(), step)
      >>> state = gj.State(jnp.ones((1, 1)), (), (), jnp.int32(0), jnp.zeros((1, 1)))
      >>> prediction, state = denoise(state, level)
      >>> print(prediction.x0, state.evaluations)
      [[0.5]] 1
    """
    networks = check_networks(branches)

    def guided(state: State, level: NoiseLevel) -> tuple[Prediction, State, Context]:
        check_state_given(state, guidance)
        prediction, remembered, context, count = look(networks, guidance, step, state.x, level, state.guidance)
        after = state._replace(guidance=remembered, evaluations=state.evaluations + count, x0=prediction.x0)
        return prediction, after, context

    def unguided(state: State, level: NoiseLevel) -> tuple[Prediction, State]:
        predictions, count, _ = evaluate(networks, state.x, step, level, {})
        prediction = predictions[next(iter(networks[0].conds))]
        return prediction, state._replace(evaluations=state.evaluations + count, x0=prediction.x0)

    def between(level: NoiseLevel, next: NoiseLevel, number: Array) -> GuidedDenoiser:
        keys = jnp.where(jnp.asarray(number) == 0, step.keys, fold(apart(step.keys, INNER), number))
        return guide(networks, guidance, step._replace(level=level, next=next, keys=keys))

    return GuidedDenoiser(guided, unguided, between)


@door()
def evaluate(
    branches: Networks,
    x: Array,
    step: Step,
    level: NoiseLevel,
    wanted: Wanted,
    derivatives: frozenset[str | None] = frozenset(),
) -> tuple[dict[str, Prediction], Array | int, Derivatives]:
    """The predictions of the base and of every wanted branch at x, merged into one call per network.

    Args:
      branches: One `Branches`, or a tuple of them.
      x: `[B, ...]`.
      step: The step of the sampler, for conditions that are functions of it.
      level: The level of x: one for all samples, or one per sample.
      wanted: `{name: True, or a boolean scalar}`. If the scalar is false, the branch is not evaluated, and its result is the
        prediction of the base. Several different scalars compile at most three copies of a network: one for all branches
        together, one for the base alone, and one for single branches if the scalars differ.
      derivatives: The branches whose derivative in x is needed; None stands for the base. Each has its own evaluation in every
        step.

    Returns:
      `{name: Prediction}` for the base and for each name in `wanted`, the number of evaluations per sample, and the
      derivatives by name.

    Raises:
      ValueError: If a name in `wanted` does not exist, there is no branch, or a prediction is not shaped as x.
      TypeError: If `wanted` is not a dictionary.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, cond: x * cond, predicts="x0")
      >>> two = gj.branches(denoise, a=jnp.ones((1, 1)), b=jnp.zeros((1, 1)))
      >>> level = gj.schedules.edm()(0.0)
      >>> step = gj.Step(jnp.int32(0), level, level, jax.random.split(jax.random.key(0), 1))
      >>> predictions, count, _ = gj.evaluate(two, jnp.ones((1, 1)), step, level, {"b": True})
      >>> print(predictions["a"].x0, predictions["b"].x0, count)
      [[1.]] [[0.]] 2
    """
    networks = check_networks(branches)
    check_named({*wanted, *derivatives}, networks, "evaluate is asked for")
    check_inputs(x, level, "evaluate")
    check_conditions_of(networks, x)
    base = next(iter(networks[0].conds))
    gates = {base: True, **{name: gate for name, gate in wanted.items() if name != base}}
    known: dict[str, Prediction] = {}
    slopes = Slopes()
    count: Array | int = 0
    for name in sorted({name or base for name in derivatives}):
        network = next(network for network in networks if name in network.conds)
        known[name], slopes[name] = _differentiated(network, name, x, step, level)
        count = count + 1
    slopes |= {None: slopes[base]} if base in slopes else {}
    for network in networks:
        mine = {name: gates[name] for name in network.conds if name in gates and name not in known}
        if mine:
            predictions, evaluated = _gated(network, mine, known.get(base), x, step, level)
            known |= predictions
            count = count + evaluated
    return {name: _alike(known[name], known[base]) for name in gates}, count, slopes


def _gated(
    network: Branches, gates: dict[str, Any], base: Prediction | None, x: Array, step: Step, level: NoiseLevel
) -> tuple[dict[str, Prediction], Array | int]:
    """The predictions of one network's branches, and the number of evaluations. By default, the first branch is the base."""
    conds = {name: cond(step) if callable(cond) else cond for name, cond in network.conds.items() if name in gates}
    always = [name for name, gate in gates.items() if gate is True]
    sometimes = {name: gate for name, gate in gates.items() if gate is not True}

    def together(names: list[str]) -> dict[str, Prediction]:
        """The predictions of these branches, in one call. All other branches get the prediction of the base."""
        found = _together(network, x, level, {name: conds[name] for name in names}) if names else {}
        stand_in = base if base is not None else next(iter(found.values()))
        return {name: _alike(found.get(name, stand_in), stand_in) for name in gates}

    if not sometimes:
        return together(always), jnp.int32(len(always))
    count = len(always) + sum(gate.astype(jnp.int32) for gate in sometimes.values())
    every = jnp.stack(list(sometimes.values())).all()
    first = jax.lax.cond(every, lambda: together(list(gates)), lambda: together(always))
    if len({id(gate) for gate in sometimes.values()}) == 1:
        return first, count

    def alone(inputs: tuple[Array, Cond, Prediction]) -> Prediction:
        gate, cond, stand_in = inputs
        mine = lambda: _alike(_together(network, x, level, {"": cond})[""], stand_in)
        return jax.lax.cond(gate & ~every, mine, lambda: stand_in)

    stacked = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    inputs = [(gate, conds[name], first[name]) for name, gate in sometimes.items()]
    rest = jax.lax.map(alone, stacked(inputs))
    return first | {name: jax.tree.map(lambda leaf, i=i: leaf[i], rest) for i, name in enumerate(sometimes)}, count


def _differentiated(network: Branches, name: str, x: Array, step: Step, level: NoiseLevel) -> tuple[Prediction, Derivative]:
    """The prediction of a branch and the derivative of its x0, from one forward pass."""
    cond = network.conds[name]
    cond = cond(step) if callable(cond) else cond

    def forward(x: Array) -> tuple[Array, Prediction]:
        prediction = predicted(network, x, level, cond)
        return prediction.x0, prediction

    _, jvp, prediction = jax.linearize(forward, x, has_aux=True)
    transposed = jax.linear_transpose(jvp, x)
    return prediction, Derivative(jvp, lambda cotangent: transposed(cotangent)[0])


def _together(network: Branches, x: Array, level: NoiseLevel, conds: dict[str, Cond]) -> dict[str, Prediction]:
    """One denoiser under several conditions, in one call. They are stacked after the batch axis, to keep its sharding."""
    count, batch, given = len(conds), x.shape[0], list(conds.values())
    if count == 1:
        return {name: predicted(network, x, level, given[0]) for name in conds}
    if not network.batched:
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *given)
        parts = jax.lax.map(lambda at: predicted(network, x, level, at[1]), (jnp.arange(count), stacked))
        return {name: jax.tree.map(lambda part, i=i: part[i], parts) for i, name in enumerate(conds)}

    def merge(*parts: Array) -> Array:
        stacked = jnp.stack(parts, axis=1)
        return stacked.reshape(batch * count, *stacked.shape[2:])

    level = jax.tree.map(lambda field: merge(*[field] * count) if field.ndim else field, level)
    prediction = predicted(network, merge(*[x] * count), level, jax.tree.map(merge, *given))
    parts = jax.tree.map(lambda merged: merged.reshape(batch, count, *merged.shape[1:]), prediction)
    return {name: jax.tree.map(lambda part, i=i: part[:, i], parts) for i, name in enumerate(conds)}


def _alike(prediction: Prediction, base: Prediction) -> Prediction:
    """A prediction with a variance if the base has one. If its own network predicts none, it gets the variance of the base."""
    known = base.variance is not None and prediction.variance is not None
    return prediction if known else prediction.replace(variance=base.variance)
