"""Rewards act through the weights, and a reward that is not a number raises its own error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from particle_runs import FINE, M, V, edm, pair, pooled, quiet, reward, same
from scipy.stats import norm, truncnorm
from worlds import keys

import guidance_jax as gj
from guidance_jax import targets


def test_a_reward_acts_only_through_the_weights(x64):
    """Along the model's own flow the weights are the reward of the output, for any sampler. With resampling, the law is the
    posterior.
    """
    n, target = 4096, targets.rewarded(targets.product({"cond": 1.0}), reward)
    for sampler in (gj.heun(), gj.heun_sde()):
        found = quiet(keys(n), pair(), target, sampler, edm(), (1,), size=n, threshold=0.0)
        np.testing.assert_allclose(found.x, gj.sample(keys(n), pair(), gj.chain(), sampler, edm(), (1,)), rtol=1e-9)
        same(found, np.asarray(reward(found.x, None)))
    found = quiet(keys(n), pair(), target, gj.heun_sde(), gj.levels(*FINE), (1,), size=n, threshold=1.0)
    precision = 1 / V["cond"] + 2
    mean = (M["cond"] / V["cond"] + 2 * 1.5) / precision
    w = np.exp(np.asarray(found.log_weights))
    assert abs((w * found.x[:, 0]).sum() - mean) < 4 / np.sqrt(precision * float(found.ancestors[0]))
    assert found.ancestors[0] > 500


LEVELS = gj.levels(gj.schedules.edm(0.02, 20.0), 20, gj.spacings.karras())


def above(bound):
    """A hard constraint, at every level."""

    def beyond(x0, level):
        return jnp.where(x0[:, 0] > bound, 0.0, -jnp.inf)

    return beyond


def rewarded(log_reward, n=8, size=4, conditions=None, levels=LEVELS, **how):
    """One Gaussian, `N(M, V)` of "cond" plus a shift per particle, under a reward."""
    shift = jnp.zeros(n) if conditions is None else conditions
    denoise = lambda x, level, cond: pair()[0].denoise(x - level.alpha * cond[:, None], level, jnp.zeros(n, int))
    one = gj.Branches(
        lambda x, level, cond: (lambda p: p.replace(x0=p.x0 + cond[:, None]))(denoise(x, level, cond)), {"cond": shift}
    )
    target = targets.rewarded(targets.product({"cond": 1.0}), log_reward)
    return gj.feynman_kac(keys(n), one, target, gj.heun_sde(), levels, (1,), size=size, **how)


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_a_hard_constraint_gives_the_law_within_its_set(threshold):
    """The moments and mass of the truncated Gaussian, although at high noise every predicted x0 is outside it, or inside."""
    n, size = 8192, 512
    for bound in (0.9, 0.0):
        law = truncnorm((bound - M["cond"]) / V["cond"] ** 0.5, np.inf, M["cond"], V["cond"] ** 0.5)
        found = rewarded(above(bound), n, size, levels=gj.levels(*FINE[:1], 80, *FINE[2:]), threshold=threshold)
        center = law.mean()
        for exact, f in ((center, lambda x: x), (law.std() ** 2, lambda x, center=center: (x - center) ** 2)):
            mean, error = pooled(found, size, f)
            assert abs(mean - exact) < 4 * error + 0.01, (bound, mean, exact, error)
        mass = np.exp(np.asarray(found.log_normaliser, np.float64))
        exact = 1 - norm.cdf(bound, M["cond"], V["cond"] ** 0.5)
        assert abs(mass.mean() - exact) < 4 * mass.std() / np.sqrt(n / size) + 0.01
        dead = np.asarray(found.x[:, 0]) <= bound
        assert (np.isneginf(found.log_weights) == dead).all()
        assert 0 < dead.sum() < n


def test_a_group_of_dead_particles_raises_and_does_not_affect_other_groups(recwarn):
    hard, far = above(-5.0), jnp.repeat(jnp.array([-100.0, 0.0]), 4)
    with pytest.raises(ValueError, match=r"in 1 of 2 groups of 4 particles all particles are dead"):
        rewarded(hard, conditions=far)
    both = lambda shift: rewarded(hard, conditions=shift)
    found, alone = jax.jit(both)(far), rewarded(hard)
    jax.effects_barrier()
    assert sum("all particles are dead" in str(w.message) for w in recwarn.list) == 1
    assert np.isnan(found.x[:4]).all()
    assert np.isneginf(found.log_normaliser[0])
    assert np.isneginf(found.log_weights[:4]).all()
    assert (found.effective[0], found.least[0] > 0, found.ancestors[0]) == (0, False, 0)
    for name in ("log_normaliser", "effective", "least", "ancestors"):
        np.testing.assert_allclose(getattr(found, name)[1], getattr(alone, name)[1], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found.x[4:], alone.x[4:], rtol=1e-4)
    with pytest.raises(checkify.JaxRuntimeError, match="in 1 of 2 groups of 4 particles all particles are dead"):
        gj.checked(both)(far)
    # It does not change the gradients of the other groups either.
    of_living = lambda scale: jnp.where(
        jnp.isfinite(z := rewarded(lambda x0, level: scale * x0[:, 0] + hard(x0, level), conditions=far).log_normaliser), z, 0
    ).sum()
    assert np.isfinite(jax.jit(jax.grad(of_living))(0.5))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("noisy", [False, True], ids=["at the end", "on the way"])
def test_the_error_of_a_reward_that_is_not_a_number_names_it(recwarn, value, noisy):
    def spike(level):
        return jnp.where(((level.sigma > 1) == noisy) & (jnp.arange(8) == 0), value, 0.0)

    mine = lambda x0, level: spike(level)
    with pytest.raises(ValueError, match=r"log_reward \(.*<lambda>\) returned NaN or inf in 1 of 2 groups of 4"):
        rewarded(mine)
    found = jax.jit(lambda: rewarded(mine))()
    jax.effects_barrier()
    assert ["returned NaN or inf" in str(w.message) for w in recwarn.list] == [True]
    for field in (found.x[:4], found.log_weights[:4], found.log_normaliser[0], found.effective[0], found.ancestors[0]):
        assert np.isnan(field).all()
    assert np.isfinite(found.x[4:]).all()
    assert np.isfinite(found.log_normaliser[1])
    with pytest.raises(checkify.JaxRuntimeError, match="log_reward returned NaN or inf at sigma"):
        gj.checked(lambda: rewarded(mine))()


@pytest.mark.filterwarnings("ignore:4 of 8 samples are not finite")
def test_the_reward_is_not_blamed_for_predictions_that_are_not_numbers():
    with pytest.warns(UserWarning, match="weights are NaN in 1 of 2 groups of 4 particles: x or a prediction is NaN"):
        found = rewarded(above(-5.0), conditions=jnp.zeros(8).at[:4].set(jnp.nan))
    assert np.isfinite(found.x[4:]).all()
    assert np.isfinite(found.log_normaliser[1])
