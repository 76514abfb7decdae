"""Tests of the digits job: its config and its judge."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": (1.0, 2.0)}, "scales must include 0.0"),
        ({"samples": 0}, "at least 1"),
        ({"drop_rate": 1.5}, "drop_rate"),
    ],
)
def test_a_config_with_a_wrong_value_raises(change, message):
    from experiments.digits import Config

    with pytest.raises(ValueError, match=message):
        Config(**change)


@pytest.mark.slow
def test_the_program_of_the_judge_has_no_images_and_no_weights_as_constants(no_constants):
    from flax import nnx

    import guidance_jax as gj
    from experiments import digits
    from experiments.tools import data
    from experiments.tools.evaluator import Evaluator

    rng = np.random.default_rng(0)
    real = data.Data(rng.normal(size=(40, 8, 8, 1)).astype(np.float32), np.arange(40, dtype=np.int32) % 10, ("a",) * 10, "1")
    assert real.images.nbytes > 4000
    evaluator = Evaluator((8, 8, 1), 10, 4, 2, rngs=nnx.Rngs(0))
    apply, params = gj.networks.from_nnx(evaluator)
    samples = rng.normal(size=(2, 10, 3, 8, 8, 1)).astype(np.float32)
    rows = digits.judge({"evaluator": (apply, params)}, evaluator, jnp.asarray(samples), real, real)
    flat = samples[1].reshape(30, 8, 8, 1)
    features = evaluator.features(jnp.asarray(flat))
    assert rows[1]["accuracy"] == pytest.approx(float((apply(params, flat).argmax(1) == np.repeat(np.arange(10), 3)).mean()))
    found = [float(part) for part in gj.metrics.precision_recall(evaluator.features(jnp.asarray(real.images)), features)]
    np.testing.assert_allclose([rows[1]["precision"], rows[1]["recall"]], found, rtol=1e-6)


@pytest.mark.slow
def test_a_smoke_run_writes_its_files_and_every_scale_of_zero_is_the_unconditional_model(lenient, tmp_path, capsys):
    from experiments.digits import Config, main

    metrics = main(Config(out=tmp_path, smoke=True))
    out = tmp_path / "smoke"
    printed = capsys.readouterr().out
    first, plan, more, *lines = (line for line in printed.splitlines() if line)
    assert first == "Guided digits"
    assert plan == "1/7 data, built in · 2/7 denoiser, 5 steps · 3/7 classifier, 5 steps · 4/7 judge, 5 steps"
    assert more == "5/7 calibration, on 50 samples · 6/7 sampling, 3 methods at 3 scales · 7/7 tables and pictures"
    names = ("data", "denoiser", "classifier", "judge", "calibration", "sampling", "tables and pictures")
    for number, (name, line) in enumerate(zip(names, lines, strict=False), 1):
        assert re.fullmatch(rf"{number}/7 {name}: [\d.]+ s( \(.+\))?", line)
    assert f"Open {out / 'overview.png'} first" in printed
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert {"calibration.png", "checkpoints"} < {path.name for path in out.iterdir()}
    assert len(list(out.glob("*.png"))) > 3
    assert metrics["cfg"][0] == pytest.approx(metrics["classifier"][0], abs=1e-3)
    assert metrics["cfg"][1] == pytest.approx(metrics["calibrated"][1], abs=1e-3)
