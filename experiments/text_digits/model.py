"""A small text-to-image model: CLIP's text encoder and a transformer that attends to its words, trained together.

The loss is the denoiser's plus CLIP's contrastive loss, by which each text must find its image in the batch. Without CLIP's
loss, the model needs very long to learn the order of the digits, as in "a three to the left of a seven".

The first call of `trained()` takes minutes on a CPU. Later calls read a checkpoint.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.text_digits import scenes
from experiments.tools import data
from experiments.tools.fit import Training, fit
from experiments.tools.models import SCHEDULE
from experiments.tools.stages import Tell
from guidance_jax.base import Denoiser
from guidance_jax.networks import DiT, DiTConfig, Tokens
from guidance_jax.pretrained.clip import CLIPText, CLIPTextConfig

EMBEDDED = 64
"""The width of the embeddings in CLIP's loss."""
CONTRAST = 0.1
"""The weight of CLIP's loss, relative to the denoiser's."""
LEVELS = {"mean": 1.0, "deviation": 1.1}
"""Mean and deviation of `log(sigma / alpha)` in training. Most levels are near those that determine the digits."""
OUT = Path("out/text_digits")
TRAINING = Training(steps=4000, batch=128, learning_rate=2e-3, ema=0.998)
PAINTED = "train[:50%]"
"""The digits of which scenes are made. The judge is trained on the other half."""


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of the text encoder and of the denoiser.

    Args:
      width: Width of the denoiser's tokens.
      blocks: Number of blocks of the denoiser.
      heads: Number of attention heads of the denoiser.
      patch: Side of the square of pixels that makes one token. At 8 a token is a whole digit.
      text_width: Width of the text's tokens.
      text_blocks: Number of blocks of the text encoder.
      text_heads: Number of attention heads of the text encoder.
    """

    width: int = 192
    blocks: int = 4
    heads: int = 4
    patch: int = 8
    text_width: int = 64
    text_blocks: int = 2
    text_heads: int = 4


SIZE = Size()


class TextToScene(nnx.Module):
    """The text encoder, the denoiser that attends to its words, and the image encoder of CLIP's loss.

    Args:
      size: the sizes of the text encoder and of the denoiser.
      rngs: the random numbers of the parameters.
    """

    def __init__(self, size: Size, *, rngs: nnx.Rngs):
        width = size.text_width
        config = CLIPTextConfig(
            vocab_size=len(scenes.VOCABULARY),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=size.text_blocks,
            num_attention_heads=size.text_heads,
            max_position_embeddings=scenes.LENGTH,
            eos_token_id=scenes.END,
            projection_dim=EMBEDDED,
        )
        self.text = CLIPText(config, rngs=rngs)
        self.denoiser = DiT(DiTConfig(scenes.SHAPE, 0, size.width, size.blocks, size.heads, size.patch, width), rngs=rngs)
        widths = (math.prod(scenes.SHAPE), 256, 256, EMBEDDED)
        self.sight = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in itertools.pairwise(widths)])
        self.sharpness = nnx.Param(jnp.array(2.0))

    def read(self, ids: Array) -> tuple[Tokens, Array]:
        """The denoiser's condition and the embeddings `[B, P]` of texts `[B, LENGTH]`.

        The condition has the states of all words. Padding is masked.
        """
        text = self.text(ids)
        return Tokens(jnp.zeros(len(ids), jnp.int32), text.last, ids > 0), text.pooled

    def contrast(self, images: Array, texts: Array) -> Array:
        """CLIP's loss of images `[B, 8, 16, 1]` and the embeddings of their texts `[B, P]`."""
        h = images.reshape(len(images), -1)
        for layer in self.sight[:-1]:
            h = jax.nn.relu(layer(h))
        return contrast(texts, self.sight[-1](h), self.sharpness[...])

    def __call__(self, x: Array, t: Array, text: Tokens) -> Array:
        return self.denoiser(x, t, text)


def contrast(texts: Array, images: Array, sharpness: Array) -> Array:
    """CLIP's loss of embeddings `[B, P]`, by which each text must find its image in the batch, and each image its text.

    It is the mean of both cross-entropies of `exp(sharpness) cos(text, image)` (Radford et al. 2021, arXiv:2103.00020).
    """
    unit = lambda v: v / jnp.linalg.norm(v, axis=1, keepdims=True)
    logits = jnp.exp(sharpness) * unit(texts) @ unit(images).T
    return (jax.nn.logsumexp(logits, axis=0) + jax.nn.logsumexp(logits, axis=1) - 2 * jnp.diagonal(logits)).mean() / 2


class Model(NamedTuple):
    """A text-to-image model: a text encoder, and a denoiser that it conditions.

    Example:
      model = trained()
      cond, uncond = model.encode(["a three to the left of a seven"] * 8), model.encode([""] * 8)
      levels = gj.levels(SCHEDULE, 12, gj.spacings.karras(sigma_min=0.02, sigma_max=60.0))
      two = gj.branches(model.denoiser(), cond=cond, uncond=uncond)
      images = gj.sample(jax.random.split(jax.random.key(0), 8), two, gj.cfg(3.0), gj.dpmpp_2m(), levels, scenes.SHAPE)

    Args:
      apply: `(params, x, t, text)` to v.
      read: `(params, ids)` to the denoiser's condition and the embeddings of the texts.
      contrast: `(params, images, embeddings)` to CLIP's loss.
      params: The parameters of all parts.
    """

    apply: Callable[..., Array]
    read: Callable[..., tuple[Tokens, Array]]
    contrast: Callable[..., Array]
    params: Any

    def encode(self, texts: Sequence[str], params: Any = None) -> Tokens:
        """The denoiser's condition for texts. The empty text gives the unconditional model."""
        return self.read(self.params if params is None else params, jnp.asarray(scenes.tokenise(texts)))[0]

    def denoiser(self, params: Any = None) -> Denoiser:
        """The denoiser with the given parameters, which may be an argument of a jitted function, or with the model's own."""
        return gj.denoiser(functools.partial(self.apply, self.params if params is None else params), predicts="v")


