"""The convolution of the networks has the values and derivatives of jax.lax, with an axis order that is fast in loops."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from guidance_jax import networks, pretrained

HWIO, OIHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
CASES = {
    "same": ((2, 5, 7, 3), (3, 3, 3, 4), {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": HWIO}),
    "strides": ((2, 6, 7, 3), (3, 3, 3, 4), {"window_strides": (2, 1), "padding": "VALID", "dimension_numbers": HWIO}),
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
    "PyTorch's axes": ((2, 3, 5, 7), (4, 3, 3, 3), {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": OIHW}),
    "lax's defaults": ((2, 3, 9), (4, 3, 3), {"window_strides": (1,), "padding": "SAME"}),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_lax(name):
    of_x, of_kernel, options = CASES[name]
    draw = lambda seed, shape: jax.random.normal(jax.random.key(seed), shape, jnp.float64)
    with jax.enable_x64(True):
        x, kernel, dx, dkernel = (draw(i, shape) for i, shape in enumerate((of_x, of_kernel, of_x, of_kernel)))
        found = []
        for convolve in (networks.conv_general_dilated, lax.conv_general_dilated):
            f = lambda x, k, convolve=convolve: jnp.sin(convolve(x, k, **options))
            total = lambda x, k, f=f: f(x, k).sum()
            gradients = jax.grad(total, (0, 1))
            along = lambda f: jax.jvp(f, (x, kernel), (dx, dkernel))
            found.append(
                [
                    f(x, kernel),
                    along(f),
                    jax.jvp(lambda x, f=f: f(x, kernel), (x,), (dx,)),
                    gradients(x, kernel),
                    along(gradients),
                    jax.grad(lambda x, k, g=gradients: sum((each**2).sum() for each in g(x, k)), (0, 1))(x, kernel),
                    jax.vmap(jax.grad(total), (0, None))(jnp.stack([x, dx]), kernel),
                ]
            )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10), *found)


def loop(convolve):
    """Gradient ascent through two convolutions in a scan, as XLA compiles it."""

    def step(x, kernel):
        return jax.grad(lambda x: (convolve(jnp.tanh(convolve(x, kernel)), kernel) ** 2).sum())(x)

    run = lambda x, kernel: lax.scan(lambda x, _: (step(x, kernel), None), x, None, length=4)[0]
    return jax.jit(run).lower(jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))).compile().as_text()


def orders(program):
    return set(re.findall(r" convolution\(.*dim_labels=(\w+)->", program))


def test_gradients_in_a_scan_have_the_fast_axis_order():
    same = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": HWIO}
    slow = orders(loop(functools.partial(lax.conv_general_dilated, **same)))
    assert "b01f_01oi" in slow, "XLA has fixed it: conv_general_dilated is no longer needed"
    assert orders(loop(functools.partial(networks.conv_general_dilated, **same))) == {"b01f_01io"}


@pytest.mark.parametrize("family", ["networks", "pretrained"])
def test_the_networks_use_this_convolution(family):
    if family == "networks":
        config = networks.UNetConfig((8, 8, 1), classes=3, widths=(8, 16), heads=2)
        network = networks.UNetClassifier(config, rngs=nnx.Rngs(0))
        inputs = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
    else:
        config = pretrained.adm.ADMConfig(8, 32, (1,), 1, (), num_classes=3, num_head_channels=32)
        network = pretrained.adm.ADMClassifier(config, rngs=nnx.Rngs(0))
        inputs = jnp.ones((2, 8, 8, 3)), jnp.ones(2)
    apply, params = networks.from_nnx(network)
    score = lambda params, x, t: jax.grad(lambda x: apply(params, x, t).sum())(x)
    run = lambda params, x, t: lax.scan(lambda x, _: (score(params, x, t), None), x, None, length=2)[0]
    program = jax.jit(run).lower(params, *inputs).compile().as_text()
    assert orders(program) == {"b01f_01io"}
