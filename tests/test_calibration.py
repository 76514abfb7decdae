"""The calibrated scale on exact mixtures: the law of its samples, the sums of its measurement, and its cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import classes, gaussians, keys
from worlds import mixture as correlated

import guidance_jax as gj

P = jax.sharding.PartitionSpec
CLEAN = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
N = 2000
LABELS = jnp.asarray(np.arange(N) % 2, int)
LINE = jnp.asarray(np.linspace(-8, 8, 8001)[:, None], float)


@functools.cache
def levels():
    return gj.levels(gj.schedules.edm(), 40, gj.spacings.karras())


@functools.cache
def ten_levels():
    return gj.levels(gj.schedules.edm(), 10, gj.spacings.karras())


def at(*ratios):
    """Levels of the EDM schedule."""
    ratio = jnp.asarray(np.array(ratios, np.float32))
    return gj.NoiseLevel(ratio, jnp.ones_like(ratio), ratio)


def mixture(means, variances, weights, labels):
    means, variances = (jnp.asarray(np.array(part, np.float32)[:, None]) for part in (means, variances))
    return gj.oracles.GaussianMixture(means, variances, jnp.array(weights), jnp.array(labels))


@functools.cache
def near_classes():
    return mixture([1.0, -1.0], [[1.0], [1.0]], [1.0, 1.0], [0, 1])


WORLDS = {
    "two classes, near": ([1.0, 1.0, -1.0], 1.0),
    "two classes, apart": ([2.0, 2.0, -2.0], 0.25),
    "a class of two modes": ([-2.0, 0.5, 2.0], 0.3),
}
"""The means of two components of the first class, which may be one, and of one of the second, and their variance."""


def moments(x, share=None, cut=-0.75):
    """Mean, variance, and the weight of the left mode, of points or of a density on a grid."""
    x = np.asarray(x, np.float64).ravel()
    share = np.full(len(x), 1 / len(x)) if share is None else share / share.sum()
    mean = share @ x
    return np.array([mean, share @ (x - mean) ** 2, share @ (x < cut)])


def measured(world, x0, seed=3, labels=LABELS, path=None, **more):
    return gj.calibrate(keys(len(x0), seed), classes(world, labels), x0, path or levels(), **more)


@functools.cache
def near():
    return jax.jit(lambda w: measured(w, w.sample(jax.random.key(1), N, LABELS)))(near_classes())


@functools.cache
def calibrated_and_cfg():
    """A program of a world and a scale: samples of both ways, and the tilted law's density on a line."""

    @jax.jit
    def program(world, scale):
        labels = jax.random.bernoulli(jax.random.key(0), shape=(N,)).astype(int)
        curve = measured(world, world.sample(jax.random.key(1), N, labels), labels=labels)
        first = classes(world, jnp.zeros(N, int))
        ways = gj.cfg(scale), gj.cfg(gj.scales.calibrated(curve, scale))
        log_p = world.log_tilted(LINE, CLEAN, jnp.zeros(len(LINE), int), scale)
        return *(gj.sample(keys(N), first, way, gj.dpmpp_2m(), levels(), (1,)) for way in ways), log_p

    return program


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_calibrated_samples_are_three_times_nearer_to_the_tilted_law_than_cfg(name):
    means, variance = WORLDS[name]
    world = mixture(means, [[variance]] * 3, [0.25, 0.25, 0.5], [0, 0, 1])
    for scale in (3.0, 8.0):
        *samples, log_p = calibrated_and_cfg()(world, scale)
        law = moments(LINE, np.exp(np.asarray(log_p, np.float64)))
        plain, found = map(moments, samples)
        compared = 3 if "modes" in name else 2  # mean and variance determine the weight of one mode
        print(name, scale, law, plain, found)
        assert (abs(found - law)[:compared] < abs(plain - law)[:compared] / 3).all()


