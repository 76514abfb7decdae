"""Weights against independent NumPy readings along the same paths, laws against exact ones, and when a run warns."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from scipy.special import logsumexp
from scipy.stats import norm, truncnorm
from worlds import classes, gaussians, keys, mixture, path

import guidance_jax as gj
from guidance_jax import targets
from guidance_jax.checks.particles import check_particles

M, V = {"cond": 0.8, "uncond": -0.3}, {"cond": 0.5, "uncond": 2.0}
TARGETS = {
    "tilted": targets.tilted(2.5),
    "annealed": targets.annealed(1.7),
    "product": targets.product({"cond": 0.6, "uncond": 0.9}),
}


FINE = gj.schedules.edm(0.02, 40.0), 40, gj.spacings.karras()


def edm():
    return gj.levels(gj.schedules.edm(0.05, 40.0), 12, gj.spacings.karras())


def pair():
    return gaussians(M["cond"], V["cond"], M["uncond"], V["uncond"])


def quiet(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gj.feynman_kac(*args, **kwargs)


def paths(key, target, sampler, levels, start, branches: Any = None) -> np.ndarray:
    """x at every level, `[steps + 1, B]`, of particles that are never resampled."""
    guidance = targets.drift(target) if target.guidance is None else gj.chain(targets.drift(target), target.guidance)
    _, along = gj.run(key, branches or pair(), guidance, sampler, levels, start, trace=lambda state: state.x)
    return np.concatenate([start[None], along])[..., 0]


def normal(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2


def same(found, log_weights, known=0.0):
    total: Any = logsumexp(log_weights)
    np.testing.assert_allclose(found.log_weights, log_weights - total, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(found.log_normaliser[0], known + total - np.log(len(log_weights)), rtol=1e-8, atol=1e-9)
    effective = np.exp(2 * total - logsumexp(2 * log_weights))
    np.testing.assert_allclose([found.effective[0], found.ancestors[0]], effective, rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "schedule", "sampler"),
    [
        ("tilted", "edm", gj.heun_sde()),
        ("tilted", "flow", gj.ddim()),
        ("annealed", "cosine", gj.heun_sde()),
        ("product", "edm", gj.ddim()),
    ],
    ids=["tilted-sde", "tilted-ode", "annealed-sde", "product-ode"],
)
def test_weights_of_the_path_are_the_trapezoid_of_the_scores(x64, name, schedule, sampler):
    """`1/2 (|sum_i a_i s_i|^2 - sum_i a_i |s_i|^2) |d tau|` of the scores of x / alpha, and the known constant of the start."""
    target, n = TARGETS[name], 16
    total = sum(target.exponents.values())
    make = {
        "edm": gj.schedules.edm(0.05, 40.0),
        "cosine": gj.schedules.cosine(0.03, 0.98),
        "flow": gj.schedules.flow(0.05, 0.97),
    }
    levels = gj.levels(make[schedule], 12, gj.spacings.uniform())
    found = quiet(keys(n), pair(), target, sampler, levels, (1,), size=n, threshold=0.0)
    sigma, alpha = np.asarray(levels.sigma), np.asarray(levels.alpha)
    z = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (1,)))(keys(n))
    x = paths(keys(n), target, sampler, levels, sigma[0] / np.sqrt(total) * z)
    np.testing.assert_allclose(found.x[:, 0], x[-1], rtol=1e-9)

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


def exact_kernels(levels) -> Any:
    """The two Gaussians, predicting the share of `ddpm("learned")` that makes its step their own reverse kernel."""
    ends: Any = [gj.ddpm(end).kernel for end in ("small", "large")]

    def one(name):
        def denoise(x, level, cond):
            i = jnp.argmin(jnp.abs(levels.sigma - level.sigma))
            after = jax.tree.map(lambda field: field[i + 1], levels)
            small, large = (kernel(gj.Prediction(x, x), level, after)[1] for kernel in ends)
            r, r_after, v = level.sigma / level.alpha, after.sigma / after.alpha, V[name]
            exact = after.alpha * jnp.sqrt((r**2 - r_after**2) * (v + r_after**2) / (v + r**2))
            share = jnp.log(exact / small) / jnp.log(large / small)
            x0 = M[name] + level.alpha * v / (level.alpha**2 * v + level.sigma**2) * (x - level.alpha * M[name])
            eps = (x - level.alpha * x0) / level.sigma
            return gj.Prediction(x0, eps, jnp.full_like(x, share))

        return denoise

    return tuple(gj.Branches(one(name), {name: None}) for name in M)


def reward(x0, level):
    return -((x0 - 1.5) ** 2).sum(1)


SHIFT = gj.stateless(lambda p, context: p.replace(x0=p.x0 + 0.3))
KERNEL_TARGETS = TARGETS | {
    "another proposal": targets.rewarded(targets.tilted(2.5), lambda x0, level: 0 * x0[:, 0], guidance=SHIFT),
    "twisted": targets.rewarded(
        targets.product({"cond": 1.0}), reward, guidance=gj.universal(lambda x0: reward(x0, None), 1.0)
    ),
}


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("annealed", "cosine"), ("another proposal", "edm"), ("twisted", "cosine")],
)
def test_ratios_of_exact_kernels_are_exact_at_five_steps(x64, name, schedule):
    """Whatever the steps and the proposal, the weights are the importance weights `pi'(x') F(x | x') / (pi(x) B(x' | x))`."""
    target, n = KERNEL_TARGETS[name], 12
    make = {"edm": gj.schedules.edm(0.3, 6.0), "cosine": gj.schedules.cosine(0.2, 0.9)}[schedule]
    levels = path(gj.levels(make, 6, gj.spacings.karras()), slice(None, -1))
    branches, sampler, clean = exact_kernels(levels), gj.ddpm("learned"), path(levels, -1)
    kernel: Any = sampler.kernel
    start = jax.random.normal(jax.random.key(5), (n, 1)) * 3
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
    def proposal(x, now, after):
        state = gj.State(x[:, None], (), guidance.init(start), jnp.int32(0), start)
        prediction, _ = gj.guide(branches, guidance, gj.Step(jnp.int32(0), now, after, keys(n)))(state, now)
        return kernel(prediction, now, after)

    for i in range(5):
        mean, deviation = (np.asarray(a)[:, 0] for a in proposal(jnp.asarray(x[i]), path(levels, i), path(levels, i + 1)))
        back = alpha[i] / alpha[i + 1]
        log_weights += normal(x[i], back * x[i + 1], sigma[i] ** 2 - (back * sigma[i + 1]) ** 2)
        log_weights -= normal(x[i + 1], mean, deviation**2)
    same(found, log_weights)


def pooled(found, size, f):
    """The mean of f under the weights of all groups together, each group by its normaliser, and its standard error."""
    normaliser = np.exp(np.asarray(found.log_normaliser, np.float64))
    w = np.exp(np.asarray(found.log_weights, np.float64)).reshape(-1, size)
    values = np.asarray(f(np.asarray(found.x))).reshape(-1, size)
    means = (w * values).sum(1)
    mean = (normaliser * means).sum() / normaliser.sum()
    error = np.sqrt((normaliser**2 * (means - mean) ** 2).sum()) / normaliser.sum()
    return mean, error


def crescent():
    """Two modes of class 0, the second near to class 1, which the tilted law leaves."""
    means = jnp.array([[-1.5, 0.0], [1.0, 0.8], [1.8, -0.6]])
    covariances = jnp.stack([jnp.diag(jnp.array(v)) for v in ([0.3, 0.6], [0.4, 0.3], [0.5, 0.5])])
    return gj.oracles.GaussianMixture(means, covariances, jnp.array([0.3, 0.3, 0.4]), jnp.array([0, 0, 1]))


@pytest.mark.parametrize("scale", [2.0, 3.0, 5.0])
def test_tilted_moments_modes_and_normaliser_and_plain_guidance_outside(scale):
    m, size, groups = crescent(), 1000, 16
    n = size * groups
    levels = gj.levels(gj.schedules.edm(0.02, 20.0), 40, gj.spacings.karras())
    branches = classes(m, jnp.zeros(n, int))
    found = quiet(keys(n), branches, targets.tilted(scale), gj.heun_sde(), levels, (2,), size=size)
    plain = np.asarray(gj.sample(keys(n), branches, gj.cfg(scale), gj.heun_sde(), levels, (2,)))
    side = np.linspace(-6, 6, 241)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), jnp.float32)
    clean = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
    density = np.exp(np.asarray(m.log_tilted(grid, clean, jnp.zeros(len(grid), int), scale), np.float64))
    area = (side[1] - side[0]) ** 2
    functions = {"mean": lambda x: x[:, 0], "square": lambda x: x[:, 0] ** 2, "mode": lambda x: x[:, 0] < -0.3}
    outside = 0
    for name, f in functions.items():
        exact = (density * f(np.asarray(grid))).sum() / density.sum()
        mean, error = pooled(found, size, f)
        # Four standard errors, and what forty steps leave.
        assert abs(mean - exact) < 4 * error + 0.01, (name, mean, exact, error)
        outside += abs(f(plain).mean() - exact) > 4 * error + 0.01 + 4 * f(plain).std() / np.sqrt(n)
    assert outside >= 2
    normaliser = np.exp(np.asarray(found.log_normaliser, np.float64))
    exact, error = density.sum() * area, normaliser.std() / np.sqrt(groups)
    assert abs(normaliser.mean() - exact) < 4 * error + 0.02 * exact, (normaliser.mean(), exact, error)
    assert (found.least <= found.effective).all()
    assert (found.least > 1).all()


def separated():
    return gj.oracles.GaussianMixture(jnp.array([[-4.0], [4.0]]), jnp.full((2, 1, 1), 0.1), jnp.ones(2), jnp.arange(2))


def test_a_run_warns_where_weights_degenerate(recwarn):
    m, n, levels = separated(), 64, gj.levels(gj.schedules.edm(0.02, 40.0), 20, gj.spacings.karras())
    run = lambda scale: gj.feynman_kac(
        keys(n), classes(m, jnp.zeros(n, int)), targets.tilted(scale), gj.heun_sde(), levels, (1,), size=32
    )
    with pytest.warns(UserWarning, match=r"degenerate in 2 of 2 groups of 32 particles"):
        found = run(15.0)
    assert (found.ancestors < 8).all()
    recwarn.clear()
    jax.block_until_ready(jax.jit(run)(15.0))
    jax.effects_barrier()
    assert ["degenerate" in str(warning.message) for warning in recwarn.list] == [True]
    recwarn.clear()
    for fine in (run, jax.jit(run)):
        assert (fine(1.2).ancestors > 8).all()
    jax.effects_barrier()
    assert not recwarn.list


@pytest.mark.parametrize("sampler", [gj.ddim(), gj.dpmpp_2m()], ids=["ddim", "dpmpp_2m"])
def test_resampled_particles_take_all_that_is_theirs_along(x64, sampler):
    """Without noise a copy ends where its original does: prediction and memory went with it."""
    n = 32
    run = lambda threshold: quiet(keys(n), pair(), targets.tilted(4.0), sampler, edm(), (1,), size=n, threshold=threshold)
    alone, resampled = np.asarray(run(0.0).x).ravel(), np.asarray(run(1.0).x).ravel()
    which = np.abs(resampled[:, None] - alone[None]).argmin(1)
    np.testing.assert_allclose(resampled, alone[which], rtol=1e-12)
    assert 1 < len(set(which.tolist())) < 0.8 * n


def test_systematic_resampling_takes_each_as_often_as_it_weighs():
    log_weights = jax.random.normal(jax.random.key(0), (50,)) * 2
    expected = 50 * np.asarray(jax.nn.softmax(log_weights))
    counts = [
        np.bincount(gj.particles.systematic(key, log_weights), minlength=50) for key in jax.random.split(jax.random.key(1), 200)
    ]
    assert (np.abs(np.array(counts) - expected) < 1 + 1e-4).all()
    np.testing.assert_allclose(np.mean(counts, 0), expected, atol=4 * 0.5 / np.sqrt(200))


def test_resampling_leaves_the_normaliser_without_bias(x64):
    """Of many small groups, resampled at every step or never, with exact kernels: the mean is that of the exact law."""
    levels = path(gj.levels(gj.schedules.edm(0.3, 6.0), 5, gj.spacings.karras()), slice(None, -1))
    size, groups, w = 4, 4000, 2.0
    variance = lambda sigma: 1 / (w / (V["cond"] + sigma**2) + (1 - w) / (V["uncond"] + sigma**2))

    def law(sigma):
        v = variance(sigma)
        m = v * (w * M["cond"] / (V["cond"] + sigma**2) + (1 - w) * M["uncond"] / (V["uncond"] + sigma**2))
        log_z = normal(0.0, M["cond"], V["cond"] + sigma**2) * w + normal(0.0, M["uncond"], V["uncond"] + sigma**2) * (1 - w)
        return m, v, log_z - normal(0.0, m, v)

    m, v, first = law(6.0)
    start = m + np.sqrt(v) * jax.random.normal(jax.random.key(3), (size * groups, 1))
    exact = np.exp(law(0.3)[2] - first)
    for threshold in (0.0, 1.0):
        args = keys(size * groups), exact_kernels(levels), targets.tilted(w), gj.ddpm("learned"), levels, start
        found = quiet(*args, size=size, threshold=threshold, kernels=True)
        normaliser = np.exp(np.asarray(found.log_normaliser))
        assert abs(normaliser.mean() - exact) < 4 * normaliser.std() / np.sqrt(groups)
        assert 4 * normaliser.std() / np.sqrt(groups) < 0.1 * exact


def test_a_reward_enters_by_the_weights_alone(x64):
    """Along the model's own flow they are the reward of what comes out, whatever the sampler; with resampling, the law is the
    posterior."""
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


def test_outside_of_the_interval_nothing_is_weighed():
    n = 32
    run = lambda **bounds: quiet(
        keys(n), pair(), targets.tilted(4.0), gj.heun_sde(), edm(), (1,), size=n, threshold=0.9, **bounds
    )
    nowhere = run(high=0.01)
    np.testing.assert_allclose(nowhere.effective, n, rtol=1e-4)
    np.testing.assert_allclose(nowhere.x, gj.sample(keys(n), pair(), gj.cfg(4.0), gj.heun_sde(), edm(), (1,)), rtol=1e-4)
    # Two intervals that meet have the weights of both together.
    ratio = float(edm().ratio[6])
    parts = [
        quiet(keys(n), pair(), targets.tilted(4.0), gj.ddim(), edm(), (1,), size=n, threshold=0.0, **bounds)
        for bounds in ({}, {"low": ratio}, {"high": ratio})
    ]
    logs = [np.asarray(part.log_weights + part.log_normaliser) + np.log(n) for part in parts]
    np.testing.assert_allclose(logs[0], logs[1] + logs[2], rtol=1e-3, atol=1e-4)
    assert np.abs(logs[1]).max() > 0.1
    assert np.abs(logs[2]).max() > 0.1


def test_groups_are_apart_and_a_group_is_itself():
    m, size = mixture(), 16
    levels = gj.levels(gj.schedules.edm(0.05, 20.0), 8, gj.spacings.karras())
    labels = jnp.repeat(jnp.array([0, 1, 2]), size)
    run = lambda key, labels: quiet(
        key, classes(m, labels), targets.tilted(3.0), gj.heun_sde(), levels, (3,), size=size, threshold=0.9
    )
    together, alone = run(keys(3 * size), labels), run(keys(3 * size)[size : 2 * size], labels[size : 2 * size])
    np.testing.assert_allclose(together.x[size : 2 * size], alone.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together.log_weights[size : 2 * size], alone.log_weights, rtol=1e-4, atol=1e-4)
    for name in ("log_normaliser", "effective", "least", "ancestors"):
        np.testing.assert_allclose(getattr(together, name)[1], getattr(alone, name)[0], rtol=1e-3, err_msg=name)
    assert (together.least < 0.9 * size).all()


@pytest.mark.filterwarnings("ignore:feynman_kac")
def test_one_trace_for_many_scales_and_vmap_is_a_loop():
    traces = []

    def run(scale, beta):
        traces.append(1)
        a = gj.feynman_kac(keys(16), pair(), targets.tilted(scale), gj.ddpm(), edm(), (1,), size=8)
        b = gj.feynman_kac(keys(16), pair(), targets.annealed(beta), gj.ddpm(), edm(), (1,), size=8, kernels=True)
        return a, b

    jitted, values = jax.jit(run), jnp.array([0.0, 1.0, 3.5])
    each = [jitted(value, 1 + value / 7) for value in values]
    assert len(traces) == 1
    together = jax.vmap(lambda value: run(value, 1 + value / 7))(values)
    for i, one in enumerate(each):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-3), together, one)
    # Nothing to tilt: as many samples of the model, of equal weights.
    np.testing.assert_allclose(each[1][0].effective, 8, rtol=1e-3)
    np.testing.assert_allclose(
        each[1][0].x, gj.sample(keys(16), pair(), gj.chain(), gj.ddpm(), edm(), (1,)), rtol=1e-4, atol=1e-5
    )


def test_it_costs_what_its_sampler_costs():
    for sampler, each in ((gj.ddpm(), 12), (gj.heun(), 23)):
        found = quiet(keys(8), pair(), targets.tilted(2.0), sampler, edm(), (1,), size=8)
        assert found.evaluations == 2 * each


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16])
def test_dtype_in_is_dtype_out(x64, dtype):
    levels = jax.tree.map(lambda field: field.astype(jnp.float32), edm())
    target = targets.rewarded(targets.annealed(1.5), reward)
    half = gj.Branches(lambda x, level, cond: gj.Prediction(x / 2, x / 2), {"cond": None})
    found = quiet(keys(8), half, target, gj.heun_sde(), levels, jnp.ones((8, 1), dtype), size=4)
    assert found.x.dtype == dtype
    assert np.isfinite(found.log_normaliser).all()


LEVELS = gj.levels(gj.schedules.edm(0.02, 20.0), 20, gj.spacings.karras())


def above(bound):
    """A hard constraint, at every level."""

    def beyond(x0, level):
        return jnp.where(x0[:, 0] > bound, 0.0, -jnp.inf)

    return beyond


def rewarded(log_reward, n=8, size=4, conditions=None, levels=LEVELS, **how):
    """One Gaussian, `N(M, V)` of "cond" plus a shift of each particle's own, under a reward."""
    shift = jnp.zeros(n) if conditions is None else conditions
    denoise = lambda x, level, cond: pair()[0].denoise(x - level.alpha * cond[:, None], level, jnp.zeros(n, int))
    one = gj.Branches(
        lambda x, level, cond: (lambda p: p.replace(x0=p.x0 + cond[:, None]))(denoise(x, level, cond)), {"cond": shift}
    )
    target = targets.rewarded(targets.product({"cond": 1.0}), log_reward)
    return gj.feynman_kac(keys(n), one, target, gj.heun_sde(), levels, (1,), size=size, **how)


