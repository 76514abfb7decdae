"""The five parameterisations, EDM's preconditioning, and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import OUTPUTS, SCHEDULES, keys, mixture, network, sampler_noise

import guidance_jax as gj


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_five_parameterisations_are_one_denoiser(x64, name):
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
def test_all_five_parameterisations_give_one_sample(x64, sampler):
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


def test_edm_is_the_formula_of_its_paper(x64):
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
    # On another process it is the same denoiser of x / alpha at sigma / alpha.
    other = gj.NoiseLevel(level.t, jnp.asarray(0.6), jnp.asarray(0.6 * sigma))
    moved = gj.denoisers.edm(network, data)(0.6 * x, other, None)
    np.testing.assert_allclose(moved.x0, prediction.x0, rtol=1e-12)
    np.testing.assert_allclose(moved.eps, prediction.eps, rtol=1e-12)


@pytest.mark.parametrize("predicts", OUTPUTS)
def test_predictions_and_gradients_are_finite_at_both_ends(predicts):
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


def both_halves(x, t, cond):
    """A network that predicts eps and, in as many channels again, a variance fraction that depends on its condition."""
    eps = jnp.sin(x + cond[:, None, None]) + 0.001 * t[:, None, None]
    return jnp.concatenate([eps, jnp.tanh(2 * x[..., ::-1] + 3 * cond[:, None, None])], -1)


def adm_step(x, w, cond, uncond, t, after, bar, z):
    """Improved DDPM's learned range, and CFG of its eps. The variance is the conditional model's."""
    out = [np.asarray(both_halves(jnp.asarray(x), jnp.full(len(x), t), c)) for c in (cond, uncond)]
    (eps_c, v), (eps_u, _) = (np.split(half, 2, axis=-1) for half in out)
    eps = eps_u + w * (eps_c - eps_u)
    beta = 1 - bar[t] / bar[after]
    x0 = (x - np.sqrt(1 - bar[t]) * eps) / np.sqrt(bar[t])
    mean = np.sqrt(bar[after]) * beta / (1 - bar[t]) * x0 + np.sqrt(1 - beta) * (1 - bar[after]) / (1 - bar[t]) * x
    share = (v + 1) / 2
    log_variance = share * np.log(beta) + (1 - share) * np.log(beta * (1 - bar[after]) / (1 - bar[t]))
    return mean + np.exp(0.5 * log_variance) * z


@pytest.mark.parametrize("together", [True, False], ids=["one call", "two calls"])
def test_a_learned_variance_is_that_of_improved_ddpm_and_cfg_keeps_the_bases(x64, together):
    cond, uncond, w = jnp.array([0.5, -1.0, 2.0]), jnp.zeros(3), 3.0
    schedule, times = gj.schedules.ddpm_linear(), (700, 400, 20)
    levels = schedule(jnp.array(times))
    denoise = gj.denoisers.learned_variance(both_halves, predicts="eps")
    branches = (gj.branches(denoise, cond=cond), gj.branches(denoise, uncond=uncond))
    branches = gj.branches(denoise, cond=cond, uncond=uncond) if together else branches
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    mine = gj.sample(keys(3), branches, gj.cfg(w), gj.ddpm("learned"), levels, x)
    bar, x = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)), np.asarray(x)
    for number in range(2):
        z = np.asarray(sampler_noise(keys(3), levels, number, jnp.zeros((3, 4, 2))))
        x = adm_step(x, w, cond, uncond, times[number], times[number + 1], bar, z)
    np.testing.assert_allclose(mine, x, rtol=1e-10)


@pytest.mark.parametrize("learned", ["cond", "uncond"])
def test_networks_with_and_without_a_variance_guide_each_other_in_an_interval(learned):
    """Only the base's variance is used. That of the other branch is not read, and may be missing."""
    with_one = gj.denoisers.learned_variance(both_halves, predicts="eps")
    without = gj.denoiser(lambda x, t, cond: both_halves(x, t, cond)[..., :2], predicts="eps")
    conds = {"cond": jnp.array([0.5, -1.0]), "uncond": jnp.zeros(2)}
    pick = lambda one: tuple(gj.Branches(with_one if one in (name, "both") else without, {name: conds[name]}) for name in conds)
    levels = gj.levels(gj.schedules.ddpm_linear(), 6, gj.spacings.trailing())
    guidance, small = gj.during(gj.cfg(2.0), 0.3, 5.0), "learned" if learned == "cond" else "small"
    run = lambda one: gj.sample(keys(2), pick(one), guidance, gj.ddpm(small), levels, (4, 2))
    np.testing.assert_allclose(run(learned), run("both"), rtol=1e-5, atol=1e-5)


def test_a_learned_variance_survives_clipping_and_is_returned_in_float32():
    half = lambda x, t, cond: both_halves(*(a.astype(jnp.bfloat16) for a in (x, t, cond)))
    denoise = gj.denoisers.clip(gj.denoisers.learned_variance(half, predicts="eps"))
    branches = gj.branches(denoise, cond=jnp.array([0.5, -1.0]), uncond=jnp.zeros(2))
    x, level = jax.random.normal(jax.random.key(0), (2, 4, 2)), gj.schedules.ddpm_linear()(300)
    step = gj.Step(jnp.int32(0), level, level, keys(2))
    predictions, _, _ = gj.evaluate(branches, x, step, level, {"uncond": True})
    for name, cond in branches.conds.items():
        exact = (np.split(np.asarray(both_halves(x, jnp.full(2, 300.0), cond)), 2, axis=-1)[1] + 1) / 2
        variance = jnp.asarray(predictions[name].variance)
        assert {predictions[name].x0.dtype, predictions[name].eps.dtype, variance.dtype} == {jnp.dtype("float32")}
        np.testing.assert_allclose(variance, exact, atol=0.02)


def test_bad_input_raises():
    narrow = gj.denoisers.learned_variance(lambda x, t, c: x, predicts="eps")
    with pytest.raises(ValueError, match=r"must be \[2, 6\], got float32\[2,3\]; .*twice the channels"):
        narrow(jnp.zeros((2, 3)), gj.schedules.cosine()(0.5), None)
    with pytest.raises(ValueError, match=r"predicts must be 'eps' or.*, got 'epsilon'"):
        gj.denoiser(lambda x, t, c: x, predicts="epsilon")
    wide = gj.denoiser(lambda x, t, c: jnp.concatenate([x, x], 1), predicts="eps")
    with pytest.raises(ValueError, match=r"must be \[2, 3\], got float32\[2,6\]; it must be shaped as x"):
        wide(jnp.zeros((2, 3)), gj.schedules.cosine()(0.5), None)