def test_the_curve_of_two_gaussians_samples_their_tilt():
    m_c, v_c, m_u, v_u = 1.0, 1.0, 0.0, 2.0
    path = gj.levels(gj.schedules.edm(0.002, 1000.0), 200, gj.spacings.karras())
    ratio = np.geomspace(1e-3, 1e4, 400, dtype=np.float32)
    known = gj.Curve(jnp.asarray(ratio), jnp.asarray(v_c * (v_u + ratio**2) / (v_u * (v_c + ratio**2))))

    @jax.jit
    def sampled(scale, start):
        guidance = gj.cfg(gj.scales.calibrated(known, scale))
        return gj.sample(keys(2), gaussians(m_c, v_c, m_u, v_u), guidance, gj.heun(), path, start)

    for scale in (-0.5, 0.0, 0.5, 1.0, 3.0, 8.0):
        # Linear, so two starts determine the law. The start's own law is N(0, sigma^2).
        low, high = np.asarray(sampled(scale, jnp.array([[0.0], [1000.0]])), np.float64).ravel()
        precision = scale / v_c + (1 - scale) / v_u
        np.testing.assert_allclose((high - low) ** 2, 1 / precision, rtol=0.01)
        mean = (scale * m_c / v_c + (1 - scale) * m_u / v_u) / precision
        np.testing.assert_allclose(low, mean, rtol=0.01, atol=0.005)


@pytest.mark.slow
def test_residuals_are_the_variances_of_the_posterior_and_have_their_standard_errors():
    """By the closed form of a level: one class is N(1, 1), and without the condition it is the mixture of both."""
    path, near = at(1.0, 0.5), near_classes()
    draw = lambda key, n: near.sample(key, n, jnp.arange(n) % 2)

    @jax.jit
    def program():
        many = measured(near, draw(jax.random.key(9), 50_000), labels=jnp.arange(50_000) % 2, path=path)

        def one(key):
            a, b = jax.random.split(key)
            found = gj.calibrate(jax.random.split(a, 400), classes(near, LABELS[:400]), draw(b, 400), path)
            return found.projected, found.whole

        return many, (many.projected, many.whole), jax.vmap(one)(keys(200, 11))

    many, truths, several = jax.tree.map(np.asarray, program())
    np.testing.assert_allclose(many.entire.cond / many.samples, 0.5, rtol=0.02)  # v s^2 / (v + s^2)
    assert many.samples == 50_000
    for found, truth in zip(several, truths, strict=True):
        np.testing.assert_allclose(found.rho.std(0), found.error.mean(0), rtol=0.2)
        assert abs(found.rho.mean(0) - truth.rho) < 4 * (truth.error + found.error.mean(0) / np.sqrt(200))


@pytest.mark.slow
def test_the_curve_of_an_oracle_is_the_measured_one_and_its_covariance_is_the_denoisers_derivative():
    world, labels, three = correlated(), jnp.asarray(np.arange(4000) % 3, int), jnp.array([0, 1, -1])
    level = gj.NoiseLevel(*map(jnp.float32, (0.0, 0.8, 0.6)))

    @jax.jit
    def both():
        path = jax.tree.map(lambda field: field[::10], levels())
        x0 = world.sample(jax.random.key(1), 4000, labels)
        found = gj.calibrate(keys(4000, 5), classes(world, labels), x0, path).projected
        one = lambda x, y: world.denoise(x[None], level, y[None]).x0[0]
        jacobian, covariance = jax.vmap(jax.jacobian(one))(x0[:3], three), world.covariance(x0[:3], level, three)
        return world.curve(keys(4000), labels, path), found, jacobian, covariance

    exact, found, jacobian, covariance = jax.tree.map(np.asarray, both())
    assert (found.error < 0.2).all()
    assert (abs(exact.rho - found.rho) < 3 * found.error).all()
    np.testing.assert_allclose(covariance, 0.6**2 / 0.8 * jacobian, rtol=1e-4, atol=1e-5)


