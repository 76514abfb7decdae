"""Tests of the augmentation for the judge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_jitter_shifts_by_at_most_one_pixel():
    from experiments.tools.evaluator import jitter

    image = np.full((200, 8, 8, 1), -1.0, np.float32)
    image[:, 4, 4] = 9.0
    moved = np.asarray(jitter(jax.random.key(0), jnp.asarray(image)))[..., 0]
    at = np.array([np.unravel_index(m.argmax(), m.shape) for m in moved])
    assert set(map(tuple, (at - 4).tolist())) == {(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
