"""Tests of the toy in the plane: its density is exact, and autoguidance keeps the branches that CFG drops."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import toy_2d

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow
def test_exact_samples_have_the_best_metrics_and_the_classes_are_mirror_images():
    world = toy_2d.grow(toy_2d.Config())
    y = toy_2d.classes(4000)

    @jax.jit
    def judge(key):
        x = world.truth.sample(key, 4000, y)
        mirrored = world.truth.log_prob(-x, world.clean, 1 - y) - world.truth.log_prob(x, world.clean, y)
        return toy_2d.worth(world, x), jnp.abs(mirrored).max()

    found, mirrored = judge(jax.random.key(7))
    assert abs(found["off_tree"] - 0.01) < 0.006
    assert found["mode_distance"] < 0.06 < 0.995 < found["accuracy"]
    assert mirrored < 1e-2
    np.testing.assert_allclose(np.asarray(world.shares).reshape(2, 15).sum(1), 0.5, rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.slow
def test_autoguidance_restores_the_likelihood_and_keeps_the_branches_that_cfg_drops(tmp_path, capsys):
    """The smoke run, and the files that it writes."""
    rows = toy_2d.main(toy_2d.Config(out=tmp_path, smoke=True))
    assert list(rows) == ["truth", *toy_2d.UNGUIDED, *toy_2d.GUIDED, "particles"]
    assert {path.name for path in (tmp_path / "smoke").iterdir()} == {"overview.png", "curves.png", "metrics.json"}
    found = json.loads((tmp_path / "smoke" / "metrics.json").read_text())
    assert found["scales"] == [1.0, 3.0]
    auto, cfg, truth, unguided = (*(found[k] for k in ("autoguidance", "CFG", "truth")), found["CFG"]["log_likelihood"][0])
    np.testing.assert_allclose(auto["log_likelihood"][0], unguided, atol=1e-3)
    assert truth["log_likelihood"][0] - unguided > 2.5
    assert abs(auto["log_likelihood"][1] - truth["log_likelihood"][0]) < 0.5
    assert auto["log_likelihood"][1] > cfg["log_likelihood"][1] + 2
    assert auto["off_tree"][1] < 0.1 < 0.25 < cfg["off_tree"][1]
    assert auto["mode_distance"][1] < truth["mode_distance"][0] + 0.05
    assert cfg["mode_distance"][1] > auto["mode_distance"][1] + 0.25
    assert auto["evaluations"] == [32, 32]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"blur": 0.2}, "below weak_blur"), ({"steps": 0}, "at least 1"), ({"scales": (1.0,)}, "must include scale, 3")],
)
def test_a_config_with_a_wrong_value_raises(change, message):
    with pytest.raises(ValueError, match=message):
        toy_2d.Config(**change)
