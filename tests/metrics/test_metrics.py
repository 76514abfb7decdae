"""Tests of moments, classifier metrics and diversity against NumPy, SciPy and closed forms, and of the errors of metrics."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from one_program import one_program

import guidance_jax as gj

F32 = jnp.float32


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_accuracy_is_the_fraction_of_correct_labels():
    assert float(gj.metrics.accuracy(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1, 1]))) == 0.5


def test_inception_score_is_that_of_scipys_relative_entropies(x64):
    """It is 1 if all predictions are equal, and C if they are certain and balanced, for logits of any size."""
    score, logits = functools.partial(one_program, gj.metrics.inception_score), 3 * normal(0, 23, 4)
    p = scipy.special.softmax(logits, axis=1)
    one = lambda part: np.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part]))
    np.testing.assert_allclose(score(logits), one(p), rtol=1e-12)
    # Parts of sizes 7, 8 and 8.
    expected = np.mean([one(part) for part in (p[:7], p[7:15], p[15:])])
    np.testing.assert_allclose(score(logits, splits=3), expected, rtol=1e-12)
    for sure in (1e4, np.inf):
        even = np.where(np.tile(np.eye(5), (3, 1)) == 1, 0, -sure)
        np.testing.assert_allclose(score(even), 5, rtol=1e-12)
    np.testing.assert_allclose(score(np.tile(logits[:1], (9, 1))), 1, rtol=1e-12)


def test_moments_in_float32_keep_their_digits_far_from_zero():
    """Deviations of 1 around 10,000. With a plain sum of squares, float32 would lose all digits."""
    x = (normal(0, 3000, 5) @ normal(1, 5, 5) + 1e4).astype(np.float32)
    found, exact = gj.metrics.moments(x), x.astype(np.float64)
    assert int(found.count) == 3000
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-7)
    covariance = np.cov(exact, rowvar=False)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-5, atol=1e-5)
    parts = np.split(x, [1, 100, 1700])
    merged = functools.reduce(gj.metrics.merge, map(gj.metrics.moments, parts))
    assert int(merged.count) == 3000
    np.testing.assert_allclose(merged.mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(merged.covariance, covariance, rtol=3e-4, atol=3e-4)


def test_merging_is_exact_for_any_sizes(x64):
    """Parts in any order, empty parts, in a scan, and counts whose product exceeds int32."""
    x = normal(0, 60, 3) + np.repeat(normal(1, 6, 3) * 9, 10, axis=0)
    nothing = gj.metrics.Moments(jnp.int32(0), jnp.zeros(3), jnp.zeros((3, 3)))
    add = lambda total, part: (gj.metrics.merge(total, gj.metrics.moments(part)), None)
    found = gj.metrics.merge(jax.lax.scan(add, nothing, jnp.asarray(x).reshape(6, 10, 3))[0], nothing)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-12)
    assert np.asarray(gj.metrics.merge(nothing, nothing).mean).tolist() == [0, 0, 0]
    part = lambda mean: gj.metrics.Moments(jnp.int32(100_000), jnp.full(1, mean, F32), jnp.full((1, 1), 1e5, F32))
    np.testing.assert_allclose(gj.metrics.merge(part(1.0), part(-1.0)).covariance, 2.0, rtol=1e-5)


def scipys(real, fake):
    """The FID as in its reference code: NumPy's covariances, and SciPy's square root of their product."""
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(root))


def test_fid_is_scipys_and_accepts_moments(x64):
    real, fake = normal(0, 40, 6) @ normal(1, 6, 6), normal(2, 30, 6) @ normal(3, 6, 6) + 0.5
    a, b = jnp.asarray(real), jnp.asarray(fake)
    expected = scipys(real, fake)

    def every(a, b):
        merged = gj.metrics.merge(gj.metrics.moments(a[:13]), gj.metrics.moments(a[13:]))
        moved = a + jnp.array([[1.0, 2.0, 0.0, 0.0, 2.0, 0.0]])
        return [gj.metrics.fid(*pair) for pair in ((a, b), (b, a), (merged, b), (a, moved))]

    np.testing.assert_allclose(one_program(every, a, b), [expected] * 3 + [9], rtol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(5, 9), (60, 5)])
def test_fid_of_singular_covariances_is_exact(x64, n, m):
    """With fewer points than features, the trace of the root is the nuclear norm of the inner products between the two sets."""
    real, fake = normal(0, n, 12) @ normal(1, 12, 12), normal(2, m, 12) @ normal(3, 12, 12)
    a, b = ((x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (real, fake))
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
    np.testing.assert_allclose(one_program(gj.metrics.fid, real, fake), expected, rtol=1e-6)
    found = one_program(gj.metrics.fid, np.float32(real), np.float32(fake))
    np.testing.assert_allclose(found, expected, atol=1e-3 * ((a**2).sum() + (b**2).sum()))


def test_fid_of_two_sets_of_one_law_is_its_bias(x64):
    """To first order the means add `2 D / N` and the covariances `D (D + 1) / (2 N)`, for sets of N(0, I)."""
    found = [one_program(gj.metrics.fid, *normal(seed, 2, 4000, 12)) for seed in range(4)]
    np.testing.assert_allclose(np.mean(found), (2 * 12 + 12 * 13 / 2) / 4000, rtol=0.2)


def test_frechet_distance_is_that_of_scipys_root_and_symmetric(x64):
    factors = jnp.asarray(normal(0, 2, 6, 9))
    a, b = factors @ factors.transpose(0, 2, 1)
    mean_a, mean_b = jnp.asarray(normal(1, 2, 6))
    root = np.asarray(scipy.linalg.sqrtm(np.asarray(a) @ np.asarray(b)))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * np.real(root))
    np.testing.assert_allclose(gj.metrics.frechet_distance(mean_a, a, mean_b, b), expected, rtol=1e-10)
    np.testing.assert_allclose(gj.metrics.frechet_distance(mean_b, b, mean_a, a), expected, rtol=1e-10)


def test_frechet_distance_is_its_closed_form(x64):
    """For covariances that commute it is the distance of the standard deviations, also for singular ones."""
    axes = np.linalg.qr(normal(0, 4, 4))[0]
    a, b = np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 0.0, 2.0, 0.5])
    matrix = lambda deviations: (axes * deviations[None] ** 2) @ axes.T
    mean, distance = np.arange(4.0), functools.partial(one_program, gj.metrics.frechet_distance)
    found = distance(mean, matrix(a), np.zeros(4), matrix(b))
    np.testing.assert_allclose(found, (mean**2).sum() + ((a - b) ** 2).sum(), rtol=1e-8)
    np.testing.assert_allclose(distance(mean, matrix(a), mean, matrix(a)), 0, atol=1e-12)


def test_vendi_is_the_effective_number_of_the_eigenvalues(x64):
    """By NumPy's eigenvalues of the similarities, with fewer samples than features and with more."""
    for n, d in ((7, 12), (30, 4)):
        x = normal(0, n, d) + 0.5
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        p = np.linalg.eigvalsh(unit @ unit.T / n)
        p = p[p > 1e-12]
        found = lambda order=1.0, x=x: jax.jit(lambda x: gj.metrics.vendi(x, order=order))(x)
        np.testing.assert_allclose(found(), np.exp(-(p * np.log(p)).sum()), rtol=1e-9)
        np.testing.assert_allclose(found(order=0.5), np.sqrt(p).sum() ** 2, rtol=1e-5)
        np.testing.assert_allclose(found(order=2), 1 / (p**2).sum(), rtol=1e-9)
        np.testing.assert_allclose(found(order=np.inf), 1 / p.max(), rtol=1e-9)
        np.testing.assert_allclose(found(x=x * np.geomspace(1e-3, 1e3, n)[:, None]), found(), rtol=1e-9)


