"""The benchmark against diffusers' pipeline runs at toy size, and both sides draw the same latents."""

import json

import jax
import pytest
from reference import diffusers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_both_sides_draw_the_same_latents(tmp_path):
    assert diffusers is not None
    from experiments.benchmarks.diffusers import Config, main

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = main(Config(out=tmp_path, smoke=True))
    assert json.loads((tmp_path / "smoke" / "diffusers.json").read_text())["difference"] == found["difference"] < 1e-3
    assert set(found["seconds"]) == {"guidance_jax", "diffusers", "network alone"}
