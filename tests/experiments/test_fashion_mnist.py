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
    assert rows["CFG, at accuracy 0.970 in the sweep"] == ("cfg", 2.25)
    assert rows["CFG in an interval, at accuracy 0.970 in the sweep"] == ("interval", 4.0)
    assert rows["CFG, calibrated, at accuracy 0.970 in the sweep"] == ("calibrated", 2.56)
    assert rows["CFG, calibrated, lowest FD"] == ("calibrated", 3.0)
    assert rows["CFG, calibrated, at precision 0.850 in the sweep"] == (
        "calibrated",
        4.0,
    )  # The precision of CFG at accuracy 0.970.
    assert "APG, at accuracy 0.970 in the sweep" not in rows
    assert rows["under-trained, autoguidance, lowest FD"] == ("early_autoguidance", 2.0)
    assert rows["under-trained, CFG, at its accuracy"] == ("early_cfg", 1.5)
    assert rows["noise-aware classifier, scale 4"] == ("classifier", 4.0)
    assert rows["clean-trained classifier, scale 4"] == ("clean_classifier", 4.0)
    out_of_reach = CURVES | {"early_cfg": [row(1.0, 0.80, 20.0), row(2.0, 0.81, 18.0)]}
    assert "under-trained, CFG, at its accuracy" not in headlines(out_of_reach)


def measures(way, scale, accuracy, fd, **more):
    each = {"way": way, "samples": 60, "density": 1.0, "kid": 0.1, "vendi": 9.0, "evaluations": 24, "seconds": 0.001}
    return row(scale, accuracy, fd, **each, **more)


def test_the_report_merges_equal_rows_names_the_unconditional_scale_and_warns_of_few_samples():
    from experiments.fashion_mnist import report

    rows = {
        "unconditional": measures("unconditional", 1.0, 0.1, 9.0),
        "conditional": measures("conditional", 1.0, 0.9, 5.0),
        "CFG, lowest FD": measures("cfg", 3.0, 0.667, 4.0),
        "CFG, at accuracy 0.683 in the sweep": measures("cfg", 3.0, 0.667, 4.0),
        "under-trained, conditional": measures("early", 1.0, 0.8, 20.0),
        "under-trained, autoguidance, lowest FD": measures("early_autoguidance", 2.0, 0.85, 10.0),
        "noise-aware classifier, scale 4": measures("classifier", 4.0, 0.99, 8.0),
        "clean-trained classifier, scale 4": measures("clean_classifier", 4.0, 0.3, 30.0),
    }
    table = list(report.table(rows))
    assert table[2].startswith("| unconditional | 0 | 60 | 0.100 |")
    assert table[4].startswith("| CFG, lowest FD; CFG, at accuracy 0.683 in the sweep | 3 | 60 | 0.667 |")
    assert len(table) == 2 + len(rows) - 1
    curves = {"cfg": [measures("conditional", 1.0, 0.9, 5.0), measures("cfg", 3.0, 0.667, 4.0)]}
    metrics = {"headlines": rows, "curves": curves, "evaluator_accuracy": 0.9, "real": row(0.0, 1.0, 1.0), "held_out": 72}
    assert "of 60 samples each" in report.chosen(metrics)
    first = next(report.findings(metrics))
    assert first.startswith(
        "These are few: 60 samples per point of the sweeps, 60 per row of the table, and 72 held-out images."
    )
    many = {name: one | {"samples": 5000} for name, one in rows.items()}
    curves = {"cfg": [one | {"samples": 2000} for one in curves["cfg"]]}
    assert "few" not in next(report.findings(metrics | {"headlines": many, "curves": curves, "held_out": 10_000}))


def test_the_plan_has_the_time_of_a_preset_and_not_of_other_sizes(capsys):
    from experiments.fashion_mnist import study
    from experiments.tools import models

    for name, change, wanted in (
        ("smoke", {"seed": 3}, "Guidance table. A check of the job at toy size: a few minutes, most of them compilation."),
        ("smoke", {"samples": 20}, "Guidance table. Training takes"),
    ):
        config = dataclasses.replace(study.PRESETS[name][1], **change)
        networks = {
            "denoiser": models.build(models.describe("UNet", config.network, "v"), 0),
            "classifier": models.build(models.describe("UNetClassifier", config.classifier_network), 0),
        }
        study.plan(config, networks | {"clean": networks["classifier"], "evaluator": judge()}, (8, 8, 1))
        printed = capsys.readouterr().out
        assert printed.startswith(wanted)
        assert "Training takes 0.0" in printed
        assert "minutes at" not in printed


def judge():
    from flax import nnx

    from experiments.tools import models
    from experiments.tools.evaluator import Evaluator

    return models.Trained(*gj.networks.from_nnx(Evaluator((8, 8, 1), 10, 8, 3, rngs=nnx.Rngs(0))))


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
