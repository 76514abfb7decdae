"""Tests of the learned schedule: its target is the tilted density, its gradient is exact, and training lowers the criterion."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidance_jax as gj
from experiments import learn_schedule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def lenient():
    """optax does not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_exact_samples_have_the_moments_of_the_tilted_density():
    config = learn_schedule.Config(target=2.5)
    world = learn_schedule.grow(config)
    side = np.linspace(-7.0, 7.0, 281)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_p, log_q = (learn_schedule.clean_log_prob(world, jnp.asarray(grid, jnp.float32), y) for y in (0, -1))
    p = np.exp(np.asarray(2.5 * log_p - 1.5 * log_q))
    p /= p.sum()
    mean = p @ grid
    covariance = (grid - mean).T @ (p[:, None] * (grid - mean))
    x = np.asarray(learn_schedule.exact(config, world, jax.random.key(0), 20_000))
    np.testing.assert_allclose(x.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.02)
    assert np.abs(covariance - np.cov(np.asarray(world.mixture.sample(jax.random.key(1), 20_000, 0)).T)).max() > 0.1


def test_equal_knots_are_a_constant_scale_and_the_gradient_is_the_difference_quotient(x64):
    config = learn_schedule.Config(steps=4, knots=3)
    world = learn_schedule.grow(config)
    target = learn_schedule.exact(config, world, jax.random.key(0), 50).astype(float)
    loss = lambda guidance, remat=False: learn_schedule.criterion(world, guidance, target, jax.random.key(1), remat)
    of_knots = lambda values, remat=True: loss(learn_schedule.learned(world, values), remat)
    np.testing.assert_allclose(of_knots(jnp.full(3, 1.7)), loss(gj.cfg(1.7)), rtol=1e-9)
    at, along = jnp.array([2.0, 1.5, 0.5]), jnp.array([0.3, -1.0, 0.5])
    gradient = jax.jit(jax.grad(of_knots))(at)
    np.testing.assert_allclose(gradient @ along, (of_knots(at + 1e-6 * along) - of_knots(at - 1e-6 * along)) / 2e-6, rtol=1e-5)


def test_a_short_training_halves_the_criterion_of_the_constant_that_it_starts_from(lenient):
    config = learn_schedule.Config(steps=6, knots=4, iterations=60, batch=400)
    world = learn_schedule.grow(config)
    bank = learn_schedule.exact(config, world, jax.random.key(0), 8000)
    values, history = learn_schedule.train(config, world, bank, 1.75)
    judge = jax.jit(
        lambda values: learn_schedule.criterion(world, learn_schedule.learned(world, values), bank[:4000], jax.random.key(9))
    )
    assert judge(values) < 0.5 * judge(jnp.full(4, 1.75))
    assert history[-10:].mean() < history[:5].mean()


def test_a_smoke_run_writes_its_table_and_picture(lenient, tmp_path):
    rows = learn_schedule.main(learn_schedule.Config(out=tmp_path, smoke=True))
    assert list(rows) == ["exact samples", "no guidance", "constant 3", "best constant", "best interval", "learned"]
    assert (rows["learned"]["calls"], rows["exact samples"]["calls"]) == (8, 0)
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
