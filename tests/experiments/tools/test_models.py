"""Tests of the networks of a run and of the guidance methods that use them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidance_jax as gj

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def denoiser(params, x, t, labels):
    return params * jnp.sin(x) + jnp.where(labels == 2, 0.0, 1 + labels.astype(jnp.float32))[:, None, None, None]


def classifier(params, x, t):
    return jnp.stack([x.mean((1, 2, 3)), params * x[:, 0, 0, 0] * (1 + t)], axis=1)


def linear_run(classify=classifier):
    """Networks in closed form with the shapes that the methods need."""
    from experiments.tools.models import Run, Trained

    networks = {name: Trained(denoiser, jnp.float32(p), "v") for name, p in (("denoiser", 0.5), ("early", 0.3), ("weak", 0.1))}
    networks |= {name: Trained(classify, jnp.float32(p)) for name, p in (("classifier", 2.0), ("clean", -2.0))}
    return Run((2, 2, 1), ("a", "b"), networks, gj.Curve(jnp.array([0.1, 10.0]), jnp.array([1.0, 0.2])))


@functools.cache
def program(name, classify=classifier):
    """The compiled samples of a method, and its parameters."""
    from experiments.tools import models

    levels = gj.levels(models.SCHEDULE, 4, gj.spacings.karras(sigma_min=0.05, sigma_max=20.0))
    generate, params = models.program(linear_run(classify), models.WAYS[name], gj.ddim(), levels)
    return jax.jit(generate), params


def sampled(name, scale, classify=classifier, **changes):
    generate, params = program(name, classify)
    keys, labels = jax.random.split(jax.random.key(0), 4), np.arange(4, dtype=np.int32) % 2
    return np.asarray(generate((params | changes, np.float32(scale)), keys, labels))


@pytest.mark.slow
def test_every_method_is_unguided_at_its_neutral_scale_and_guided_at_others():
    """A contrast at scale 1 samples the conditional model. A classifier at scale 0 samples the unconditional model."""
    from experiments.tools import models

    base = {name: sampled(name, 1.0) for name in ("unconditional", "conditional", "early")}
    for name in models.WAYS:
        if name in base:
            np.testing.assert_array_equal(sampled(name, 3.0), base[name])
            continue
        neutral, start = (0.0, "unconditional") if "classifier" in name else (1.0, "conditional")
        start = "early" if name.startswith("early") else start
        # CFG-Zero* starts with a step of output zero at every scale.
        assert np.allclose(sampled(name, neutral), base[start], atol=1e-5) == (name != "cfg_zero_star"), name
        assert not np.allclose(sampled(name, 3.0), base[start], atol=1e-3), name


def at_zero(params, x, t):
    """The classifier, always at time zero."""
    return classifier(params, x, jnp.zeros_like(t))


def test_the_clean_classifier_receives_time_zero():
    of_clean = sampled("clean_classifier", 2.0)
    np.testing.assert_array_equal(of_clean, sampled("classifier", 2.0, at_zero, classifier=np.float32(-2)))
    assert not np.allclose(of_clean, sampled("classifier", 2.0, classifier=np.float32(-2)))


def test_a_saved_run_is_loaded_with_its_networks_and_names(tmp_path, monkeypatch):
    from experiments.tools import models

    config = gj.networks.DiTConfig((4, 4, 1), 2, width=8, blocks=1, heads=1)
    described = models.describe("DiT", config)
    built = models.build(described, seed=3)
    restored = {step: jax.tree.map(lambda a, step=step: np.asarray(a) + (step or 0), built.params) for step in (None, 5)}
    monkeypatch.setattr(models, "restore", lambda path, like, step: restored[step])
    entry = described | {"checkpoint": "checkpoints/denoiser-1"}
    models.save(tmp_path, (4, 4, 1), ("a", "b"), {"denoiser": entry, "weak": entry | {"step": 5}})
    run = models.load(tmp_path)
    assert (run.shape, run.names) == ((4, 4, 1), ("a", "b"))
    for name, step in (("denoiser", None), ("weak", 5)):
        assert run.networks[name].apply == built.apply
        jax.tree.map(np.testing.assert_array_equal, run.networks[name].params, restored[step])


def test_a_missing_or_damaged_run_raises(tmp_path):
    from experiments.tools import models

    with pytest.raises(FileNotFoundError, match=r"no models\.json"):
        models.load(tmp_path)
    for entry, message in (
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
            ValueError, match=rf"models\.json is damaged or of another version: .*denoiser.*{message}.*own command"
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
