"""Distributions with exact scores, denoisers and class posteriors at every noise level: the ground truth for tests."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision
from jaxtyping import ArrayLike, Float, Int

from guidance_jax.arrays import at_least_float32, divide, inner, norm
from guidance_jax.base import NoiseLevel, Prediction
from guidance_jax.checks.door import door
from guidance_jax.checks.kinds import AtLeastOne, Count, Key, Keys, Labels, NonNegative, PerSample
from guidance_jax.checks.mixtures import check_components, check_point, check_positive_definite, check_prior
from guidance_jax.checks.paths import check_levels
from guidance_jax.checks.traced import known_now
from guidance_jax.denoisers import from_eps, from_x0
from guidance_jax.guidance.curves import Curve
from guidance_jax.noise import apart, diffuse

__all__ = ["GaussianMixture"]

# Full float32 precision on every device: by default, accelerators multiply matrices in a lower one.
_einsum = functools.partial(jnp.einsum, precision=Precision.HIGHEST)


@jax.tree_util.register_pytree_node_class
class GaussianMixture:
    """A mixture of Gaussians with full covariances. Each component belongs to one class. It is a pytree.

    `p(x_t | y) = sum over k of class y of w_k N(x_t; alpha mu_k, alpha^2 Sigma_k + sigma^2 I) / sum of those w_k`.

    The label -1 is the unconditional distribution, with all components.

    Args:
      means: The means mu_k, `[K, D]`.
      covariances: The covariances Sigma_k, `[K, D, D]`, symmetric and positive definite.
      weights: The weights w_k, `[K]`, positive. They are normalised.
      labels: The class of each component, `[K]` integers from 0.

    Raises:
      ValueError: If the shapes do not fit, or a covariance or weight is not positive.
      TypeError: If the labels are not integers.

    Example:
      >>> means, covariances = jnp.array([[-2.0], [2.0]]), jnp.ones((2, 1, 1))
      >>> mixture = gj.oracles.GaussianMixture(means, covariances, jnp.ones(2), jnp.arange(2))
      >>> denoise, x, level = jax.jit(mixture.denoise), jnp.zeros((1, 1)), gj.schedules.edm()(0.0)
      >>> print(denoise(x, level, jnp.array([1])).x0, denoise(x, level, jnp.array([-1])).x0)
      [[1.]] [[0.]]
    """

    def __init__(
        self,
        means: Float[Array, "k d"],
        covariances: Float[Array, "k d d"],
        weights: Float[Array, "k"],
        labels: Int[Array, "k"],
    ):
        check_components(means, covariances, weights, labels)
        means, covariances, weights = (
            jnp.asarray(value, at_least_float32(value.dtype)) for value in (means, covariances, weights)
        )
        # Known covariances are decomposed now, and not in the program that is being traced. The program is then smaller, and
        # several batched decompositions in one program can deadlock the threads of the CPU in jaxlib 0.10.
        with known_now(covariances):
            variances, axes = jnp.linalg.eigh(covariances)
        check_positive_definite(variances)
        self.means = means
        self.variances = variances
        """The eigenvalues of the covariances, `[K, D]`. In the eigenvectors of a component, `axes`, every level is diagonal."""
        self.axes = axes
        self.log_weights = jnp.log(weights) - jax.nn.logsumexp(jnp.log(weights))
        self.labels = jnp.asarray(labels)

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return (self.means, self.variances, self.axes, self.log_weights, self.labels), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: tuple[Any, ...]) -> "GaussianMixture":
        mixture = object.__new__(cls)
        mixture.means, mixture.variances, mixture.axes, mixture.log_weights, mixture.labels = leaves
        return mixture

    def denoise(self, x: Float[Array, "b d"], level: NoiseLevel, label: Int[Array, "b"]) -> Prediction:
        """`E[x_0 | x_t, y]` and `E[eps | x_t, y]`: a `Denoiser`.

        At low noise x0 is computed from eps, and at high noise eps from x0. So `x = alpha x0 + sigma eps` holds up to rounding,
        and errors do not accumulate over many steps.

        Args:
          x: The noisy samples, `[B, D]`.
          level: The level of x, `()` or `[B]`.
          label: The classes, `[B]`. -1 is unconditional.

        Raises:
          ValueError: If a label is not the class of any component.
        """
        log_joint, pull, alpha, sigma = self._components(x, level, label)
        responsibility = jax.nn.softmax(log_joint, axis=1)[:, :, None]
        spread = _einsum("kde,ke,kfe,bkf->bkd", self.axes, self.variances, self.axes, pull)
        x0 = (responsibility * (self.means[None] + alpha[:, None, None] * spread)).sum(1)
        alpha, sigma, x = alpha[:, None], sigma[:, None], jnp.asarray(x, alpha.dtype)
        eps = sigma * (responsibility * pull).sum(1)
        size = jnp.sqrt((self.means**2).mean() + self.variances.mean())
        little = sigma < alpha * size
        return jax.tree.map(lambda a, b: jnp.where(little, a, b), from_eps(eps, x, alpha, sigma), from_x0(x0, x, alpha, sigma))

    def covariance(self, x: Float[Array, "b d"], level: NoiseLevel, label: Int[Array, "b"]) -> Float[Array, "b d d"]:
        """`Cov(x_0 | x_t, y)`, `[B, D, D]`, with arguments as for `denoise`."""
        log_joint, pull, alpha, sigma = self._components(x, level, label)
        responsibility = jax.nn.softmax(log_joint, axis=1)
        spread = _einsum("kde,ke,kfe,bkf->bkd", self.axes, self.variances, self.axes, pull)
        means = self.means[None] + alpha[:, None, None] * spread
        offset = means - (responsibility[:, :, None] * means).sum(1)[:, None]
        a, s = (alpha**2)[:, None, None], (sigma**2)[:, None, None]
        within = _einsum("kde,bke,kfe->bkdf", self.axes, self.variances[None] * s / (a * self.variances[None] + s), self.axes)
        return _einsum("bk,bkdf->bdf", responsibility, within + offset[:, :, :, None] * offset[:, :, None])

    @door()
    def curve(self, keys: Keys, labels: Labels, levels: NoiseLevel, *, power: NonNegative = 2.0) -> Curve:
        """The curve that `calibrate` measures, with exact expectations of the squared residuals. Only x_t is random.

        `rho = sum |d|^p v / sum |d|^p (v + |d|^2)`, `v = d^ . Cov(x_0 | x_t, y) d^`, `d = c - u`, `d^ = d / |d|`.

        Args:
          keys: `[B]` PRNG keys, one per sample.
          labels: The classes of the samples.
          levels: The path of noise levels, `[steps + 1]`. The last level is not used.
          power: The exponent p.

        Raises:
          ValueError: If the shapes of the arguments do not match, or a label is not the class of any component.
          TypeError: If keys are not PRNG keys, or levels is not a path.
        """
        check_levels(levels)
        draw = lambda key, label: self.sample(key, 1, label)[0]
        x0 = jax.vmap(draw)(apart(keys, 2), labels)

        def at(level: NoiseLevel) -> tuple[Array, Array]:
            x = diffuse(apart(keys, 1), x0, level)
            d = self.denoise(x, level, labels).x0 - self.denoise(x, level, jnp.full_like(labels, -1)).x0
            unit, square = divide(d, norm(d)), inner(d, d).ravel()
            v = _einsum("bd,bde,be->b", unit, self.covariance(x, level, labels), unit)
            weight = square ** (jnp.asarray(power, d.dtype) / 2)
            return (weight * v).sum(), (weight * (v + square)).sum()

        path = jax.tree.map(lambda field: jnp.asarray(field, x0.dtype), levels[:-1])
        cond, uncond = jax.lax.map(at, path)
        return Curve(path.ratio, jnp.where(uncond > 0, divide(cond, uncond), 1))

    def score(self, x: Float[Array, "b d"], level: NoiseLevel, label: Int[Array, "b"]) -> Float[Array, "b d"]:
        """`grad log p(x_t | y)`, `[B, D]`, with arguments as for `denoise`."""
        log_joint, pull, _, _ = self._components(x, level, label)
        return -(jax.nn.softmax(log_joint, axis=1)[:, :, None] * pull).sum(1)

    def log_prob(self, x: Float[Array, "b d"], level: NoiseLevel, label: Int[Array, "b"]) -> Float[Array, "b"]:
        """`log p(x_t | y)`, `[B]`, with arguments as for `denoise`."""
        log_joint, _, _, _ = self._components(x, level, label)
        return jax.nn.logsumexp(log_joint, axis=1) - jax.nn.logsumexp(self._prior(label), axis=1)

    def class_log_prob(self, x: Float[Array, "b d"], level: NoiseLevel, label: Int[Array, "b"]) -> Float[Array, "b"]:
        """`log p(y | x_t)`, `[B]`, the exact noise-aware classifier, with arguments as for `denoise`."""
        log_joint, _, _, _ = self._components(x, level, label)
        everything, _, _, _ = self._components(x, level, jnp.full_like(label, -1))
        return jax.nn.logsumexp(log_joint, axis=1) - jax.nn.logsumexp(everything, axis=1)

    @door()
    def sample(self, key: Key, n: Count, label: ArrayLike = -1) -> Float[Array, "n d"]:
        """Exact samples of the clean data, `[n, D]`.

        Args:
          key: One PRNG key.
          n: The number of samples.
          label: The classes, `()` or `[n]`. -1 is unconditional.

        Raises:
          ValueError: If a label is not the class of any component.
        """
        choose, draw = jax.random.split(key)
        prior = self._prior(jnp.broadcast_to(jnp.asarray(label), (n,)))
        k = jax.random.categorical(choose, prior)
        z = jax.random.normal(draw, (n, self.means.shape[1]), self.means.dtype)
        return self.means[k] + _einsum("nde,ne->nd", self.axes[k], jnp.sqrt(self.variances[k]) * z)

    @door()
    def log_tilted(
        self, x: Float[Array, "b d"], level: NoiseLevel, label: Int[Array, "b"], scale: PerSample
    ) -> Float[Array, "b"]:
        """`(1 - scale) log p(x_t) + scale log p(x_t | y)`, `[B]`, not normalised.

        It has arguments as for `denoise`. scale is `()` or `[B]`.
        """
        scale = jnp.asarray(scale, jnp.result_type(x))
        everything = self.log_prob(x, level, jnp.full_like(label, -1))
        return everything + scale * (self.log_prob(x, level, label) - everything)

    @door()
    def sample_tilted(self, key: Key, n: Count, label: ArrayLike, scale: AtLeastOne) -> Float[Array, "n d"]:
        """Exact samples of `p(x)^(1 - scale) p(x | y)^scale`, `[n, D]`: the law that motivates classifier-free guidance.

        Rejection sampling: draw from p(x | y), and accept with probability `p(y | x)^(scale - 1)`. A sample without an accepted
        draw among 10,000 is NaN.

        Args:
          key: One PRNG key.
          n: The number of samples.
          label: The classes, `()` or `[n]`. -1 is unconditional.
          scale: The exponent, at least 1. Below 1 the acceptance probability would exceed 1.

        Raises:
          ValueError: If a label is not the class of any component, or scale is below 1 or not a scalar.
        """
        labels = jnp.broadcast_to(jnp.asarray(label), (n,))
        power, first = jnp.asarray(scale, self.means.dtype) - 1, self.sample(key, n, labels)
        clean = NoiseLevel(*(jnp.asarray(value, self.means.dtype) for value in (0, 1, 0)))

        def again(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            i, x, missing = state
            draw, decide = jax.random.split(jax.random.fold_in(key, i))
            fresh = self.sample(draw, n, labels)
            log_uniform = -jax.random.exponential(decide, (n,), x.dtype)
            accepted = missing & (log_uniform <= power * self.class_log_prob(fresh, clean, labels)) & (power >= 0)
            return i + 1, jnp.where(accepted[:, None], fresh, x), missing & ~accepted

        def unfinished(state: tuple[Array, Array, Array]) -> Array:
            return state[2].any() & (state[0] < 10_000) & (power >= 0)

        # A traced label outside the range has no samples: do not wait for it.
        possible = (self._prior(labels) > -jnp.inf).any(1) & (first == first).any(1)
        return jax.lax.while_loop(unfinished, again, (jnp.int32(0), jnp.full_like(first, jnp.nan), possible))[1]

    def _prior(self, label: Array) -> Array:
        """The log-weights of the components of a label, `[B, K]`, not renormalised; -inf for the other components."""
        check_prior(label, self.labels)
        label = label.astype(self.labels.dtype)[:, None]
        chosen = (label == -1) | (label == self.labels[None])
        return jnp.where(chosen, self.log_weights[None], -jnp.inf)

    def _components(self, x: Array, level: NoiseLevel, label: Array) -> tuple[Array, Array, Array, Array]:
        """The terms of all components, and the level of each sample.

        Returns `log w_k N(x; ..)`, `[B, K]`, the inverse covariance times `x - alpha mu_k`, `[B, K, D]`, and alpha and sigma,
        `[B]`.
        """
        check_point(x, level, label, self.means.shape[1])
        x = jnp.asarray(x).astype(at_least_float32(x.dtype))
        alpha = jnp.broadcast_to(level.alpha, x.shape[:1]).astype(x.dtype)
        sigma = jnp.broadcast_to(level.sigma, x.shape[:1]).astype(x.dtype)
        offset = x[:, None] - alpha[:, None, None] * self.means[None]
        along = _einsum("kde,bkd->bke", self.axes, offset)
        variance = (alpha**2)[:, None, None] * self.variances[None] + (sigma**2)[:, None, None]
        log_normal = -0.5 * (along**2 / variance + jnp.log(variance) + math.log(2 * math.pi)).sum(2)
        pull = _einsum("kde,bke->bkd", self.axes, along / variance)
        return self._prior(label) + log_normal, pull, alpha, sigma
