"""Both sides run in float64 to 1e-8, and in float32, the reference's own precision, to 1e-5."""

import jax
import pytest


@pytest.fixture(params=[1e-8, 1e-5], ids=["float64", "float32"])
def tolerance(request, monkeypatch):
    if request.param == 1e-5:
        yield request.param
        return
    torch = pytest.importorskip("torch")
    # diffusers casts to float32 in places. This compares its formulae without that rounding.
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    with jax.enable_x64(True):
        yield request.param
