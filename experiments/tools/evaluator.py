"""The judge of samples: a convolutional classifier of clean images. Guidance never uses it."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.tools import data


class Evaluator(nnx.Module):
    """A small convolutional classifier. `features(x)` gives `[B, 128]`, a call gives logits `[B, classes]`.

    Args:
      shape: `(H, W, C)` of one image.
      classes: The number of classes.
      width: Channels of the first convolution. They double after each pooling.
      blocks: The number of convolutions, with 2 x 2 max pooling between them.
      rngs: Random keys for the initial parameters.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, blocks: int, *, rngs: nnx.Rngs):
        widths = [shape[2], *(width * 2**i for i in range(blocks))]
        self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=rngs) for i, o in itertools.pairwise(widths)])
        height, across = (-(-side // 2 ** (blocks - 1)) for side in shape[:2])
        self.hidden = nnx.Linear(height * across * widths[-1], 128, rngs=rngs)
        self.last = nnx.Linear(128, classes, rngs=rngs)

    def features(self, x: Array) -> Array:
        """The last hidden layer, `[B, 128]`, of images `[B, H, W, C]` in [-1, 1]."""
        for i, conv in enumerate(self.convs):
            x = jax.nn.relu(conv(largest(x) if i else x))
        return jax.nn.relu(self.hidden(x.reshape(len(x), -1)))

    def __call__(self, x: Array) -> Array:
        return self.last(self.features(x))


def largest(x: Array) -> Array:
    """2 x 2 max pooling. On a CPU its gradient costs a tenth of that of `nnx.max_pool`."""
    batch, height, across, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, across % 2), (0, 0)))
    return x.reshape(batch, (height + 1) // 2, 2, (across + 1) // 2, 2, channels).max((2, 4))


def jitter(key: Array, images: Array, noise: float = 0.1) -> Array:
    """Images shifted by up to one pixel, plus Gaussian noise. It reduces overfitting on small data sets."""
    move, add = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1)
    corners = jax.random.randint(move, (len(images), 2), 0, 3)
    crop = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])
    return jax.vmap(crop)(padded, corners) + noise * jax.random.normal(add, images.shape)


class Judge:
    """Measures samples with a trained evaluator, against held-out images.

    Args:
      module: The evaluator's architecture.
      params: Its trained parameters.
      held_out: Real images that no network was trained on; at least 6, for their nearest neighbours.
    """

    def __init__(self, module: Evaluator, params: Any, held_out: data.Data):
        graph, _, rest = nnx.split(module, nnx.Param, ...)

        def read(params: Any, images: Array) -> tuple[Array, Array]:
            module = nnx.merge(graph, params, rest)
            features = module.features(images)
            return features, module.last(features)

        self.params, self.program = params, jax.jit(read)
        features, logits = self.read(held_out.images)
        self.real, self.moments = gj.metrics.neighbours(features), gj.metrics.moments(features)
        self.accuracy = float(gj.metrics.accuracy(logits, jnp.asarray(held_out.labels)))

    def read(self, images: np.ndarray, batch: int = 500) -> tuple[Array, Array]:
        """Features `[N, 128]` and logits `[N, classes]` of images in [-1, 1], computed in batches."""
        parts = [self.program(self.params, jnp.asarray(images[i : i + batch])) for i in range(0, len(images), batch)]
        features, logits = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        return features, logits

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy, Frechet distance and other metrics of images `[N, H, W, C]`, uint8, with their labels `[N]`."""
        features, logits = self.read(images.astype(np.float32) / 127.5 - 1)
        precision, recall = gj.metrics.precision_recall(self.real, features)
        density, coverage = gj.metrics.density_coverage(self.real, features)
        row = {
            "accuracy": gj.metrics.accuracy(logits, jnp.asarray(labels)),
            "fd": gj.metrics.fid(self.moments, features),
            "kid": gj.metrics.kid(self.real.points, features),
            "precision": precision,
            "recall": recall,
            "density": density,
            "coverage": coverage,
            "vendi": gj.metrics.vendi(features),
        }
        return {"samples": len(images)} | {name: float(value) for name, value in row.items()}
