"""The calibrated scale on exact mixtures: the law of its samples, the sums of its measurement, and its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import classes, gaussians, keys
from worlds import mixture as correlated

import guidance_jax as gj

P = jax.sharding.PartitionSpec
CLEAN = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
PATH = gj.levels(gj.schedules.edm(), 40, gj.spacings.karras())
N = 2000


def mixture(means, variances, weights, labels):
    shaped = jnp.array(means)[:, None], jnp.array(variances)[:, None, None]
    return gj.oracles.GaussianMixture(*shaped, jnp.array(weights), jnp.array(labels))


WORLDS = {
    "two classes, near": mixture([1.0, -1.0], [1.0, 1.0], [1.0, 1.0], [0, 1]),
    "two classes, apart": mixture([2.0, -2.0], [0.25, 0.25], [1.0, 1.0], [0, 1]),
    "a class of two modes": mixture([-2.0, 0.5, 2.0], [0.3, 0.3, 0.3], [0.25, 0.25, 0.5], [0, 0, 1]),
}
NEAR = WORLDS["two classes, near"]
LABELS = jnp.arange(N) % 2


def moments(x, share=None, cut=-0.75):
    """Mean, variance, and the weight of the left mode, of points or of a density on a grid."""
    x = np.asarray(x, np.float64).ravel()
    share = np.full(len(x), 1 / len(x)) if share is None else share / share.sum()
    mean = share @ x
    return np.array([mean, share @ (x - mean) ** 2, share @ (x < cut)])


def tilt(world, scale):
    grid = jnp.linspace(-8, 8, 8001)[:, None]
    log_p = np.asarray(world.log_tilted(grid, CLEAN, jnp.zeros(len(grid), int), scale), np.float64)
    return moments(grid, np.exp(log_p))


def measured(world, x0, seed=3, labels=LABELS, path=PATH, **more):
    return gj.calibrate(keys(len(x0), seed), classes(world, labels), x0, path, **more)


@pytest.fixture(scope="module")
def near():
    return jax.jit(lambda: measured(NEAR, NEAR.sample(jax.random.key(1), N, LABELS)))()


@pytest.mark.parametrize("name", WORLDS)
def test_calibrated_samples_are_three_times_nearer_to_the_tilted_law_than_cfg(name):
    world = WORLDS[name]

    @jax.jit
    def both(scale):
        prior = jax.vmap(lambda y: jax.nn.logsumexp(world.log_weights, where=world.labels == y))(jnp.arange(2))
        labels = jax.random.categorical(jax.random.key(0), prior, shape=(N,))
        curve = measured(world, world.sample(jax.random.key(1), N, labels), labels=labels)
        first = classes(world, jnp.zeros(N, int))
        ways = gj.cfg(scale), gj.cfg(gj.scales.calibrated(curve, scale))
        return [gj.sample(keys(N), first, way, gj.dpmpp_2m(), PATH, (1,)) for way in ways]

    for scale in (3.0, 8.0):
        law, plain, found = tilt(world, scale), *map(moments, both(scale))
        compared = 3 if "modes" in name else 2  # mean and variance determine the weight of one mode
        print(name, scale, law, plain, found)
        assert (abs(found - law)[:compared] < abs(plain - law)[:compared] / 3).all()


def test_the_curve_of_two_gaussians_samples_their_tilt():
    m_c, v_c, m_u, v_u = 1.0, 1.0, 0.0, 2.0
    path = gj.levels(gj.schedules.edm(0.002, 1000.0), 200, gj.spacings.karras())
    ratio = jnp.geomspace(1e-3, 1e4, 400)
    known = gj.Curve(ratio, v_c * (v_u + ratio**2) / (v_u * (v_c + ratio**2)))

    @jax.jit
    def sampled(scale, start):
        guidance = gj.cfg(gj.scales.calibrated(known, scale))
        return gj.sample(keys(2), gaussians(m_c, v_c, m_u, v_u), guidance, gj.heun(), path, start)

    for scale in (-0.5, 0.0, 0.5, 1.0, 3.0, 8.0):
        # Linear, so two starts determine the law. The start's own law is N(0, sigma^2).
        low, high = np.asarray(sampled(scale, path.sigma[0] * jnp.array([[0.0], [1.0]])), np.float64).ravel()
        precision = scale / v_c + (1 - scale) / v_u
        np.testing.assert_allclose((high - low) ** 2, 1 / precision, rtol=0.01)
        mean = (scale * m_c / v_c + (1 - scale) * m_u / v_u) / precision
        np.testing.assert_allclose(low, mean, rtol=0.01, atol=0.005)


def test_residuals_are_the_variances_of_the_posterior_and_have_their_standard_errors():
    """By the closed form of a level: one class is N(1, 1), and without the condition it is the mixture of both."""
    level = gj.schedules.edm().at(1.0)
    path = jax.tree.map(lambda *f: jnp.stack(f), level, gj.schedules.edm().at(0.5))
    draw = lambda key, n: NEAR.sample(key, n, jnp.arange(n) % 2)
    many = jax.jit(lambda: measured(NEAR, draw(jax.random.key(9), 50_000), labels=jnp.arange(50_000) % 2, path=path))()
    np.testing.assert_allclose(many.entire.cond / many.samples, 0.5, rtol=0.02)  # v s^2 / (v + s^2)
    assert many.samples == 50_000

    def one(key):
        a, b = jax.random.split(key)
        return gj.calibrate(jax.random.split(a, 400), classes(NEAR, LABELS[:400]), draw(b, 400), path)

    several = jax.jit(jax.vmap(one))(keys(200, 11))
    for form in ("projected", "whole"):
        found = jax.vmap(lambda each, form=form: getattr(each, form))(several)
        truth = getattr(many, form)
        np.testing.assert_allclose(found.rho.std(0), found.error.mean(0), rtol=0.2)
        assert abs(found.rho.mean(0) - truth.rho) < 4 * (truth.error + found.error.mean(0) / np.sqrt(200))


def test_the_curve_of_an_oracle_is_the_measured_one_and_its_covariance_is_the_denoisers_derivative():
    world = correlated()
    labels, path = jnp.arange(4000) % 3, jax.tree.map(lambda field: field[::10], PATH)

    @jax.jit
    def both():
        exact = world.curve(keys(4000), labels, path)
        x0 = world.sample(jax.random.key(1), 4000, labels)
        return exact, gj.calibrate(keys(4000, 5), classes(world, labels), x0, path).projected

    exact, found = both()
    assert (found.error < 0.2).all()
    assert (abs(exact.rho - found.rho) < 3 * found.error).all()
    x, level = world.sample(jax.random.key(2), 3), gj.schedules.cosine()(0.4)
    one = lambda x, y: world.denoise(x[None], level, y[None]).x0[0]
    jacobian = jax.vmap(jax.jacobian(one))(x, jnp.array([0, 1, -1]))
    covariance = world.covariance(x, level, jnp.array([0, 1, -1]))
    np.testing.assert_allclose(covariance, level.sigma**2 / level.alpha * jacobian, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 2.0, 6.0])
def test_the_projected_form_is_its_formula(power):
    rng = np.random.default_rng(0)
    x0, c, u = (jnp.asarray(rng.normal(size=(5, 3, 2)), jnp.float32) for _ in range(3))
    two = gj.branches(lambda x, level, cond: gj.Prediction(cond, 0 * x), cond=c, uncond=u)
    path = gj.levels(gj.schedules.cosine(), 4, gj.spacings.karras())
    found = gj.calibrate(keys(5), two, x0, path, power=power)
    x0, c, u = (np.asarray(part, np.float64).reshape(5, -1) for part in (x0, c, u))
    d = c - u
    length = np.linalg.norm(d, axis=1)
    a, b = (length**power * ((d * (part - x0)).sum(1) / length) ** 2 for part in (c, u))
    np.testing.assert_allclose(found.projected.rho, a.sum() / b.sum(), rtol=1e-5)
    np.testing.assert_allclose(found.whole.rho, ((c - x0) ** 2).sum() / ((u - x0) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(found.ratio, path.ratio[:-1], rtol=1e-5)
    np.testing.assert_allclose(found.rho, min(1, (a.sum() / b.sum()) / min(1, a.sum() / b.sum())), rtol=1e-5)


def test_batches_devices_and_processes_add_up(near):
    x0 = NEAR.sample(jax.random.key(1), N, LABELS)
    part = lambda k, y, x: gj.calibrate(k, classes(NEAR, y), x, PATH)
    batches = jax.tree.map(lambda a: a.reshape(8, N // 8, *a.shape[1:]), (keys(N, 3), LABELS, x0))
    several = jax.jit(lambda rows: jax.lax.map(lambda row: part(*row), rows))(batches)
    summed = jax.tree.map(lambda s: s.sum(0), several)
    first, second = (jax.tree.map(lambda s, i=i: s[i], several) for i in (slice(4), slice(4, 8)))
    halves = [jax.tree.map(lambda s: s.sum(0), half) for half in (first, second)]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.shard_map(
        lambda k, y, x: jax.lax.psum(part(k, y, x), "data"), mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P()
    )
    for other in (summed, halves[0] + halves[1], jax.jit(spread)(keys(N, 3), LABELS, x0)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02), near, other)
        np.testing.assert_allclose(near.rho, other.rho, rtol=1e-3)
        assert (np.asarray(other.samples) == N).all()
    with pytest.raises(ValueError, match="two calibrations must have the same levels"):
        _ = near + jax.tree.map(lambda s: s[:3], near)


def test_a_curve_is_saved_as_its_arrays(near, tmp_path):
    np.savez(tmp_path / "curve.npz", **near.for_prompts._asdict())
    with np.load(tmp_path / "curve.npz") as file:
        again = gj.Curve(**file)
    level = gj.schedules.edm().at(1.0)
    before, after = (gj.scales.calibrated(curve, 4.0)(level) for curve in (near.for_prompts, again))
    assert before == after
    leaves, structure = jax.tree.flatten(near)
    assert jax.tree.unflatten(structure, leaves).rho.shape == (40,)


def test_the_plateau_is_the_largest_mean_of_three_neighbours_and_at_most_one():
    ratio = jnp.array([3.0, 0.1, 1.0, 0.3, 10.0])
    curve = gj.Curve(ratio, jnp.array([0.1, 0.5, 0.2, 0.4, 0.05]), jnp.full(5, 0.01))
    plateau = (0.5 + 0.4 + 0.2) / 3
    np.testing.assert_allclose(curve.over_plateau().rho, np.minimum(np.asarray(curve.rho) / plateau, 1), rtol=1e-6)
    np.testing.assert_allclose(curve.over_plateau().error, 0.01 / plateau, rtol=1e-6)
    overfitted = curve._replace(rho=jnp.array([0.5, 1.4, 0.9, 1.2, 0.2]))
    np.testing.assert_allclose(overfitted.over_plateau().rho, [0.5, 1.0, 0.9, 1.0, 0.2], rtol=1e-6)
    assert gj.Curve(jnp.ones(1), jnp.full(1, 0.4)).over_plateau().rho == 1


def test_the_scale_is_the_formula_and_interpolates_in_log_ratio():
    curve = gj.Curve(jnp.array([10.0, 0.1, 1.0]), jnp.array([0.0, 1.0, 0.4]))
    at = lambda ratio, w: float(gj.scales.calibrated(curve, w)(gj.schedules.edm().at(ratio)))
    for ratio, rho in ((1e-5, 1.0), (0.1, 1.0), (10**-0.5, 0.7), (1.0, 0.4), (10.0**0.25, 0.3), (10.0, 0.0), (1e3, 0.0)):
        for w in (0.25, 1.0, 3.0, 8.0, 1e4):
            assert at(ratio, w) == pytest.approx(1 + (w - 1) * rho / (w - (w - 1) * rho), rel=1e-4)
    assert at(10.0, 0.0) == at(1.0, 0.0) == 0  # the unconditional model
    assert at(1.0, 1e6) == pytest.approx(1 / 0.6, rel=1e-3)  # never above 1 / (1 - rho)
    flow = gj.schedules.flow()
    assert gj.scales.calibrated(curve, 4.0)(flow(1.0)) == 1  # alpha = 0
    assert gj.scales.calibrated(curve, 4.0)(flow(0.0)) == 4  # sigma = 0
    rows = gj.scales.calibrated(curve, jnp.array([2.0, 8.0]))(gj.schedules.edm().at(1.0))
    np.testing.assert_allclose(rows, [at(1.0, 2.0), at(1.0, 8.0)])
    slope = jax.grad(lambda w: gj.scales.calibrated(curve, w)(gj.schedules.edm().at(1.0)))
    np.testing.assert_allclose(jax.vmap(slope)(jnp.array([1.0, 0.0, 3.0])), [0.4, 2.5, 0.4 / (0.4 + 3 * 0.6) ** 2], rtol=1e-5)


def test_a_negative_scale_is_right_where_the_law_exists_and_nan_or_an_error_elsewhere():
    curve = gj.Curve(jnp.array([0.1, 10.0]), jnp.array([1.0, 0.3]))
    level = gj.schedules.edm().at(10.0)
    assert float(gj.scales.calibrated(curve, -0.25)(level)) == pytest.approx(-0.25 / (0.3 - 0.25 * 0.7), rel=1e-5)
    with pytest.raises(ValueError, match=r"scale -0\.5 needs rho.*= 10 rho is 0\.3.*measure in the other direction"):
        gj.scales.calibrated(curve, -0.5)
    traced = jax.jit(lambda w: gj.scales.calibrated(curve, w)(level))
    assert np.isnan(traced(-0.5))
    assert not np.isnan(traced(-0.25))


def test_many_scales_and_curves_share_one_program(near):
    traces = []

    @jax.jit
    def run(curve, scale):
        traces.append(scale)
        guidance = gj.cfg(gj.scales.calibrated(curve, scale))
        return gj.sample(keys(4), classes(NEAR, LABELS[:4]), guidance, gj.ddim(), PATH, (1,))

    curves = [near, jax.tree.map(lambda s: 2 * s, near)]
    found = [run(curve, scale) for curve in curves for scale in (2.0, 5.0, 9.0)]
    assert len(traces) == 1
    assert not np.allclose(found[0], found[1])
    grid = jax.vmap(run, in_axes=(None, 0))(near, jnp.array([2.0, 5.0]))
    np.testing.assert_allclose(grid[1], found[1], rtol=2e-5)


def test_two_networks_and_conditions_of_the_step_can_be_calibrated():
    """Autoguidance's weak network has variance 2 instead of 1. The other case draws its condition at every level."""
    weak = mixture([1.0, -1.0], [2.0, 2.0], [1.0, 1.0], [0, 1])
    x0 = NEAR.sample(jax.random.key(1), N, LABELS)
    s = jnp.array([4.0, 1.0, 0.2])
    path = gj.schedules.edm().at(s)
    auto = gj.branches(NEAR.denoise, cond=LABELS), gj.branches(weak.denoise, weak=LABELS)
    found = gj.calibrate(keys(N), auto, x0, path, uncond="weak")
    v = s[:2] ** 2
    np.testing.assert_allclose(found.whole.rho, v / (1 + v) * (2 + v) ** 2 / (v**2 + 4 * v), rtol=0.03)
    drawn = gj.branches(NEAR.denoise, cond=LABELS, random=gj.conditions.random_labels(2))
    other = gj.calibrate(keys(N), drawn, x0, path, uncond="random")
    np.testing.assert_allclose(other.entire.cond, found.entire.cond, rtol=1e-5)
    both = v / (1 + v)  # the other class, drawn half of the time, has its mean 2 / (1 + v) * v away
    np.testing.assert_allclose(other.whole.rho, both / (both + (2 * v / (1 + v)) ** 2 / 2), rtol=0.1)


