"""Metrics over pairs of points against scikit-learn, NumPy and closed forms, with blocks small enough to need several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors

import guidance_jax as gj
from guidance_jax.metrics import pairs


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Clears compiled programs before and after, because they depend on the block size."""
    size, pairs.BLOCK = pairs.BLOCK, 16
    jax.clear_caches()
    yield
    pairs.BLOCK = size
    jax.clear_caches()


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.slow
@pytest.mark.parametrize("itself", [True, False])
def test_every_pair_is_counted_once(itself):
    """For sizes around whole blocks. Pairs of a set with itself exclude the diagonal."""
    step = lambda total, x, y, counted: total + jnp.where(counted, 100 * x[:, None] + y[None], 0).sum(1)
    sizes = (
        [(1, 17), (15, 33), (16, 16), (17, 1), (33, 15)]
        if itself
        else [(1, 1), (15, 17), (16, 16), (17, 17), (33, 33), (33, 16)]
    )
    for n, m in sizes:
        found = jax.jit(lambda x, y: pairs.fold(step, 0, x, y, itself=itself))(np.arange(n), np.arange(m))
        expected = 100 * np.arange(n)[:, None] + np.arange(m)
        expected = np.where(np.eye(n, m, dtype=bool) & (not itself), 0, expected).sum(1)
        np.testing.assert_array_equal(found, expected, err_msg=f"{n} {m}")


def test_distances_are_those_of_differences():
    """In float32, far from the origin: equal points have distance 0, and close points keep their distance."""
    a = (1000 + normal(0, 20, 70)).astype(np.float32)
    b = np.concatenate([a[:4], a[:4] + np.float32(2) ** -10, a[:9] + 1])
    exact = ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(2)
    found = pairs.squared_distances(jnp.asarray(a), jnp.asarray(b))
    assert (np.asarray(found)[range(4), range(4)] == 0).all()
    np.testing.assert_allclose(found, exact, rtol=2e-6)


def sklearns(real, fake, k):
    """Precision, recall, density and coverage by scikit-learn's neighbours and a table of all distances."""
    radius = lambda x: NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)[0][:, k]
    distances = np.linalg.norm(real[:, None] - fake[None], axis=2)
    near_real, near_fake = distances <= radius(real)[:, None], distances <= radius(fake)[None]
    return near_real.any(0).mean(), near_fake.any(1).mean(), near_real.sum() / (k * len(fake)), near_real.any(1).mean()


def found(real, fake, k):
    every = lambda a, b: (*gj.metrics.precision_recall(a, b, k), *gj.metrics.density_coverage(a, b, k))
    return np.array(jax.jit(every)(real, fake))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbours_are_those_of_scikit_learn(x64, k):
    real, fake = normal(0, 60, 4), normal(1, 45, 4) * 0.7 + 0.9
    numbers = found(real, fake, k)
    np.testing.assert_allclose(numbers, sklearns(real, fake, k), rtol=1e-12)
    assert 0 < numbers[1] < numbers[0] < 1
    assert 0 < numbers[3] < 1


def test_neighbours_are_found_once_for_many_sets(x64):
    """A set with stored neighbours gives the same results for any k up to the stored one, without computing them again."""
    real, fake = jnp.asarray(normal(0, 60, 4)), jnp.asarray(normal(1, 45, 4)) * 0.7 + 0.9
    known, samples = gj.metrics.neighbours(real), gj.metrics.neighbours(fake, 3)
    nearest = NearestNeighbors(n_neighbors=6).fit(real).kneighbors(real)[0][:, 1:]
    np.testing.assert_allclose(known.nearest, nearest**2, rtol=1e-12)
    for k in (1, 3):
        np.testing.assert_array_equal(
            gj.metrics.precision_recall(known, samples, k), gj.metrics.precision_recall(real, fake, k)
        )
    np.testing.assert_array_equal(gj.metrics.density_coverage(known, fake), gj.metrics.density_coverage(real, fake))
    far = known._replace(nearest=jnp.full_like(known.nearest, 1e9))
    assert gj.metrics.precision_recall(far, samples)[0] == gj.metrics.density_coverage(far, fake)[1] == 1


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 4096])
def test_ties_and_duplicates_are_exact(offset):
    """The points are integers with many duplicates and equal distances, so distances have no rounding at any offset."""
    rng = np.random.default_rng(3)
    real, fake = rng.integers(0, 4, (50, 2)), rng.integers(1, 6, (40, 2))
    table = lambda a, b: ((a[:, None] - b[None]) ** 2).sum(2)
    # A point is excluded from its own neighbours by its index and not by its distance.
    others = lambda x: np.sort(table(x, x)[~np.eye(len(x), dtype=bool)].reshape(len(x), -1), axis=1)
    for k in (1, 4):
        near_real = table(real, fake) <= others(real)[:, k - 1, None]
        near_fake = table(real, fake) <= others(fake)[None, :, k - 1]
        assert (others(real)[:, k - 1] == 0).any()
        expected = near_real.any(0).mean(), near_fake.any(1).mean(), near_real.sum() / (k * 40), near_real.any(1).mean()
        np.testing.assert_allclose(
            found((real + offset).astype(np.float32), (fake + offset).astype(np.float32), k), expected, rtol=1e-6
        )


