"""The convolution of the networks has the values and derivatives of jax.lax, with an axis order that is fast in loops."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from awake import awake
from jax import lax
from jaxprs import products

from guidance_jax import networks, pretrained

HWIO, OIHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
FAST = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, HWIO).rhs_spec
CASES = {
    "strides and PyTorch's axes": (
        (2, 3, 6, 7),
        (4, 3, 3, 3),
        {"window_strides": (2, 1), "padding": "VALID", "dimension_numbers": OIHW},
    ),
    "groups": (
        (2, 5, 5, 4),
        (3, 3, 2, 6),
        {"window_strides": (1, 1), "padding": ((1, 0), (2, 1)), "dimension_numbers": HWIO, "feature_group_count": 2},
    ),
    "dilated": (
        (2, 5, 6, 3),
        (3, 2, 3, 4),
        {
            "window_strides": (1, 1),
            "padding": ((2, 1), (1, 0)),
            "dimension_numbers": HWIO,
            "rhs_dilation": (2, 1),
            "lhs_dilation": (1, 2),
        },
    ),
    "lax's defaults": ((2, 3, 9), (4, 3, 3), {"window_strides": (1,), "padding": "SAME"}),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_lax(name):
    of_x, of_kernel, options = CASES[name]
    rng = np.random.default_rng(0)

    @jax.jit
    def found(x, kernel, dx, dkernel):
        both = []
        for convolve in (networks.conv_general_dilated, lax.conv_general_dilated):
            f = lambda x, k, convolve=convolve: jnp.sin(convolve(x, k, **options))
            total = lambda x, k, f=f: f(x, k).sum()
            gradients = jax.grad(total, (0, 1))
            along = lambda f: jax.jvp(f, (x, kernel), (dx, dkernel))
            both.append(
                [
                    along(f),
                    jax.jvp(lambda x, f=f: f(x, kernel), (x,), (dx,)),
                    along(gradients),
                    jax.grad(lambda x, k, g=gradients: sum((each**2).sum() for each in g(x, k)), (0, 1))(x, kernel),
                    jax.vmap(jax.grad(total), (0, None))(jnp.stack([x, dx]), kernel),
                ]
            )
        return both

    with jax.enable_x64(True):
        ours, theirs = found(*(rng.normal(size=shape) for shape in (of_x, of_kernel, of_x, of_kernel)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), ours, theirs)


def ascent(convolve):
    """The gradient of two convolutions, in their images alone."""
    return lambda x, kernel: jax.grad(lambda x: (convolve(jnp.tanh(convolve(x, kernel)), kernel) ** 2).sum())(x)


def kernels(gradient, *given):
    """The axes of the kernels of the convolutions of a gradient, before XLA compiles it."""
    found = [e for e in products(gradient, *given) if e.primitive.name == "conv_general_dilated"]
    return {e.params["dimension_numbers"].rhs_spec for e in found}


def test_gradients_in_a_scan_have_the_fast_axis_order():
    same = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": HWIO}
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))

    def orders(step):
        run = lambda x, kernel: lax.scan(lambda x, _: (step(x, kernel), None), x, None, length=4)[0]
        program = jax.jit(run).lower(x, kernel).compile().as_text() or ""
        return set(re.findall(r" convolution\(.*dim_labels=(\w+)->", program))

    slow, fast = (ascent(functools.partial(f, **same)) for f in (lax.conv_general_dilated, networks.conv_general_dilated))
    assert "b01f_01oi" in orders(slow), "XLA has fixed it: conv_general_dilated is no longer needed"
    assert orders(fast) == {"b01f_01io"}
    # The same as seen without a compiler, for whole networks.
    assert kernels(slow, x, kernel) > kernels(fast, x, kernel) == {FAST}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["networks", "pretrained"])
def test_the_networks_use_this_convolution(family):
    if family == "networks":
        config = networks.UNetConfig((8, 8, 1), classes=3, widths=(8, 16), heads=2)
        build = functools.partial(networks.UNetClassifier, config)
        inputs = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
    else:
        config = pretrained.adm.ADMConfig(8, 32, (1,), 1, (), num_classes=3, num_head_channels=32)
        build = functools.partial(pretrained.adm.ADMClassifier, config)
        inputs = jnp.ones((2, 8, 8, 3)), jnp.ones(2)
    apply, params = awake(build)
    score = lambda params, x, t: jax.grad(lambda x: apply(params, x, t).sum())(x)
    assert kernels(score, params, *inputs) == {FAST}
