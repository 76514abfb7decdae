"""Networks for images: their sizes, precision and memory, the condition's tokens, the classifier's pooling."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxprs import products
from worlds import keys

import guidance_jax as gj
from guidance_jax.networks import DiT, DiTConfig, Perturbed, Tokens, UNet, UNetClassifier, UNetConfig, layers
from guidance_jax.networks.classifier import AttentionPool
from guidance_jax.networks.unet import Attention

B = 3
UNET = UNetConfig((8, 8, 1), 3, widths=(8, 16), attention=(1,), heads=2, patch=2)
DIT = DiTConfig((8, 8, 1), 3, width=16, blocks=2, heads=2, patch=4, tokens=5, qk_norm=True)
KINDS = {"unet": (UNet, UNET), "dit": (DiT, DIT), "classifier": (UNetClassifier, UNET)}
X, T, LABELS = jax.random.normal(jax.random.key(1), (B, 8, 8, 1)), jnp.array([0.2, 0.5, 0.8]), jnp.array([0, 3, 2])
TOKENS = Tokens(LABELS, jax.random.normal(jax.random.key(2), (B, 4, 5)), jnp.arange(4)[None] < jnp.array([[4], [2], [3]]))


def noisy(params):
    """Adds noise to the parameters, because some layers start at zero."""
    leaves, treedef = jax.tree.flatten(params)
    moved = [p + 0.2 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys(len(leaves)), strict=True)]
    return jax.tree.unflatten(treedef, moved)


def inputs(kind):
    return {"unet": (X, T, LABELS), "dit": (X, T, TOKENS), "classifier": (X, T)}[kind]


@functools.cache
def awake(kind, **changes):
    network, config = KINDS[kind]
    apply, params = gj.networks.from_nnx(network(dataclasses.replace(config, **changes), rngs=nnx.Rngs(0)))
    return apply, noisy(params)


@functools.cache
def output(kind):
    apply, params = awake(kind)
    return jax.jit(apply)(params, *inputs(kind))


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_config_is_json(kind):
    config = dataclasses.replace(KINDS[kind][1], **({"perturbed": (0, 1)} if kind == "dit" else {}))
    read = type(config)(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert read == config
    assert hash(read) == hash(config)


def test_patches_are_squares_of_pixels_and_can_be_inverted():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    h = layers.patchify(x, 2)
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(h[:, i, j], x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(2, 12))
    np.testing.assert_array_equal(layers.unpatchify(h, 2), x)


def test_a_group_norm_is_its_formula_scaled_and_shifted():
    h, scale, shift = (jax.random.normal(k, s) for k, s in zip(keys(3), [(2, 3, 5, 8), (2, 8), (2, 8)], strict=True))
    h = 2 * h + 1
    norm = layers.GroupNorm(8, 4, rngs=nnx.Rngs(0))
    norm.gain[...], norm.bias[...] = (jax.random.normal(k, (8,)) for k in keys(2))
    groups, gain, bias = np.asarray(h).reshape(2, 15, 4, 2), np.asarray(norm.gain[...]), np.asarray(norm.bias[...])
    deviation = np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)
    plain = ((groups - groups.mean((1, 3), keepdims=True)) / deviation).reshape(h.shape) * gain + bias
    np.testing.assert_allclose(norm(h), plain, rtol=1e-4, atol=1e-5)
    modulated = plain * (1 + np.asarray(scale)[:, None, None]) + np.asarray(shift)[:, None, None]
    np.testing.assert_allclose(norm(h, scale, shift), modulated, rtol=1e-4, atol=1e-5)
    assert norm(h.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_attention_and_its_gradient_are_those_of_jax():
    q, k, v = (jax.random.normal(key, (B, n, 2, 6)) for key, n in zip(keys(3), (7, 4, 4), strict=True))
    mask = TOKENS.mask
    reference = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])
    ours, pull = jax.vjp(lambda q, k, v: layers.attention(q, k, v, mask[:, None]), q, k, v)
    theirs, pull_theirs = jax.vjp(reference, q, k, v)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for a, b in zip(pull(q), pull_theirs(q), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_bfloat16_is_close_to_float32_with_float32_parameters_and_output(kind):
    apply, params = awake(kind, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    out, exact = jax.jit(apply)(params, *inputs(kind)), np.asarray(output(kind))
    assert out.dtype == jnp.float32
    error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.03
    halves = [e for e in products(apply, params, *inputs(kind)) if e.invars[0].aval.dtype == jnp.bfloat16]
    assert len(halves) >= 10


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_the_initial_output_is_zero(kind):
    network, config = KINDS[kind]
    apply, params = gj.networks.from_nnx(network(config, rngs=nnx.Rngs(0)))
    assert output(kind).all()
    assert not jax.jit(apply)(params, *inputs(kind)).any()


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_remat_saves_memory_and_changes_no_gradient(kind):
    def saved_and_gradient(remat):
        apply, params = awake(kind, remat=remat)
        loss = lambda params: (apply(params, *inputs(kind)) ** 2).sum()
        kept = jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params))
        return sum(leaf.size for leaf in kept) - sum(p.size for p in jax.tree.leaves(params)), jax.jit(jax.grad(loss))(params)

    (plain, gradient), (less, same) = saved_and_gradient(False), saved_and_gradient(True)
    assert less < 0.5 * plain
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest), gradient, same)


def test_tokens_have_an_effect_and_masked_tokens_have_none():
    apply, params = awake("dit")
    apply = jax.jit(apply)
    out, mask = output("dit"), TOKENS.mask
    hidden = TOKENS._replace(tokens=jnp.where(mask[:, :, None], TOKENS.tokens, jnp.nan))
    np.testing.assert_allclose(apply(params, X, T, hidden), out, rtol=1e-5, atol=1e-6)
    louder = TOKENS._replace(tokens=jnp.where(mask[:, :, None], 2 * TOKENS.tokens, TOKENS.tokens))
    assert (np.abs(apply(params, X, T, louder) - out).max((1, 2, 3)) > 1e-3).all()
    turned = TOKENS._replace(tokens=TOKENS.tokens[:, ::-1], mask=mask[:, ::-1])
    np.testing.assert_allclose(apply(params, X, T, turned), out, rtol=1e-4, atol=1e-5)
    alone = Tokens(LABELS[1:2], TOKENS.tokens[1:2, :2], mask[1:2, :2])  # only the two valid tokens, without padding
    np.testing.assert_allclose(apply(params, X[1:2], T[1:2], alone), out[1:2], rtol=1e-4, atol=1e-5)


def test_a_condition_without_tokens_is_the_null_condition_with_a_finite_gradient():
    apply, params = awake("dit")
    null = TOKENS._replace(mask=jnp.zeros_like(TOKENS.mask))
    out, pull = jax.vjp(lambda params: jax.jit(apply)(params, X, T, null), params)
    np.testing.assert_allclose(out, jax.jit(apply)(params, X, T, LABELS), rtol=1e-5, atol=1e-6)
    assert (np.abs(out - output("dit")).max((1, 2, 3)) > 1e-3).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pull(out)))


def test_tokens_join_a_perturbed_condition_and_wrong_tokens_raise():
    apply, params = awake("dit")
    asked = Perturbed(TOKENS, skip=jnp.array([False, True, False]))
    out = jax.jit(apply)(params, X, T, asked)
    np.testing.assert_allclose(out[::2], output("dit")[::2], rtol=1e-4, atol=1e-5)
    assert np.abs(out[1] - output("dit")[1]).max() > 1e-3
    with pytest.raises(ValueError, match="width 5, got tokens of width 6"):
        apply(params, X, T, TOKENS._replace(tokens=jnp.ones((B, 4, 6))))
    with pytest.raises(ValueError, match="takes no tokens"):
        DiT(dataclasses.replace(DIT, tokens=0, blocks=1), rngs=nnx.Rngs(0))(X, T, TOKENS)


@pytest.mark.parametrize("normed", [True, False])
def test_normalised_queries_and_keys_do_not_depend_on_scale(normed):
    block = DiT(dataclasses.replace(DIT, qk_norm=normed, blocks=1), rngs=nnx.Rngs(0)).blocks[0]
    h = jax.random.normal(jax.random.key(0), (B, 4, 16))
    before = block.attend(h, None)
    parts = block.qkv.kernel[...].reshape(16, 2, 3, 8)
    block.qkv.kernel[...] = (parts * jnp.array([7.0, 3.0, 1.0])[None, None, :, None]).reshape(16, 48)
    difference = np.abs(block.attend(h, None) - before).max()
    assert difference < 1e-5 if normed else difference > 1e-2


def test_attention_over_pixels_moves_with_the_pixels():
    module = Attention(16, UNET, rngs=nnx.Rngs(0))
    module.project.kernel[...] = jax.random.normal(jax.random.key(0), (16, 16))
    h = jax.random.normal(jax.random.key(1), (B, 4, 4, 16))
    order = np.random.default_rng(0).permutation(16)
    moved = lambda h: h.reshape(B, 16, 16)[:, order].reshape(h.shape)
    np.testing.assert_allclose(module(moved(h)), moved(module(h)), rtol=1e-4, atol=1e-5)
    assert np.abs(module(h) - h).max() > 0.1


def test_pooling_is_attention_of_the_mean_and_knows_order_only_by_the_positions():
    pool = AttentionPool(6, 8, 2, "float32", rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(1), (B, 6, 8))
    order = np.array([3, 0, 5, 1, 4, 2])
    assert np.abs(pool(h[:, order]) - pool(h)).max() > 1e-3
    tokens = np.concatenate([h.mean(1, keepdims=True), h], axis=1) + pool.position[...]
    q = (tokens[:, 0] @ pool.query.kernel[...]).reshape(B, 2, 4)
    k, v = np.split((tokens @ pool.key_value.kernel[...]).reshape(B, 7, 2, 8), 2, axis=3)
    heads = []
    for i in range(2):
        weights = np.exp(np.einsum("bd,bnd->bn", q[:, i], k[:, :, i]) / 2)
        heads.append(np.einsum("bn,bnd->bd", weights / weights.sum(1, keepdims=True), v[:, :, i]))
    np.testing.assert_allclose(pool(h), np.concatenate(heads, axis=1) @ pool.project.kernel[...], rtol=1e-4, atol=1e-5)
    pool.position[...] = jnp.zeros_like(pool.position[...])
    np.testing.assert_allclose(pool(h[:, order]), pool(h), rtol=1e-4, atol=1e-6)


def test_the_classifier_treats_samples_separately_and_its_gradient_is_that_of_its_values():
    apply, params = awake("classifier")
    logits = jax.jit(apply)
    out = output("classifier")
    assert out.shape == (B, 3)
    np.testing.assert_allclose(logits(params, X[1:2], T[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    assert (np.abs(logits(params, X, T + 0.05) - out).max(1) > 1e-4).all()
    score = jax.jit(jax.grad(lambda x: jax.nn.log_softmax(apply(params, x, T))[:, 0].sum()))
    direction = jax.random.normal(jax.random.key(3), X.shape)
    log_p = lambda s: np.asarray(jax.nn.log_softmax(logits(params, X + s * direction, T))[:, 0], np.float64)
    slope = (log_p(0.01) - log_p(-0.01)) / 0.02
    np.testing.assert_allclose((score(X) * direction).sum((1, 2, 3)), slope, rtol=0.02, atol=2e-3)
    assert np.isfinite(score(jnp.zeros_like(X))).all()


def test_the_logits_are_linear_in_the_features():
    _, params = awake("classifier")
    module = UNetClassifier(UNET, rngs=nnx.Rngs(0))
    nnx.update(module, params)
    features = nnx.jit(lambda module: module.features(X, T))(module)
    assert features.shape == (B, 16)
    logits = np.asarray(features) @ np.asarray(params["last"]["kernel"][...]) + np.asarray(params["last"]["bias"][...])
    np.testing.assert_allclose(logits, output("classifier"), rtol=1e-4, atol=1e-5)