def test_a_set_matches_itself_and_does_not_match_a_distant_one():
    real = normal(0, 50, 3).astype(np.float32)
    assert [float(v) for v in (*gj.metrics.precision_recall(real, real), gj.metrics.density_coverage(real, real)[1])] == [
        1,
        1,
        1,
    ]
    assert [float(v) for v in found(real, real + 100, 3)] == [0, 0, 0, 0]


def test_density_and_coverage_of_one_law_have_their_expected_values(x64):
    """On average 1, and `1 - (N - 1) ... (N - k) / ((N + M - 1) ... (N + M - k))`, for any law."""
    sets = normal(0, 400, 30, 3) ** 3
    both = jax.jit(jax.vmap(lambda x: gj.metrics.density_coverage(x[:18], x[18:], 2)))(sets)
    density, coverage = map(np.asarray, both)
    for numbers, expected in ((density, 1), (coverage, 1 - 17 * 16 / (29 * 28))):
        error = numbers.std() / 20
        assert abs(numbers.mean() - expected) < 3.5 * error
        assert error < 0.02


def test_sliced_wasserstein_on_a_line_is_wasserstein(x64):
    """For sets of two sizes, both are repeated to a common size, sorted, and paired."""
    a, b = normal(0, 6), 2 * normal(1, 4)
    gap = np.sort(np.repeat(a, 2)) - np.sort(np.repeat(b, 3))
    found = one_program(gj.metrics.sliced_wasserstein, a[:, None], b[:, None], jax.random.key(2), projections=3)
    np.testing.assert_allclose(found, np.sqrt((gap**2).mean()), rtol=1e-12)


def test_sliced_wasserstein_is_its_closed_form(x64):
    """A shift by d in D dimensions gives `|d| / sqrt(D)`. Two isotropic Gaussians give the difference of their deviations."""
    a, distance = normal(0, 2000, 3), functools.partial(one_program, gj.metrics.sliced_wasserstein)
    shift = np.array([[1.0, -2.0, 2.0]])
    shifted = distance(a[:50], a[:50] + shift, jax.random.key(1), projections=4000)
    np.testing.assert_allclose(shifted, np.sqrt(3), rtol=0.02)
    np.testing.assert_allclose(distance(a, 3 * a[:1000], jax.random.key(1)), 2, rtol=0.03)
    assert distance(a, a[::-1], jax.random.key(1)) == 0


def test_sliced_wasserstein_has_the_gradient_of_its_differences(x64):
    a, b, along = normal(0, 7, 2), normal(1, 5, 2), normal(3, 7, 2)
    distance = lambda a, b: gj.metrics.sliced_wasserstein(a, b, jax.random.key(2), projections=16)
    slope, found = difference_and_slope(distance, a, b, along, 1e-6)
    np.testing.assert_allclose(found, slope, rtol=1e-6)
    assert (np.asarray(jax.jit(jax.grad(distance))(b, b)) == 0).all()


def difference_and_slope(metric, a, b, along, h):
    """The slope of a metric along a direction: by differences, and by its gradient."""
    program = jax.jit(jax.vmap(jax.value_and_grad(metric), (0, None)))
    values, slopes = map(np.asarray, program(np.stack([a - h * along, a, a + h * along]), b))
    return (values[2] - values[0]) / (2 * h), (slopes[1] * along).sum()