@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_a_hard_constraint_leaves_the_law_within_its_set(threshold):
    """The truncated Gaussian's moments and mass, though at high noise every x0 predicted is outside of the set, or inside."""
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


def test_a_group_of_dead_particles_is_told_and_alone(recwarn):
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
    # Nor does it spoil what a gradient says of the others.
    of_living = lambda scale: jnp.where(
        jnp.isfinite(z := rewarded(lambda x0, level: scale * x0[:, 0] + hard(x0, level), conditions=far).log_normaliser), z, 0
    ).sum()
    assert np.isfinite(jax.jit(jax.grad(of_living))(0.5))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("noisy", [False, True], ids=["at the end", "on the way"])
def test_a_reward_that_is_no_number_is_told_by_its_name(recwarn, value, noisy):
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
def test_predictions_that_are_no_numbers_are_not_blamed_on_the_reward():
    with pytest.warns(UserWarning, match="weights are NaN in 1 of 2 groups of 4 particles: x or a prediction is NaN"):
        found = rewarded(above(-5.0), conditions=jnp.zeros(8).at[:4].set(jnp.nan))
    assert np.isfinite(found.x[4:]).all()
    assert np.isfinite(found.log_normaliser[1])


def test_effective_size_and_systematic_of_weights_that_are_zero():
    none, some = jnp.full(6, -jnp.inf), jnp.array([-jnp.inf, 0.0, -jnp.inf, -jnp.inf, 0.0, -jnp.inf])
    np.testing.assert_allclose(gj.particles.effective_size(jnp.stack([none, some])), [0, 2], rtol=1e-6)
    gradient = jax.grad(lambda w: gj.particles.effective_size(jnp.stack([none + w, some + w])).sum())(0.0)
    assert np.isfinite(gradient)
    key = jax.random.key(0)
    np.testing.assert_array_equal(gj.particles.systematic(key, none), np.arange(6))
    with pytest.MonkeyPatch.context() as patch:
        for u in (0.0, 1 - 2.0**-24):  # the least and the most that a uniform number is
            patch.setattr(jax.random, "uniform", lambda key, shape, dtype, u=u: jnp.asarray(u, dtype))
            assert set(np.asarray(gj.particles.systematic(key, some)).tolist()) == {1, 4}
            many = jnp.where(jnp.arange(1000) % 2 == 1, 0.0, -jnp.inf)
            assert (gj.particles.systematic(key, many) % 2 == 1).all()
            np.testing.assert_array_equal(gj.particles.systematic(key, many[::-1]) % 2, 0)