def test_the_projected_form_is_its_formula():
    rng = np.random.default_rng(0)
    x0, c, u = (jnp.asarray(rng.normal(size=(5, 3, 2)), jnp.float32) for _ in range(3))
    two = gj.branches(lambda x, level, cond: gj.Prediction(cond, 0 * x), cond=c, uncond=u)
    path = jax.tree.map(lambda field: field[::10], levels())

    @jax.jit
    def calibrated(power):
        found = gj.calibrate(keys(5), two, x0, path, power=power)
        return found.projected.rho, found.whole.rho, found.ratio, found.rho

    rows = [np.asarray(part, np.float64).reshape(5, -1) for part in (x0, c, u)]
    d = rows[1] - rows[2]
    length = np.linalg.norm(d, axis=1)
    for power in (0.0, 2.0, 6.0):
        projected, whole, ratio, rho = calibrated(power)
        a, b = (length**power * ((d * (part - rows[0])).sum(1) / length) ** 2 for part in rows[1:])
        np.testing.assert_allclose(projected, a.sum() / b.sum(), rtol=1e-5, err_msg=f"power {power}")
        np.testing.assert_allclose(whole, ((rows[1] - rows[0]) ** 2).sum() / ((rows[2] - rows[0]) ** 2).sum(), rtol=1e-5)
        np.testing.assert_allclose(ratio, path.ratio[:-1], rtol=1e-5)
        np.testing.assert_allclose(rho, min(1, (a.sum() / b.sum()) / min(1, a.sum() / b.sum())), rtol=1e-5)


@pytest.mark.slow
def test_batches_devices_and_processes_add_up():
    whole, world = near(), near_classes()
    part = lambda k, y, x: gj.calibrate(k, classes(world, y), x, levels())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def own_and_summed(*rows):
        own = part(*rows)
        return jax.tree.map(lambda s: s[None], own), jax.lax.psum(own, "data")

    given = keys(N, 3), jnp.asarray(LABELS), jax.jit(lambda: world.sample(jax.random.key(1), N, LABELS))()
    spread = jax.shard_map(own_and_summed, mesh=mesh, in_specs=(P("data"),) * 3, out_specs=(P("data"), P()))
    several, together = jax.tree.map(np.asarray, jax.jit(spread)(*given))
    first, second = (jax.tree.map(lambda s, i=i: s[i].sum(0), several) for i in (slice(4), slice(4, 8)))
    for other in (first + second, together):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02), whole, other)
        np.testing.assert_allclose(whole.rho, other.rho, rtol=1e-3)
        assert (np.asarray(other.samples) == N).all()
    with pytest.raises(ValueError, match="two calibrations must have the same levels"):
        _ = whole + jax.tree.map(lambda s: s[:3], whole)


def test_a_curve_is_saved_as_its_arrays(tmp_path):
    whole = near()
    np.savez(tmp_path / "curve.npz", **whole.for_prompts._asdict())
    with np.load(tmp_path / "curve.npz") as file:
        again = gj.Curve(**file)
    level = at(1.0)
    before, after = (gj.scales.calibrated(curve, 4.0)(level) for curve in (whole.for_prompts, again))
    assert before == after
    leaves, structure = jax.tree.flatten(whole)
    assert jax.tree.unflatten(structure, leaves).rho.shape == (40,)


def test_the_plateau_is_the_largest_mean_of_three_neighbours_and_at_most_one():
    curve = gj.Curve(jnp.array([3.0, 0.1, 1.0, 0.3, 10.0]), jnp.array([0.1, 0.5, 0.2, 0.4, 0.05]), jnp.full(5, 0.01))
    overfitted = curve._replace(rho=jnp.array([0.5, 1.4, 0.9, 1.2, 0.2]))
    alone = gj.Curve(jnp.ones(1), jnp.full(1, 0.4))
    divided = jax.jit(lambda *curves: [curve.over_plateau() for curve in curves])(curve, overfitted, alone)
    plateau = (0.5 + 0.4 + 0.2) / 3
    np.testing.assert_allclose(divided[0].rho, np.minimum(np.asarray(curve.rho) / plateau, 1), rtol=1e-6)
    np.testing.assert_allclose(divided[0].error, 0.01 / plateau, rtol=1e-6)
    np.testing.assert_allclose(divided[1].rho, [0.5, 1.0, 0.9, 1.0, 0.2], rtol=1e-6)
    assert np.asarray(divided[2].rho) == 1