KERNELS = {
    "energy": (gj.metrics.energy_distance, lambda x, y: -np.linalg.norm(x - y)),
    "mmd": (lambda a, b: gj.metrics.mmd(a, b, 0.7), lambda x, y: np.exp(-((x - y) ** 2).sum() / (2 * 0.7**2))),
    "kid": (gj.metrics.kid, lambda x, y: (x @ y / len(x) + 1) ** 3),
}


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "kernel"), KERNELS.values(), ids=KERNELS)
def test_discrepancies_are_averages_over_pairs(x64, metric, kernel):
    a, b = normal(0, 60, 3), normal(1, 40, 3) + 0.3
    within = lambda a: np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    between = lambda a, b: np.mean([kernel(x, y) for x in a for y in b])
    expected = lambda a: within(a) + within(b) - 2 * between(a, b)
    value, gradient = map(np.asarray, jax.jit(jax.value_and_grad(metric))(a, b))
    np.testing.assert_allclose(value, expected(a), rtol=1e-10)
    along = normal(2, *a.shape)
    slope = (expected(a + 1e-5 * along) - expected(a - 1e-5 * along)) / 2e-5
    np.testing.assert_allclose((gradient * along).sum(), slope, rtol=1e-6)
    with pytest.raises(ValueError, match="at least 2 points, got 1 and 40"):
        metric(jnp.asarray(a[:1]), jnp.asarray(b))


def test_gradients_in_float32_stay_accurate_far_from_zero():
    """Shifts that float32 represents exactly change nothing. The gradient between equal points is 0."""
    a, b = (np.round(64 * normal(seed, 40, 3)) / 64 for seed in (0, 1))
    b = np.concatenate([b, a[:3]])
    slope = jax.jit(jax.grad(gj.metrics.energy_distance))
    near, far = (np.asarray(slope(np.float32(a + shift), np.float32(b + shift))) for shift in (0, 4096))
    np.testing.assert_allclose(far, near, atol=2e-6 * np.abs(near).max())
    assert np.isfinite(near).all()


def test_discrepancies_are_unbiased(x64):
    """The averages over many tiny sets of two Gaussians are the exact values. Biased estimates would be off by ten standard
    errors.
    """
    a, b = normal(0, 2, 8000, 4, 1)
    b = b[:, :3] + 0.5
    metrics = lambda a, b: (gj.metrics.energy_distance(a, b), gj.metrics.mmd(a, b, 1.0), gj.metrics.kid(a / 2, b / 2))
    energy, mmd, kid = map(np.asarray, jax.jit(jax.vmap(metrics))(a, b))
    # E|X - Y| and E exp(-(X - Y)^2 / 2) for N(d, 2). For the cubic kernel, the differences of the first three moments.
    spread = lambda d: 2 / np.sqrt(np.pi) * np.exp(-(d**2) / 4) + d * (2 * norm.cdf(d / np.sqrt(2)) - 1)
    kernel = lambda d: np.sqrt(1 / 3) * np.exp(-(d**2) / 6)
    cubic = ((0.5**3 + 3 * 0.5) / 8) ** 2 + 3 * (0.25 / 4) ** 2 + 3 * (0.5 / 2) ** 2
    exact = 2 * spread(0.5) - 2 * spread(0), 2 * kernel(0) - 2 * kernel(0.5), cubic
    for found, expected in zip((energy, mmd, kid), exact, strict=True):
        assert abs(found.mean() - expected) < 3.5 * found.std() / np.sqrt(8000)
        assert found.std() / np.sqrt(8000) < 0.05


def test_kid_over_subsets_has_the_mean_and_the_error_of_its_draws(x64):
    """With all points in each subset it is the KID with error 0. With fewer, the reported error is that of many draws."""
    a, b = jnp.asarray(normal(0, 30, 2)), jnp.asarray(normal(1, 30, 2) + 0.5)
    whole = one_program(gj.metrics.kid, a, b)
    mean, error = one_program(gj.metrics.kid_subsets, a, b, jax.random.key(0), subsets=3, size=30)
    np.testing.assert_allclose(mean, whole, rtol=1e-12)
    np.testing.assert_allclose(error, 0, atol=1e-12)
    draw = lambda key: gj.metrics.kid_subsets(a, b, key, subsets=4, size=10)
    means, errors = map(np.asarray, jax.jit(lambda key: jax.lax.map(draw, jax.random.split(key, 1000)))(jax.random.key(1)))
    assert abs(means.mean() - whole) < 3.5 * means.std() / np.sqrt(1000)
    np.testing.assert_allclose(np.sqrt((errors**2).mean()), means.std(), rtol=0.08)