def test_vendi_counts_distinct_samples(x64):
    """Orthogonal samples count once each, whatever their length and multiplicity. Equal samples count as one."""
    axes = np.linalg.qr(normal(0, 9, 9))[0]
    for order in (1.0, 2.0, np.inf):
        several = jnp.asarray(np.concatenate([3 * axes[:4], axes[:4]]))
        np.testing.assert_allclose(gj.metrics.vendi(several, order=order), 4, rtol=1e-9)
        np.testing.assert_allclose(gj.metrics.vendi(jnp.ones((20, 6)), order=order), 1, rtol=1e-9)


@pytest.fixture
def unchecked():
    """Without the checked annotations, which only the tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


SETS = {
    name: getattr(gj.metrics, name) for name in ("precision_recall", "density_coverage", "energy_distance", "kid", "fid")
} | {
    "mmd": lambda a, b: gj.metrics.mmd(a, b, 1.0),
    "sliced_wasserstein": lambda a, b: gj.metrics.sliced_wasserstein(a, b, jax.random.key(0)),
    "kid_subsets": lambda a, b: gj.metrics.kid_subsets(a, b, jax.random.key(0), subsets=2, size=4),
}


@pytest.mark.parametrize("metric", SETS.values(), ids=SETS)
def test_wrong_sets_raise(unchecked, metric):
    good, broken = np.ones((9, 2), np.float32), np.ones((9, 2), np.float32)
    broken[[2, 5]] = np.nan, np.inf
    for a, b in ((good, broken), (jnp.asarray(broken), jnp.asarray(good))):
        with pytest.raises(ValueError, match="NaN or infinite values in 2 of 9 rows, the first is 2"):
            metric(a, b)
    if metric is not gj.metrics.fid:
        with pytest.raises(ValueError, match=r"different sizes D, 2 and 3"):
            metric(good, np.ones((9, 3), np.float32))
    with pytest.raises(ValueError, match="empty"):
        metric(good, good[:0])


def test_bad_input_raises(unchecked):
    x, key, metrics = jnp.ones((9, 2)), jax.random.key(0), gj.metrics
    for message, call in {
        "real and fake must have at least 4 points for k=3 neighbours, got 3 and 9": lambda: metrics.precision_recall(x[:3], x),
        "real must have at least 6 points for k=5 neighbours, got 5": lambda: metrics.density_coverage(x[:5], x),
        "density_coverage: k must be an integer, at least 1, got 0": lambda: metrics.density_coverage(x, x, k=0),
        "at least 2 points, got 9 and 1": lambda: metrics.kid(x, x[:1]),
        "real and fake must have at least 10 points for size=10, got 9 and 9": lambda: metrics.kid_subsets(x, x, key, size=10),
        "subsets must be an integer, at least 2, got 1": lambda: metrics.kid_subsets(x, x, key, subsets=1, size=3),
        "real and fake must have at least 2 points, got 9 and 1": lambda: metrics.fid(x, x[:1]),
        "different sizes D, 2 and 3": lambda: metrics.fid(x, jnp.ones((9, 3))),
        "x is all zero and has no direction in 1 of 3 rows, the first is 1": lambda: metrics.vendi(
            jnp.ones((3, 2)).at[1].set(0)
        ),
        "vendi: order must be a number above 0, got 0": lambda: metrics.vendi(x, order=0.0),
        "logits must have at least 10 points for splits=10, got 9": lambda: metrics.inception_score(x, splits=10),
        "accuracy: logits has NaN in 1 of 9 rows, the first is 4": lambda: metrics.accuracy(
            x.at[4].set(jnp.nan), jnp.zeros(9, int)
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_values_that_are_not_finite_give_nan_inside_jit():
    """No point is near NaN, so comparisons alone would give a plausible number."""
    x = jnp.asarray(normal(0, 12, 3), F32)
    both = jax.jit(lambda a, b: (*gj.metrics.precision_recall(a, b), *gj.metrics.density_coverage(a, b)))
    assert np.isfinite(both(x, x)).all()
    for a, b in ((x, x.at[3, 1].set(jnp.nan)), (x.at[0, 0].set(jnp.inf), x)):
        assert np.isnan(both(a, b)).all()


def test_half_precision_is_computed_in_float32():
    x, y = jnp.asarray(normal(0, 2, 400, 8), jnp.bfloat16)
    for metric in (gj.metrics.fid, gj.metrics.kid, gj.metrics.energy_distance):
        found = one_program(metric, x, y)
        assert found.dtype == F32
        np.testing.assert_allclose(found, one_program(metric, x.astype(F32), y.astype(F32)), rtol=1e-6)


def test_fifty_thousand_points_fit_in_memory():
    """The temporary memory, beside the arguments of 12.8 MB per set. All pairs would need 10 GB."""
    x = jax.ShapeDtypeStruct((50_000, 64), F32)
    every = lambda a, b: (gj.metrics.precision_recall(a, b), gj.metrics.density_coverage(a, b), gj.metrics.kid(a, b))
    slope = jax.grad(gj.metrics.energy_distance)
    for program in (every, slope):
        memory = jax.jit(program).lower(x, x).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < 150e6


def test_low_precision_and_single_samples_are_accepted():
    logits = jnp.asarray([[4.0, 0.0, 1.0]], jnp.float16)
    assert gj.metrics.accuracy(logits, jnp.array([0])) == 1
    np.testing.assert_allclose(one_program(gj.metrics.inception_score, logits), 1, rtol=1e-6)
    many = np.float16(np.random.default_rng(0).normal(size=(4000, 3)))
    score = one_program(gj.metrics.inception_score, many)
    assert score.dtype == jnp.float32
    np.testing.assert_allclose(score, one_program(gj.metrics.inception_score, np.float32(many)), rtol=1e-6)
    mean, covariance = np.zeros(2, np.float16), np.eye(2, dtype=np.float16)
    distance = one_program(gj.metrics.frechet_distance, mean, covariance, mean + np.float16(1), covariance)
    np.testing.assert_allclose(distance, 2, rtol=1e-5)


def test_a_traced_label_without_a_logit_counts_as_wrong():
    found = jax.jit(gj.metrics.accuracy)(jnp.eye(3), jnp.array([0, 5, -1]))
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)
