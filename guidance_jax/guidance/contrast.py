"""Guidance by a linear contrast of branches, the same in every parameterisation.

Every function here is a source: what it adds to a prediction is its formula less the base.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import Array

from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.guidance.algebra import stateless
from guidance_jax.kinds import check_kind
from guidance_jax.scales import Scale, at


def cfg(scale: Scale, *, cond: str = "cond", uncond: str = "uncond") -> Guidance:
    """Classifier-free guidance.

    `D = uncond + scale (cond - uncond)`, in any parameterisation.

    A negative prompt is an `uncond` branch with that condition.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model, 0 the unconditional one; fractions and
        negatives are legal.
      cond: the name of the branch to go to.
      uncond: the name of the branch to come from.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> two = branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, two, cfg(3.0), ddim(), path, (2,)))
      [[3. 1.]]

    Reference: Ho & Salimans 2022, arXiv:2207.12598; its w is `scale - 1`.
    """
    return _linear(lambda context: {cond: (w := at(scale, context, "cfg's scale")), uncond: 1 - w}, cond, uncond)


def autoguidance(scale: Scale, *, cond: str = "cond", weak: str = "weak") -> Guidance:
    """Guidance away from a weaker version of the network, under the same condition.

    `D = weak + scale (cond - weak)`.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the network itself.
      cond: the network's branch.
      weak: the branch of a smaller or less trained network: `(branches(denoise, cond=y), branches(weaker, weak=y))`.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> good, poor = branches(denoise, cond=jnp.array([[1.0, 1.0]])), branches(denoise, weak=jnp.array([[0.5, 1.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, (good, poor), autoguidance(2.0), ddim(), path, (2,)))
      [[1.5 1. ]]

    Reference: Karras et al. 2024, arXiv:2406.02507.
    """
    return cfg(scale, cond=cond, uncond=weak)


def compose(scales: Mapping[str, Scale], *, uncond: str = "uncond") -> Guidance:
    """Several conditions at once: AND by positive scales, NOT by negative ones.

    `D = uncond + sum_i scale_i (cond_i - uncond)`.

    Args:
      scales: of each branch, `()` or `[B]`, or functions of the level.
      uncond: the name of the branch to come from.

    Raises:
      ValueError: if there is no scale, or one is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> red, round, blurred, nothing = jnp.eye(4, 3)[:, None]
      >>> several = branches(denoise, uncond=nothing, red=red, round=round, blurred=blurred)
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, several, compose({"red": 3.0, "round": 2.0, "blurred": -1.0}), ddim(), path, (3,)))
      [[ 3.  2. -1.]]

    Reference: Liu et al. 2022, arXiv:2206.01714, equations 11 and 12.
    """
    check_kind(scales, Mapping, "compose's scales", '{"red": 3.0, "round": 2.0} is one.')
    if not scales or uncond in scales:
        raise ValueError(f"compose needs a scale for each condition, none for {uncond!r}, got {dict(scales)}.")

    def coefficients(context: Context) -> dict[str, Array]:
        weights = {name: at(scale, context, f"compose's scale of {name!r}") for name, scale in scales.items()}
        return weights | {uncond: jnp.asarray(1 - sum(weights.values()))}

    return _linear(coefficients, *scales, uncond)


def dual_cfg(
    scale: Scale, middle_scale: Scale, *, cond: str = "cond", middle: str = "image", uncond: str = "uncond"
) -> Guidance:
    """Guidance by two conditions, one after the other: an image, then a text.

    `D = uncond + middle_scale (middle - uncond) + scale (cond - middle)`.

    Args:
      scale: from the middle to the full condition, `()` or `[B]`, or a function of the level; 7.5 in the paper.
      middle_scale: from none to the middle, likewise; 1.5 in the paper.
      cond: the branch with both conditions.
      middle: the branch with the first alone.
      uncond: the branch with neither.

    Raises:
      ValueError: if a scale is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> three = branches(denoise, cond=jnp.array([[1.0, 1.0]]), image=jnp.array([[1.0, 0.0]]), uncond=jnp.array([[0.0, 0.0]]))
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, three, dual_cfg(7.5, 1.5), ddim(), path, (2,)))
      [[1.5 7.5]]

    Reference: Brooks et al. 2022, arXiv:2211.09800, equation 3.
    """

    def coefficients(context: Context) -> dict[str, Array]:
        first, second = at(middle_scale, context, "dual_cfg's middle_scale"), at(scale, context, "dual_cfg's scale")
        return {cond: second, middle: first - second, uncond: 1 - first}

    return _linear(coefficients, cond, middle, uncond)


def perturbed(scale: Scale, *, cond: str = "cond", weak: str = "perturbed") -> Guidance:
    """Guidance away from a perturbed forward pass: identity attention (PAG), skipped layers (SLG), blurred queries (SEG), ...

    `D <- D + scale (cond - weak)`, added to whatever else guides.

    So `chain(cfg(w), perturbed(k))` is `cond + (w - 1) (cond - uncond) + k (cond - weak)`.

    The perturbation is a leaf of the condition, a flag a sample, that the network reads: `networks.DiT` does.

    Args:
      scale: `()` or `[B]`, or a function of the level; 0 is no guidance, 3 is usual.
      cond: the branch that is not perturbed.
      weak: the branch that is.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> denoise = denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # it says what it is told
      >>> c, u, p = jnp.array([[[1.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.0]]])
      >>> three = branches(denoise, cond=c, uncond=u, perturbed=p)
      >>> path, keys = levels(schedules.flow(), 4, spacings.trailing()), jax.random.split(jax.random.key(0), 1)
      >>> print(sample(keys, three, chain(cfg(3.0), perturbed(3.0)), ddim(), path, (2,)))
      [[3. 4.]]

    Reference: Ahn et al. 2024, arXiv:2403.17377 (PAG); Hong 2024, arXiv:2408.00760 (SEG).
    """

    def update(prediction: Prediction, context: Context) -> Prediction:
        c, p, k = context.branches[cond], context.branches[weak], at(scale, context, "perturbed's scale")
        return prediction._replace(x0=prediction.x0 + k * (c.x0 - p.x0), eps=prediction.eps + k * (c.eps - p.eps))

    return stateless(update, needs=(cond, weak))


def icg(scale: Scale, *, cond: str = "cond", random: str = "random") -> Guidance:
    """Independent condition guidance: CFG whose unconditional branch sees a random condition; no null label is trained.

    `D = random + scale (cond - random)`.

    `branches(denoise, cond=labels, random=conditions.random_labels(classes))` draws the condition anew in every step.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the conditional model.
      cond: the branch to go to.
      random: the branch under the random condition.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> sorted(icg(3.0).needs)
      ['cond', 'random']

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 4.
    """
    return cfg(scale, cond=cond, uncond=random)


def tsg(scale: Scale, *, cond: str = "cond", retimed: str = "retimed") -> Guidance:
    """Time-step guidance: the weak branch is told a perturbed time. It works without any condition.

    `D = retimed + scale (cond - retimed)`.

    `conditions.retimed(denoise)` makes the time's offset a part of the condition.

    Args:
      scale: `()` or `[B]`, or a function of the level; 1 is the model itself.
      cond: the branch that is told the time.
      retimed: the branch that is told another.

    Raises:
      ValueError: if scale is neither `()` nor `[B]`.

    Example:
      >>> sorted(tsg(3.0).needs)
      ['cond', 'retimed']

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 5.
    """
    return cfg(scale, cond=cond, uncond=retimed)


def _linear(coefficients: Callable[[Context], Mapping[str, Array]], *needs: str) -> Guidance:
    """`sum_i a_i branch_i` for coefficients that sum to one: the same in every parameterisation, so eps needs no x0."""

    def update(prediction: Prediction, context: Context) -> Prediction:
        base, x0, eps = context.base, prediction.x0, prediction.eps
        for name, weight in coefficients(context).items():
            branch = context.branches[name]
            x0, eps = x0 + weight * (branch.x0 - base.x0), eps + weight * (branch.eps - base.eps)
        return prediction._replace(x0=x0, eps=eps)

    return stateless(update, needs)
