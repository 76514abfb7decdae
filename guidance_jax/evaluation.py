"""What a sampler calls at each level: the branches, evaluated together, and the guidance that makes one prediction of them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.base import Branches, Cond, Context, Guidance, GuidedDenoiser, NoiseLevel, Prediction, State, Step
from guidance_jax.checks import check_guidance, check_named, check_networks
from guidance_jax.guidance.algebra import wants
from guidance_jax.kinds import check_kind
from guidance_jax.outcomes import check_update, predicted

Networks = Branches | tuple[Branches, ...]
Pullback = Callable[[Array], Array]


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

    Raises:
      ValueError: if a name in `wanted` is of no branch, there is no branch, or a prediction is not shaped as x.

    Example:
      >>> two = branches(denoiser(lambda x, t, cond: x * cond, predicts="x0"), a=jnp.ones((1, 1)), b=jnp.zeros((1, 1)))
      >>> level = schedules.edm()(0.0)
      >>> step = Step(jnp.int32(0), level, level, jax.random.split(jax.random.key(0), 1))
      >>> predictions, count, _ = evaluate(two, jnp.ones((1, 1)), step, level, {"b": True})
      >>> print(predictions["a"].x0, predictions["b"].x0, count)
      [[1.]] [[0.]] 2
    """
    networks = check_networks(branches)
    check_named(wanted, networks, "evaluate is asked for")
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
            predictions = {name: predictions.get(name, predictions[base]) for name in (base, *wanted)}
            return {name: _alike(each, predictions[base]) for name, each in predictions.items()}, jnp.int32(len(asked))

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
      A `GuidedDenoiser`: `denoise(state, level of state.x) -> (prediction, state)`.

    Raises:
      ValueError: if there is no branch; when called, as `evaluate` does, and if what the guidance makes is not shaped as x.

    Example:
      >>> one = branches(denoiser(lambda x, t, cond: x / 2, predicts="x0"), cond=None)
      >>> level, after = schedules.edm()(0.0), schedules.edm()(-0.5)
      >>> denoise = guide(one, chain(), Step(jnp.int32(0), level, after, jax.random.split(jax.random.key(0), 1)))
      >>> prediction, state = denoise(State(jnp.ones((1, 1)), (), (), jnp.int32(0), jnp.zeros((1, 1))), level)
      >>> print(prediction.x0, state.evaluations)
      [[0.5]] 1
    """
    networks = check_networks(branches)
    check_guidance(guidance)
    check_kind(step, Step, "the step", "gj.Step(number, level, next, keys) is one.")
    base = next(iter(networks[0].conds))

    def look(state: State, level: NoiseLevel) -> tuple[Prediction, State, Context]:
        wanted = wants(guidance, state.guidance, step)
        predictions, count, pullback = evaluate(networks, state.x, step, level, wanted, guidance.pullback)
        context = Context(state.x, level, step, predictions[base], predictions, pullback)
        updated = guidance.update(context.base, state.guidance, context)
        check_update(updated, state.guidance, state.x)
        prediction, remembered = updated
        after = state._replace(guidance=remembered, evaluations=state.evaluations + count, x0=prediction.x0)
        return prediction, after, context

    def unguided(state: State, level: NoiseLevel) -> tuple[Prediction, State]:
        predictions, count, _ = evaluate(networks, state.x, step, level, {})
        return predictions[base], state._replace(evaluations=state.evaluations + count, x0=predictions[base].x0)

    return GuidedDenoiser(look, unguided)


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
        return {name: predicted(network, x, level, given[0]) for name in conds}
    if not network.batched:
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *given)
        parts = jax.lax.map(lambda at: predicted(network, x, level, at[1]), (jnp.arange(count), stacked))
        return {name: jax.tree.map(lambda part, i=i: part[i], parts) for i, name in enumerate(conds)}

    def merge(*parts: Array) -> Array:
        stacked = jnp.stack(parts, axis=1)
        return stacked.reshape(batch * count, *stacked.shape[2:])

    prediction = predicted(network, merge(*[x] * count), level, jax.tree.map(merge, *given))
    parts = jax.tree.map(lambda merged: merged.reshape(batch, count, *merged.shape[1:]), prediction)
    return {name: jax.tree.map(lambda part, i=i: part[:, i], parts) for i, name in enumerate(conds)}


def _alike(prediction: Prediction, base: Prediction) -> Prediction:
    """A prediction with a variance where the base has one: its own, or, of a network that predicts none, the base's."""
    known = base.variance is not None and prediction.variance is not None
    return prediction if known else prediction._replace(variance=base.variance)
