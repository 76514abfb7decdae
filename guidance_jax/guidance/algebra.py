"""Combinations of guidances: in sequence, in parallel, in an interval of noise levels, in another space, on a part of x."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import expand
from guidance_jax.base import Context, Prediction, Step
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import Branch, Count, Mask, Predicts, Ratio, Scale
from guidance_jax.checks.numbers import check_broadcasts
from guidance_jax.checks.outcomes import Asked, check_channels, check_one_level, warn_of_order
from guidance_jax.denoisers import OUTPUTS, PREDICTS
from guidance_jax.guidance.scales import at_level
from guidance_jax.interfaces import Guidance


@part()
def chain(*parts: Guidance) -> Guidance:
    """Apply guidances in sequence: each one receives the prediction that the one before it returned.

    The first one receives the base prediction. `chain()` returns it unchanged.

    Args:
      *parts: Sources and shapers. A source adds to the prediction. A shaper changes what the parts before it added.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> guidance = gj.chain(gj.cfg(3.0), gj.clip_norm(1.0))
      >>> print(gj.sample(keys, two, guidance, gj.ddim(), path, (2,)))
      [[2. 1.]]
    """
    warn_of_order(parts)

    def update(prediction: Prediction, states: tuple[Any, ...], context: Context) -> tuple[Prediction, tuple[Any, ...]]:
        after = []
        for each, state in zip(parts, states, strict=True):
            prediction, state = each.update(prediction, state, context)
            after.append(state)
        return prediction, tuple(after)

    return _together(parts, update)


@part()
def add(*parts: Guidance) -> Guidance:
    """Apply guidances in parallel: each one receives the same prediction, and their changes are summed.

    Unlike in a `chain`, the shapers of one part do not act on the changes of another part.

    Args:
      *parts: The guidances. A part may be a `chain`.

    Example:
      >>> guidance = gj.add(gj.cfg(2.0), gj.chain(gj.cfg(2.0, cond="style"), gj.rescale(0.7)))
      >>> sorted(guidance.needs)
      ['cond', 'style', 'uncond']
    """

    def update(prediction: Prediction, states: tuple[Any, ...], context: Context) -> tuple[Prediction, tuple[Any, ...]]:
        total, after = prediction, []
        for each, state in zip(parts, states, strict=True):
            guided, state = each.update(prediction, state, context)
            total = total + (guided - prediction)
            after.append(state)
        return total, tuple(after)

    return _together(parts, update)


@part(rule("low must be below high, both in sigma / alpha: the interval is empty", lambda low, high: low < high))
def during(guidance: Guidance, low: Ratio, high: Ratio = jnp.inf) -> Guidance:
    """Apply a guidance only in the interval `low < sigma / alpha <= high`. Outside it, its branches are not evaluated.

    The noisier end of a step decides for all evaluations of the step. This is the level where the step begins, or where it
    ends in inversion. If the run's levels include `low` and `high`, guidance switches exactly there. Single-step samplers then
    keep their order. Multistep samplers extrapolate across the jump and lose theirs; `forget` restores it.

    Args:
      guidance: The guidance to apply in the interval.
      low: The lower bound in `sigma / alpha`, excluded.
      high: The upper bound in `sigma / alpha`, included.

    Raises:
      ValueError: If a bound is not a scalar, or low is not below high; when called, if there is one level per sample.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> guidance = gj.during(gj.cfg(3.0), 0.19, 1.61)
      >>> print(gj.evaluations(keys, two, guidance, gj.ddim(), path, (2,)))
      6

    Reference: Kynkaanniemi et al. 2024, arXiv:2404.07724.
    """

    def inside(step: Step) -> Array:
        check_one_level(step.level, "during")
        ratio = jnp.maximum(step.level.ratio, step.next.ratio)
        return (ratio > jnp.asarray(low, ratio.dtype)) & (ratio <= jnp.asarray(high, ratio.dtype))

    return _where(inside, guidance)


@part()
def unless_one(guidance: Guidance, scale: Scale) -> Guidance:
    """Apply a guidance only where its scale is not 1. Its branches are not evaluated in steps where all scales are 1.

    `D <- g(D) if scale != 1 else D`, with the scale at the level where the step begins.

    `scales.calibrated(curve, w, threshold=0.05)` returns 1 where its scale is near 1. With the conditional branch as the base,
    only that branch is then evaluated.

    Args:
      guidance: A guidance that equals the base at scale 1, such as `cfg(scale)` with the conditional branch as the base.
      scale: The scale of the guidance.

    Raises:
      TypeError: If guidance is not a guidance, or scale not a number.
      ValueError: If scale is not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> scale = lambda level: jnp.where(level.ratio > 2.0, 1.0, 3.0)
      >>> guidance = gj.unless_one(gj.cfg(scale), scale)
      >>> print(gj.evaluations(keys, two, guidance, gj.ddim(), path, (2,)))
      6
    """

    def guided(step: Step) -> Array:
        return jnp.asarray(at_level(scale, step.level)) != 1

    gated = _where(lambda step: guided(step).any(), guidance)

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        on = guided(context.step)
        rows = lambda leaf: expand(on, leaf) if on.ndim and leaf.shape[:1] == on.shape else on.any()
        after = gated.update(prediction, state, context)
        return jax.tree.map(lambda new, old: jnp.where(rows(new), new, old), after, (prediction, state))

    return gated.replace(update=update)


@part(
    rule(
        "guidance must not have its own space; use chain(guidance, in_space(...))",
        lambda guidance: guidance.own_space is None,
    )
)
def in_space(predicts: Predicts, guidance: Guidance) -> Guidance:
    """Apply a guidance to another parameterisation in place of x0.

    `x0 <- x0 + L(g(o) - o)`. o is the prediction in that parameterisation. L is the linear map from a change of o to one of x0.

    Predictions are converted, guided, and converted back. The guidance finds o in the field `x0` of each prediction.
    The space changes the result of nonlinear methods: `rescale`, `project`, `momentum`, `apg`, `cfg_zero_star`.

    Args:
      predicts: The parameterisation: "eps", "x0", "v", "score" or "velocity".
      guidance: The guidance to apply. It must take no gradients and must not have its own space.

    Raises:
      ValueError: If `predicts` is none of these, or the guidance has its own space.

    Example:
      >>> guidance = gj.in_space("v", gj.chain(gj.cfg(7.5), gj.rescale(0.7)))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']

    Reference: Lin et al. 2024, arXiv:2305.08891. Its rescaling acts on v.
    """

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        alpha, sigma = expand(context.level.alpha, context.x), expand(context.level.sigma, context.x)

        def view(p: Prediction) -> Prediction:
            return p.replace(x0=OUTPUTS[predicts](p.x0, p.eps, alpha, sigma))

        seen, branches = view(prediction), Asked({name: view(p) for name, p in context.branches.items()})
        inside = context._replace(base=view(context.base), branches=branches, derivatives={}, space=predicts)
        guided, state = guidance.update(seen, state, inside)
        change = PREDICTS[predicts](guided.x0 - seen.x0, jnp.zeros_like(context.x), alpha, sigma)
        return prediction + change, state

    return guidance.replace(update=update, own_space="in_space")


@part()
def relative_to(branch: Branch, guidance: Guidance) -> Guidance:
    """Apply a guidance to a named branch in place of the base, and add the change from the base.

    `D <- D + (g(branch) - base)`. The shapers inside it act on the change from that branch. They do not act on what other parts
    of a chain added.

    Args:
      branch: The name of the branch.
      guidance: The guidance to apply to the branch.

    Example:
      >>> guidance = gj.relative_to("cond", gj.chain(gj.cfg(7.5), gj.rescale(0.7)))
      >>> sorted(guidance.needs)
      ['cond', 'uncond']
    """

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        own, base = context.branches[branch], context.base
        guided, state = guidance.update(own, state, context._replace(base=own))
        return prediction + (guided - base), state

    def wanted(state: Any, step: Step) -> dict[str, Any]:
        # A branch that is not wanted is replaced by the base, so this branch is always wanted.
        return wants(guidance, state, step) | {branch: True}

    return guidance.replace(needs=guidance.needs | {branch}, update=update, wants=wanted)


@part()
def on_channels(guidance: Guidance, channels: Count) -> Guidance:
    """Apply a guidance only to the first channels of the last axis. The other channels are unchanged.

    `x0_c = guided_c` for c < channels, and the same for eps. The guidance receives all channels. Its norms and standard
    deviations are taken over all of them.

    Args:
      guidance: The guidance to apply.
      channels: The number of channels that are guided.

    Raises:
      TypeError: If guidance is not a guidance, or channels not an integer.
      ValueError: If channels is below 1; when called, if x has fewer.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.on_channels(gj.cfg(4.0), 1), gj.ddim(), path, (2,)))
      [[4. 1.]]

    Reference: Peebles & Xie 2023, arXiv:2212.09748. Its released code guides 3 of the 4 channels of the latents.
    """

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        check_channels(channels, context.x)
        guided, state = guidance.update(prediction, state, context)
        first = lambda own, before: jnp.concatenate([own[..., :channels], before[..., channels:]], axis=-1)
        return jax.tree.map(first, guided, prediction), state

    return guidance.replace(update=update)


@part()
def masked(guidance: Guidance, mask: Mask) -> Guidance:
    """Apply a guidance only to a part of each sample, such as for regional prompts.

    `D <- D + mask (g(D) - D)`. The guidance receives the whole sample. Its norms and standard deviations are taken over all
    of it.

    Args:
      guidance: The guidance to apply.
      mask: `[B, H, W, 1]`, or any shape that broadcasts against x. 1 applies the guidance, 0 does not. A fraction applies that
        fraction of the change.

    Raises:
      ValueError: If the mask has a value outside [0, 1]; when called, if it does not broadcast against x.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> guidance = gj.masked(gj.cfg(4.0), jnp.array([[1, 0]]))
      >>> print(gj.sample(keys, two, guidance, gj.ddim(), path, (2,)))
      [[4. 1.]]
    """

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        check_broadcasts(context.x, "masked", hint="; use [B, H, W, 1].", mask=mask)
        guided, state = guidance.update(prediction, state, context)
        m = jnp.broadcast_to(jnp.asarray(mask, context.x.dtype), context.x.shape)
        return jax.tree.map(lambda new, old: old + m * (new - old), guided, prediction), state

    return guidance.replace(update=update)


def wants(guidance: Guidance, state: Any, step: Step) -> dict[str, Any]:
    """The branches that a guidance wants in a step: `{name: True or a boolean scalar}`."""
    return dict.fromkeys(guidance.needs, True) if guidance.wants is None else guidance.wants(state, step)


def only(gate: Array, wanted: dict[str, Any]) -> dict[str, Any]:
    """The wanted branches, restricted to where the gate is True. Branches that shared one boolean share one again."""
    shared = {id(now): gate if now is True else gate & now for now in wanted.values()}
    return {name: shared[id(now)] for name, now in wanted.items()}


def _where(inside: Callable[[Step], Array], guidance: Guidance) -> Guidance:
    """Apply a guidance only in the steps that `inside` selects. Its branches are wanted only in these steps."""

    def update(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        return jax.lax.cond(
            inside(context.step),
            lambda prediction, state: guidance.update(prediction, state, context),
            lambda prediction, state: (prediction, state),
            prediction,
            state,
        )

    def wanted(state: Any, step: Step) -> dict[str, Any]:
        return only(inside(step), wants(guidance, state, step))

    return guidance.replace(update=update, wants=wanted)


def _together(parts: tuple[Guidance, ...], update: Callable[..., Any]) -> Guidance:
    """Several guidances as one. Its state is the tuple of their states. It wants a branch where any part wants it."""

    def wanted(states: tuple[Any, ...], step: Step) -> dict[str, Any]:
        union: dict[str, Any] = {}
        shared: dict[tuple[int, int], Any] = {}

        def either(a: Any, b: Any) -> Any:
            if a is True or b is True:
                return True
            return a if a is b else shared.setdefault((id(a), id(b)), a | b)

        for each, state in zip(parts, states, strict=True):
            for name, now in wants(each, state, step).items():
                union[name] = either(union[name], now) if name in union else now
        return union

    needs = functools.reduce(frozenset.union, (part.needs for part in parts), frozenset[str]())
    init = lambda x: tuple(part.init(x) for part in parts)
    derivatives = functools.reduce(frozenset.union, (part.derivatives for part in parts), frozenset[str | None]())
    own_space = next((part.own_space for part in parts if part.own_space), None)
    return Guidance(needs, init, update, wanted, derivatives, own_space, bool(parts) and all(part.shapes for part in parts))
