"""The five parameterisations, EDM's preconditioning, and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import SCHEDULES, keys, mixture

import guidance_jax as gj

OUTPUTS = {
    "eps": lambda p, level: p.eps,
    "x0": lambda p, level: p.x0,
    "v": lambda p, level: level.alpha * p.eps - level.sigma * p.x0,
    "score": lambda p, level: -p.eps / level.sigma,
    "velocity": lambda p, level: p.eps - p.x0,
}


def network(m, schedule, predicts):
    """A network whose output, of the kind asked for, is exact; it is told t alone."""

    def apply(x, t, cond):
        column = jax.tree.map(lambda field: field[:, None], schedule(t))
        return OUTPUTS[predicts](m.denoise(x, schedule(t), cond), column)

    return apply


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_five_are_one_denoiser(x64, name):
    m, schedule = mixture(), SCHEDULES[name](t_max=0.95) if name == "flow" else SCHEDULES[name]()
    level = gj.training.noise_levels(jax.random.key(0), schedule, 8)
    x = jax.random.normal(jax.random.key(1), (8, 3)) * level.sigma[:, None]
    labels = jnp.arange(8) % 3
    exact = m.denoise(x, level, labels)
    for predicts in OUTPUTS:
        prediction = gj.denoiser(network(m, schedule, predicts), predicts=predicts)(x, level, labels)
        np.testing.assert_allclose(prediction.x0, exact.x0, rtol=1e-8, atol=1e-9, err_msg=predicts)
        np.testing.assert_allclose(prediction.eps, exact.eps, rtol=1e-8, atol=1e-9, err_msg=predicts)


@pytest.mark.parametrize("sampler", [gj.ddim(), gj.ddpm(), gj.heun(), gj.dpmpp_2m()])
def test_all_five_give_one_sample(x64, sampler):
    m, schedule = mixture(), gj.schedules.cosine()
    labels = jnp.arange(6) % 3
    path = gj.levels(schedule, 12, gj.spacings.karras())

    def run(predicts):
        denoise = gj.denoiser(network(m, schedule, predicts), predicts=predicts)
        branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, -1))
        return gj.sample(keys(6), branches, gj.cfg(2.0), sampler, path, (3,))

    samples = {predicts: run(predicts) for predicts in OUTPUTS}
    for predicts, x in samples.items():
        np.testing.assert_allclose(x, samples["x0"], rtol=1e-8, atol=1e-8, err_msg=predicts)


def test_edm_is_the_papers(x64):
    sigma, data = 1.7, 0.5
    x = jax.random.normal(jax.random.key(0), (2, 5)) * 2
    seen = {}

    def network(x, t, cond):
        seen.update(x=x, t=t)
        return jnp.sin(3 * x)

    level = gj.schedules.edm()(jnp.log(sigma) / 4)
    prediction = gj.denoisers.edm(network, data)(x, level, None)
    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / np.sqrt(sigma**2 + data**2)
    c_in, c_noise = 1 / np.sqrt(sigma**2 + data**2), np.log(sigma) / 4
    np.testing.assert_allclose(prediction.x0, c_skip * x + c_out * jnp.sin(3 * c_in * x), rtol=1e-12)
    np.testing.assert_allclose(seen["x"], c_in * x, rtol=1e-12)
    np.testing.assert_allclose(seen["t"], [c_noise] * 2, rtol=1e-12)
    # On another process: the same denoiser of x / alpha at sigma / alpha.
    other = gj.NoiseLevel(level.t, jnp.asarray(0.6), jnp.asarray(0.6 * sigma))
    moved = gj.denoisers.edm(network, data)(0.6 * x, other, None)
    np.testing.assert_allclose(moved.x0, prediction.x0, rtol=1e-12)
    np.testing.assert_allclose(moved.eps, prediction.eps, rtol=1e-12)


@pytest.mark.parametrize("predicts", OUTPUTS)
def test_finite_with_finite_gradients_at_both_ends(predicts):
    denoise = gj.denoiser(lambda x, t, cond: jnp.cos(x), predicts=predicts)
    x = jnp.linspace(-2, 2, 6).reshape(2, 3)
    for alpha, sigma in [(0.0, 1.0), (1.0, 0.0)]:
        level = gj.NoiseLevel(*map(jnp.float32, (0.5, alpha, sigma)))

        def total(x, level):
            p = denoise(x, level, None)
            return (p.x0 + p.eps).sum()

        value, slopes = jax.value_and_grad(total, argnums=(0, 1))(x, level)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, slopes)))


def test_clip_bounds_x0_and_moves_eps(x64):
    denoise = gj.denoisers.clip(gj.denoiser(lambda x, t, cond: 3 * x, predicts="x0"), -1, 1)
    x, level = jnp.array([[0.1, 0.9, -4.0]]), gj.schedules.cosine()(0.4)
    p = denoise(x, level, None)
    np.testing.assert_allclose(p.x0, [[0.3, 1, -1]])
    np.testing.assert_allclose(level.alpha * p.x0 + level.sigma * p.eps, x, rtol=1e-12)


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"predicts='epsilon' is unknown.*'eps'"):
        gj.denoiser(lambda x, t, c: x, predicts="epsilon")
    wide = gj.denoiser(lambda x, t, c: jnp.concatenate([x, x], 1), predicts="eps")
    with pytest.raises(ValueError, match=r"gave \(2, 6\) for x of shape \(2, 3\)"):
        wide(jnp.zeros((2, 3)), gj.schedules.cosine()(0.5), None)
