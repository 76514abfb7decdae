"""Small networks of ADM with random weights under their published names."""

import dataclasses
from typing import Any

import numpy as np
from flax import nnx

from guidance_jax import pretrained
from guidance_jax.pretrained import adm

SMALL = adm.ADMConfig(16, 32, (1, 2), 1, (8,), num_classes=5, num_head_channels=32)
TINY = dataclasses.replace(SMALL, image_size=8, channel_mult=(1,))
CLASSIFIER = dataclasses.replace(TINY, model_channels=64, channel_mult=(0.5,), attention_resolutions=())


def arrays(module, seed=0):
    """Random weights of the published names and shapes, none of them 0."""
    rng, found = np.random.default_rng(seed), {}
    for name, leaf in pretrained.published(nnx.eval_shape(module)).items():
        dense = len(leaf.shape) > 1 and not name.endswith(("label_emb.weight", "positional_embedding"))
        spread = leaf.shape[1:] if dense else (10,)
        found[name] = (rng.standard_normal(leaf.shape) / np.sqrt(np.prod(spread))).astype(np.float32)
    return found


def build(config: Any = SMALL, module: Any = adm.ADM):
    return lambda rngs=None: module(config, rngs=rngs or nnx.Rngs(0))
