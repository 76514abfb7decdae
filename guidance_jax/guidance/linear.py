"""Guidance by weighted sums of branches. Each formula is the same in every parameterisation.

In the formulae, `c` and `u` are the predictions of the branches `cond` and `uncond`.
"""

from collections.abc import Mapping

from jax import Array

from guidance_jax.base import Prediction
from guidance_jax.checks.door import part, rule
from guidance_jax.checks.kinds import Branch, Scale
from guidance_jax.guidance.formula import direction, source
from guidance_jax.interfaces import Guidance


@part()
def cfg(scale: Scale, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """Classifier-free guidance.

    `D = uncond + scale (cond - uncond)`

    For a negative prompt, use it as the condition of the `uncond` branch.

    Args:
      scale: 1 is the conditional model, 0 is the unconditional one. Fractions and negative numbers work too. Text-to-image
        models use about 7.5.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      TypeError: If scale is not a number or a function of the level.
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]), uncond=jnp.array([[0.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.cfg(3.0), gj.ddim(), path, (2,)))
      [[3. 1.]]

    Reference: Ho & Salimans 2022, arXiv:2207.12598. Their w is `scale - 1`.
    """
    return source(lambda c, u, w: u + w * (c - u), cond, uncond, w=scale)


@part()
def autoguidance(scale: Scale, *, cond: Branch = "cond", weak: Branch = "weak") -> Guidance:
    """Guidance away from a weaker version of the same network, under the same condition.

    `D = weak + scale (cond - weak)`

    The weak network is smaller, or trained for a shorter time: `(branches(good, cond=y), branches(poor, weak=y))`.

    Args:
      scale: 1 is the good network.
      cond: The branch of the good network.
      weak: The branch of the weak network.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> good = gj.branches(denoise, cond=jnp.array([[1.0, 1.0]]))
      >>> poor = gj.branches(denoise, weak=jnp.array([[0.5, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, (good, poor), gj.autoguidance(2.0), gj.ddim(), path, (2,)))
      [[1.5 1. ]]

    Reference: Karras et al. 2024, arXiv:2406.02507.
    """
    return source(lambda c, weak, w: weak + w * (c - weak), cond, weak, w=scale)


@part(
    rule(
        "scales must have a scale for each condition, and none for uncond",
        lambda scales, uncond: bool(scales) and uncond not in scales,
    )
)
def compose(scales: Mapping[Branch, Scale], *, uncond: Branch = "uncond") -> Guidance:
    """Compose several conditions: positive scales mean AND, negative scales mean NOT.

    `D = uncond + sum_i scale_i (cond_i - uncond)`

    Args:
      scales: One scale per branch, for example `{"red": 3.0, "round": 2.0}`.
      uncond: The branch to move away from.

    Raises:
      ValueError: If there is no scale, or a scale is neither `()` nor `[B]`.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> red, round, blurred, nothing = jnp.eye(4, 3)[:, None]
      >>> several = gj.branches(denoise, uncond=nothing, red=red, round=round, blurred=blurred)
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> guidance = gj.compose({"red": 3.0, "round": 2.0, "blurred": -1.0})
      >>> print(gj.sample(keys, several, guidance, gj.ddim(), path, (3,)))
      [[ 3.  2. -1.]]

    Reference: Liu et al. 2022, arXiv:2206.01714, equations 11 and 12.
    """

    def formula(u: Prediction, *conds: Prediction, **w: Array) -> Prediction:
        return sum((w[name] * (c - u) for name, c in zip(scales, conds, strict=True)), start=u)

    return source(formula, uncond, *scales, **scales)


@part()
def dual_cfg(
    scale: Scale, middle_scale: Scale, *, cond: Branch = "cond", middle: Branch = "image", uncond: Branch = "uncond"
) -> Guidance:
    """Guidance by two conditions with one scale each, such as an image and a text.

    `D = uncond + middle_scale (middle - uncond) + scale (cond - middle)`

    Args:
      scale: The scale of the second condition, the text. The paper uses 7.5.
      middle_scale: The scale of the first condition, the image. The paper uses 1.5.
      cond: The branch with both conditions.
      middle: The branch with only the first condition.
      uncond: The branch with neither condition.

    Raises:
      ValueError: If a scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> both, image, neither = jnp.array([[[1.0, 1.0]], [[1.0, 0.0]], [[0.0, 0.0]]])
      >>> three = gj.branches(denoise, cond=both, image=image, uncond=neither)
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, three, gj.dual_cfg(7.5, 1.5), gj.ddim(), path, (2,)))
      [[1.5 7.5]]

    Reference: Brooks et al. 2022, arXiv:2211.09800, equation 3.
    """
    return source(lambda c, m, u, w, v: u + v * (m - u) + w * (c - m), cond, middle, uncond, w=scale, v=middle_scale)


@part()
def perturbed(scale: Scale, *, cond: Branch = "cond", weak: Branch = "perturbed") -> Guidance:
    """Guidance away from a perturbed forward pass: PAG (identity attention), SEG (blurred queries), SLG (skipped layers).

    `D <- D + scale (cond - weak)`, added to any other guidance.

    `chain(cfg(w), perturbed(k))` is `cond + (w - 1) (cond - uncond) + k (cond - weak)`. The condition has a leaf with one flag
    per sample that turns the perturbation on. `networks.DiT` reads it.

    Args:
      scale: 0 is no guidance. 3 is usual.
      cond: The ordinary branch.
      weak: The perturbed branch.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> c, u, p = jnp.array([[[1.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.0]]])
      >>> three = gj.branches(denoise, cond=c, uncond=u, perturbed=p)
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> guidance = gj.chain(gj.cfg(3.0), gj.perturbed(3.0))
      >>> print(gj.sample(keys, three, guidance, gj.ddim(), path, (2,)))
      [[3. 4.]]

    Reference: Ahn et al. 2024, arXiv:2403.17377 (PAG); Hong 2024, arXiv:2408.00760 (SEG).
    """
    return direction(lambda c, p, k: k * (c - p), cond, weak, k=scale)


@part()
def icg(scale: Scale, *, cond: Branch = "cond", random: Branch = "random") -> Guidance:
    """Independent condition guidance: CFG with a random condition in place of the unconditional branch.

    `D = random + scale (cond - random)`

    The network needs no null label. `branches(denoise, cond=labels, random=conditions.random_labels(classes))` draws a new
    condition in every step.

    Args:
      scale: 1 is the conditional model.
      cond: The branch to move towards.
      random: The branch with the random condition.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> sorted(gj.icg(3.0).needs)
      ['cond', 'random']

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 4.
    """
    return source(lambda c, r, w: r + w * (c - r), cond, random, w=scale)


@part()
def tsg(scale: Scale, *, cond: Branch = "cond", retimed: Branch = "retimed") -> Guidance:
    """Time-step guidance: the weak branch receives a perturbed time. It works without any condition.

    `D = retimed + scale (cond - retimed)`

    `conditions.retimed(denoise)` makes the offset of the time a part of the condition.

    Args:
      scale: 1 is the unguided model.
      cond: The branch that receives the true time.
      retimed: The branch that receives the perturbed time.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> sorted(gj.tsg(3.0).needs)
      ['cond', 'retimed']

    Reference: Sadat et al. 2024, arXiv:2407.02687, section 5.
    """
    return source(lambda c, r, w: r + w * (c - r), cond, retimed, w=scale)


@part()
def cfg_pp(scale: Scale, *, cond: Branch = "cond", uncond: Branch = "uncond") -> Guidance:
    """CFG++: interpolate x0, renoise with the unconditional eps.

    `x0 = u + scale (c - u)`, `eps = eps_u`

    With `ddim` and `ddpm` it is the published method. `dpmpp_2m` and `heun` take their second-order term from the unconditional
    model, as the authors' 2M does.

    Args:
      scale: In [0, 1]. 0 is the unconditional model. With DDIM it is `cfg(w)` with `w = scale / (1 - q)`, where q is the final
        `sigma / alpha` of the step divided by the initial one.
      cond: The branch to move towards.
      uncond: The branch to move away from.

    Raises:
      ValueError: If scale is neither `()` nor `[B]`, or not finite.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, uncond=jnp.array([[0.0, 1.0]]), cond=jnp.array([[1.0, 1.0]]))
      >>> path = gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing())
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> print(gj.sample(keys, two, gj.cfg_pp(0.6), gj.ddim(), path, (2,)))
      [[0.6 1. ]]

    Reference: Chung et al. 2024, arXiv:2406.08070, algorithm 2.
    """
    renoised = source(lambda c, u, w: (u + w * (c - u)).replace(eps=u.eps), cond, uncond, w=scale)
    return renoised.replace(own_space="cfg_pp")
