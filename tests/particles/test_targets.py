"""Weights against independent NumPy formulae along the same paths, and laws against exact ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from particle_runs import M, V, crescent, edm, exact_kernels, normal, pair, pooled, quiet, reward, same
from worlds import classes, keys, path

import guidance_jax as gj
from guidance_jax import targets

TARGETS = {
    "tilted": targets.tilted(2.5),
    "annealed": targets.annealed(1.7),
    "product": targets.product({"cond": 0.6, "uncond": 0.9}),
}


def paths(key, target, sampler, levels, start, branches: Any = None) -> np.ndarray:
    """x at every level, `[steps + 1, B]`, of particles without resampling."""
    guidance = targets.drift(target) if target.guidance is None else gj.chain(targets.drift(target), target.guidance)
    _, along = one_program(gj.run, key, branches or pair(), guidance, sampler, levels, start, trace=lambda state: state.x)
    return np.concatenate([start[None], along])[..., 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "schedule", "sampler", "evaluations"),
    [("tilted", "flow", gj.heun_sde(), 23), ("product", "cosine", gj.ddim(), 12)],
    ids=["tilted-sde", "product-ode"],
)
def test_weights_of_the_path_are_the_trapezoid_of_the_scores(x64, name, schedule, sampler, evaluations):
    """`1/2 (|sum_i a_i s_i|^2 - sum_i a_i |s_i|^2) |d tau|` of the scores of x / alpha, and the known constant of the start.
    The cost is that of the sampler.
    """
    target, n = TARGETS[name], 16
    total = sum(target.exponents.values())
    make = {"cosine": gj.schedules.cosine(0.03, 0.98), "flow": gj.schedules.flow(0.05, 0.97)}
    levels = gj.levels(make[schedule], 12, gj.spacings.uniform())
    found = quiet(keys(n), pair(), target, sampler, levels, (1,), size=n, threshold=0.0)
    sigma, alpha = np.asarray(levels.sigma), np.asarray(levels.alpha)
    assert found.evaluations == 2 * evaluations
    z = jax.jit(jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (1,))))(keys(n))
    x = paths(keys(n), target, sampler, levels, sigma[0] / np.sqrt(total) * np.asarray(z))
    np.testing.assert_allclose(np.asarray(found.x)[:, 0], x[-1], rtol=1e-9)

    tau = (sigma / alpha) ** 2
    y = x / alpha[:, None]
    score = {i: -(y - M[i]) / (V[i] + tau)[:, None] for i in M}
    together = sum(a * score[i] for i, a in target.exponents.items())
    rate = (together**2 - sum(a * score[i] ** 2 for i, a in target.exponents.items())) / 2
    variable = tau / (1 + tau) if name == "tilted" else np.log1p(tau)
    scaled = rate * ((1 + tau) ** (2 if name == "tilted" else 1))[:, None]
    length = -np.diff(variable)
    log_weights = (length[:-1, None] * (scaled[:-2] + scaled[1:-1]) / 2).sum(0) + length[-1] * scaled[-2]
    known = (1 - total) / 2 * np.log(2 * np.pi * tau[0]) - np.log(total) / 2
    same(found, log_weights, known)


KERNEL_TARGETS = TARGETS | {
    "twisted": targets.rewarded(targets.tilted(2.5), reward, guidance=gj.universal(lambda x0: reward(x0, None), 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "schedule"), [("annealed", "cosine"), ("twisted", "edm")])
def test_weights_of_exact_kernels_are_exact_with_five_steps(x64, name, schedule):
    """For any steps and proposal, the weights are the importance weights `pi'(x') F(x | x') / (pi(x) B(x' | x))`."""
    target, n = KERNEL_TARGETS[name], 12
    make = {"edm": gj.schedules.edm(0.3, 6.0), "cosine": gj.schedules.cosine(0.2, 0.9)}[schedule]
    levels = path(gj.levels(make, 6, gj.spacings.karras()), slice(None, -1))
    branches, sampler, clean = exact_kernels(levels), gj.ddpm("learned"), path(levels, -1)
    kernel: Any = sampler.kernel
    start: Any = 3 * np.random.default_rng(5).normal(size=(n, 1))
    found = quiet(keys(n), branches, target, sampler, levels, start, size=n, threshold=0.0, kernels=True)
    x = paths(keys(n), target, sampler, levels, start, branches)
    sigma, alpha = np.asarray(levels.sigma), np.asarray(levels.alpha)

    def log_target(x, i):
        return sum(a * normal(x, alpha[i] * M[k], alpha[i] ** 2 * V[k] + sigma[i] ** 2) for k, a in target.exponents.items())

    log_weights = (
        log_target(x[-1], 5)
        - log_target(x[0], 0)
        + (0 if target.log_reward is None else target.log_reward(x[-1][:, None], clean))
    )
    guidance = targets.drift(target) if target.guidance is None else gj.chain(targets.drift(target), target.guidance)

    @jax.jit
    @jax.vmap
    def proposal(x, now, after):
        state = gj.State(x[:, None], (), guidance.init(start), jnp.int32(0), start)
        prediction, _ = gj.guide(branches, guidance, gj.Step(jnp.int32(0), now, after, keys(n)))(state, now)
        return kernel(prediction, now, after)

    known = jax.tree.map(np.asarray, levels)
    means, deviations = proposal(x[:-1], path(known, slice(None, -1)), path(known, slice(1, None)))
    for i, (mean, deviation) in enumerate(zip(np.asarray(means)[..., 0], np.asarray(deviations)[..., 0], strict=True)):
        back = alpha[i] / alpha[i + 1]
        log_weights += normal(x[i], back * x[i + 1], sigma[i] ** 2 - (back * sigma[i + 1]) ** 2)
        log_weights -= normal(x[i + 1], mean, deviation**2)
    same(found, log_weights)


SIZE, GROUPS, SIDE = 1000, 8, np.linspace(-6, 6, 121)
GRID = np.stack(np.meshgrid(SIDE, SIDE), -1).reshape(-1, 2)


@functools.cache
def tilted_and_density():
    """Particles, and the logarithm of the tilted density on a grid, of a scale. Without resampling, x has plain guidance."""
    m, n = crescent(), SIZE * GROUPS
    levels = gj.levels(gj.schedules.edm(0.02, 20.0), 40, gj.spacings.karras())
    branches, clean = classes(m, jnp.zeros(n, int)), gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))

    @jax.jit
    def run(scale, threshold):
        found = gj.feynman_kac(
            keys(n), branches, targets.tilted(scale), gj.heun_sde(), levels, (2,), size=SIZE, threshold=threshold
        )
        return found, m.log_tilted(jnp.asarray(GRID, jnp.float32), clean, jnp.zeros(len(GRID), int), scale)

    return run


@pytest.mark.filterwarnings("ignore:feynman_kac")
@pytest.mark.slow
def test_the_tilted_law_has_its_moments_modes_and_normaliser_and_plain_guidance_does_not():
    size, groups, scale = SIZE, GROUPS, 3.0
    (found, density), (plain, _) = (jax.tree.map(np.asarray, tilted_and_density()(scale, least)) for least in (0.5, 0.0))
    density, area = np.exp(np.asarray(density, np.float64)), (SIDE[1] - SIDE[0]) ** 2
    functions = {"mean": lambda x: x[:, 0], "square": lambda x: x[:, 0] ** 2, "mode": lambda x: x[:, 0] < -0.3}
    outside = 0
    for name, f in functions.items():
        exact = (density * f(GRID)).sum() / density.sum()
        mean, error = pooled(found, size, f)
        # Four standard errors, and the error of forty steps.
        assert abs(mean - exact) < 4 * error + 0.01, (name, mean, exact, error)
        outside += abs(f(plain.x).mean() - exact) > 4 * error + 0.01 + 4 * f(plain.x).std() / np.sqrt(size * groups)
    assert outside >= 2
    normaliser = np.exp(np.asarray(found.log_normaliser, np.float64))
    exact, error = density.sum() * area, normaliser.std() / np.sqrt(groups)
    assert abs(normaliser.mean() - exact) < 4 * error + 0.02 * exact, (normaliser.mean(), exact, error)
    assert (found.least <= found.effective).all()
    assert (found.least > 1).all()


def test_weights_do_not_change_outside_the_interval():
    n = 32
    run = lambda threshold, low=0.0, high=np.inf: quiet(
        keys(n), pair(), targets.tilted(4.0), gj.heun_sde(), edm(), (1,), size=n, threshold=threshold, low=low, high=high
    )
    nowhere = run(0.9, high=0.01)
    np.testing.assert_allclose(nowhere.effective, n, rtol=1e-4)
    np.testing.assert_allclose(
        nowhere.x, one_program(gj.sample, keys(n), pair(), gj.cfg(4.0), gj.heun_sde(), edm(), (1,)), rtol=1e-4
    )
    # Two adjacent intervals have the weights of both together.
    ratio = float(np.asarray(edm().ratio)[6])
    parts = [run(0.0, **bounds) for bounds in ({}, {"low": ratio}, {"high": ratio})]
    logs = [np.asarray(part.log_weights) + np.asarray(part.log_normaliser) + np.log(n) for part in parts]
    np.testing.assert_allclose(logs[0], logs[1] + logs[2], rtol=1e-3, atol=1e-4)
    assert np.abs(logs[1]).max() > 0.1
    assert np.abs(logs[2]).max() > 0.1
