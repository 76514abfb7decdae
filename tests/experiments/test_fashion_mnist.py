"""The study of Fashion-MNIST: what its tables stand on."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
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


def test_the_scale_of_an_accuracy_lies_between_the_points():
    from experiments.fashion_mnist.sweep import scale_at

    assert scale_at(CURVES["cfg"], 0.93) == 1.5
    assert scale_at(CURVES["cfg"], 0.98) == 2.5
    assert scale_at(CURVES["cfg"], 0.90) == 1.0
    assert scale_at(CURVES["interval"], 0.98) is None
    assert scale_at(CURVES["calibrated"], 0.85, "precision") == 4.0
    assert scale_at(CURVES["calibrated"], 0.70, "precision") is None


def test_the_headlines_compare_like_with_like():
    from experiments.fashion_mnist.sweep import headlines

    rows = headlines(CURVES)
    assert rows["CFG, lowest FD"] == ("cfg", 2.0)
    assert rows["CFG, at accuracy 0.970"] == ("cfg", 2.25)
    assert rows["CFG in an interval, at accuracy 0.970"] == ("interval", 4.0)
    assert rows["CFG, calibrated, at accuracy 0.970"] == ("calibrated", 2.56)
    assert rows["CFG, calibrated, lowest FD"] == ("calibrated", 3.0)
    assert rows["CFG, calibrated, at precision 0.850"] == ("calibrated", 4.0)  # CFG's at accuracy 0.970
    assert "APG, at accuracy 0.970" not in rows
    assert rows["under-trained, autoguidance, lowest FD"] == ("early_autoguidance", 2.0)
    assert rows["under-trained, CFG, at its accuracy"] == ("early_cfg", 1.5)
    assert rows["noise-aware classifier, scale 4"] == ("classifier", 4.0)
    assert rows["clean-trained classifier, scale 4"] == ("clean_classifier", 4.0)
    out_of_reach = CURVES | {"early_cfg": [row(1.0, 0.80, 20.0), row(2.0, 0.81, 18.0)]}
    assert "under-trained, CFG, at its accuracy" not in headlines(out_of_reach)


def linear_run():
    """Networks in closed form, in the shapes that the ways ask for."""
    from experiments.tools.models import Run, Trained

    def denoiser(params, x, t, labels):
        return params * jnp.sin(x) + jnp.where(labels == 2, 0.0, 1 + labels.astype(jnp.float32))[:, None, None, None]

    def classifier(params, x, t):
        return jnp.stack([x.mean((1, 2, 3)), params * x[:, 0, 0, 0] * (1 + t)], axis=1)

    networks = {name: Trained(denoiser, jnp.float32(p), "v") for name, p in (("denoiser", 0.5), ("early", 0.3), ("weak", 0.1))}
    networks |= {name: Trained(classifier, jnp.float32(p)) for name, p in (("classifier", 2.0), ("clean", -2.0))}
    return Run((2, 2, 1), ("a", "b"), networks, gj.Curve(jnp.array([0.1, 10.0]), jnp.array([1.0, 0.2])))


def sampled(run, name, scale):
    from experiments.tools import models

    levels = gj.levels(models.SCHEDULE, 4, gj.spacings.karras(sigma_min=0.05, sigma_max=20.0))
    generate, params = models.program(run, models.WAYS[name], gj.ddim(), levels)
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.arange(4) % 2
    return np.asarray(generate((params, jnp.float32(scale)), keys, labels))


def test_every_way_is_unguided_at_its_neutral_scale_and_guides_elsewhere():
    """At scale 1 of a contrast the conditional model is sampled, at scale 0 of a classifier the unconditional one."""
    from experiments.tools import models

    run = linear_run()
    base = {name: sampled(run, name, 1.0) for name in ("unconditional", "conditional", "early")}
    for name in models.WAYS:
        if name in base:
            np.testing.assert_array_equal(sampled(run, name, 3.0), base[name])
            continue
        neutral, start = (0.0, "unconditional") if "classifier" in name else (1.0, "conditional")
        start = "early" if name.startswith("early") else start
        # CFG-Zero* starts with a step of nothing, whatever its scale.
        assert np.allclose(sampled(run, name, neutral), base[start], atol=1e-5) == (name != "cfg_zero_star"), name
        assert not np.allclose(sampled(run, name, 3.0), base[start], atol=1e-3), name


def test_the_clean_classifier_is_told_no_time():
    run = linear_run()
    apply, params, _ = run.networks["clean"]
    assert not np.allclose(
        apply(params, jnp.ones((1, 2, 2, 1)), jnp.ones(1)), apply(params, jnp.ones((1, 2, 2, 1)), jnp.zeros(1))
    )
    run.networks["classifier"] = run.networks["clean"]._replace(apply=lambda p, x, t: apply(p, x, jnp.zeros_like(t)))
    np.testing.assert_array_equal(sampled(run, "clean_classifier", 2.0), sampled(run, "classifier", 2.0))
    run.networks["classifier"] = run.networks["clean"]
    assert not np.allclose(sampled(run, "clean_classifier", 2.0), sampled(run, "classifier", 2.0))


def test_a_run_is_read_back_as_it_was_described(tmp_path, monkeypatch):
    from experiments.tools import models

    config = gj.networks.UNetConfig((4, 4, 1), 2, widths=(8, 8))
    described = models.describe("UNet", config)
    built = models.build(described, seed=3)
    monkeypatch.setattr(models, "restore", lambda path, like, step: jax.tree.map(lambda a: a + (step or 0), built.params))
    entry = described | {"checkpoint": "checkpoints/denoiser-1"}
    models.save(tmp_path, (4, 4, 1), ("a", "b"), {"denoiser": entry, "weak": entry | {"step": 5}})
    run = models.load(tmp_path)
    assert (run.shape, run.names) == ((4, 4, 1), ("a", "b"))
    x, t, labels = jnp.ones((2, 4, 4, 1)), jnp.ones(2), jnp.arange(2)
    network, params, _ = run.networks["denoiser"]
    np.testing.assert_array_equal(network(params, x, t, labels), built.apply(built.params, x, t, labels))
    moved = jax.tree.map(lambda a, b: np.asarray(b - a), params, run.networks["weak"].params)
    assert all((np.asarray(leaf).round() == 5).all() for leaf in jax.tree.leaves(moved))


def test_what_is_no_run_is_told(tmp_path):
    from experiments.tools import models

    with pytest.raises(FileNotFoundError, match=r"no models\.json"):
        models.load(tmp_path)
    for entry, told in (
        ({"kind": "Transformer"}, "no network 'Transformer'"),
        ({"config": {"width": 3}}, "cannot be built"),
        ({"predicts": "nothing"}, "nothing"),
        ({"kind": None}, "has no kind"),
        ({"config": []}, "has no config"),
        ({"checkpoint": 3}, "has no checkpoint"),
        ({"step": "last"}, "has no step"),
    ):
        good = {"kind": "UNetClassifier", "config": {"shape": [4, 4, 1], "classes": 2, "widths": [8]}, "checkpoint": "here"}
        models.save(tmp_path, (4, 4, 1), ("a", "b"), {"denoiser": good | entry})
        with pytest.raises(
            ValueError, match=rf"models\.json is damaged or of another version: .*denoiser.*{told}.*own command"
        ):
            models.load(tmp_path)
    whole = {"shape": [4, 4, 1], "names": ["a"], "networks": {}}
    texts = [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000]
    for change in ({"shape": [4, 4]}, {"shape": 4}, {"names": "ab"}, {"names": [1]}, {"networks": []}, {"networks": {"a": 1}}):
        texts.append(json.dumps(whole | change).encode())
    for text in texts:
        (tmp_path / "models.json").write_bytes(text)
        for read in (models.load, models.entries):
            with pytest.raises(ValueError, match=r"models\.json is damaged or of another version: .*writes the file again"):
                read(tmp_path)
    with pytest.raises(ValueError, match="no network 'Transformer'"):
        models.build({"kind": "Transformer", "config": {}})
    run = linear_run()
    del run.networks["weak"]
    with pytest.raises(ValueError, match="needs the networks weak"):
        models.program(run, models.WAYS["early_autoguidance"], gj.ddim(), gj.levels(models.SCHEDULE, 3, gj.spacings.karras()))


def test_a_study_that_makes_no_sense_is_told():
    from experiments.fashion_mnist.study import Config
    from experiments.tools.fit import Training

    with pytest.raises(ValueError, match="two steps, weak and under-trained"):
        Config(denoiser=Training(steps=10, snapshots=(5,)))
    with pytest.raises(ValueError, match="headline at least samples"):
        dataclasses.replace(Config(), samples=10_000)
