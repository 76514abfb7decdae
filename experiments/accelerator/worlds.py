"""Small worlds in which every method, sampler, likelihood and target of particles runs: an exact mixture, or a network."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.benchmarks.overhead import every_method

SHAPE, CLASSES, BATCH, STEPS = (4, 4, 2), 3, 8, 8
SIZE = math.prod(SHAPE)
COSINE = gj.schedules.cosine(0.1, 0.95)
KNOWN = np.arange(SHAPE[0])[:, None, None] < 2
"""The pixels that `inpaint` knows, for the rows of an image."""


class Data(NamedTuple):
    """The numbers of a world. All are rounded to float32, so a run in float64 has the same problem.

    Args:
      mixture: An exact mixture of images as vectors.
      weak: The same mixture, blurred.
      plane: A mixture in two dimensions, for particles and likelihoods.
      params: The parameters of the network of images, and of the network of points.
      levels: The path of images.
      longer: The path of particles.
      target: The images that rewards and measurements ask for.
      points: Data whose likelihood is computed.
    """

    mixture: gj.oracles.GaussianMixture
    weak: gj.oracles.GaussianMixture
    plane: gj.oracles.GaussianMixture
    params: tuple[Any, Any]
    levels: gj.NoiseLevel
    longer: gj.NoiseLevel
    target: Array
    points: Array

    def cast(self, dtype: Any, device: Any) -> "Data":
        """The data on a device. All floating numbers have this dtype."""
        one = lambda leaf: leaf.astype(dtype) if np.issubdtype(leaf.dtype, np.floating) else leaf.astype(np.int32)
        return jax.tree.map(lambda leaf: jax.device_put(one(leaf), device), self)


@functools.cache
def network(shape: tuple[int, ...]) -> tuple[Callable[..., Array], Any]:
    """A small network of dense layers, `apply(params, x, t, labels)`, and random parameters."""
    apply, params = gj.networks.from_nnx(gj.networks.MLP(shape, CLASSES, width=32, blocks=2, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    return apply, jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


def mixture(size: int, blur: float = 0.0) -> gj.oracles.GaussianMixture:
    """Five components of three classes, correlated, of unequal weight.

    They overlap, so the class of a sample stays unknown at low noise. Otherwise the branches would differ by rounding alone
    there, and methods that divide by this difference would amplify the rounding.
    """
    rng = np.random.default_rng(0)
    root, means = rng.normal(size=(size, size)), 0.25 * rng.normal(size=(5, size))
    shared = root @ root.T / size + (0.3 + blur) * np.eye(size)
    covariances = np.linspace(0.95, 1.05, 5)[:, None, None] * shared
    return gj.oracles.GaussianMixture(*map(jnp.asarray, (means, covariances, np.arange(1.0, 6.0), np.array([0, 0, 1, 1, 2]))))


@functools.cache
def data() -> Data:
    """The numbers, computed in float64 on the host."""
    rng = np.random.default_rng(1)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        found = Data(
            mixture(SIZE),
            mixture(SIZE, 0.3),
            mixture(2),
            (network(SHAPE)[1], network((2,))[1]),
            gj.levels(COSINE, STEPS, gj.spacings.karras()),
            gj.levels(gj.schedules.edm(0.01, 40.0), 4 * STEPS, gj.spacings.karras()),
            jnp.asarray(rng.normal(size=(BATCH, *SHAPE))),
            jnp.asarray(rng.normal(size=(BATCH, 2))),
        )
        rounded = lambda leaf: np.float32(leaf) if np.issubdtype(leaf.dtype, np.floating) else np.asarray(leaf)
        return jax.tree.map(rounded, found)


@contextlib.contextmanager
def float32_draws() -> Iterator[None]:
    """All draws in float32, and integers in int32, so that a run in float64 draws the numbers of a run in float32."""

    def drawn(draw: Callable[..., Array]) -> Callable[..., Array]:
        def narrow(key: Any, shape: Any = (), dtype: Any = jnp.float32, *bounds: Any, **more: Any) -> Array:
            return draw(key, shape, jnp.float32, *bounds, **more).astype(dtype)

        return narrow

    def signs(key: Array, shape: Any, dtype: Any) -> Array:
        return (2 * jax.random.bernoulli(key, jnp.float32(0.5), shape) - 1).astype(dtype)

    integers = functools.partial(jax.random.randint, dtype=jnp.int32)
    changed: dict[str, Any] = {name: drawn(getattr(jax.random, name)) for name in ("normal", "uniform")}
    changed |= {"randint": integers, "rademacher": signs}
    with mock.patch.multiple(jax.random, **changed):
        yield


class World(NamedTuple):
    """A world, exact or of networks.

    Args:
      networks: The branches of every method, with images.
      labels: The labels of the images.
      noisy: A classifier's log-probability of noisy images.
      points: The denoiser of points.
      null: The label of no class.
    """

    networks: tuple[gj.Branches, ...]
    labels: Array
    noisy: Callable[..., Array]
    points: Callable[..., gj.Prediction]
    null: int


LABELS = np.arange(BATCH, dtype=np.int32) % CLASSES


def _around(denoise: Any, weak: Any, null: int) -> tuple[gj.Branches, ...]:
    """The branches of every method. In the retimed one, the network reads another time than that of x."""
    labels = jnp.asarray(LABELS)
    later = gj.denoiser(lambda x, t, cond: denoise(x, COSINE(jnp.clip(t, 0.01, 0.99)), cond).x0, predicts="x0")
    noise = gj.conditions.time_noise(0.01)
    conds: dict[str, Any] = {name: (labels + i) % CLASSES for i, name in enumerate(("cond", "negative", "image"))}
    drawn = gj.conditions.random_labels(CLASSES)
    return (
        gj.branches(denoise, **conds, uncond=jnp.full_like(labels, null), random=drawn),
        gj.branches(weak, weak=labels, perturbed=(labels + 1) % CLASSES),
        gj.branches(gj.conditions.retimed(later), retimed=lambda step: (labels, noise(step))),
    )


def exact(given: Data) -> World:
    """The world of the exact mixtures."""

    def images(mixture: gj.oracles.GaussianMixture) -> Callable[..., gj.Prediction]:
        def denoise(x: Array, level: gj.NoiseLevel, label: Array) -> gj.Prediction:
            found = mixture.denoise(x.reshape(len(x), -1), level, label.astype(jnp.int32))
            return jax.tree.map(lambda leaf: leaf.reshape(x.shape), found)

        return denoise

    def noisy(x: Array, level: gj.NoiseLevel) -> Array:
        return given.mixture.class_log_prob(x.reshape(len(x), -1), level, jnp.asarray(LABELS))

    networks = _around(images(given.mixture), images(given.weak), -1)
    return World(networks, jnp.asarray(LABELS), noisy, given.plane.denoise, -1)


def trained(given: Data, precision: str | None) -> World:
    """The world of networks. Their own products have a precision, whatever the precision outside of them.

    Args:
      given: The parameters.
      precision: The precision by JAX's name.
    """

    def denoiser(shape: tuple[int, ...], params: Any) -> Callable[..., gj.Prediction]:
        apply = network(shape)[0]

        def call(x: Array, t: Array, cond: Array) -> Array:
            with jax.default_matmul_precision(precision):
                return apply(params, x, t, cond)

        return gj.denoiser(call, predicts="v")

    def noisy(x: Array, level: gj.NoiseLevel) -> Array:
        return -((x - level.alpha * given.target) ** 2).mean((1, 2, 3)) / (1 + level.sigma**2)

    images, points = (denoiser(shape, params) for shape, params in zip((SHAPE, (2,)), given.params, strict=True))
    return World(_around(images, images, CLASSES), jnp.asarray(LABELS), noisy, points, CLASSES)


def methods(world: World, given: Data) -> dict[str, gj.Guidance]:
    """Every method with usual parameters."""
    scale = jnp.asarray(2.0, given.target.dtype)
    after = lambda part: gj.chain(gj.cfg(scale), part)
    mask = jnp.linspace(0.2, 1.0, SHAPE[0], dtype=scale.dtype)[:, None, None]
    return {
        **every_method(scale, world.labels, SHAPE, world.noisy),
        # At power 1 it divides by the whole length of a difference that vanishes with the noise, which amplifies rounding.
        "beta_cfg": gj.in_space("eps", gj.beta_cfg(scale, 0.5)),
        "tsg": gj.tsg(scale),
        "masked": gj.masked(gj.cfg(scale), mask),
        "on_channels": gj.on_channels(gj.cfg(scale), 1),
        "unless_one": gj.unless_one(gj.cfg(scale), scale),
        "momentum after cfg": after(gj.momentum(-0.5)),
        "clip_norm after cfg": after(gj.clip_norm(2.0)),
        "project after cfg": after(gj.project(0.2)),
        "amplify after cfg": after(gj.amplify(1.5)),
    }


def samplers(given: Data) -> dict[str, gj.Sampler]:
    """Every sampler."""
    known = jnp.broadcast_to(jnp.asarray(KNOWN), SHAPE)
    return {
        "ddim": gj.ddim(),
        "ddim(0.7)": gj.ddim(0.7),
        "ddpm": gj.ddpm(),
        "dpmpp_2m": gj.dpmpp_2m(),
        "dpmpp_2s": gj.dpmpp_2s(COSINE, eta=0.7),
        "dpmpp_3m": gj.dpmpp_3m(),
        "dpmpp_sde": gj.dpmpp_sde(),
        "euler": gj.euler(),
        "euler_ancestral": gj.euler_ancestral(),
        "churn(euler)": gj.churn(gj.euler(), COSINE, 0.2),
        "churn(heun)": gj.churn(gj.heun(), COSINE, 0.2),
        "flow_heun": gj.flow_heun(),
        "forget(dpmpp_2m)": gj.forget(gj.dpmpp_2m(), 1.0),
        "heun": gj.heun(),
        "heun_sde": gj.heun_sde(),
        "inpaint(ddpm)": gj.inpaint(gj.ddpm(), given.target[0], known),
        "post_step(ddim)": gj.post_step(gj.ddim(), lambda x, level: -(x**2).mean((1, 2, 3)), 0.1),
        "predictor_corrector(ddim)": gj.predictor_corrector(gj.ddim()),
        "projected(ddpm)": gj.projected(gj.ddpm(), lambda x: x - x.mean((1, 2, 3), keepdims=True)),
        "recur(ddim)": gj.recur(gj.ddim(), 2),
        "restart(dpmpp_2m)": gj.restart(gj.dpmpp_2m(), COSINE, 2, 2, 0.5, 2.0),
        "unipc": gj.unipc(3),
    }


def targets(given: Data) -> dict[str, gj.targets.Target]:
    """Every target of particles."""
    near = lambda x0, level: -((x0 - given.points[:1]) ** 2).mean(1)
    return {
        "tilted": gj.targets.tilted(1.5),
        "product": gj.targets.product({"cond": 0.7, "negative": 0.3}),
        "annealed": gj.targets.annealed(1.2),
        "rewarded": gj.targets.rewarded(gj.targets.tilted(1.5), near),
    }
