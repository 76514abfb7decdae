"""Layers that the networks for images share: patches, dense layers, norms, attention.

Parameters are float32. Dense layers and convolutions compute in the dtype that they receive. Norms and softmax compute in
float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

zeros = nnx.initializers.zeros
MANY, ROWS, FEW = 2**18, 64, 64


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b r s f"]:
    """Moves each square of `patch x patch` pixels into the channels of one pixel: `[B, H/p, W/p, p * p * C]`."""
    batch, height, across, channels = x.shape
    squares = x.reshape(batch, height // patch, patch, across // patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch, height // patch, across // patch, patch * patch * channels)


def unpatchify(h: Float[Array, "b r s f"], patch: int) -> Float[Array, "b h w c"]:
    """The inverse of `patchify`."""
    batch, rows, columns, features = h.shape
    squares = h.reshape(batch, rows, columns, patch, patch, features // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return squares.reshape(batch, rows * patch, columns * patch, -1)


class Dense(nnx.Linear):
    """A dense layer over the last axis, as one matrix product: XLA's CPU gradient of a batched product is twice as slow."""

    def __call__(self, inputs: Float[Array, "... i"]) -> Float[Array, "... o"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(inputs.reshape(-1, inputs.shape[-1])).reshape(*inputs.shape[:-1], -1)


class LayerNorm(nnx.LayerNorm):
    """A layer norm without parameters, in float32. Adaptive scales and shifts follow it."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, use_bias=False, use_scale=False, dtype=jnp.float32, rngs=rngs)


class GroupNorm(nnx.Module):
    """A group norm and an optional scale and shift, as one affine map per channel of each sample.

        out = ((h - mean) / sqrt(variance + epsilon) * gain + bias) * (1 + scale) + shift

    Args:
      width: The number of channels.
      groups: The number of groups of channels; it divides `width`.
      epsilon: The number added to the variance.
      rngs: Not used: the parameters start at 1 and 0.
    """

    def __init__(self, width: int, groups: int, epsilon: float = 1e-6, *, rngs: nnx.Rngs):
        self.groups, self.epsilon = groups, epsilon
        self.gain = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(
        self, h: Float[Array, "b r s w"], scale: Float[Array, "b w"] | None = None, shift: Float[Array, "b w"] | None = None
    ) -> Float[Array, "b r s w"]:
        batch, width = h.shape[0], h.shape[3]

        def over_groups(moment: Array) -> Array:
            return moment.reshape(batch, self.groups, -1).mean(2).repeat(width // self.groups, axis=1)

        pixels = h.astype(jnp.float32)
        mean = over_groups(pixels.mean((1, 2)))
        variance = over_groups((pixels**2).mean((1, 2))) - mean**2
        gain, bias = (each[...].astype(jnp.float32)[None] for each in (self.gain, self.bias))
        slope = jax.lax.rsqrt(jnp.maximum(variance, 0) + self.epsilon) * gain
        start = bias - mean * slope
        if scale is not None and shift is not None:
            slope, start = slope * (1 + scale), start * (1 + scale) + shift
        return (pixels * slope[:, None, None] + start[:, None, None]).astype(h.dtype)


class RMSNorm(nnx.RMSNorm):
    """The norm of queries and keys, over each head, in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        super().__init__(width, dtype=jnp.float32, rngs=rngs)


def attention(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    mask: Bool[Array, "#b #n m"] | None = None,
) -> Float[Array, "b n heads d"]:
    """`softmax(q k / sqrt(d)) v` over the entries where the mask is True, with the softmax in float32.

    On NVIDIA GPUs, cuDNN's kernel computes it without writing out the logits if `fusible`, no mask is given, and nothing
    differentiates it. The kernel takes a mask as an array of all logits, and it has a gradient, but no forward mode.
    """
    return fused(q, k, v) if mask is None and fusible(q, k, v) else by_logits(q, k, v, mask)


def by_logits(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Attention that writes out its logits, on every device.

    Heads come first inside, which is faster on CPUs. A CPU computes `ROWS` queries at a time if a head has many logits and one
    mask serves all queries: all logits at once would not fit into its caches.
    """
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * q.shape[-1] ** -0.5, k, v))

    def attend(q: Array) -> Array:
        logits = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
        if mask is not None:
            logits = jnp.where(mask[:, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=3).astype(v.dtype)
        return jnp.einsum("bhnm,bhmd->bhnd", weights, v)

    def by_rows(q: Array) -> Array:
        row = lambda q: attend(q[:, :, None])[:, :, 0]
        return jnp.moveaxis(jax.lax.map(row, jnp.moveaxis(q, 2, 0), batch_size=ROWS), 0, 2)

    whole = q.shape[2] * k.shape[2] < MANY or (mask is not None and mask.shape[1] > 1)
    return (attend(q) if whole else jax.lax.platform_dependent(q, cpu=by_rows, default=attend)).transpose(0, 2, 1, 3)


@jax.custom_batching.custom_vmap
def by_cudnn(q: Array, k: Array, v: Array) -> Array:
    """Attention by cuDNN's kernel. `vmap` adds to the batch: JAX's own rule fails if not all arguments are batched."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


@by_cudnn.def_vmap
def _(size: int, batched: list[bool], *arrays: Array) -> tuple[Array, bool]:
    all_batched = (x if each else jnp.broadcast_to(x, (size, *x.shape)) for x, each in zip(arrays, batched, strict=True))
    out = by_cudnn(*(x.reshape(-1, *x.shape[2:]) for x in all_batched))
    return out.reshape(size, -1, *out.shape[1:]), True


@jax.custom_jvp
def fused(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's kernel where the program is lowered for CUDA. All derivatives, and all other devices, write out the logits."""
    return jax.lax.platform_dependent(q, k, v, cuda=by_cudnn, default=by_logits)


@fused.defjvp
def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    return jax.jvp(by_logits, primals, tangents)


def fusible(q: Array, k: Array, v: Array) -> bool:
    """Whether JAX finds cuDNN in this process, and whether its kernel accepts these shapes and half-precision dtypes.

    JAX limits the width of a head to multiples of 8 up to 128, or up to 256 on Hopper and later. It cannot compile the kernel
    if queries and keys are sharded differently. This is not known here, so the process must have a single device. Fewer than
    `FEW` queries or keys have few logits to write.
    """
    half = q.dtype == k.dtype == v.dtype and q.dtype in (jnp.float16, jnp.bfloat16)
    if not half or min(q.shape[1], k.shape[1]) < FEW or jax.device_count() > 1:
        return False
    try:
        jax.eval_shape(by_cudnn, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)))
    except (NotImplementedError, RuntimeError):  # Of JAX: a shape that is not supported, or no cuDNN.
        return False
    return True


def in_heads(h: Float[Array, "b n w"], heads: int, parts: int) -> list[Float[Array, "b n heads d"]]:
    """Splits the last axis into heads, and each head into `parts`."""
    return jnp.split(h.reshape(*h.shape[:2], heads, -1), parts, axis=3)


def call(block: nnx.Module, remat: bool, *inputs: Any) -> Array:
    """`block(*inputs)`. With `remat`, its gradient recomputes the intermediate values of the block."""
    run = lambda block, *inputs: block(*inputs)
    return (nnx.remat(run) if remat else run)(block, *inputs)
