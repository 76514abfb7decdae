"""Rewards act through the weights, and a reward that is not a number raises its own error."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.tree_util import Partial
from one_program import one_program
from particle_runs import FINE, M, V, pair, pooled, quiet, reward, same
from scipy.stats import norm, truncnorm
from worlds import gaussian, keys

import guidance_jax as gj
from guidance_jax import targets


@pytest.mark.slow
def test_a_reward_acts_only_through_the_weights(x64):
    """Along the model's own SDE the weights are the reward of the output. With resampling, the law is the posterior."""
    n, target = 4096, targets.rewarded(targets.product({"cond": 1.0}), reward)
    run = lambda threshold: quiet(keys(n), pair(), target, gj.heun_sde(), gj.levels(*FINE), (1,), size=n, threshold=threshold)
    found = run(0.0)
    np.testing.assert_allclose(
        found.x, one_program(gj.sample, keys(n), pair(), gj.chain(), gj.heun_sde(), gj.levels(*FINE), (1,)), rtol=1e-9
    )
    same(found, reward(np.asarray(found.x), None))
    found = run(1.0)
    precision = 1 / V["cond"] + 2
    mean = (M["cond"] / V["cond"] + 2 * 1.5) / precision
    w = np.exp(np.asarray(found.log_weights))
    assert abs((w * found.x[:, 0]).sum() - mean) < 4 / np.sqrt(precision * float(found.ancestors[0]))
    assert found.ancestors[0] > 500


LEVELS = gj.levels(gj.schedules.edm(0.02, 20.0), 20, gj.spacings.karras())


def shifted(x, level, cond):
    """The Gaussian of "cond" plus a shift per particle."""
    found = gaussian(M["cond"], V["cond"])(x - level.alpha * cond[:, None], level, None)
    return found.replace(x0=found.x0 + cond[:, None])


def rewarded(log_reward, shift, sampler, size=4, levels=LEVELS, **how):
    target = targets.rewarded(targets.product({"cond": 1.0}), log_reward)
    return gj.feynman_kac(
        keys(len(shift)), gj.Branches(shifted, {"cond": shift}), target, sampler, levels, (1,), size=size, **how
    )


def above(bound, x0):
    """A hard constraint."""
    return jnp.where(x0[:, 0] > bound, 0.0, -jnp.inf)


def constrained(spike, noisy, x0, level):
    """A hard constraint that all but distant particles fulfil. To the first particle it adds a number, at the end or before."""
    first = ((level.sigma > 1) == noisy) & (jnp.arange(len(x0)) == 0)
    return above(-5.0, x0) + jnp.where(first, spike, 0.0)


def now(shift, spike=0.0, noisy=False):
    """Two groups of four particles, not in a caller's jit."""
    return rewarded(Partial(constrained, jnp.float32(spike), jnp.asarray(noisy)), jnp.asarray(shift, jnp.float32), gj.ddpm())


@functools.cache
def programs():
    """The same in a caller's jit, with its gradient in a slope of the reward, and checked."""

    def run(shift, spike, noisy, slope=0.0):
        return rewarded(lambda x0, level: constrained(spike, noisy, x0, level) + slope * x0[:, 0], shift, gj.ddpm())

    def finite(shift, spike, noisy, slope):
        found = run(shift, spike, noisy, slope)
        return jnp.where(jnp.isfinite(found.log_normaliser), found.log_normaliser, 0).sum(), found

    once = lambda run: lambda shift, spike=0.0, noisy=False: run(np.float32(shift), np.float32(spike), np.bool(noisy))
    graded = jax.jit(jax.grad(finite, argnums=3, has_aux=True))
    return once(lambda *at: graded(*at, np.float32(0))), once(gj.checked(run))


