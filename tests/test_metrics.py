"""Metrics against scikit-learn and hand-made sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
