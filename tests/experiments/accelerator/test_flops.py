"""The count of operations: products of every kind, in loops, conditions and gradients."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from experiments.accelerator import flops
from experiments.accelerator.flops import operations

A, B = jax.ShapeDtypeStruct((3, 5), "float32"), jax.ShapeDtypeStruct((5, 7), "float32")
ONE = 2 * 3 * 5 * 7


def convolve(x, kernel, stride=1, groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def test_products():
    assert operations(jnp.matmul, A, B) == ONE
    assert operations(lambda a, b: a @ b + a.sum(), A, B) == ONE
    batched = operations(lambda q, k: jnp.einsum("bhnd,bhmd->bhnm", q, k), jnp.ones((2, 3, 4, 5)), jnp.ones((2, 3, 6, 5)))
    assert batched == 2 * 2 * 3 * 4 * 6 * 5


def test_convolutions():
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    assert operations(convolve, x, kernel) == 2 * (2 * 8 * 8 * 6) * 9 * 4
    assert operations(lambda x, k: convolve(x, k, 2), x, kernel) == 2 * (2 * 4 * 4 * 6) * 9 * 4
    assert operations(lambda x, k: convolve(x, k, 1, 4), x, jnp.ones((3, 3, 1, 4))) == 2 * (2 * 8 * 8 * 4) * 9


def test_a_gradient_in_x_costs_as_much_again_also_through_a_stride():
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))
    for stride in (1, 2):
        forward = operations(lambda x, s=stride: convolve(x, kernel, s), x)
        assert operations(jax.value_and_grad(lambda x, s=stride: convolve(x, kernel, s).sum()), x) == 2 * forward


def test_loops_count_as_often_as_they_run_and_conditions_by_their_largest_branch():
    square = jax.ShapeDtypeStruct((4, 4), "float32")
    each = 2 * 4**3

    def looped(a):
        return jax.lax.scan(lambda c, _: (c @ a, None), a, length=5)[0]

    assert operations(looped, square) == 5 * each
    assert operations(lambda a: jax.lax.map(lambda row: a @ row, a), square) == 4 * each / 4
    either = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)
    assert operations(either, square) == 2 * each
    assert operations(jax.jit(jax.checkpoint(looped)), square) == 5 * each


def test_a_loop_of_unknown_length_raises_only_if_it_has_products():
    until = lambda step: lambda a: jax.lax.while_loop(lambda a: a.sum() < 9, step, a)
    assert operations(until(lambda a: a + 1), jnp.ones((2, 2))) == 0
    with pytest.raises(ValueError, match="unknown length"):
        operations(until(lambda a: a @ a), jnp.ones((2, 2)))


@pytest.mark.parametrize("layout", [0, 1])
def test_attention_of_cudnn_counts_as_its_products(layout):
    shapes = [(2, 6, 3, 8), (2, 5, 3, 8)] if layout == 0 else [(2, 3, 6, 8), (2, 3, 5, 8)]
    values = [SimpleNamespace(aval=SimpleNamespace(shape=shape)) for shape in shapes]
    forward, backward = (
        flops._equation(
            SimpleNamespace(
                primitive=SimpleNamespace(name=f"dot_product_attention_{way}_wrapper"),
                params={"layout": layout},
                invars=values,
                outvars=values[:1],
            )
        )
        for way in ("fwd", "bwd")
    )
    q, k = (jnp.ones((2, 3, count, 8)) for count in (6, 5))
    written = operations(lambda q, k: jnp.einsum("bhnm,bhmd->bhnd", jnp.einsum("bhnd,bhmd->bhnm", q, k), k), q, k)
    assert forward == written
    assert backward == 2.5 * written


def test_it_agrees_with_the_compiler_where_the_compiler_counts_products_only():
    lowered = jax.jit(lambda a, b: a @ b).lower(A, B)
    counted = lowered.cost_analysis()
    assert counted is not None
    assert operations(jnp.matmul, A, B) == counted["flops"]