def test_the_scale_is_the_formula_and_interpolates_in_log_ratio():
    curve = gj.Curve(jnp.array([10.0, 0.1, 1.0]), jnp.array([0.0, 1.0, 0.4]))
    rhos = {1e-5: 1.0, 0.1: 1.0, 10**-0.5: 0.7, 1.0: 0.4, 10.0**0.25: 0.3, 10.0: 0.0, 1e3: 0.0}
    scales = np.array([0.0, 0.25, 1.0, 3.0, 8.0, 1e4, 1e6, 2.0])
    alpha, sigma = np.array([(1.0, ratio) for ratio in rhos] + [(0.0, 1.0), (1.0, 0.0)], np.float32).T

    @jax.jit
    def program(scales, alpha, sigma):
        one = lambda w, alpha, sigma: gj.scales.calibrated(curve, w)(gj.NoiseLevel(sigma, alpha, sigma))
        slope = jax.vmap(jax.grad(one), (0, None, None))(jnp.array([1.0, 0.0, 3.0]), CLEAN.alpha, CLEAN.alpha)
        rows = one(jnp.array([2.0, 8.0]), CLEAN.alpha, CLEAN.alpha)
        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))(scales, alpha, sigma), rows, slope

    found, rows, slope = map(np.asarray, program(jnp.asarray(scales, float), alpha, sigma))
    w, rho = scales[1:6, None], np.array([*rhos.values()])
    np.testing.assert_allclose(found[1:6, : len(rhos)], 1 + (w - 1) * rho / (w - (w - 1) * rho), rtol=1e-4)
    assert (found[0, 2:6] == 0).all()  # the unconditional model
    assert found[6, 3] == pytest.approx(1 / 0.6, rel=1e-3)  # never above 1 / (1 - rho)
    np.testing.assert_array_equal(found[1:6, len(rhos)], 1)  # alpha = 0
    np.testing.assert_allclose(found[1:6, len(rhos) + 1], scales[1:6])  # sigma = 0
    np.testing.assert_allclose(rows, [found[7, 3], found[4, 3]])
    np.testing.assert_allclose(slope, [0.4, 2.5, 0.4 / (0.4 + 3 * 0.6) ** 2], rtol=1e-5)


def test_a_negative_scale_is_right_where_the_law_exists_and_nan_or_an_error_elsewhere():
    curve = gj.Curve(jnp.array([0.1, 10.0]), jnp.array([1.0, 0.3]))
    level = at(10.0)
    assert float(gj.scales.calibrated(curve, -0.25)(level)[0]) == pytest.approx(-0.25 / (0.3 - 0.25 * 0.7), rel=1e-5)
    with pytest.raises(ValueError, match=r"scale -0\.5 needs rho.*= 10 rho is 0\.3.*measure in the other direction"):
        gj.scales.calibrated(curve, -0.5)
    traced = jax.jit(lambda w: gj.scales.calibrated(curve, w)(level))
    assert np.isnan(traced(-0.5))
    assert not np.isnan(traced(-0.25))


def test_many_scales_and_curves_share_one_program():
    traces, world = [], near_classes()

    @jax.jit
    def run(curve, scale):
        traces.append(scale)
        guidance = gj.cfg(gj.scales.calibrated(curve, scale))
        return gj.sample(keys(4), classes(world, LABELS[:4]), guidance, gj.ddim(), levels(), (1,))

    curves = [near(), jax.tree.map(lambda s: 2 * np.asarray(s), near())]
    found = [run(curve, scale) for curve in curves for scale in (2.0, 5.0, 9.0)]
    assert len(traces) == 1
    assert not np.allclose(found[0], found[1])
    grid = jax.vmap(run, in_axes=(None, 0))(near(), jnp.array([2.0, 5.0]))
    np.testing.assert_allclose(grid[1], found[1], rtol=2e-5)