def tilt(sampler, steps, n, **how):
    """The variance of particles of the README's two Gaussians over the tilted law's, and what the run says of it."""
    v_c, v_u, w = 0.7, 1.9, 2.3
    levels = gj.levels(gj.schedules.cosine(), steps, gj.spacings.karras())
    found = gj.feynman_kac(
        keys(n), gaussians(0.0, v_c, 0.0, v_u), targets.tilted(w), sampler, levels, (1,), **({"size": n} | how)
    )
    square = (np.exp(found.log_weights) * np.asarray(found.x[:, 0]) ** 2).sum()
    return square * (w / v_c + (1 - w) / v_u), found


def test_spread_sees_what_too_few_steps_do_to_the_law():
    """20 steps of `heun_sde(2.0)`, 23 % off; 80 of `heun_sde()`, as the README has them; and kernels in 20, a third off."""
    with pytest.warns(
        UserWarning, match=r"the spread of the particles is 0\.8\d ± 0\.0\d times the spread that the target's score implies"
    ):
        ratio, found = tilt(gj.heun_sde(2.0), 20, 8192)
    assert 0.74 < ratio < 0.80
    assert 0.78 < found.spread[0] < 0.87
    assert min(found.effective[0], found.ancestors[0]) > 7000
    ratio, found = tilt(gj.heun_sde(), 80, 8192)
    assert abs(ratio - 1) < 0.05
    assert abs(found.spread[0] - 1) < 0.05
    assert found.spread_error[0] < 0.05
    with pytest.warns(UserWarning, match=r"the spread of the particles is 0\.[67]\d"):
        ratio, found = tilt(gj.ddim(1.0), 20, 8192, kernels=True)
    assert 0.6 < ratio < 0.8


