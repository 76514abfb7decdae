"""A small correct run. Each row of the tables makes one thing in it wrong."""

from typing import Any

import jax
import jax.numpy as jnp

import guidance_jax as gj

B = 2
KEYS = jax.random.split(jax.random.key(0), B)
LABELS, NULL = jnp.array([0, 1]), jnp.array([-1, -1])
X = jnp.ones((B, 2))
EDM, DISCRETE = gj.schedules.edm(), gj.schedules.ddpm_linear()
PATH = gj.levels(EDM, 3, gj.spacings.karras())
LEVEL, NEXT = EDM(0.0), EDM(-0.5)
STEP = gj.Step(jnp.int32(0), LEVEL, NEXT, KEYS)
MIXTURE = gj.oracles.GaussianMixture(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), jnp.stack([jnp.eye(2)] * 2), jnp.ones(2), LABELS)
TWO = gj.branches(MIXTURE.denoise, cond=LABELS, uncond=NULL)


class Tensor:
    """A stand-in for `torch.Tensor`, of no dtype that NumPy knows."""

    __module__ = "torch"

    def __init__(self, *shape: int, dtype: str = "float32") -> None:
        self.shape, self.ndim, self.dtype = shape, len(shape), f"torch.{dtype}"

    def numpy(self) -> Any:
        return jnp.ones(self.shape)


class TorchModule:
    """A stand-in for `torch.nn.Module`."""

    __module__ = "torch.nn.modules.module"

    def __call__(self, x: Any, t: Any, cond: Any) -> Any:
        raise TypeError("linear(): argument 'input' (position 1) must be Tensor, not DynamicJaxprTracer")


TORCH = r"got a torch\.Tensor .*: use jnp\.asarray\(x\.numpy\(\)\)"

Row = tuple[Any, type[Exception], str]
"""The wrong call, its error, and a pattern of the message, which states what it got and what it expected or the fix."""


def log_prob(x: jax.Array, level: gj.NoiseLevel) -> jax.Array:
    return -(x**2).sum(1)


def sampled(**wrong: Any) -> Any:
    right = {"keys": KEYS, "branches": TWO, "guidance": gj.cfg(2.0), "sampler": gj.ddim(), "levels": PATH, "shape_or_x": (2,)}
    return gj.sample(**right | wrong)


def guided(guidance: Any, **wrong: Any) -> Any:
    return sampled(guidance=guidance, **wrong)


def stepped(sampler: Any, **wrong: Any) -> Any:
    return sampled(sampler=sampler, **wrong)


def on_images(guidance: Any, shape: tuple[int, ...] = (4, 4, 1)) -> Any:
    denoise = gj.denoiser(lambda x, t, cond: x / 2, predicts="x0")
    return sampled(guidance=guidance, branches=gj.branches(denoise, cond=LABELS, uncond=NULL), shape_or_x=shape)


def through(network: Any, predicts: Any = "x0") -> Any:
    return sampled(branches=gj.branches(gj.denoiser(network, predicts), cond=LABELS, uncond=NULL))
