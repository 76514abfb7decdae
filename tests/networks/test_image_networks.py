"""Networks for images: their sizes, precision and memory, the condition's tokens, the classifier's pooling."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from awake import awake
from flax import nnx
from jaxprs import products

from guidance_jax import pretrained
from guidance_jax.networks import DiT, DiTConfig, Perturbed, Tokens, UNet, UNetClassifier, UNetConfig, dit, layers
from guidance_jax.networks.classifier import AttentionPool
from guidance_jax.networks.unet import Attention

B = 3
UNET = UNetConfig((8, 8, 1), 3, widths=(8, 16), attention=(1,), heads=2, patch=2)
DIT = DiTConfig((8, 8, 1), 3, width=16, blocks=2, heads=2, patch=4, tokens=5, qk_norm=True)
KINDS = {"unet": (UNet, UNET), "dit": (DiT, DIT), "classifier": (UNetClassifier, UNET)}
SHALLOW = {"unet": {"widths": (8,), "attention": (0,)}, "dit": {"blocks": 1}}


def normal(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


LABELS: Any
X, T, LABELS = normal(1, B, 8, 8, 1), np.array([0.2, 0.5, 0.8], np.float32), np.array([0, 3, 2], np.int32)
TOKENS = Tokens(LABELS, normal(2, B, 4, 5), jnp.asarray(np.arange(4)[None] < np.array([[4], [2], [3]])))


def inputs(kind):
    return {"unet": (X, T, LABELS), "dit": (X, T, TOKENS), "classifier": (X, T)}[kind]


@functools.cache
def network(kind, **changes):
    build, config = KINDS[kind]
    return awake(functools.partial(build, dataclasses.replace(config, **changes)))


@functools.cache
def output(kind):
    apply, params = network(kind)
    return np.asarray(apply(params, *inputs(kind)))


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_config_is_json(kind):
    config = dataclasses.replace(KINDS[kind][1], **({"perturbed": (0, 1)} if kind == "dit" else {}))
    read = type(config)(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert read == config
    assert hash(read) == hash(config)


def test_patches_are_squares_of_pixels_and_can_be_inverted():
    x = normal(0, 2, 4, 6, 3)
    h = np.asarray(jax.jit(layers.patchify, static_argnums=1)(x, 2))
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(h[:, i, j], x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, 12))
    np.testing.assert_array_equal(jax.jit(layers.unpatchify, static_argnums=1)(h, 2), x)


def test_a_group_norm_is_its_formula_scaled_and_shifted():
    h, scale, shift = 2 * normal(0, 2, 3, 5, 8) + 1, normal(1, 2, 8), normal(2, 2, 8)
    norm, params = awake(functools.partial(layers.GroupNorm, 8, 4))
    groups, gain, bias = h.reshape(2, 15, 4, 2), np.asarray(params["gain"][...]), np.asarray(params["bias"][...])
    deviation = np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)
    plain = ((groups - groups.mean((1, 3), keepdims=True)) / deviation).reshape(h.shape) * gain + bias
    np.testing.assert_allclose(norm(params, h), plain, rtol=1e-4, atol=1e-5)
    modulated = plain * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(norm(params, h, scale, shift), modulated, rtol=1e-4, atol=1e-5)
    assert jax.eval_shape(norm, params, jax.ShapeDtypeStruct(h.shape, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_bfloat16_is_close_to_float32_with_float32_parameters_and_output(kind):
    apply, params = network(kind, dtype="bfloat16")
    build, config = KINDS[kind]
    initial = pretrained.abstract(functools.partial(build, dataclasses.replace(config, dtype="bfloat16")))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(initial))} == {jnp.dtype("float32")}
    out, exact = np.asarray(apply(params, *inputs(kind))), output(kind)
    assert out.dtype == np.float32
    error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.03
    halves = [e for e in products(apply, params, *inputs(kind)) if e.invars[0].aval.dtype == jnp.bfloat16]
    assert len(halves) >= 10


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_the_initial_output_is_zero(kind):
    """Whatever the other layers do: the last one starts at zero."""
    build, config = KINDS[kind]
    last = jax.jit(lambda: nnx.state(build(config, rngs=nnx.Rngs(0)).last))()
    apply, params = network(kind)
    assert output(kind).all()
    assert not np.any(apply(params | {"last": last}, *inputs(kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_remat_saves_memory_and_changes_no_gradient(kind):
    def saved_and_gradient(remat):
        apply, params = network(kind, remat=remat, **SHALLOW[kind])
        loss = lambda params: (apply(params, *inputs(kind)) ** 2).sum()
        kept = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params))
        return sum(leaf.size for leaf in kept) - sum(p.size for p in jax.tree.leaves(params)), jax.jit(jax.grad(loss))(params)

    (plain, gradient), (less, same) = saved_and_gradient(False), saved_and_gradient(True)
    assert less < 0.5 * plain
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest), gradient, same)


def test_tokens_have_an_effect_and_masked_tokens_have_none():
    apply, params = network("dit")
    out, mask = output("dit"), TOKENS.mask
    hidden = TOKENS._replace(tokens=np.where(mask[:, :, None], TOKENS.tokens, np.nan))
    np.testing.assert_allclose(apply(params, X, T, hidden), out, rtol=1e-5, atol=1e-6)
    louder = TOKENS._replace(tokens=np.where(mask[:, :, None], 2 * TOKENS.tokens, TOKENS.tokens))
    assert (np.abs(apply(params, X, T, louder) - out).max((1, 2, 3)) > 1e-3).all()
    turned = TOKENS._replace(tokens=TOKENS.tokens[:, ::-1], mask=mask[:, ::-1])
    np.testing.assert_allclose(apply(params, X, T, turned), out, rtol=1e-4, atol=1e-5)
    alone = Tokens(LABELS[1:2], TOKENS.tokens[1:2, :2], mask[1:2, :2])  # only the two valid tokens, without padding
    np.testing.assert_allclose(apply(params, X[1:2], T[1:2], alone), out[1:2], rtol=1e-4, atol=1e-5)


def test_a_condition_without_tokens_is_the_null_condition_with_a_finite_gradient():
    apply, params = network("dit")
    null = TOKENS._replace(mask=np.zeros_like(TOKENS.mask))
    out = np.asarray(apply(params, X, T, null))
    np.testing.assert_allclose(out, apply(params, X, T, LABELS), rtol=1e-5, atol=1e-6)
    assert (np.abs(out - output("dit")).max((1, 2, 3)) > 1e-3).all()
    apply, params = network("dit", **SHALLOW["dit"])
    gradient = jax.jit(jax.grad(lambda params: (apply(params, X, T, null) ** 2).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_tokens_join_a_perturbed_condition_and_wrong_tokens_raise():
    apply, params = network("dit")
    asked = Perturbed(TOKENS, skip=jnp.array([False, True, False]))
    out = np.asarray(apply(params, X, T, asked))
    np.testing.assert_allclose(out[::2], output("dit")[::2], rtol=1e-4, atol=1e-5)
    assert np.abs(out[1] - output("dit")[1]).max() > 1e-3
    with pytest.raises(ValueError, match="width 5, got tokens of width 6"):
        apply(params, X, T, TOKENS._replace(tokens=np.ones((B, 4, 6), np.float32)))
    apply, params = network("dit", tokens=0, blocks=1)
    with pytest.raises(ValueError, match="takes no tokens"):
        apply(params, X, T, TOKENS)


@pytest.mark.parametrize("normed", [True, False])
def test_normalised_queries_and_keys_do_not_depend_on_scale(normed):
    attend, params = awake(functools.partial(dit.Block, dataclasses.replace(DIT, qk_norm=normed)), "attend")
    kernel = np.asarray(params["qkv"]["kernel"][...]).reshape(16, 2, 3, 8)
    h, factors = normal(0, B, 4, 16), np.array([7, 3, 1], np.float32)[None, None, :, None]
    before = np.asarray(attend(params, h, None))
    params["qkv"]["kernel"][...] = jnp.asarray((kernel * factors).reshape(16, 48))
    params["qkv"]["bias"][...] = jnp.asarray((np.asarray(params["qkv"]["bias"][...]).reshape(2, 3, 8) * factors[0]).reshape(48))
    difference = np.abs(attend(params, h, None) - before).max()
    assert difference < 1e-5 if normed else difference > 1e-2


def test_attention_over_pixels_moves_with_the_pixels():
    attend, params = awake(functools.partial(Attention, 16, UNET))
    h, order = normal(1, B, 4, 4, 16), np.random.default_rng(0).permutation(16)
    moved = lambda h: h.reshape(B, 16, 16)[:, order].reshape(h.shape)
    out = np.asarray(attend(params, h))
    np.testing.assert_allclose(attend(params, moved(h)), moved(out), rtol=1e-4, atol=1e-5)
    assert np.abs(out - h).max() > 0.1


def test_pooling_is_attention_of_the_mean_and_knows_order_only_by_the_positions():
    pool, params = awake(functools.partial(AttentionPool, 6, 8, 2, "float32"))
    h, order = normal(1, B, 6, 8), np.array([3, 0, 5, 1, 4, 2])
    out = np.asarray(pool(params, h))
    assert np.abs(pool(params, h[:, order]) - out).max() > 1e-3
    dense = lambda name, x: x @ np.asarray(params[name]["kernel"][...]) + np.asarray(params[name]["bias"][...])
    tokens = np.concatenate([h.mean(1, keepdims=True), h], axis=1) + np.asarray(params["position"][...])
    q = dense("query", tokens[:, 0]).reshape(B, 2, 4)
    k, v = np.split(dense("key_value", tokens).reshape(B, 7, 2, 8), 2, axis=3)
    heads = []
    for i in range(2):
        weights = np.exp(np.einsum("bd,bnd->bn", q[:, i], k[:, :, i]) / 2)
        heads.append(np.einsum("bn,bnd->bd", weights / weights.sum(1, keepdims=True), v[:, :, i]))
    np.testing.assert_allclose(out, dense("project", np.concatenate(heads, axis=1)), rtol=1e-4, atol=1e-5)
    params["position"][...] = jnp.zeros((1, 7, 8))
    np.testing.assert_allclose(pool(params, h[:, order]), pool(params, h), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_classifier_treats_samples_separately_and_its_gradient_is_that_of_its_values():
    apply, params = network("classifier")
    out = output("classifier")
    assert out.shape == (B, 3)
    others = np.arange(B) != 1
    np.testing.assert_allclose(apply(params, X * (1 + others[:, None, None, None]), T + 0.1 * others)[1], out[1], rtol=1e-5)
    assert (np.abs(apply(params, X, T + np.float32(0.05)) - out).max(1) > 1e-4).all()
    score = jax.jit(jax.grad(lambda x: jax.nn.log_softmax(apply(params, x, T))[:, 0].sum()))
    direction = normal(3, *X.shape)

    def log_p(s):
        logits = np.asarray(apply(params, X + np.float32(s) * direction, T), np.float64)
        return logits[:, 0] - np.log(np.exp(logits).sum(1))

    slope = (log_p(0.01) - log_p(-0.01)) / 0.02
    np.testing.assert_allclose((np.asarray(score(X)) * direction).sum((1, 2, 3)), slope, rtol=0.02, atol=2e-3)
    assert np.isfinite(score(np.zeros_like(X))).all()


def test_the_logits_are_linear_in_the_features():
    _, params = network("classifier")
    features, _ = awake(functools.partial(UNetClassifier, UNET), "features")
    found, last = np.asarray(features(params, X, T)), params["last"]
    assert found.shape == (B, 16)
    logits = found @ np.asarray(last["kernel"][...]) + np.asarray(last["bias"][...])
    np.testing.assert_allclose(logits, output("classifier"), rtol=1e-4, atol=1e-5)
