"""Guidance methods from their formulae: `source`, `direction` and `stateless`."""

from collections.abc import Callable
from typing import Annotated, Any

import jax.numpy as jnp
from jax import Array
from typing_extensions import TypeAliasType

from guidance_jax.arrays import divide, expand
from guidance_jax.base import Context, NoiseLevel, Prediction
from guidance_jax.checks.door import Rule, also, part
from guidance_jax.checks.kinds import Branch, BranchesOrBase, BranchNames, Scale, function_kind
from guidance_jax.checks.outcomes import check_prediction
from guidance_jax.checks.words import check_takes, noting
from guidance_jax.guidance.scales import at
from guidance_jax.interfaces import Guidance

Formula = TypeAliasType(
    "Formula",
    Annotated[
        Callable[..., Any], function_kind(hint="it takes the predictions of the branches, in order, and the scales, by name.")
    ],
)
"""A function of predictions and scales that returns a prediction or the new x0."""
Update = TypeAliasType(
    "Update",
    Annotated[
        Callable[[Prediction, Context], Prediction | Array],
        function_kind("prediction", "context", hint="it is (prediction, context) -> the new x0, or a prediction."),
    ],
)
"""`(prediction, context) -> ` the new x0, or a prediction."""


def _takes(who: str) -> Rule:
    """A rule: the formula takes the predictions of the branches, in order, and the scales, by name."""
    return also(lambda formula, branches, scales: check_takes(formula, f"{who}: formula", *branches, **scales))


@part(_takes("source"))
def source(formula: Formula, /, *branches: Branch, **scales: Scale) -> Guidance:
    """A guidance from its formula: write your own method in one line.

    `D <- D + (formula - base)`. It adds the difference between the formula and the base, so guidances compose in a `chain`.

    A formula computes with predictions as vectors: `u + w * (c - u)`. A scale is one number, or one per sample. A nonlinear
    formula reads the field `x0`, as in `norm(c.x0 - u.x0)`, and returns an array: the new x0. eps is then computed from x0
    and x.

    Args:
      formula: A function of the predictions, in the order of the branches, and of the scales, by name.
      *branches: The names of the branches.
      **scales: The scales of the formula.

    Raises:
      TypeError: If an argument has the wrong type. When called, if the formula returns neither a prediction nor an array.
      ValueError: If a scale is not finite, or neither `()` nor `[B]`. When called, if the result has another shape than x.

    Example:
      >>> mine = gj.source(lambda c, u, w: u + w * (c - u), "cond", "uncond", w=7.5)
      >>> sorted(mine.needs)
      ['cond', 'uncond']
    """

    def update(d: Prediction, context: Context) -> Prediction | Array:
        guided = _evaluated(formula, branches, scales, context)
        if isinstance(guided, Prediction):
            return d + (guided - context.base)
        return d.x0 + (guided - context.base.x0)

    return stateless(update, branches)


@part(_takes("direction"))
def direction(formula: Formula, /, *branches: Branch, **scales: Scale) -> Guidance:
    """A guidance that adds its formula to the prediction: `D <- D + formula`. Otherwise it is like `source`.

    Args:
      formula: A function of the predictions, in the order of the branches, and of the scales, by name.
      *branches: The names of the branches.
      **scales: The scales of the formula.

    Raises:
      TypeError: If an argument has the wrong type. When called, if the formula returns neither a prediction nor an array.
      ValueError: If a scale is not finite, or neither `()` nor `[B]`. When called, if the result has another shape than x.

    Example:
      >>> mine = gj.direction(lambda c, p, k: k * (c - p), "cond", "perturbed", k=3.0)
      >>> sorted(mine.needs)
      ['cond', 'perturbed']
    """

    def update(d: Prediction, context: Context) -> Prediction | Array:
        added = _evaluated(formula, branches, scales, context)
        return d + added if isinstance(added, Prediction) else d.x0 + added

    return stateless(update, branches)


def _evaluated(formula: Formula, branches: tuple[str, ...], scales: dict[str, Scale], context: Context) -> Prediction | Array:
    """The checked value of a formula at the predictions of the branches."""
    predictions = [context.branches[name] for name in branches]
    weights = {name: at(scale, context) for name, scale in scales.items()}
    with noting("the formula", predictions=predictions, scales=weights):
        value = formula(*predictions, **weights)
    check_prediction(value, context.x, "the formula", or_x0=True)
    return value


@part()
def stateless(
    update: Update,
    needs: BranchNames = (),
    *,
    derivatives: BranchesOrBase = (),
    own_space: str | None = None,
    shapes: bool = False,
) -> Guidance:
    """A guidance without a state, from its update function.

    An update may return an array, the new x0. eps is then computed so that `alpha x0 + sigma eps` does not change. An update
    may also return a `Prediction`, with its own eps.

    Args:
      update: `(prediction, context) -> ` the new x0, or a prediction.
      needs: The names of the branches that `update` reads.
      derivatives: The branches whose `context.pullback` or `context.jvp` it uses. None in it stands for the base.
      own_space: The name of the method, if it fixes its own space and cannot be used inside `in_space`. Otherwise None.
      shapes: Whether it only changes what other parts have added.

    Raises:
      TypeError: If update is not a function of two arguments, or needs is a single string. When called, if update returns
        neither a prediction nor an array.
      ValueError: When called, if the result of update has another shape than x.

    Example:
      >>> halve = gj.stateless(lambda prediction, context: prediction.x0 / 2)  # eps follows from x0
      >>> sorted(halve.needs)
      []
    """

    def remember(prediction: Prediction, state: Any, context: Context) -> tuple[Prediction, Any]:
        guided = update(prediction, context)
        check_prediction(guided, context.x, "stateless: update", or_x0=True)
        return follow(guided, prediction, context.level), state

    return Guidance(frozenset(needs), lambda x: (), remember, None, frozenset(derivatives), own_space, shapes)


def follow(guided: Prediction | Array, before: Prediction, level: NoiseLevel) -> Prediction:
    """`guided` itself if it is a prediction. Otherwise the prediction with this x0, and eps such that x does not change."""
    if isinstance(guided, Prediction):
        return guided
    x0 = jnp.asarray(guided, before.x0.dtype)
    ratio = expand(divide(level.alpha, level.sigma), x0)
    return before.replace(x0=x0, eps=before.eps - ratio * (x0 - before.x0))
