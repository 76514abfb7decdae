"""The five parameterisations, EDM's preconditioning, and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import OUTPUTS, SCHEDULES, keys, mixture, network, sampler_noise

import guidance_jax as gj


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cosine", "ddpm_linear", "edm", "flow"])
def test_all_five_parameterisations_are_one_denoiser(x64, name):
    m, schedule = mixture(), SCHEDULES[name](t_max=0.95) if name == "flow" else SCHEDULES[name]()
    labels, draw = jnp.asarray(np.arange(10) % 3), jnp.asarray(np.random.default_rng(0).normal(size=(10, 3)))

    @jax.jit
    def program():
        drawn = gj.training.noise_levels(jax.random.key(0), schedule, 8)
        ends = schedule(jnp.array([schedule.t_min, schedule.t_max]))
        level = jax.tree.map(lambda *parts: jnp.concatenate(parts), drawn, ends)
        x = draw * level.sigma[:, None]
        networks = {predicts: gj.denoiser(network(m, schedule, predicts), predicts=predicts) for predicts in OUTPUTS}
        return m.denoise(x, level, labels), {predicts: denoise(x, level, labels) for predicts, denoise in networks.items()}

    exact, predictions = program()
    for predicts, prediction in predictions.items():
        np.testing.assert_allclose(prediction.x0, exact.x0, rtol=1e-8, atol=1e-9, err_msg=predicts)
        np.testing.assert_allclose(prediction.eps, exact.eps, rtol=1e-8, atol=1e-9, err_msg=predicts)


def test_edm_is_the_formula_of_its_paper(x64):
    sigma, data = 1.7, 0.5
    x = 2 * np.random.default_rng(0).normal(size=(2, 5))
    level, other = (gj.NoiseLevel(*map(jnp.float64, (np.log(sigma) / 4, alpha, alpha * sigma))) for alpha in (1.0, 0.6))

    @jax.jit
    def program(x, level):
        seen = []
        network = lambda x, t, cond: seen.append((x, t)) or jnp.sin(3 * x)
        return gj.denoisers.edm(network, data)(x, level, None), *seen

    prediction, (scaled, time) = program(x, level)
    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / np.sqrt(sigma**2 + data**2)
    c_in, c_noise = 1 / np.sqrt(sigma**2 + data**2), np.log(sigma) / 4
    np.testing.assert_allclose(prediction.x0, c_skip * x + c_out * np.sin(3 * c_in * x), rtol=1e-12)
    np.testing.assert_allclose(scaled, c_in * x, rtol=1e-12)
    np.testing.assert_allclose(time, [c_noise] * 2, rtol=1e-12)
    # On another process it is the same denoiser of x / alpha at sigma / alpha.
    moved, _ = program(0.6 * x, other)
    np.testing.assert_allclose(moved.x0, prediction.x0, rtol=1e-12)
    np.testing.assert_allclose(moved.eps, prediction.eps, rtol=1e-12)


def test_predictions_and_gradients_are_finite_at_both_ends():
    networks = {predicts: gj.denoiser(lambda x, t, cond: jnp.cos(x), predicts=predicts) for predicts in OUTPUTS}

    @jax.jit
    def program(x, level):
        def total(x, level, denoise):
            p = denoise(x, level, None)
            return (p.x0 + p.eps).sum()

        of_one = jax.value_and_grad(total, argnums=(0, 1))
        return {predicts: of_one(x, level, denoise) for predicts, denoise in networks.items()}

    x = jnp.asarray(np.linspace(-2, 2, 6).reshape(2, 3), float)
    for alpha, sigma in [(0.0, 1.0), (1.0, 0.0)]:
        for predicts, found in program(x, gj.NoiseLevel(*map(jnp.float32, (0.5, alpha, sigma)))).items():
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), (predicts, alpha)


def test_clip_bounds_x0_and_moves_eps(x64):
    denoise = gj.denoisers.clip(gj.denoiser(lambda x, t, cond: 3 * x, predicts="x0"), -1, 1)
    x, level = jnp.array([[0.1, 0.9, -4.0]]), gj.schedules.cosine()(0.4)
    p = denoise(x, level, None)
    np.testing.assert_allclose(p.x0, [[0.3, 1, -1]])
    np.testing.assert_allclose(level.alpha * p.x0 + level.sigma * p.eps, x, rtol=1e-12)


def both_halves(x, t, cond, xp=jnp):
    """A network that predicts eps and, in as many channels again, a variance fraction that depends on its condition."""
    eps = xp.sin(x + cond[:, None, None]) + 0.001 * t[:, None, None]
    return xp.concatenate([eps, xp.tanh(2 * x[..., ::-1] + 3 * cond[:, None, None])], -1)


def adm_step(x, w, cond, uncond, t, after, bar, z):
    """Improved DDPM's learned range, and CFG of its eps. The variance is the conditional model's."""
    out = [both_halves(x, np.full(len(x), t), np.asarray(c), np) for c in (cond, uncond)]
    (eps_c, v), (eps_u, _) = (np.split(half, 2, axis=-1) for half in out)
    eps = eps_u + w * (eps_c - eps_u)
    beta = 1 - bar[t] / bar[after]
    x0 = (x - np.sqrt(1 - bar[t]) * eps) / np.sqrt(bar[t])
    mean = np.sqrt(bar[after]) * beta / (1 - bar[t]) * x0 + np.sqrt(1 - beta) * (1 - bar[after]) / (1 - bar[t]) * x
    share = (v + 1) / 2
    log_variance = share * np.log(beta) + (1 - share) * np.log(beta * (1 - bar[after]) / (1 - bar[t]))
    return mean + np.exp(0.5 * log_variance) * z


@pytest.mark.slow
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


@pytest.mark.slow
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
    if learned == "cond":
        np.testing.assert_allclose(run(learned), run("both"), rtol=1e-5, atol=1e-5)
    else:
        assert jax.eval_shape(lambda: [run(learned), run("both")])[0].shape == (2, 4, 2)


def test_a_learned_variance_survives_clipping_and_is_returned_in_float32():
    half = lambda x, t, cond: both_halves(*(a.astype(jnp.bfloat16) for a in (x, t, cond)))
    denoise = gj.denoisers.clip(gj.denoisers.learned_variance(half, predicts="eps"))
    branches = gj.branches(denoise, cond=jnp.array([0.5, -1.0]), uncond=jnp.zeros(2))
    x, level = jax.random.normal(jax.random.key(0), (2, 4, 2)), gj.schedules.ddpm_linear()(300)
    step = gj.Step(jnp.int32(0), level, level, keys(2))
    predictions = jax.jit(lambda x: gj.evaluate(branches, x, step, level, {"uncond": True})[0])(x)
    for name, cond in branches.conds.items():
        exact = (np.split((both_halves(np.asarray(x), np.full(2, 300.0), np.asarray(cond), np)), 2, axis=-1)[1] + 1) / 2
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