def test_spread_is_one_where_the_law_is_right_in_any_dimension_and_group():
    """By Stein's identity, on mixtures too; each group's own, of what is not rewarded, within the interval alone."""
    m, size = crescent(), 512
    branches, levels = classes(m, jnp.zeros(4 * size, int)), gj.levels(gj.schedules.edm(0.02, 20.0), 80, gj.spacings.karras())
    run = lambda target, **how: quiet(keys(4 * size), branches, target, gj.heun_sde(), levels, (2,), size=size, **how)
    found = run(targets.tilted(1.5))
    assert (np.abs(found.spread - 1) < 4 * found.spread_error).all()
    assert (found.spread_error < 0.1).all()
    assert len(set(np.asarray(found.spread).tolist())) == 4
    assert np.isnan(run(targets.rewarded(targets.tilted(1.5), lambda x0, level: -x0[:, 0])).spread).all()
    assert np.isnan(run(targets.tilted(1.5), low=50.0).spread).all()


@pytest.mark.parametrize(
    ("counted", "size", "warns"),
    [(29, 16_000, True), (161, 16_000, False), (7_000, 8_192, False), (9.9, 256, True), (10.1, 256, False), (2, 8, False)],
)
def test_degeneracy_is_a_matter_of_number_and_of_share(recwarn, counted, size, warns):
    """Weights of a number of particles alone, by a reward: `effective`, `least` and `ancestors` are that number."""
    one = jnp.ones(1)
    for least, ancestors in ((counted, size), (size, counted)):
        recwarn.clear()
        no = jnp.zeros(1, bool)
        check_particles(size, None, no, no, least * one, ancestors * one, one, 0 * one)
        assert ["degenerate" in str(w.message) for w in recwarn.list] == [True] * warns


