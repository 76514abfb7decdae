"""Tests of resampling: how often each particle is taken, what a copy includes, and no bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from particle_runs import M, V, edm, exact_kernels, normal, pair, quiet
from scipy.special import softmax
from worlds import keys, path

import guidance_jax as gj
from guidance_jax import targets


def test_a_resampled_particle_copies_all_its_state(x64):
    """Without noise a copy ends where its original does, so its prediction and memory were copied too."""
    n, sampler = 32, gj.dpmpp_2m()
    run = lambda threshold: quiet(keys(n), pair(), targets.tilted(4.0), sampler, edm(), (1,), size=n, threshold=threshold)
    alone, resampled = np.asarray(run(0.0).x).ravel(), np.asarray(run(1.0).x).ravel()
    which = np.abs(resampled[:, None] - alone[None]).argmin(1)
    np.testing.assert_allclose(resampled, alone[which], rtol=1e-12)
    assert 1 < len(set(which.tolist())) < 0.8 * n


def test_systematic_resampling_takes_each_particle_in_proportion_to_its_weight():
    log_weights = 2 * np.random.default_rng(0).normal(size=50)
    expected = 50 * softmax(log_weights)
    resample = jax.jit(jax.vmap(lambda key: gj.particles.systematic(key, jnp.asarray(log_weights, jnp.float32))))
    counts = [np.bincount(taken, minlength=50) for taken in np.asarray(resample(keys(200, 1)))]
    assert (np.abs(np.array(counts) - expected) < 1 + 1e-4).all()
    np.testing.assert_allclose(np.mean(counts, 0), expected, atol=4 * 0.5 / np.sqrt(200))


@pytest.mark.slow
def test_resampling_leaves_the_normaliser_without_bias(x64):
    """Many small groups with exact kernels, resampled at every step or never. The mean is that of the exact law."""
    levels = path(gj.levels(gj.schedules.edm(0.3, 6.0), 5, gj.spacings.karras()), slice(None, -1))
    size, groups, w = 4, 4000, 2.0
    variance = lambda sigma: 1 / (w / (V["cond"] + sigma**2) + (1 - w) / (V["uncond"] + sigma**2))

    def law(sigma):
        v = variance(sigma)
        m = v * (w * M["cond"] / (V["cond"] + sigma**2) + (1 - w) * M["uncond"] / (V["uncond"] + sigma**2))
        log_z = normal(0.0, M["cond"], V["cond"] + sigma**2) * w + normal(0.0, M["uncond"], V["uncond"] + sigma**2) * (1 - w)
        return m, v, log_z - normal(0.0, m, v)

    m, v, first = law(6.0)
    start = jnp.asarray(m + np.sqrt(v) * np.random.default_rng(3).normal(size=(size * groups, 1)))
    exact = np.exp(law(0.3)[2] - first)
    args = keys(size * groups), exact_kernels(levels), targets.tilted(w), gj.ddpm("learned"), levels, start
    for threshold in (0.0, 1.0):
        found = quiet(*args, size=size, threshold=threshold, kernels=True)
        normaliser = np.exp(np.asarray(found.log_normaliser))
        assert abs(normaliser.mean() - exact) < 4 * normaliser.std() / np.sqrt(groups)
        assert 4 * normaliser.std() / np.sqrt(groups) < 0.1 * exact


def test_effective_size_of_half_precision_is_that_of_float32():
    size = gj.particles.effective_size(jnp.zeros(999, jnp.float16))
    assert size.dtype == jnp.float32
    np.testing.assert_allclose(size, 999, rtol=1e-5)


def test_effective_size_and_systematic_accept_weights_that_are_zero():
    weights = np.full((4, 1000), -np.inf, np.float32)
    two, odd, even = weights[1:]
    two[[1, 4]], odd[1::2], even[::2] = 0, 0, 0
    sizes = lambda w: gj.particles.effective_size(weights + w)
    gradient, found = jax.jit(jax.grad(lambda w: (sizes(w).sum(), sizes(w)), has_aux=True))(0.0)
    np.testing.assert_allclose(found, [0, 2, 500, 500], rtol=1e-6)
    assert np.isfinite(gradient)
    np.testing.assert_array_equal(jax.jit(gj.particles.systematic)(jax.random.key(0), jnp.full(6, -jnp.inf)), np.arange(6))
    with pytest.MonkeyPatch.context() as patch:
        for u in (0.0, 1 - 2.0**-24):  # the minimum and the maximum of a uniform number
            patch.setattr(jax.random, "uniform", lambda key, shape, dtype, u=u: jnp.asarray(u, dtype))
            # A new function, so that it is traced with this number.
            resample = jax.jit(jax.vmap(lambda key, weights: gj.particles.systematic(key, weights)))
            of_two, of_odd, of_even = np.asarray(resample(keys(3), weights[1:]))
            assert set(of_two.tolist()) == {1, 4}
            np.testing.assert_array_equal(of_odd % 2, 1)
            np.testing.assert_array_equal(of_even % 2, 0)
