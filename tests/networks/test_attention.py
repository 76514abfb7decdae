"""Attention: that of JAX on every path, and cuDNN's kernel where a program is lowered for CUDA.

No test here runs on a GPU. The CPU lowers programs for CUDA, in a JAX that finds cuDNN.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance_jax.networks import layers

B, HEADS = 3, 2
KERNEL = "__cudnn$fmhaSoftmax"
SHAPES = {"rows": (530, 520), "whole": (72, 66), "one query": (1, 65)}


def arrays(queries, keys, dtype="float32", width=24, heads=HEADS):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=(B, n, heads, width)), dtype) for n in (queries, keys, keys, queries)]


def close(found, expected, bound=2e-2):
    found, expected = np.float32(found), np.float32(expected)
    return np.linalg.norm(found - expected) <= bound * np.linalg.norm(expected)


def some_keys(queries, keys):
    return jnp.asarray(np.arange(keys)[None] < np.array([[keys], [3], [2]]))[:, None]


def earlier_keys(queries, keys):
    return jnp.tri(queries, keys, dtype=bool)[None]


by_xla = functools.partial(jax.nn.dot_product_attention, implementation="xla")


@pytest.fixture
def cudnn(monkeypatch):
    """Lets JAX find cuDNN and one device. No other test has these widths of heads: JAX may have kept its programs."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91300)


def for_cuda(f, *values):
    """The program of f for CUDA. The lambda is new to JAX, which would keep the program of f."""
    return jax.jit(lambda *values: f(*values)).trace(*values).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("mask", [None, some_keys, earlier_keys])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_and_its_gradient_are_those_of_jax(shape, dtype, bound, mask):
    queries, keys = SHAPES[shape]
    assert (queries * keys > layers.MANY) == (shape == "rows")
    assert queries % layers.ROWS  # The last part is smaller.
    seen = None if mask is None else mask(queries, keys)
    ours = lambda q, k, v: layers.attention(q, k, v, seen)
    theirs = lambda q, k, v: by_xla(q, k, v, mask=None if seen is None else seen[:, None])

    @functools.partial(jax.jit, static_argnums=0)
    def with_gradient(f, q, k, v, dout):
        out, pull = jax.vjp(f, q, k, v)
        return out, *pull(dout)

    values = arrays(queries, keys, dtype)
    found = with_gradient(ours, *values)
    with jax.numpy_dtype_promotion("standard"):
        expected = with_gradient(theirs, *values)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype == dtype
        assert close(a, b, bound)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_half_precision_goes_to_cudnn_without_logits(cudnn, dtype):
    program, logits = for_cuda(layers.attention, *arrays(72, 66, dtype, 40)[:3]), "72x66xf32"
    assert (KERNEL in program) == (logits not in program) == (dtype != "float32")


@pytest.mark.parametrize(
    ("queries", "keys", "width"), [(1, 66, 56), (72, 8, 56), (72, 66, 20), (72, 66, 512)], ids=["query", "keys", "odd", "wide"]
)
def test_shapes_that_cudnn_does_not_take_write_out_their_logits(cudnn, queries, keys, width):
    assert KERNEL not in for_cuda(layers.attention, *arrays(queries, keys, "bfloat16", width)[:3])


@pytest.mark.parametrize("mask", [some_keys, earlier_keys])
def test_masks_write_out_their_logits(cudnn, mask):
    attend = functools.partial(layers.attention, mask=mask(72, 66))
    assert KERNEL not in for_cuda(attend, *arrays(72, 66, "bfloat16", 72)[:3])


def test_without_cudnn_every_device_writes_out_its_logits(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert KERNEL not in for_cuda(layers.attention, *arrays(72, 66, "bfloat16", 88)[:3])


def test_several_devices_write_out_their_logits_because_jax_cannot_shard_keys_unlike_queries(cudnn, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert KERNEL not in for_cuda(layers.attention, *arrays(72, 66, "bfloat16", 112)[:3])


def loss(q, k, v):
    return (layers.attention(q, k, v).astype(jnp.float32) ** 2).sum()


DERIVATIVES = {
    "gradient": jax.grad(loss, (0, 1, 2)),
    "forward": lambda q, k, v: jax.jvp(layers.attention, (q, k, v), (q, 2 * k, 3 * v)),
    "forward over reverse": lambda q, k, v: jax.jvp(lambda q: jax.grad(loss)(q, k, v), (q,), (q,)),
    "reverse over reverse": lambda q, k, v: jax.grad(lambda q: jnp.sum(jax.grad(loss)(q, k, v) * q))(q),
    "rematerialised": jax.grad(lambda q, k, v: jax.checkpoint(loss)(q, k, v)),
    "vmap of gradient": lambda q, k, v: jax.vmap(jax.grad(loss), (0, None, None))(jnp.stack([q, q]), k, v),
}


@pytest.mark.parametrize("kind", DERIVATIVES)
def test_derivatives_of_every_order_are_those_of_written_logits(cudnn, monkeypatch, kind):
    """The CPU takes both ways to the same numbers, and a program for CUDA has no derivative of cuDNN's kernel."""
    values = arrays(72, 66, "bfloat16", 104)[:3]
    assert KERNEL + "Backward" not in for_cuda(DERIVATIVES[kind], *values)
    found = jax.jit(lambda *values: DERIVATIVES[kind](*values))(*values)
    monkeypatch.setattr(layers, "fusible", lambda q, k, v: False)
    expected = jax.jit(lambda *values: DERIVATIVES[kind](*values))(*values)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert close(a, b)


def test_vmap_adds_to_the_batch_of_the_kernel(cudnn, monkeypatch):
    """With keys that it does not map, and with values whose mapped axis is not the first."""
    q, k, v, _ = arrays(72, 66, "bfloat16", 120)
    queries, values = jnp.stack([q, 2 * q]), jnp.stack([v, v + 1], axis=1)
    program = for_cuda(jax.vmap(layers.attention, (0, None, 1)), queries, k, values)
    (call,) = (line for line in program.splitlines() if KERNEL in line)
    assert call.count(f"tensor<{2 * B}x66x{HEADS}x120xbf16>") == 2

    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, implementation: layers.by_logits(q, k, v))
    mapped = jax.vmap(layers.by_cudnn, (0, None, 1))(queries[:, :2], k[:2], values[:2])  # JAX keeps the program of all three.
    for i in range(2):
        assert close(mapped[i], layers.by_logits(queries[i, :2], k[:2], values[:2, i]))


def test_one_function_serves_every_platform(cudnn):
    """The choice is made where the program is lowered, and the CPU computes the same as without cuDNN, to the bit."""
    values = arrays(72, 66, "bfloat16", 80)[:3]
    attend = jax.jit(lambda *values: layers.attention(*values))
    traced = attend.trace(*values)
    kernel = {name: KERNEL in traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "rocm", "tpu")}
    assert kernel == {"cpu": False, "cuda": True, "rocm": False, "tpu": False}
    np.testing.assert_array_equal(np.float32(attend(*values)), np.float32(jax.jit(layers.by_logits)(*values)))