def test_equal_branches_need_no_calibration_and_sums_are_in_float32():
    two = gj.branches(lambda x, level, cond: gj.Prediction(0 * x, x), cond=jnp.zeros(8), uncond=jnp.zeros(8))
    found = gj.calibrate(keys(8), two, jnp.ones((8, 3), jnp.bfloat16), PATH)
    assert found.entire.cond.dtype == jnp.float32
    assert (found.rho == 1).all()
    assert (found.whole.rho == 1).all()


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_below_a_threshold_of_one_the_unconditional_branch_is_not_evaluated(near, sampler):
    sampler, two = getattr(gj, sampler)(), classes(NEAR, LABELS[:4])
    path = gj.levels(gj.schedules.edm(), 10, gj.spacings.karras())

    def counted(threshold, w):
        scale = gj.scales.calibrated(near, w, threshold=threshold)
        guidance = gj.unless_one(gj.cfg(scale), scale)
        arguments = keys(4), two, guidance, sampler, path, (1,)
        return gj.sample(*arguments), gj.evaluations(*arguments)

    counted = jax.jit(counted)
    whole = gj.sample(keys(4), two, gj.cfg(gj.scales.calibrated(near, 4.0)), sampler, path, (1,))
    x, every = counted(0.0, 4.0)
    np.testing.assert_allclose(x, whole, rtol=1e-5)
    far = np.abs(gj.scales.calibrated(near, 4.0)(path) - 1)[:-1]
    threshold = float(np.sort(far)[3:5].mean())
    x, fewer = counted(threshold, 4.0)
    evaluated = np.full(10, every // 20 if every == 20 else 2)  # Heun's last step has no corrector.
    evaluated[-1] = 1
    assert every - fewer == evaluated[far < threshold].sum() >= 4
    # Each sample is the same alone, for any scales of its batch.
    scales = jnp.array([1.0, 4.0, 4.0, 8.0])
    mixed, _ = counted(threshold, scales)
    np.testing.assert_allclose(mixed[1:3], x[1:3], rtol=1e-5)
    plain = gj.sample(keys(4), two, gj.chain(), sampler, path, (1,))
    np.testing.assert_allclose(mixed[0], plain[0], rtol=1e-5)
