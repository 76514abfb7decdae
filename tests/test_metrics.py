"""Metrics against scikit-learn and hand-made sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors

import guidance_jax as gj


def reference(points, others, k):
    """The share of points within the k-NN radius of some other, by scikit-learn."""
    radius = NearestNeighbors(n_neighbors=k + 1).fit(others).kneighbors(others)[0][:, k]
    distances = np.linalg.norm(points[:, None] - others[None], axis=2)
    return (distances <= radius[None]).any(1).mean()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall(x64, k):
    real = np.asarray(jax.random.normal(jax.random.key(0), (60, 4)))
    fake = np.asarray(jax.random.normal(jax.random.key(1), (45, 4))) * 0.7 + 0.9
    precision, recall = gj.metrics.precision_recall(jnp.asarray(real), jnp.asarray(fake), k)
    np.testing.assert_allclose(precision, reference(fake, real, k))
    np.testing.assert_allclose(recall, reference(real, fake, k))
    assert 0 < recall < precision < 1


def test_the_same_set_is_all_near_itself_and_a_far_one_is_not():
    real = jax.random.normal(jax.random.key(0), (50, 3))
    assert [float(v) for v in gj.metrics.precision_recall(real, real)] == [1, 1]
    assert [float(v) for v in gj.metrics.precision_recall(real, real + 100)] == [0, 0]


def test_accuracy():
    assert float(gj.metrics.accuracy(jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([1, 1]))) == 0.5


def test_bad_input_is_told():
    with pytest.raises(ValueError, match="more than 3 points, got 3 and 9"):
        gj.metrics.precision_recall(jnp.ones((3, 2)), jnp.ones((9, 2)))


def test_frechet_distance_is_that_of_scipys_root_and_symmetric(x64):
    factors = jax.random.normal(jax.random.key(0), (2, 6, 9))
    a, b = factors @ factors.transpose(0, 2, 1)
    mean_a, mean_b = jax.random.normal(jax.random.key(1), (2, 6))
    root = np.asarray(scipy.linalg.sqrtm(np.asarray(a) @ np.asarray(b)))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * np.real(root))
    np.testing.assert_allclose(gj.metrics.frechet_distance(mean_a, a, mean_b, b), expected, rtol=1e-10)
    np.testing.assert_allclose(gj.metrics.frechet_distance(mean_b, b, mean_a, a), expected, rtol=1e-10)


def test_frechet_distance_in_closed_form(x64):
    """Of covariances that commute it is the distance of the standard deviations, singular ones included."""
    axes = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (4, 4)))[0]
    a, b = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([4.0, 0.0, 2.0, 0.5])
    matrix = lambda deviations: (axes * deviations[None] ** 2) @ axes.T
    mean = jnp.arange(4.0)
    found = gj.metrics.frechet_distance(mean, matrix(a), jnp.zeros(4), matrix(b))
    np.testing.assert_allclose(found, (mean**2).sum() + ((a - b) ** 2).sum(), rtol=1e-8)
    np.testing.assert_allclose(gj.metrics.frechet_distance(mean, matrix(a), mean, matrix(a)), 0, atol=1e-12)


def test_sliced_wasserstein_on_a_line_is_wasserstein(x64):
    """Of sets of two sizes, by copying both to a common one and pairing what is sorted."""
    a, b = np.asarray(jax.random.normal(jax.random.key(0), (6,))), 2 * np.asarray(jax.random.normal(jax.random.key(1), (4,)))
    gap = np.sort(np.repeat(a, 2)) - np.sort(np.repeat(b, 3))
    found = gj.metrics.sliced_wasserstein(jnp.asarray(a)[:, None], jnp.asarray(b)[:, None], jax.random.key(2), projections=3)
    np.testing.assert_allclose(found, np.sqrt((gap**2).mean()), rtol=1e-12)


def test_sliced_wasserstein_in_closed_form(x64):
    """A shift by d in D dimensions: `|d| / sqrt(D)`. Two round Gaussians: the difference of their deviations."""
    a = jax.random.normal(jax.random.key(0), (2000, 3))
    shift = jnp.array([[1.0, -2.0, 2.0]])
    shifted = gj.metrics.sliced_wasserstein(a[:50], a[:50] + shift, jax.random.key(1), projections=4000)
    np.testing.assert_allclose(shifted, np.sqrt(3), rtol=0.02)
    np.testing.assert_allclose(gj.metrics.sliced_wasserstein(a, 3 * a[:1000], jax.random.key(1)), 2, rtol=0.03)
    assert gj.metrics.sliced_wasserstein(a, a[::-1], jax.random.key(1)) == 0


def test_sliced_wasserstein_has_the_gradient_of_its_differences(x64):
    a, b = jax.random.normal(jax.random.key(0), (7, 2)), jax.random.normal(jax.random.key(1), (5, 2))
    distance = lambda a: gj.metrics.sliced_wasserstein(a, b, jax.random.key(2), projections=16)
    along = jax.random.normal(jax.random.key(3), a.shape)
    slope = (distance(a + 1e-6 * along) - distance(a - 1e-6 * along)) / 2e-6
    np.testing.assert_allclose((jax.grad(distance)(a) * along).sum(), slope, rtol=1e-6)
    assert (jax.grad(lambda a: gj.metrics.sliced_wasserstein(a, b, jax.random.key(2)))(b) == 0).all()


def gaussian_kernel(bandwidth):
    return lambda distance: np.exp(-(distance**2) / (2 * bandwidth**2))


@pytest.mark.parametrize(
    ("metric", "kernel"),
    [
        (gj.metrics.energy_distance, lambda distance: -distance),
        (lambda a, b: gj.metrics.mmd(a, b, 0.7), gaussian_kernel(0.7)),
    ],
    ids=["energy", "mmd"],
)
def test_discrepancies_are_averages_over_pairs(x64, metric, kernel):
    a, b = np.asarray(jax.random.normal(jax.random.key(0), (60, 3))), np.asarray(jax.random.normal(jax.random.key(1), (40, 3)))
    pairs = lambda a, b: kernel(np.linalg.norm(a[:, None] - b[None], axis=2))
    within = lambda a: pairs(a, a)[~np.eye(len(a), dtype=bool)].mean()
    expected = within(a) + within(b) - 2 * pairs(a, b).mean()
    np.testing.assert_allclose(metric(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-9)
    along = np.asarray(jax.random.normal(jax.random.key(2), a.shape))
    slope = (metric(jnp.asarray(a + 1e-6 * along), jnp.asarray(b)) - expected) / 1e-6
    np.testing.assert_allclose((jax.grad(metric)(jnp.asarray(a), jnp.asarray(b)) * along).sum(), slope, rtol=1e-3)
    with pytest.raises(ValueError, match="at least 2 points, got 1 and 40"):
        metric(jnp.asarray(a[:1]), jnp.asarray(b))


def test_discrepancies_are_unbiased(x64):
    """Over many tiny sets of two Gaussians they average to the laws' own: biased ones are off by ten standard errors."""
    a, b = jax.random.normal(jax.random.key(0), (2, 8000, 4, 1))
    b = b[:, :3] + 0.5
    energy, mmd = jax.vmap(lambda a, b: (gj.metrics.energy_distance(a, b), gj.metrics.mmd(a, b, 1.0)))(a, b)
    # |X - Y| of N(d, 2), and exp(-(X - Y)^2 / 2) of the same.
    spread = lambda d: 2 / np.sqrt(np.pi) * np.exp(-(d**2) / 4) + d * (2 * norm.cdf(d / np.sqrt(2)) - 1)
    kernel = lambda d: np.sqrt(1 / 3) * np.exp(-(d**2) / 6)
    for found, expected in ((energy, 2 * spread(0.5) - 2 * spread(0)), (mmd, 2 * kernel(0) - 2 * kernel(0.5))):
        assert abs(found.mean() - expected) < 3.5 * found.std() / np.sqrt(8000)
        assert found.std() / np.sqrt(8000) < 0.05
