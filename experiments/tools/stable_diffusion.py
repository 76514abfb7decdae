"""Stable Diffusion's guided run and its network alone, compiled for random latents and texts. It needs no files."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import guidance_jax as gj
from guidance_jax import networks, pretrained
from guidance_jax.pretrained.schedulers import scheduling
from guidance_jax.pretrained.unet import Text, UNet2DCondition, UNetConditionConfig, unet_condition_config

TOKENS = 77
NETWORK = {"cross_attention_dim": 768}
SIZES = unet_condition_config(NETWORK)
"""The settings of version 1.5's U-Net that are not diffusers' defaults, and its sizes."""
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
"""The settings of the published scheduler that are not diffusers' defaults."""


class Programs(NamedTuple):
    """Compiled programs of a U-Net.

    Args:
      apply: `(params, x, t, text) -> output`.
      shapes: The shapes of the parameters.
      guided: `(params, keys, x, cond, uncond, scale) -> latents`, the sampling with CFG.
      network: `(params, x, t, text) -> output` at the batch size of guidance, twice that of the latents.
      seconds: The time for tracing and compiling each. The network is first.
    """

    apply: Callable[..., Any]
    shapes: Any
    guided: Any
    network: Any
    seconds: dict[str, float]


@functools.lru_cache(maxsize=1)
def programs(config: UNetConditionConfig, side: int, batch: int, steps: int, dtype: str) -> Programs:
    """The programs of a U-Net that samples with DPM-Solver++ (2M). The last result is kept for another call.

    Args:
      config: The sizes of the U-Net.
      side: The side of the latents in pixels.
      batch: The number of images.
      steps: The number of sampler steps.
      dtype: The dtype of the network.
    """
    apply, shapes = networks.from_nnx(pretrained.abstract(lambda rngs: UNet2DCondition(config, rngs=rngs)))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    published = scheduling({"_class_name": "DPMSolverMultistepScheduler", **SCHEDULER})
    levels = published.levels(steps)

    def generate(params: Any, keys: Array, x: Array, cond: Text, uncond: Text, scale: Array) -> Array:
        denoise = gj.denoiser(lambda x, t, text: apply(params, x, t, text), predicts=published.predicts)
        branches = gj.branches(denoise, cond=cond, uncond=uncond)
        return gj.sample(keys, branches, gj.cfg(scale), gj.dpmpp_2m(), levels, x)

    x, cond, uncond = map(jnp.asarray, inputs(config.text, side, batch))
    start = time.perf_counter()
    network = jax.jit(apply).lower(shapes, *doubled(x, cond, uncond)).compile()
    half = time.perf_counter()
    arguments = jax.random.split(jax.random.key(0), batch), x, Text(cond), Text(uncond), jnp.float32(1)
    guided = jax.jit(generate).lower(shapes, *arguments).compile()
    return Programs(apply, shapes, guided, network, {"network": half - start, "guided": time.perf_counter() - half})


def inputs(width: int, side: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents `[B, h, w, 4]`, and the states of the prompt and of the empty text, `[B, 77, d]`."""
    rng = np.random.default_rng(0)
    shapes = ((batch, side, side, 4), (batch, TOKENS, width), (batch, TOKENS, width))
    latents, cond, uncond = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    return latents, cond, uncond


def doubled(x: Array, cond: Array, uncond: Array) -> tuple[Array, Array, Text]:
    """The inputs of the network alone, for both branches in one batch."""
    return jnp.concatenate([x, x]), jnp.full(2 * len(x), 500.0), Text(jnp.concatenate([cond, uncond]))
