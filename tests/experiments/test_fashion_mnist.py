"""Tests of the Fashion-MNIST study: how the rows of its tables are chosen."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

import guidance_jax as gj

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def row(scale, accuracy, fd, **more):
    return {"scale": scale, "accuracy": accuracy, "fd": fd, "precision": 0.5, "recall": 0.5, "coverage": 0.5} | more


CURVES = {
    "cfg": [row(1.0, 0.90, 5.0, precision=0.9), row(2.0, 0.96, 4.0, precision=0.9), row(3.0, 1.00, 9.0, precision=0.7)],
    "apg": [row(1.0, 0.90, 5.0), row(2.0, 0.95, 3.0)],
    "calibrated": [row(1.0, 0.90, 5.0, precision=0.9), row(3.0, 0.99, 3.0, precision=0.95), row(5.0, 1.0, 4.0, precision=0.75)],
    "interval": [row(1.0, 0.90, 5.0), row(2.0, 0.94, 3.0), row(4.0, 0.97, 3.5)],
    "early_cfg": [row(1.0, 0.80, 20.0), row(2.0, 0.90, 18.0)],
    "early_autoguidance": [row(1.0, 0.80, 20.0), row(2.0, 0.85, 10.0), row(3.0, 0.95, 12.0)],
    "classifier": [row(0.0, 0.10, 9.0), row(4.0, 0.99, 8.0), row(8.0, 0.98, 9.0)],
    "clean_classifier": [row(0.0, 0.10, 9.0), row(4.0, 0.30, 30.0), row(8.0, 0.4, 50.0)],
}


def test_the_scale_of_an_accuracy_is_interpolated_between_points():
    from experiments.fashion_mnist.sweep import scale_at

    assert scale_at(CURVES["cfg"], 0.93) == 1.5
    assert scale_at(CURVES["cfg"], 0.98) == 2.5
    assert scale_at(CURVES["cfg"], 0.90) == 1.0
    assert scale_at(CURVES["interval"], 0.98) is None
    assert scale_at(CURVES["calibrated"], 0.85, "precision") == 4.0
    assert scale_at(CURVES["calibrated"], 0.70, "precision") is None


def test_the_headlines_compare_methods_at_equal_accuracy_or_precision():
    from experiments.fashion_mnist.sweep import headlines

    rows = headlines(CURVES)
    assert rows["CFG, lowest FD"] == ("cfg", 2.0)
    assert rows["CFG, at accuracy 0.970"] == ("cfg", 2.25)
    assert rows["CFG in an interval, at accuracy 0.970"] == ("interval", 4.0)
    assert rows["CFG, calibrated, at accuracy 0.970"] == ("calibrated", 2.56)
    assert rows["CFG, calibrated, lowest FD"] == ("calibrated", 3.0)
    assert rows["CFG, calibrated, at precision 0.850"] == ("calibrated", 4.0)  # The precision of CFG at accuracy 0.970.
    assert "APG, at accuracy 0.970" not in rows
    assert rows["under-trained, autoguidance, lowest FD"] == ("early_autoguidance", 2.0)
    assert rows["under-trained, CFG, at its accuracy"] == ("early_cfg", 1.5)
    assert rows["noise-aware classifier, scale 4"] == ("classifier", 4.0)
    assert rows["clean-trained classifier, scale 4"] == ("clean_classifier", 4.0)
    out_of_reach = CURVES | {"early_cfg": [row(1.0, 0.80, 20.0), row(2.0, 0.81, 18.0)]}
    assert "under-trained, CFG, at its accuracy" not in headlines(out_of_reach)


def test_a_study_with_wrong_values_raises():
    from experiments.fashion_mnist.study import Config
    from experiments.tools.fit import Training

    with pytest.raises(ValueError, match="two steps, weak and under-trained"):
        Config(denoiser=Training(steps=10, snapshots=(5,)))
    with pytest.raises(ValueError, match="headline at least samples"):
        dataclasses.replace(Config(), samples=10_000)


@pytest.mark.smoke
@pytest.mark.slow
def test_a_smoke_run_writes_a_report_and_its_networks_draw_more_samples(lenient, tmp_path, monkeypatch):
    from experiments.fashion_mnist import study
    from experiments.fashion_mnist.sweep import SCALES, Sweep
    from experiments.tools import generate, models

    cost, timed, traced = Sweep.cost, ("cfg", "classifier"), set()

    def measured(self, way):
        """The cost of two ways is measured. Each of the others would compile its program again, so it is only traced."""
        if way in timed or way in traced:
            return cost(self, way if way in timed else "cfg")
        traced.add(way)
        count, params = models.program(self.run, models.WAYS[way], gj.dpmpp_2m(), self.levels, gj.evaluations)
        keys, labels = jax.random.split(jax.random.key(0), self.batch), jnp.zeros(self.batch, jnp.int32)
        assert jax.eval_shape(count, (params, jnp.float32(2)), keys, labels).shape == ()
        return cost(self, "cfg")

    monkeypatch.setattr(Sweep, "cost", measured)
    for way, scales in SCALES.items():
        monkeypatch.setitem(SCALES, way, scales[:2])
    out = tmp_path / "study"
    metrics = study.main(dataclasses.replace(study.PRESETS["smoke"][1], out=out))
    assert set(metrics["curves"]) == set(SCALES)
    report = (out / "report.md").read_text()
    assert {line for line in metrics["headlines"] if line not in report} == set()
    assert all((out / picture).stat().st_size > 1000 for picture in re.findall(r"\((\w+\.png)\)", report))
    more = generate.Config(out, tmp_path / "more", guidance="cfg", scale=2.0, samples=20, steps=3, batch=16, shard=16)
    images, labels = generate.main(more).samples()
    assert (images.shape, labels.tolist()) == ((20, 8, 8, 1), [*range(10)] * 2)