def untrained(size: Size, seed: int = 0) -> Model:
    """The model with random parameters."""
    module = TextToScene(size, rngs=nnx.Rngs(seed))
    (apply, params), (read, _), (contrast, _) = (
        gj.networks.from_nnx(module, name) for name in ("__call__", "read", "contrast")
    )
    return Model(apply, read, contrast, params)


def trained(
    out: Path = OUT,
    *,
    size: Size = SIZE,
    training: Training = TRAINING,
    drop_rate: float = 0.1,
    seed: int = 0,
    tell: Tell | None = None,
) -> Model:
    """The trained model, from its checkpoint in `out`. If there is none, it is trained first, in minutes.

    Args:
      out: the directory for data and checkpoints.
      size: the sizes of the networks.
      training: number of steps, batch size and learning rate.
      drop_rate: the probability of an empty text in training.
      seed: the seed of all random numbers.
      tell: a function that gets one sentence about the training. None: it is printed.
    """
    new = untrained(size, seed)
    digits = data.load("digits", PAINTED, out / "data")
    empty = jnp.asarray(scenes.tokenise([""]))

    def loss(params: Any, key: Array, images: Array, ids: Array) -> Array:
        drop, levels, noise = jax.random.split(key, 3)
        text, embeddings = new.read(params, ids)
        nothing = jax.tree.map(lambda leaf: leaf[0], new.read(params, empty)[0])
        text = gj.training.drop(drop, text, nothing, drop_rate)
        level = gj.training.log_normal_levels(levels, SCHEDULE, len(images), **LEVELS)
        network = functools.partial(new.apply, params)
        denoising = gj.training.denoising_loss(network, "v", noise, images, level, text).mean()
        return denoising + CONTRAST * new.contrast(params, images, embeddings)

    identity = {
        "network": dataclasses.asdict(size),
        "data": f"digits {digits.version} {PAINTED}",
        "scenes": {
            "shares": scenes.SHARES,
            "forms": {name: (form.template, form.weight) for name, form in scenes.FORMS.items()},
        },
        "drop_rate": drop_rate,
        "levels": LEVELS,
        "contrast": CONTRAST,
    }
    batches = scenes.Scenes(scenes.Cells(digits), training.batch, seed)
    params = fit("text_to_scene", loss, new.params, batches, training, seed, out / "checkpoints", identity, tell=tell)
    return new._replace(params=params)


class Painter:
    """Samples of prompts under any guidance. It compiles once per structure of a guidance, for all scales and texts."""

    def __init__(self, model: Model, steps: int = 12, batch: int = 128):
        self.model, self.batch = model, batch
        self.levels = gj.levels(SCHEDULE, steps, gj.spacings.karras(sigma_min=0.02, sigma_max=60.0))
        self.program = jax.jit(self._paint)

    def _paint(self, params: Any, keys: Array, ids: dict[str, Array], guidance: gj.Guidance) -> Array:
        conds: dict[str, Any] = {name: self.model.read(params, texts)[0] for name, texts in ids.items()}
        branches = gj.branches(self.model.denoiser(params), **conds)
        return gj.sample(keys, branches, guidance, gj.dpmpp_2m(), self.levels, scenes.SHAPE)

    def __call__(self, guide: Callable[[Any], gj.Guidance], scale: float, seed: int, **texts: Sequence[str]) -> np.ndarray:
        """Images `[N, 8, 16, 1]`. The i-th depends on `seed`, i, and its text of each branch. `uncond` is empty by default."""
        guidance, size = guide(jnp.float32(scale)), self.batch
        count = len(next(iter(texts.values())))
        texts = {"uncond": [""] * count, **texts}
        # The first branch is the base. It is used wherever guidance is off, so it must be a condition.
        ids = {name: scenes.tokenise(texts[name]) for name in sorted(texts, key="uncond".__eq__)}
        keys = jax.random.split(jax.random.key(seed), count)
        parts = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            part = {name: jnp.asarray(tokens[rows]) for name, tokens in ids.items()}
            images = np.asarray(self.program(self.model.params, keys[rows], part, guidance))
            parts.append(images[: count - start])
        return np.concatenate(parts)

    def calibrate(self, texts: Sequence[str], seed: int) -> gj.Calibration:
        """The calibration on one unguided sample per text. Texts that do not fill a batch are left out."""

        @jax.jit
        def part(params: Any, keys: Array, ids: Array, empty: Array) -> gj.Calibration:
            cond, uncond = (self.model.read(params, some)[0] for some in (ids, empty))
            branches = gj.branches(self.model.denoiser(params), cond=cond, uncond=uncond)
            x0 = gj.sample(keys, branches, gj.chain(), gj.dpmpp_2m(), self.levels, scenes.SHAPE)
            return gj.calibrate(keys, branches, x0, measured)

        measured = gj.levels(SCHEDULE, 40, gj.spacings.karras(sigma_min=0.02, sigma_max=60.0))
        size = min(self.batch, len(texts))
        count = len(texts) - len(texts) % size
        keys, ids = jax.random.split(jax.random.key(seed), count), jnp.asarray(scenes.tokenise(texts))
        empty = jnp.asarray(scenes.tokenise([""] * size))
        rows = [slice(start, start + size) for start in range(0, count, size)]
        return functools.reduce(operator.add, (part(self.model.params, keys[some], ids[some], empty) for some in rows))
