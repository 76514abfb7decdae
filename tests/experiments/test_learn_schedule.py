"""Tests of the learned schedule: its target is the tilted density, its gradient is exact, and training lowers the criterion."""

import json
from typing import Any

import jax
import numpy as np
import pytest

import guidance_jax as gj
from experiments import learn_schedule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow
def test_exact_samples_have_the_moments_of_the_tilted_density():
    config = learn_schedule.Config(target=2.5)
    side = np.linspace(-7.0, 7.0, 281)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)

    @jax.jit
    def drawn(grid):
        world = learn_schedule.grow(config)
        log_p, log_q = (learn_schedule.clean_log_prob(world, grid, y) for y in (0, -1))
        x = learn_schedule.exact(config, world, jax.random.key(0), 20_000)
        return log_p, log_q, x, world.mixture.sample(jax.random.key(1), 20_000, 0)

    log_p, log_q, x, untilted = map(np.asarray, drawn(grid.astype(np.float32)))
    p = np.exp(2.5 * log_p - 1.5 * log_q)
    p /= p.sum()
    mean = p @ grid
    covariance = (grid - mean).T @ (p[:, None] * (grid - mean))
    np.testing.assert_allclose(x.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.02)
    assert np.abs(covariance - np.cov(untilted.T)).max() > 0.1


@pytest.mark.slow
def test_equal_knots_are_a_constant_scale_and_the_gradient_is_the_difference_quotient(x64):
    config = learn_schedule.Config(steps=4, knots=3)
    target: Any = np.random.default_rng(0).normal(size=(50, 2))

    @jax.jit
    def losses(at, others):
        """The derivatives at a point, the values at others, and the value of a constant scale."""
        world = learn_schedule.grow(config)
        loss = lambda guidance, remat: learn_schedule.criterion(world, guidance, target, jax.random.key(1), remat)
        of_knots = lambda values: loss(learn_schedule.learned(world, values), True)
        return jax.grad(of_knots)(at), jax.vmap(of_knots)(others), loss(gj.cfg(1.7), False)

    at, along = np.array([2.0, 1.5, 0.5]), np.array([0.3, -1.0, 0.5])
    gradient, (up, down, equal), constant = losses(at, np.stack([at + 1e-6 * along, at - 1e-6 * along, np.full(3, 1.7)]))
    np.testing.assert_allclose(equal, constant, rtol=1e-9)
    np.testing.assert_allclose(gradient @ along, (up - down) / 2e-6, rtol=1e-5)


@pytest.mark.smoke
@pytest.mark.slow
def test_a_smoke_run_halves_the_criterion_of_the_best_constant_and_writes_its_files(lenient, tmp_path):
    rows = learn_schedule.main(learn_schedule.Config(out=tmp_path, smoke=True))
    assert list(rows) == ["exact samples", "no guidance", "constant 3", "best constant", "best interval", "learned"]
    assert (rows["learned"]["calls"], rows["exact samples"]["calls"]) == (8, 0)
    learned, constant = (rows[name]["energy"].mean() for name in ("learned", "best constant"))
    assert learned < 0.5 * constant
    found = json.loads((tmp_path / "smoke" / "metrics.json").read_text())
    plain, remat = zip(*found["bytes"].values(), strict=True)
    assert plain[1] > 2.5 * plain[0]
    assert remat[1] < 1.5 * remat[0]
    assert found["interval"][3] <= found["constant"][3]
    assert (tmp_path / "smoke" / "learn_schedule.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"target": 0.5}, "at least 1, where rejection"), ({"knots": 1}, "at least 2"), ({"iterations": 0}, "at least 1")],
)
def test_a_config_with_a_wrong_value_raises(change, message):
    with pytest.raises(ValueError, match=message):
        learn_schedule.Config(**change)
