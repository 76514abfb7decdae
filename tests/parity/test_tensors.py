"""PyTorch's own tensors and modules raise the errors that `tests/bad_calls` shows for stand-ins.

Where a parameter is annotated as an array, the checked annotations of these tests would raise first.
"""

import jax
import jax.numpy as jnp
import pytest
from reference import torch
from worlds import keys

import guidance_jax as gj

X, LABELS = torch.ones(2, 3), torch.tensor([0, 1])


def sampled(network, cond: object = None):
    branches = gj.branches(gj.denoiser(network, "x0"), cond=cond)
    path = gj.levels(gj.schedules.edm(), 2, gj.spacings.karras())
    return gj.sample(keys(2), branches, gj.chain(), gj.ddim(), path, (3,))


CALLS = {
    "labels": lambda: sampled(lambda x, t, cond: x, cond=LABELS),
    "output": lambda: sampled(lambda x, t, cond: X),
    "scale": lambda: gj.cfg(torch.tensor(3.0)),
    "parameter": lambda: gj.cfg(torch.nn.Parameter(torch.tensor(3.0))),
    "keys": lambda: gj.diffuse(LABELS, jnp.ones((2, 3)), gj.schedules.edm()(0.0)),
    "features": lambda: gj.metrics.fid(X, X),
    "rates": lambda: gj.schedules.discrete(torch.full((9,), 0.1)),
    "null": lambda: gj.training.drop(jax.random.key(0), jnp.ones(2), torch.tensor(1.0), 0.1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_tensor_is_named_with_the_cure(name):
    with pytest.raises(TypeError, match=r"got a torch\.Tensor .*: use jnp\.asarray\(x\.numpy\(\)\)"):
        CALLS[name]()


def test_a_module_is_named_and_a_function_of_tensors_gets_a_note():
    linear = torch.nn.Linear(3, 3)
    with pytest.raises(TypeError, match="denoiser: network must be JAX code, got the PyTorch object Linear"):
        gj.denoiser(linear, "x0")
    with pytest.raises(TypeError) as error:
        sampled(lambda x, t, cond: linear(x))
    assert any("It must be JAX code" in note for note in error.value.__notes__)
