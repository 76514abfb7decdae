"""Metrics against scikit-learn and hand-made sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
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
