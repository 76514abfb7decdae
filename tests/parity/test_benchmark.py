"""The benchmarks against diffusers' pipeline run at toy size, and both sides draw the same latents."""

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


def test_the_pipeline_runs_eagerly_and_compiled_beside_ours(tmp_path):
    from experiments.accelerator import pytorch

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows = list(pytorch.measure(True, 5.0, tmp_path))
    assert [row["method"] for row in rows] == [pytorch.EAGER, f"{pytorch.COMPILED}, eager"]
    assert max(row["difference"]["maximum"] for row in rows) < 1e-3
    assert rows[1]["from_eager"]["maximum"] < 1e-3
    assert pytorch.table(json.loads(json.dumps(rows))).count("\n") > 3


def test_the_network_at_full_size_is_the_one_whose_overhead_is_measured():
    """Both parts then share the compiled programs."""
    import torch

    from experiments.benchmarks.diffusers import PRESETS, UNet2DConditionModel
    from experiments.tools import stable_diffusion
    from guidance_jax.pretrained.unet import unet_condition_config

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=PRESETS["gpu"].side, **PRESETS["gpu"].network)
    assert unet_condition_config(unet.config) == stable_diffusion.SIZES
