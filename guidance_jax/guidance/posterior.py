"""Guidance without training: by a log-probability or a measurement of the clean data, at what the denoiser makes of x.

`x0` in the formulae is the base's x0-prediction at x, `grad` the gradient in x through it, by the one forward pass that gave
it: such a step costs one forward and one backward pass. Sums are per sample; a `log_prob(x0)` gives `[B]`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from guidance_jax.arrays import at_least_float32, divide, expand, sqrt
from guidance_jax.base import Context, Guidance, Prediction
from guidance_jax.checks.old import check_finite
from guidance_jax.guidance.algebra import move, own_space, stateless
from guidance_jax.guidance.gradient import add_score
from guidance_jax.checks.old import check_callable, check_count, check_takes
from guidance_jax.noise import normal, step_keys
from guidance_jax.checks.old import check_each
from guidance_jax.scales import Scale, at

LogProb = Callable[[Array], Array]
Measure = Callable[[Array], Any]
CLEAN = "it is x0 [B, ...] -> [B]."
MEASURE = "it is x0 [B, ...] -> the measurement."


def universal(log_prob: LogProb, scale: Scale, *, inner_steps: int = 0, rate: Scale = 0.1) -> Guidance:
    """Universal guidance: the log-probability of the predicted x0 as if it were the classifier of x.

    `eps <- eps - scale sigma grad log_prob(x0(x))`; then, backward, `inner_steps` ascents `x0 <- x0 + rate grad_x0 log_prob`.

    Its recurrence is `recur(sampler, times)`. Without inner steps this is the denoiser form of classifier guidance,
    `x0 <- x0 + sigma^2 / alpha grad log_prob(x0(x))`.

    Args:
      log_prob: `x0 [B, ...] -> [B]`: a classifier of clean data, a negative loss, a reward.
      scale: `()` or `[B]`, or a function of the level; 0 is no guidance.
      inner_steps: m, the number of ascents in x0.
      rate: of an ascent, `()` or `[B]`, or a function of the level.

    Raises:
      ValueError: if a parameter is neither `()` nor `[B]`, log_prob does not give `[B]`, or inside of `in_space`.

    Example:
      >>> guidance = universal(lambda x0: -(x0**2).sum(1), 1.0)
      >>> guidance.pullback  # whether it takes a backward pass through the network
      True

    Reference: Bansal et al. 2023, arXiv:2302.07121, algorithm 1.
    """

    check_callable(log_prob, "log_prob", CLEAN)
    check_count(inner_steps, "universal's inner_steps", 0)

    def update(prediction: Prediction, context: Context) -> Prediction:
        x0 = context.base.x0
        gradient = pulled(gradient_of(log_prob, x0), "universal", context)
        prediction = add_score(prediction, at(scale, context, "universal's scale") * gradient, context)
        step = at(rate, context, "universal's rate")
        change = ascend(log_prob, x0, step, inner_steps)
        return move(prediction, prediction.x0 + change, context.level)

    return stateless(update, pullback=True)


def dps(measure: Measure, measurement: Any, rate: Scale) -> Guidance:
    """Diffusion posterior sampling, for inverse problems: `measurement = measure(x0) + noise`.

    `x' <- x' - rate grad |measurement - measure(x0(x))|`, the norm over all leaves of a sample's measurement.

    Written as `freedom` is: exact with a sampler of one evaluation a step, as the paper's, and not with others.

    Args:
      measure: `x0 [B, ...] -> ` any pytree of `[B, ...]` leaves.
      measurement: the same pytree.
      rate: zeta, `()` or `[B]`, or a function of the level; 0 is no guidance.

    Raises:
      ValueError: if rate is neither `()` nor `[B]`, measure and measurement do not match, or in `in_space`.

    Example:
      >>> guidance = dps(lambda x0: x0[:, :1], jnp.ones((4, 1)), 0.5)
      >>> guidance.pullback  # whether it takes a backward pass through the network
      True

    Reference: Chung et al. 2022, arXiv:2209.14687, algorithm 1 with the released code's step, zeta / |.|.
    """

    check_callable(measure, "measure", MEASURE)
    check_finite(measurement, "dps's measurement")

    def closeness(x0: Array) -> Array:
        leaves = jax.tree.leaves(_residual(measure, measurement, x0))
        squares = jnp.stack([(leaf.reshape(len(x0), -1) ** 2).sum(1) for leaf in leaves])
        return -sqrt(squares.sum(0))

    return freedom(closeness, rate)


def freedom(log_prob: LogProb, rate: Scale) -> Guidance:
    """FreeDoM: each step, taken as ever, is moved up the log-probability of the predicted x0.

    `x' <- x' + rate grad log_prob(x0(x))`.

    Written as `x0 + rate / alpha' grad`, eps left alone, which moves a step by exactly that where it asks once: `ddim`, `ddpm`,
    `euler`, `euler_ancestral`, the multistep samplers, and `recur` in each repetition (with churn, by the gradient where churn
    has put x). A step that asks again does so at a point that has moved, and moves by something else: on a mixture, in the step
    from sigma / alpha = 1.4 of ten, off by .25 of it for `flow_heun`, .30 for `dpmpp_2s`, .37 for `heun`, and by 1.7 of it for
    `heun_sde()` and `predictor_corrector`, which add the move of each evaluation. At alpha' = 0 nothing moves. Its time travel
    is `recur(sampler, times, low, high)`.

    Args:
      log_prob: `x0 [B, ...] -> [B]`: a negative energy.
      rate: rho, `()` or `[B]`, or a function of the level; 0 is no guidance.

    Raises:
      ValueError: if rate is neither `()` nor `[B]`, log_prob does not give `[B]`, or inside of `in_space`.

    Example:
      >>> guidance = freedom(lambda x0: -(x0**2).sum(1), lambda level: 0.1 * level.alpha)
      >>> guidance.pullback  # whether it takes a backward pass through the network
      True

    Reference: Yu et al. 2023, arXiv:2303.09833, algorithm 1.
    """

    check_callable(log_prob, "log_prob", CLEAN)

    def update(prediction: Prediction, context: Context) -> Prediction:
        gradient = pulled(gradient_of(log_prob, context.base.x0), "freedom", context)
        shift = divide(at(rate, context, "the rate") * gradient, context.next.alpha)
        return prediction._replace(x0=prediction.x0 + shift)

    return stateless(update, pullback=True)


def mpgd(log_prob: LogProb, rate: Scale) -> Guidance:
    """Manifold-preserving guidance: up the log-probability in x0, and nothing through the network.

    `x0 <- x0 + rate grad_x0 log_prob(x0)`, eps left alone.

    Args:
      log_prob: `x0 [B, ...] -> [B]`.
      rate: `()` or `[B]`, or a function of the level; 0 is no guidance.

    Raises:
      ValueError: if rate is neither `()` nor `[B]`, log_prob does not give `[B]`, or inside of `in_space`.

    Example:
      >>> guidance = mpgd(lambda x0: -(x0**2).sum(1), 0.1)
      >>> guidance.pullback  # whether it takes a backward pass through the network
      False

    Reference: He et al. 2023, arXiv:2311.16424, algorithm 1.
    """

    check_callable(log_prob, "log_prob", CLEAN)

    def update(prediction: Prediction, context: Context) -> Prediction:
        own_space("mpgd", context)
        step = at(rate, context, "mpgd's rate") * gradient_of(log_prob, context.base.x0)
        return prediction._replace(x0=prediction.x0 + step)

    return stateless(update)


def pigdm(
    measure: Measure,
    pseudoinverse: Callable[[Any], Array],
    measurement: Any,
    scale: Scale = 1.0,
    *,
    variance: Scale | None = None,
) -> Guidance:
    """Pseudoinverse guidance, for linear inverse problems without noise: `measurement = measure(x0)`.

    `grad log p(y | x) = (d x0 / d x)^T A^+ (y - A x0) / r^2`, as a classifier's score.

    Args:
      measure: A, `x0 [B, ...] -> ` any pytree.
      pseudoinverse: A^+, from that pytree back to `[B, ...]`.
      measurement: y, the same pytree.
      scale: `()` or `[B]`, or a function of the level; 0 is no guidance.
      variance: r^2, of x0 given x, likewise; None is `sigma^2 / (alpha^2 + sigma^2)`, which is exact for data N(0, I).

    Raises:
      ValueError: if a parameter is neither `()` nor `[B]`, measure and measurement do not match, or in `in_space`.

    Example:
      >>> embed = lambda y: jnp.pad(y, ((0, 0), (0, 1)))
      >>> pigdm(lambda x0: x0[:, :1], embed, jnp.ones((4, 1))).pullback
      True

    Reference: Song et al. 2023, openreview 9_gsMA8MRKQ, equation 7.
    """

    check_callable(measure, "measure", MEASURE)
    check_callable(pseudoinverse, "pseudoinverse", "it goes from the measurement back to [B, ...].")
    check_finite(measurement, "pigdm's measurement")

    def update(prediction: Prediction, context: Context) -> Prediction:
        x0 = context.base.x0
        # A^+ (y - A x0), the constant of y included once: A^+ is linear.
        back = pseudoinverse(_residual(measure, measurement, x0))
        if jnp.shape(back) != x0.shape:
            raise ValueError(f"the pseudoinverse must give the shape of x0, but gave {jnp.shape(back)} for {x0.shape}.")
        pull = pulled(back, "pigdm", context)
        r2 = _variance(context) if variance is None else at(variance, context, "pigdm's variance", 0)
        return add_score(prediction, at(scale, context, "pigdm's scale") * divide(pull, r2), context)

    return stateless(update, pullback=True)


def lgd(log_prob: LogProb, scale: Scale, *, draws: int = 8, spread: Scale | None = None) -> Guidance:
    """Loss-guided diffusion: the log-probability, averaged over what x0 may be around its prediction.

    `grad log (1/n) sum_i exp log_prob(x0(x) + r z_i)`, as a classifier's score, with n draws `z_i` of a Gaussian.

    Args:
      log_prob: `x0 [B, ...] -> [B]`.
      scale: `()` or `[B]`, or a function of the level; 0 is no guidance.
      draws: n.
      spread: r, likewise; None is `sigma / sqrt(alpha^2 + sigma^2)`.

    Raises:
      ValueError: if a parameter is neither `()` nor `[B]`, log_prob does not give `[B]`, or inside of `in_space`.

    Example:
      >>> guidance = lgd(lambda x0: -(x0**2).sum(1), 1.0, draws=16)
      >>> guidance.pullback  # whether it takes a backward pass through the network
      True

    Reference: Song et al. 2023, ICML, "Loss-guided diffusion models for plug-and-play controllable generation", equation 8.
    """

    check_callable(log_prob, "log_prob", CLEAN)
    check_count(draws, "lgd's draws")

    def update(prediction: Prediction, context: Context) -> Prediction:
        r = jnp.sqrt(_variance(context)) if spread is None else at(spread, context, "lgd's spread")
        gradient = pulled(gradient_of(smoothed(log_prob, r, draws, context), context.base.x0), "lgd", context)
        return add_score(prediction, at(scale, context, "lgd's scale") * gradient, context)

    return stateless(update, pullback=True)


def tfg(log_prob: LogProb, rho: Scale, mu: Scale, *, inner_steps: int = 4, smoothing: Scale = 0.0, draws: int = 1) -> Guidance:
    """Training-free guidance, one method that holds the others: a gradient in x through the network, and ascents in x0.

    `f(x0) = log (1/n) sum_i exp log_prob(x0 + gamma s z_i)`, `s^2 = sigma^2 / (alpha^2 + sigma^2)`, `dx = rho grad f(x0(x))`,
    `dx0` of `inner_steps` ascents of rate mu, and `x' <- x' + (alpha' / alpha) dx + alpha' dx0`.

    Its recurrence is `recur(sampler, times)`. At alpha = 0 dx is 0. As with `freedom`, x' moves by exactly that with a sampler
    of one evaluation a step; with others by what each evaluation adds, .09 to .6 of it off on the same mixture.

    Args:
      log_prob: `x0 [B, ...] -> [B]`.
      rho: the rate in x, `()` or `[B]`, or a function of the level.
      mu: the rate in x0, likewise; both 0 is no guidance.
      inner_steps: the number of ascents.
      smoothing: gamma, likewise.
      draws: n.

    Raises:
      ValueError: if a parameter is neither `()` nor `[B]`, log_prob does not give `[B]`, or inside of `in_space`.

    Example:
      >>> guidance = tfg(lambda x0: -(x0**2).sum(1), 0.5, 0.5)
      >>> guidance.pullback  # whether it takes a backward pass through the network
      True

    Reference: Ye et al. 2024, arXiv:2409.15761, algorithm 1.
    """

    check_callable(log_prob, "log_prob", CLEAN)
    check_count(inner_steps, "tfg's inner_steps", 0)
    check_count(draws, "tfg's draws")

    def update(prediction: Prediction, context: Context) -> Prediction:
        x0, s = context.base.x0, jnp.sqrt(_variance(context))
        f = smoothed(log_prob, at(smoothing, context, "tfg's smoothing") * s, draws, context)
        in_x = at(rho, context, "tfg's rho") * pulled(gradient_of(f, x0), "tfg", context)
        in_x0 = ascend(f, x0, at(mu, context, "tfg's mu"), inner_steps)
        return prediction._replace(x0=prediction.x0 + divide(in_x, expand(context.level.alpha, x0)) + in_x0)

    return stateless(update, pullback=True)


def gradient_of(log_prob: LogProb, x0: Array) -> Array:
    """`grad_x0 log_prob`, each sample's own.

    Raises:
      ValueError: if log_prob does not give one number a sample.
    """
    check_takes(log_prob, "log_prob", "x0")

    def total(x0: Array) -> Array:
        each = log_prob(x0)
        check_each(each, x0, "log_prob")
        return each.sum()

    return jax.grad(total)(x0).astype(x0.dtype)


def pulled(cotangent: Array, name: str, context: Context) -> Array:
    """A gradient in the base's x0 as one in x, by the network's backward pass."""
    own_space(name, context)
    assert context.pullback is not None
    return context.pullback(cotangent.astype(context.x.dtype))


def ascend(log_prob: LogProb, x0: Array, rate: Array, steps: int) -> Array:
    """What `steps` gradient ascents add to x0."""
    up = lambda _, change: change + rate * gradient_of(log_prob, x0 + change)
    return jax.lax.fori_loop(0, steps, up, jnp.zeros_like(x0)) if steps else jnp.zeros_like(x0)


def smoothed(log_prob: LogProb, spread: Array, draws: int, context: Context) -> LogProb:
    """`log (1/n) sum_i exp log_prob(x0 + spread z_i)`, the draws of a sample from its own key."""
    z = normal(step_keys(context.step), jax.ShapeDtypeStruct((len(context.x), draws, *context.x.shape[1:]), context.x.dtype))

    def mean(x0: Array) -> Array:
        each = jax.vmap(lambda z: log_prob(x0 + spread * z), in_axes=1)(z)
        each = each.astype(at_least_float32(each.dtype))
        return jax.nn.logsumexp(each, axis=0) - jnp.log(jnp.asarray(draws, each.dtype))

    return mean


def _variance(context: Context) -> Array:
    """Of x0 given x, were the data N(0, I)."""
    alpha, sigma = expand(context.level.alpha, context.x), expand(context.level.sigma, context.x)
    return sigma**2 / (alpha**2 + sigma**2)


def _residual(measure: Measure, measurement: Any, x0: Array) -> Any:
    measured = measure(x0)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (measurement, measured)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"measure(x0) gives {shapes[1]}, but the measurement is {shapes[0]}; they must match, leaf by leaf.")
    return jax.tree.map(lambda y, a: jnp.asarray(y, a.dtype) - a, measurement, measured)
