"""Calibration curves: the ratio of posterior variances at each noise level, known or measured, and the sums behind it."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import ArrayLike, Float
from typing_extensions import TypeAliasType

from guidance_jax.checks.door import Kind
from guidance_jax.checks.numbers import check_addable
from guidance_jax.checks.values import check_form_of_curve

__all__ = ["Calibration", "Curve"]


class Curve(NamedTuple):
    """The variance of x0 given x and the condition, relative to the variance given x alone, at each noise level.

    `rho = Cov(x0 | x, y) / Cov(x0 | x)`, along the direction of guidance. rho is near 0 while x does not determine the
    condition, and 1 once it does.

    `calibrate` measures a curve. `oracles.GaussianMixture.curve` computes the exact one. If the covariances are known, compute
    it from them. The example does so for N(0, v_c) and N(0, v_u).

    Args:
      ratio: The noise levels as `sigma / alpha`, `[S]`, in any order.
      rho: The ratio of variances, `[S]`. Measured values are in (0, 1].
      error: The standard error of rho, `[S]`. 0 if rho is known exactly.

    Example:
      >>> ratio, v_c, v_u = jnp.geomspace(0.002, 80.0, 100), 1.0, 2.0
      >>> known = gj.Curve(ratio, rho=v_c * (v_u + ratio**2) / (v_u * (v_c + ratio**2)))
      >>> print(known.rho[::33].round(2))
      [1.   1.   0.58 0.5 ]
    """

    ratio: Array
    rho: Array
    error: ArrayLike = 0.0

    def over_plateau(self) -> "Curve":
        """`rho / min(1, plateau)`, at most 1. The plateau is the maximum mean of rho over three neighbouring levels.

        For exact networks rho is 1 at low noise, and this changes nothing. A trained unconditional network has an error at low
        noise, which keeps rho below 1.
        """
        rho = self.rho[jnp.argsort(self.ratio)]
        width = min(3, len(rho))
        means = jnp.convolve(rho, jnp.full(width, 1 / width, rho.dtype), "valid", precision="highest")
        plateau = jnp.minimum(means.max(), 1)
        return Curve(self.ratio, jnp.minimum(self.rho / plateau, 1), self.error / plateau)


class Residuals(NamedTuple):
    """Sums over samples of squared residuals: a of the conditional prediction, b of the unconditional one.

    Args:
      cond: `sum a`, `[S]`.
      uncond: `sum b`, `[S]`.
      cond_squared: `sum a a`, `[S]`.
      product: `sum a b`, `[S]`.
      uncond_squared: `sum b b`, `[S]`.
    """

    cond: Array
    uncond: Array
    cond_squared: Array
    product: Array
    uncond_squared: Array

    @classmethod
    def of(cls, a: Float[Array, "b"], b: Float[Array, "b"]) -> "Residuals":
        """The sums of one level, from the squared residuals a and b of its samples."""
        return cls(*(value.sum() for value in (a, b, a * a, a * b, b * b)))

    def curve(self, ratio: Array) -> Curve:
        """The curve `rho = sum a / sum b`, with standard error `sqrt(sum (a - rho b)^2) / sum b`, at levels `ratio`."""
        known = self.uncond > 0
        below = jnp.where(known, self.uncond, 1)
        rho = jnp.where(known, self.cond / below, 1)
        square = self.cond_squared - 2 * rho * self.product + rho**2 * self.uncond_squared
        return Curve(ratio, rho, jnp.sqrt(jnp.maximum(square, 0)) / below)


class Calibration(NamedTuple):
    """The result of `calibrate`. Every field is a sum over samples, so results of batches, devices and processes can be added.

    Add them with `a + b`, `jax.lax.psum(a, "data")` or `jax.tree.map(lambda s: s.sum(0), several)`. Its `ratio`, `rho` and
    `error` are those of `for_classes`, so it can be used as a curve.

    Args:
      samples: The number of samples, `[S]`.
      log_ratio: `log(sigma / alpha)`, `[S]`, summed over samples.
      along: The residuals along the direction of guidance, weighted by its length.
      entire: The residuals in all directions.

    Raises:
      ValueError: If two calibrations with different noise levels are added.
      TypeError: If anything but a `Calibration` is added.

    Example:
      >>> denoise = gj.denoiser(lambda x, t, c: 0 * x + c, predicts="x0")  # predicts its condition
      >>> two = gj.branches(denoise, cond=jnp.ones((2, 1)), uncond=jnp.zeros((2, 1)))
      >>> path = gj.levels(gj.schedules.edm(), 2, gj.spacings.karras())
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> one = gj.calibrate(keys, two, jnp.array([[0.0], [2.0]]), path)
      >>> both = one + one
      >>> print(both.samples, both.projected.rho)
      [4. 4.] [0.5 0.5]
    """

    samples: Array
    log_ratio: Array
    along: Residuals
    entire: Residuals

    def __add__(self, other: "Calibration") -> "Calibration":  # pyright: ignore[reportIncompatibleMethodOverride]
        check_addable(self, other)
        return jax.tree.map(jnp.add, self, other)

    @property
    def ratio(self) -> Array:
        """The noise levels as `sigma / alpha`, `[S]`."""
        return jnp.exp(self.log_ratio / self.samples)

    @property
    def projected(self) -> Curve:
        """`rho = sum |d|^p (d^ . (c - x0))^2 / sum |d|^p (d^ . (u - x0))^2`, `d = c - u`, `d^ = d / |d|`."""
        return self.along.curve(self.ratio)

    @property
    def whole(self) -> Curve:
        """`rho = sum |c - x0|^2 / sum |u - x0|^2`."""
        return self.entire.curve(self.ratio)

    @property
    def for_classes(self) -> Curve:
        """The curve for class labels: `projected`, divided by its plateau.

        It suits conditional networks that follow their condition well, where diversity matters.
        """
        return self.projected.over_plateau()

    @property
    def for_prompts(self) -> Curve:
        """The curve for prompts: `whole`, at most 1. It guides more at high noise, to follow the condition."""
        curve = self.whole
        return curve._replace(rho=jnp.minimum(curve.rho, 1))

    @property
    def rho(self) -> Array:
        """The rho of `for_classes`, `[S]`."""
        return self.for_classes.rho

    @property
    def error(self) -> Array:
        """The standard error of `rho`, `[S]`."""
        return jnp.asarray(self.for_classes.error)


_MEASURED = "gj.calibrate(keys, branches, x0, levels) measures one."
_IS_CURVE = Kind(
    "a Calibration or a Curve", lambda v: isinstance(v, Calibration | Curve), hint=_MEASURED, also=check_form_of_curve
)
CurveLike = TypeAliasType("CurveLike", Annotated[Calibration | Curve, _IS_CURVE])
"""A `Calibration`, or a `Curve`."""
