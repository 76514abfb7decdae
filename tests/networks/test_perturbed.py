"""Perturbed forward passes of the DiT. The perturbation is part of the condition, so it joins the batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from awake import awake
from worlds import keys

import guidance_jax as gj
from guidance_jax import networks
from guidance_jax.networks import Perturbed
from guidance_jax.networks.dit import Block, blur

B = 4
LABELS: Any = np.array([0, 1, 2, 0], np.int32)
X, T = np.random.default_rng(1).normal(size=(B, 8, 8, 1)).astype(np.float32), np.linspace(0.2, 0.8, B, dtype=np.float32)
CONFIG = networks.DiTConfig((8, 8, 1), 3, width=16, blocks=2, heads=2, perturbed=(1,))
NO: Any
YES: Any
NO, YES = np.zeros(B, bool), np.ones(B, bool)
PLAIN = Perturbed(LABELS, identity=NO, skip=NO, blur=jnp.asarray(np.zeros(B, np.float32)))
KINDS = {
    "identity": PLAIN._replace(identity=YES),
    "skip": PLAIN._replace(skip=YES),
    "blur": PLAIN._replace(blur=np.full(B, np.inf, np.float32)),
}


@functools.cache
def dit():
    return awake(functools.partial(networks.DiT, CONFIG))


def run(cond):
    apply, params = dit()
    return np.asarray(apply(params, X, T, cond))


@pytest.mark.parametrize("kind", KINDS)
def test_the_flag_perturbs_only_its_own_samples(kind):
    plain, weak = run(PLAIN), run(KINDS[kind])
    np.testing.assert_allclose(plain, run(LABELS), rtol=1e-4, atol=1e-5)
    assert (np.abs(weak - plain).max((1, 2, 3)) > 1e-3).all()
    out = run(jax.tree.map(lambda a, b: np.where(np.arange(B) % 2 == 0, a, b), PLAIN, KINDS[kind]))
    np.testing.assert_allclose(out[::2], plain[::2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out[1::2], weak[1::2], rtol=1e-4, atol=1e-5)


def test_a_skipped_block_is_a_block_with_zero_gates():
    apply, params = dit()
    modulation = params["blocks"][1]["modulation"]
    closed = jax.tree.map(jnp.zeros_like, modulation)  # its gates are zero
    silent = params | {"blocks": params["blocks"] | {1: params["blocks"][1] | {"modulation": closed}}}
    np.testing.assert_allclose(run(Perturbed(LABELS, skip=YES)), apply(silent, X, T, LABELS), rtol=1e-4, atol=1e-5)


def test_identity_attention_is_attention_of_each_token_to_itself():
    attend, params = awake(functools.partial(Block, CONFIG), "attend")
    h = np.random.default_rng(2).normal(size=(B, 16, 16)).astype(np.float32)
    dense = lambda name, h: h @ np.asarray(params[name]["kernel"][...]) + np.asarray(params[name]["bias"][...])
    v = np.split(dense("qkv", h).reshape(B, 16, 2, -1), 3, axis=3)[2].reshape(B, 16, 16)
    identity = attend(params, h, Perturbed(LABELS, identity=YES))
    np.testing.assert_allclose(identity, dense("project", v), rtol=1e-5, atol=1e-5)


def test_infinitely_blurred_queries_attend_alike_and_a_blur_is_gaussian():
    q = np.random.default_rng(3).normal(size=(B, 16, 2, 3)).astype(np.float32)
    none, gaussian, everywhere, _ = np.asarray(
        jax.jit(blur, static_argnums=1)(np.stack([q[0]] * B), (4, 4), np.array([0, 0.7, np.inf, 0], np.float32))
    )
    np.testing.assert_allclose(none, q[0], rtol=1e-6)
    np.testing.assert_allclose(everywhere, np.broadcast_to(q[0].mean(0), q[0].shape), rtol=1e-5, atol=1e-6)
    by_hand = np.zeros(q[0].shape)
    for i in range(16):
        for j in range(16):
            row = [np.exp(-(((i // 4) - r) ** 2) / (2 * 0.7**2)) for r in range(4)]
            column = [np.exp(-(((i % 4) - c) ** 2) / (2 * 0.7**2)) for c in range(4)]
            by_hand[i] += row[j // 4] / sum(row) * column[j % 4] / sum(column) * q[0, j]
    np.testing.assert_allclose(gaussian, by_hand, rtol=1e-5, atol=1e-6)


def test_guidance_away_from_a_perturbed_branch_is_one_call_for_all_branches():
    """`c + (w - 1) (c - u) + k (c - p)`, with three branches in one batch. Each sample has another kind of perturbation."""
    apply, params = dit()
    calls = []

    def network(x, t, cond):
        jax.debug.callback(lambda x: calls.append(len(x)), x)
        return apply(params, x, t, cond)

    first = np.arange(B)
    weak = Perturbed(
        LABELS, identity=first == 0, skip=first == 1, blur=jnp.asarray(np.where(first == 2, np.inf, 0), np.float32)
    )
    conds = {"cond": PLAIN, "uncond": PLAIN._replace(labels=np.full(B, 3, np.int32)), "perturbed": weak}
    conds = jax.tree.map(jnp.asarray, conds)
    branches = gj.branches(gj.denoiser(network, predicts="v"), **conds)
    levels = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())
    guidance = gj.chain(gj.cfg(2.0), gj.perturbed(3.0))
    x = jax.block_until_ready(gj.sample(keys(B), branches, guidance, gj.ddim(), levels, jnp.asarray(X)))
    jax.effects_barrier()
    assert calls == [3 * B] * 2
    by_hand, (alpha, sigma, t) = X, map(np.asarray, (levels.alpha, levels.sigma, levels.t))
    for i in range(2):
        outputs = {name: np.asarray(apply(params, by_hand, np.full(B, t[i]), cond)) for name, cond in conds.items()}
        c, u, p = (outputs[name] for name in ("cond", "uncond", "perturbed"))
        v = c + (c - u) + 3 * (c - p)
        x0, eps = alpha[i] * by_hand - sigma[i] * v, sigma[i] * by_hand + alpha[i] * v
        by_hand = alpha[i + 1] * x0 + sigma[i + 1] * eps
    np.testing.assert_allclose(x, by_hand, rtol=1e-3, atol=1e-3)


def test_a_block_that_does_not_exist_raises():
    with pytest.raises(ValueError, match=r"name blocks, counted from 0, got perturbed \(2,\) and blocks 2"):
        networks.DiTConfig((8, 8, 1), 3, width=16, blocks=2, heads=2, perturbed=(2,))
