"""A denoiser that counts its evaluations."""

from typing import Any

import jax
import jax.numpy as jnp
from quick import quick_keys

import guidance_jax as gj

B = 8
LABELS = jnp.arange(B) % 3
LEVELS = gj.levels(gj.schedules.edm(), 20, gj.spacings.karras())


class Counted:
    """A denoiser that records the batch size of every call as it runs."""

    def __init__(self, denoise):
        self.inner, self.batches = denoise, []

    def __call__(self, x, level, cond):
        jax.debug.callback(lambda x: self.batches.append(len(x)), x)
        return self.inner(x, level, cond)

    def run(self, guidance, sampler=None, levels=LEVELS, conds: Any = None):
        self.batches.clear()
        conds = conds or {"cond": LABELS, "uncond": jnp.full_like(LABELS, -1)}
        arguments = quick_keys(B), gj.branches(self, **conds), guidance, sampler or gj.ddim(), levels, (3,)
        state, _ = jax.block_until_ready(gj.run(*arguments))
        jax.effects_barrier()
        batches = list(self.batches)
        assert state.evaluations == sum(batches) // B
        return batches
