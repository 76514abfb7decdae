"""Tests of montages."""

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_montage_has_every_tile_at_its_row_and_column():
    from experiments.tools.pictures import montage

    images = np.linspace(-1, 1, 6).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 8, 8, 1))
    canvas = montage(images)
    side = canvas.shape[0] // 2
    for r in range(2):
        for c in range(3):
            assert np.isclose(canvas[r * side + side // 2, c * side + side // 2, 0], (images[r, c, 0, 0, 0] + 1) / 2)
    assert (canvas[0] == 1).all()