def test_bad_input_is_told():
    m = mixture()
    schedule, flow = gj.schedules.edm(), gj.levels(gj.schedules.flow(), 4, gj.spacings.uniform())
    two, tilted, ddpm, own = pair(), targets.tilted(2.0), gj.ddpm(), edm()
    run = lambda target=tilted, sampler=ddpm, levels=own, branches=two, size=4, **how: gj.feynman_kac(
        keys(8), branches, target, sampler, levels, (1,), size=size, **how
    )
    for build, message in [
        (lambda: run(size=3), "divisor of the number of keys, 8, got 3"),
        (lambda: run(size=1), "2 or more"),
        (lambda: run(threshold=1.5), "threshold must be a number in"),
        (lambda: run(low=2.0, high=1.0), "is empty"),
        (lambda: run(sampler=gj.heun(), kernels=True), "samplers that have them"),
        (lambda: run(sampler=gj.ddim(), kernels=True), "draws nothing"),
        (lambda: run(targets.tilted(2.0, cond="conds")), "Did you mean 'cond'"),
        (lambda: run(targets.annealed(2.0), levels=flow), "at alpha = 0"),
        (lambda: run(targets.rewarded(tilted, lambda x0, level: x0)), r"log_reward returns must be \[8\], got float32\[8,1\]"),
        (lambda: run(sampler=gj.recur(gj.ddpm(), 2)), "recurrence"),
        (lambda: run(sampler=gj.churn(gj.heun(), schedule, 0.2)), "churn"),
        (lambda: run(sampler=gj.predictor_corrector(gj.ddim())), "follows the base alone"),
        (lambda: run(branches=classes(m, jnp.arange(8) % 3)), r"branches\['cond'\] differs within a group of 4"),
        (lambda: targets.tilted(jnp.ones(2)), r"shape \(2,\)"),
        (lambda: targets.annealed(-1.0), "annealed: beta must be a positive number, got -1"),
        (lambda: targets.product({}), "at least one branch"),
        (lambda: targets.product({"a": 1.0}, rest="a"), "has an exponent already"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(TypeError, match="got the function <lambda>; use one number for all levels"):
        targets.product({"cond": lambda level: 2.0})  # pyright: ignore[reportArgumentType]
