"""Perturbed forward passes of the DiT. The perturbation is part of the condition, so it joins the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from worlds import keys

import guidance_jax as gj
from guidance_jax.networks import Perturbed
from guidance_jax.networks.dit import blur

B = 4
LABELS = jnp.array([0, 1, 2, 0])
NO, YES = jnp.zeros(B, bool), jnp.ones(B, bool)
X, T = jax.random.normal(jax.random.key(1), (B, 8, 8, 1)), jnp.linspace(0.2, 0.8, B)


def dit(perturbed=(1,)):
    """Adds noise to the parameters, because some layers start at zero."""
    config = gj.networks.DiTConfig((8, 8, 1), 3, width=16, blocks=2, heads=2, perturbed=perturbed)
    module = gj.networks.DiT(config, rngs=nnx.Rngs(0))
    apply, params = gj.networks.from_nnx(module)
    leaves, treedef = jax.tree.flatten(params)
    noisy = [p + 0.3 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys(len(leaves)), strict=True)]
    return jax.jit(apply), jax.tree.unflatten(treedef, noisy)


KINDS = {
    "identity": (Perturbed(LABELS, identity=NO), Perturbed(LABELS, identity=YES)),
    "skip": (Perturbed(LABELS, skip=NO), Perturbed(LABELS, skip=YES)),
    "blur": (Perturbed(LABELS, blur=jnp.zeros(B)), Perturbed(LABELS, blur=jnp.full(B, jnp.inf))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_flag_perturbs_only_its_own_samples(kind):
    apply, params = dit()
    plain, weak = (apply(params, X, T, cond) for cond in KINDS[kind])
    np.testing.assert_allclose(plain, apply(params, X, T, LABELS), rtol=1e-4, atol=1e-5)
    assert (np.abs(weak - plain).max((1, 2, 3)) > 1e-3).all()
    mixed = jax.tree.map(lambda a, b: jnp.where(jnp.arange(B) % 2 == 0, a, b), *KINDS[kind])
    out = apply(params, X, T, mixed)
    np.testing.assert_allclose(out[::2], plain[::2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out[1::2], weak[1::2], rtol=1e-4, atol=1e-5)


def test_a_skipped_block_is_a_block_with_zero_gates():
    apply, params = dit()
    modulation = params["blocks"][1]["modulation"]
    closed = jax.tree.map(jnp.zeros_like, modulation)  # its gates are zero
    silent = params | {"blocks": params["blocks"] | {1: params["blocks"][1] | {"modulation": closed}}}
    np.testing.assert_allclose(
        apply(params, X, T, Perturbed(LABELS, skip=YES)), apply(silent, X, T, LABELS), rtol=1e-4, atol=1e-5
    )


def test_identity_attention_is_attention_of_each_token_to_itself():
    """With huge, equal queries and keys in one block, the softmax selects the token itself."""
    module = gj.networks.DiT(gj.networks.DiTConfig((8, 8, 1), 3, width=16, blocks=1, heads=2), rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(2), (B, 16, 16))
    block = module.blocks[0]
    v = jnp.split(block.qkv(h).reshape(B, 16, 2, -1), 3, axis=3)[2].reshape(B, 16, 16)
    identity = block.attend(h, Perturbed(LABELS, identity=YES))
    np.testing.assert_allclose(identity, block.project(v), rtol=1e-5, atol=1e-6)


def test_infinitely_blurred_queries_attend_alike_and_a_blur_is_gaussian():
    q = jax.random.normal(jax.random.key(3), (B, 16, 2, 3))
    np.testing.assert_allclose(blur(q, (4, 4), jnp.zeros(B)), q, rtol=1e-6)
    everywhere = blur(q, (4, 4), jnp.full(B, jnp.inf))
    np.testing.assert_allclose(everywhere, jnp.broadcast_to(q.mean(1, keepdims=True), q.shape), rtol=1e-5, atol=1e-6)
    by_hand = np.zeros(q[0].shape)
    for i in range(16):
        for j in range(16):
            row = [np.exp(-(((i // 4) - r) ** 2) / (2 * 0.7**2)) for r in range(4)]
            column = [np.exp(-(((i % 4) - c) ** 2) / (2 * 0.7**2)) for c in range(4)]
            by_hand[i] += row[j // 4] / sum(row) * column[j % 4] / sum(column) * np.asarray(q[0, j])
    np.testing.assert_allclose(blur(q, (4, 4), jnp.full(B, 0.7))[0], by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_away_from_the_perturbed_branch_is_one_call_for_all_branches(kind):
    """`c + (w - 1) (c - u) + k (c - p)`, with three branches in one batch."""
    apply, params = dit()
    calls = []

    def network(x, t, cond):
        jax.debug.callback(lambda x: calls.append(len(x)), x)
        return apply(params, x, t, cond)

    cond, weak = KINDS[kind]
    denoise = gj.denoiser(network, predicts="v")
    branches = gj.branches(denoise, cond=cond, uncond=cond._replace(labels=jnp.full_like(LABELS, 3)), perturbed=weak)
    levels = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())
    guidance = gj.chain(gj.cfg(2.0), gj.perturbed(3.0))
    x = jax.block_until_ready(gj.sample(keys(B), branches, guidance, gj.ddim(), levels, X))
    jax.effects_barrier()
    assert calls == [3 * B] * 2
    by_hand = X
    for i in range(2):
        level, after = levels[i], levels[i + 1]
        c, u, p = (denoise(by_hand, level, cond) for cond in branches.conds.values())
        mixed = c + (c - u) + 3 * (c - p)
        by_hand = after.alpha * mixed.x0 + after.sigma * mixed.eps
    np.testing.assert_allclose(x, by_hand, rtol=1e-3, atol=1e-3)


def test_a_block_that_does_not_exist_raises():
    with pytest.raises(ValueError, match=r"name blocks, counted from 0, got perturbed \(2,\) and blocks 2"):
        dit(perturbed=(2,))