def test_two_networks_and_conditions_of_the_step_can_be_calibrated():
    """Autoguidance's weak network has variance 2 instead of 1. The other case draws its condition at every level."""
    world, weak = near_classes(), mixture([1.0, -1.0], [[2.0], [2.0]], [1.0, 1.0], [0, 1])
    auto = gj.branches(world.denoise, cond=LABELS), gj.branches(weak.denoise, weak=LABELS)
    drawn = gj.branches(world.denoise, cond=LABELS, random=gj.conditions.random_labels(2))

    @jax.jit
    def both():
        x0, path = world.sample(jax.random.key(1), N, LABELS), at(4.0, 1.0, 0.2)
        found = gj.calibrate(keys(N), auto, x0, path, uncond="weak")
        other = gj.calibrate(keys(N), drawn, x0, path, uncond="random")
        return found.whole.rho, other.whole.rho, found.entire.cond, other.entire.cond

    found, other, *errors = both()
    v = np.array([4.0, 1.0]) ** 2
    np.testing.assert_allclose(found, v / (1 + v) * (2 + v) ** 2 / (v**2 + 4 * v), rtol=0.03)
    np.testing.assert_allclose(*errors, rtol=1e-5)
    own = v / (1 + v)  # the other class, drawn half of the time, has its mean 2 / (1 + v) * v away
    np.testing.assert_allclose(other, own / (own + (2 * v / (1 + v)) ** 2 / 2), rtol=0.1)


def test_equal_branches_need_no_calibration_and_sums_are_in_float32():
    two = gj.branches(lambda x, level, cond: gj.Prediction(0 * x, x), cond=None, uncond=None)

    @jax.jit
    def calibrated():
        found = gj.calibrate(keys(8), two, jnp.ones((8, 3), jnp.bfloat16), levels())
        return found.entire.cond, found.rho, found.whole.rho

    errors, *rhos = calibrated()
    assert errors.dtype == jnp.float32
    assert all((np.asarray(rho) == 1).all() for rho in rhos)


@pytest.mark.slow
def test_below_a_threshold_of_one_the_unconditional_branch_is_not_evaluated():
    sampler, two, path, curve = gj.heun(), classes(near_classes(), LABELS[:4]), ten_levels(), near()

    @jax.jit
    def counted(threshold, w):
        scale = gj.scales.calibrated(curve, w, threshold=threshold)
        state, _ = gj.run(keys(4), two, gj.unless_one(gj.cfg(scale), scale), sampler, path, (1,))
        return state.x, state.evaluations

    @jax.jit
    def uncounted():
        scale = gj.scales.calibrated(curve, 4.0)
        runs = [gj.sample(keys(4), two, way, sampler, path, (1,)) for way in (gj.cfg(scale), gj.chain())]
        return *runs, scale(path)

    whole, plain, along = map(np.asarray, uncounted())
    four = np.full(4, 4.0, np.float32)
    x, every = map(np.asarray, counted(0.0, four))
    np.testing.assert_allclose(x, whole, rtol=1e-5)
    far = np.abs(along - 1)[:-1]
    threshold = float(np.sort(far)[3:5].mean())
    x, fewer = map(np.asarray, counted(threshold, four))
    evaluated = np.array([2] * 9 + [1])  # The last step has no corrector.
    assert every - fewer == evaluated[far < threshold].sum() >= 4
    # Each sample is the same alone, for any scales of its batch.
    mixed, _ = counted(threshold, np.array([1.0, 4.0, 4.0, 8.0], np.float32))
    np.testing.assert_allclose(mixed[1:3], x[1:3], rtol=1e-5)
    np.testing.assert_allclose(mixed[0], plain[0], rtol=1e-5)
