"""What a guidance scale is calibrated by: a number for each noise level, known or measured, and the sums that measure it."""

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
    """How narrow the posterior of x0 is under the condition, relative to without it, at each noise level.

    `rho = Cov(x0 | x, y) / Cov(x0 | x)` along what guidance adds: near 0 while the condition is open, 1 once x shows it.

    `calibrate` measures one, and `oracles.GaussianMixture.curve` knows its own. Where the covariances are known, so is the
    curve, as here of N(0, v_c) and N(0, v_u).

    Example:
      >>> ratio, v_c, v_u = jnp.geomspace(0.002, 80.0, 100), 1.0, 2.0
      >>> known = gj.Curve(ratio, rho=v_c * (v_u + ratio**2) / (v_u * (v_c + ratio**2)))
      >>> print(known.rho[::33].round(2))
      [1.   1.   0.58 0.5 ]
    """

    ratio: Array
    """The noise levels, `sigma / alpha`, `[S]`, in any order."""
    rho: Array
    """`[S]`; what `calibrate` measures is in (0, 1]."""
    error: ArrayLike = 0.0
    """The standard error of rho, `[S]`; 0 where it is known."""

    def over_plateau(self) -> "Curve":
        """`rho / min(1, plateau)`, at most 1; the plateau is the largest mean of rho over three neighbouring levels.

        For ideal networks rho is 1 at little noise, and this changes nothing. A learned unconditional network has not quite
        inferred there what x shows: the difference is its error, and rho stays below 1.
        """
        rho = self.rho[jnp.argsort(self.ratio)]
        width = min(3, len(rho))
        means = jnp.convolve(rho, jnp.full(width, 1 / width, rho.dtype), "valid", precision="highest")
        plateau = jnp.minimum(means.max(), 1)
        return Curve(self.ratio, jnp.minimum(self.rho / plateau, 1), self.error / plateau)


class Residuals(NamedTuple):
    """Squared residuals of two predictions, a of the conditional and b of the unconditional one, summed over samples.

    Example:
      >>> a, b = jnp.array([1.0, 2.0]), jnp.array([2.0, 4.0])
      >>> print(gj.guidance.curves.Residuals.of(a, b).cond, gj.guidance.curves.Residuals.of(a, b).product)
      3.0 10.0
    """

    cond: Array
    """`sum a`, `[S]`, and so are all of these."""
    uncond: Array
    """`sum b`."""
    cond_squared: Array
    """`sum a a`."""
    product: Array
    """`sum a b`."""
    uncond_squared: Array
    """`sum b b`."""

    @classmethod
    def of(cls, a: Float[Array, "b"], b: Float[Array, "b"]) -> "Residuals":
        """The sums of one level."""
        return cls(*(value.sum() for value in (a, b, a * a, a * b, b * b)))

    def curve(self, ratio: Array) -> Curve:
        """`rho = sum a / sum b`, and its standard error, `sqrt(sum (a - rho b)^2) / sum b`."""
        known = self.uncond > 0
        below = jnp.where(known, self.uncond, 1)
        rho = jnp.where(known, self.cond / below, 1)
        square = self.cond_squared - 2 * rho * self.product + rho**2 * self.uncond_squared
        return Curve(ratio, rho, jnp.sqrt(jnp.maximum(square, 0)) / below)


class Calibration(NamedTuple):
    """What `calibrate` measured: sums over samples alone, so that those of batches, devices and processes add up.

    `a + b`, `jax.lax.psum(a, "data")`, and `jax.tree.map(lambda s: s.sum(0), several)` are all the calibration of all samples.
    It is itself a curve, `for_classes`.

    Raises:
      ValueError: When two are added that were measured at other levels.
      TypeError: When something else is added.

    Example:
      >>> sums = gj.guidance.curves.Residuals(*jnp.array([[1.0], [2.0], [1.0], [2.0], [4.0]]))
      >>> one = gj.Calibration(samples=jnp.ones(1), log_ratio=jnp.zeros(1), along=sums, entire=sums)
      >>> print((one + one).samples, (one + one).ratio, (one + one).rho, one.projected.rho)
      [2.] [1.] [1.] [0.5]
    """

    samples: Array
    """How many, `[S]`."""
    log_ratio: Array
    """`log(sigma / alpha)`, `[S]`, summed over samples like all else."""
    along: Residuals
    """Residuals along what guidance adds, weighted by its length."""
    entire: Residuals
    """Residuals in all directions."""

    def __add__(self, other: "Calibration") -> "Calibration":  # pyright: ignore[reportIncompatibleMethodOverride]
        check_addable(self, other)
        return jax.tree.map(jnp.add, self, other)

    @property
    def ratio(self) -> Array:
        """The noise levels, `sigma / alpha`, `[S]`."""
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
        """Where the conditional network meets its condition and diversity counts: `projected`, over its plateau."""
        return self.projected.over_plateau()

    @property
    def for_prompts(self) -> Curve:
        """Where the condition has to be met: `whole`, at most 1. It guides more at much noise."""
        curve = self.whole
        return curve._replace(rho=jnp.minimum(curve.rho, 1))

    @property
    def rho(self) -> Array:
        """That of `for_classes`, `[S]`."""
        return self.for_classes.rho

    @property
    def error(self) -> Array:
        """Its standard error, `[S]`."""
        return jnp.asarray(self.for_classes.error)


_MEASURED = "gj.calibrate(keys, branches, x0, levels) measures one."
_IS_CURVE = Kind(
    "a Calibration or a Curve", lambda v: isinstance(v, Calibration | Curve), hint=_MEASURED, also=check_form_of_curve
)
CurveLike = TypeAliasType("CurveLike", Annotated[Calibration | Curve, _IS_CURVE])
"""Where guidance helps, measured or known."""
