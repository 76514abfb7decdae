"""Decoding of large latents in bounded memory, in overlapping tiles."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from guidance_jax.checks.door import door, rule
from guidance_jax.checks.kinds import Count, CountFromZero
from guidance_jax.pretrained.checks import check_enlarged


@door(rule("overlap must be below tile", lambda tile, overlap: overlap < tile))
def tiled(decode: Callable[[Array], Array], tile: Count = 64, overlap: CountFromZero = 16) -> Callable[[Array], Array]:
    """A decoder of large latents in the memory of a small one. It decodes overlapping tiles and blends their seams.

        image = sum_i weight_i * decode(tile_i),   sum_i weight_i = 1 everywhere

    All tiles have one size, so there is one program. Over each overlap the weights change linearly from one tile to the next.
    In the outermost quarter of the overlap a tile has weight 0. A decoder whose receptive field does not exceed that quarter
    gives the same image as without tiles.

    An AutoencoderKL gives a slightly different image, because its group norms and middle attention see one tile only. Contrast
    and tone differ smoothly from tile to tile. Larger tiles reduce this.

    Args:
      decode: The decoder, `[B, h, w, C] -> [B, f h, f w, c]`.
      tile: The side of a tile, in pixels of the latents. Latents that fit into one tile are decoded whole.
      overlap: The minimum overlap of neighbouring tiles, in pixels of the latents.

    Returns:
      The tiled decoder, `[B, h, w, C] -> [B, f h, f w, c]`.

    Raises:
      ValueError: If overlap is negative or not below tile, or decode does not enlarge both sides alike.

    Example:
      >>> double = lambda z: z.repeat(2, axis=1).repeat(2, axis=2)
      >>> z = jnp.arange(48.0).reshape(1, 6, 8, 1)
      >>> in_tiles = gj.pretrained.autoencoder.tiled(double, tile=4, overlap=2)
      >>> print(jnp.allclose(in_tiles(z), double(z)))
      True

    Reference: Rombach et al. 2022, arXiv:2112.10752, for the decoder; diffusers' `tiled_decode`, for the practice.
    """

    def by_tiles(z: Float[Array, "b h w l"]) -> Float[Array, "b H W c"]:
        if max(z.shape[1:3]) <= tile:
            return decode(z)
        (rows, height), (columns, across) = (_starts(side, tile, overlap) for side in z.shape[1:3])
        shape = (len(z), height, across, z.shape[3])
        part = jax.eval_shape(decode, jax.ShapeDtypeStruct(shape, z.dtype))
        factor = part.shape[1] // height
        check_enlarged(part, shape)
        exact = max(part.dtype, jnp.dtype(jnp.float32), key=lambda dtype: dtype.itemsize)
        above = _weights(rows, height, overlap, factor)
        beside = _weights(columns, across, overlap, factor)

        def paste(image: Array, at: tuple[Array, ...]) -> tuple[Array, None]:
            row, column, weigh_rows, weigh_columns = at
            decoded = decode(jax.lax.dynamic_slice(z, (0, row, column, 0), shape)).astype(exact)
            decoded = decoded * (weigh_rows[:, None] * weigh_columns[None])[None, :, :, None]
            corner = (0, factor * row, factor * column, 0)
            before = jax.lax.dynamic_slice(image, corner, decoded.shape)
            return jax.lax.dynamic_update_slice(image, before + decoded, corner), None

        i, j = (index.ravel() for index in np.indices((len(rows), len(columns))))
        blank = jnp.zeros((len(z), factor * z.shape[1], factor * z.shape[2], part.shape[3]), exact)
        tiles = (jnp.asarray(rows[i]), jnp.asarray(columns[j]), jnp.asarray(above[i], exact), jnp.asarray(beside[j], exact))
        return jax.lax.scan(paste, blank, tiles)[0].astype(part.dtype)

    return by_tiles


def _starts(side: int, tile: int, overlap: int) -> tuple[np.ndarray, int]:
    """The evenly spaced starts of the tiles that cover a side, and the size of a tile."""
    if side <= tile:
        return np.zeros(1, np.int32), side
    count = -(-(side - overlap) // (tile - overlap))
    return np.linspace(0, side - tile, count).round().astype(np.int32), tile


def _weights(starts: np.ndarray, tile: int, overlap: int, factor: int) -> np.ndarray:
    """The weights of each tile along a side, `[tiles, factor * tile]`. They rise from its inner ends, and sum to 1 at every
    pixel.
    """
    margin, pixels = overlap // 4, np.arange(factor * tile)
    rising = np.clip(((pixels + 0.5) / factor - margin) / max(overlap - 2 * margin, 1), 0, 1)
    weights, total = [], np.zeros(factor * (starts[-1] + tile))
    for start in starts:
        weight = np.where(start == 0, 1, rising) * np.where(start == starts[-1], 1, rising[::-1])
        total[factor * start :][: factor * tile] += weight
        weights.append(weight)
    return np.stack([weight / total[factor * start :][: factor * tile] for start, weight in zip(starts, weights, strict=True)])