@pytest.mark.slow
def test_a_hard_constraint_gives_the_law_within_its_set():
    """The moments and mass of the truncated Gaussian, although at high noise every predicted x0 is outside it, or inside."""
    n, size = 8192, 512
    levels = gj.levels(*FINE[:1], 80, *FINE[2:])
    run = jax.jit(
        lambda bound, threshold: rewarded(
            lambda x0, level: above(bound, x0), jnp.zeros(n), gj.heun_sde(), size, levels, threshold=threshold
        )
    )
    for bound, threshold in ((0.9, 0.9), (0.0, 0.0)):
        law = truncnorm((bound - M["cond"]) / V["cond"] ** 0.5, np.inf, M["cond"], V["cond"] ** 0.5)
        found = jax.tree.map(np.asarray, run(bound, threshold))
        assert np.isnan(found.spread).all(), "the score of a target with a reward is unknown"
        center = law.mean()
        for exact, f in ((center, lambda x: x), (law.std() ** 2, lambda x, center=center: (x - center) ** 2)):
            mean, error = pooled(found, size, f)
            assert abs(mean - exact) < 4 * error + 0.01, (bound, threshold, mean, exact, error)
        mass = np.exp(np.asarray(found.log_normaliser, np.float64))
        exact = 1 - norm.cdf(bound, M["cond"], V["cond"] ** 0.5)
        assert abs(mass.mean() - exact) < 4 * mass.std() / np.sqrt(n / size) + 0.01
        dead = found.x[:, 0] <= bound
        assert (np.isneginf(found.log_weights) == dead).all()
        assert 0 < dead.sum() < n


@pytest.mark.slow
def test_a_group_of_dead_particles_raises_and_does_not_affect_other_groups(recwarn):
    far, (jitted, checked) = np.repeat([-100.0, 0.0], 4), programs()
    with pytest.raises(ValueError, match=r"in 1 of 2 groups of 4 particles all particles are dead"):
        now(far)
    (slope, found), (_, living) = (jax.tree.map(np.asarray, jitted(shift)) for shift in (far, 0 * far))
    jax.effects_barrier()
    assert sum("all particles are dead" in str(w.message) for w in recwarn.list) == 1
    assert np.isnan(found.x[:4]).all()
    assert np.isneginf(found.log_normaliser[0])
    assert np.isneginf(found.log_weights[:4]).all()
    assert (found.effective[0], found.least[0] > 0, found.ancestors[0]) == (0, False, 0)
    for name in ("log_normaliser", "effective", "least", "ancestors"):
        np.testing.assert_allclose(getattr(found, name)[1], getattr(living, name)[1], rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found.x[4:], living.x[4:], rtol=1e-4)
    with pytest.raises(checkify.JaxRuntimeError, match="in 1 of 2 groups of 4 particles all particles are dead"):
        checked(far)
    assert np.isfinite(slope), "It does not change the gradients of the other groups either."
    assert slope != 0


@pytest.mark.slow
@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("noisy", [False, True], ids=["at the end", "on the way"])
def test_the_error_of_a_reward_that_is_not_a_number_names_it(recwarn, value, noisy):
    jitted, checked = programs()
    with pytest.raises(ValueError, match=r"log_reward \(.*constrained.*\) returned NaN or inf in 1 of 2 groups of 4"):
        now(np.zeros(8), value, noisy)
    _, found = jax.tree.map(np.asarray, jitted(np.zeros(8), value, noisy))
    jax.effects_barrier()
    (warning,) = recwarn.list
    assert re.search(r"log_reward \(programs.*<lambda>\) returned NaN or inf in 1 of 2 groups of 4", str(warning.message))
    for field in (found.x[:4], found.log_weights[:4], found.log_normaliser[0], found.effective[0], found.ancestors[0]):
        assert np.isnan(field).all()
    assert np.isfinite(found.x[4:]).all()
    assert np.isfinite(found.log_normaliser[1])
    with pytest.raises(checkify.JaxRuntimeError, match="log_reward returned NaN or inf at sigma"):
        checked(np.zeros(8), value, noisy)


@pytest.mark.filterwarnings("ignore:4 of 8 samples are not finite")
def test_the_reward_is_not_blamed_for_predictions_that_are_not_numbers():
    with pytest.warns(UserWarning, match="weights are NaN in 1 of 2 groups of 4 particles: x or a prediction is NaN"):
        found = now(np.repeat([np.nan, 0.0], 4))
    assert np.isfinite(found.x[4:]).all()
    assert np.isfinite(found.log_normaliser[1])
