"""The toy in the plane: its truth is what it says, and autoguidance does there what CFG does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import toy_2d

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def world():
    return toy_2d.grow(toy_2d.Config())


def test_exact_samples_are_worth_the_most(world):
    x = world.truth.sample(jax.random.key(7), 4000, toy_2d.classes(4000))
    found = jax.jit(toy_2d.worth)(world, x)
    assert abs(found["off_tree"] - 0.01) < 0.006
    assert found["mode_distance"] < 0.06
    assert found["accuracy"] > 0.995
    assert jax.jit(toy_2d.worth)(world, x[:, ::-1])["off_tree"] > 0.5
    np.testing.assert_allclose(world.shares[:15], world.shares[15:], rtol=1e-5)
    np.testing.assert_allclose(world.shares.sum(), 1, rtol=1e-5)
    # The classes are each other's image through the origin.
    log_p = [world.truth.log_prob(x[:10] * s, world.clean, jnp.full(10, y)) for s, y in ((1, 0), (-1, 1))]
    np.testing.assert_allclose(*log_p, rtol=1e-3)


def test_autoguidance_restores_the_likelihood_and_keeps_the_branches_that_cfg_drops(world):
    found = toy_2d.study(toy_2d.Config(steps=24), world, ("autoguidance", "CFG"), (1.0, 3.0), 1000)
    auto, cfg, truth = found["autoguidance"], found["CFG"], found["truth"]
    unguided = cfg["log_likelihood"][0]
    np.testing.assert_allclose(auto["log_likelihood"][0], unguided, atol=1e-3)
    assert truth["log_likelihood"][0] - unguided > 2.5
    assert abs(auto["log_likelihood"][1] - truth["log_likelihood"][0]) < 0.5
    assert auto["log_likelihood"][1] > cfg["log_likelihood"][1] + 2
    assert auto["off_tree"][1] < 0.1 < 0.25 < cfg["off_tree"][1]
    assert auto["mode_distance"][1] < truth["mode_distance"][0] + 0.05
    assert cfg["mode_distance"][1] > auto["mode_distance"][1] + 0.25
    assert (auto["evaluations"] == 48).all()


def test_a_smoke_run_writes_its_table_and_pictures(tmp_path):
    rows = toy_2d.main(toy_2d.Config(out=tmp_path, smoke=True))
    assert list(rows) == ["truth", *toy_2d.UNGUIDED, *toy_2d.GUIDED]
    assert {path.name for path in (tmp_path / "smoke").iterdir()} == {"overview.png", "curves.png", "metrics.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"blur": 0.2}, "below weak_blur"), ({"steps": 0}, "at least 1"), ({"scales": ()}, "number of scales")],
)
def test_a_config_that_makes_no_sense_is_told(change, message):
    with pytest.raises(ValueError, match=message):
        toy_2d.Config(**change)
