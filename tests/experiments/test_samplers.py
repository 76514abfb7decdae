"""Tests of the study of samplers: its levels include the bounds, its claims hold at small size, and it writes its files."""

import numpy as np
import pytest

from experiments import samplers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_levels_include_the_bounds_and_keep_their_ends():
    levels, plain = samplers.path(12, (0.2, 2.0)), samplers.path(12)
    ratio = np.asarray(levels.ratio)
    assert {0.2, 2.0} <= {round(float(r), 5) for r in ratio}
    np.testing.assert_allclose(ratio[[0, -1]], plain.ratio[np.array([0, -1])])
    assert (np.diff(ratio) < 0).all()
    assert (np.asarray(plain.ratio) != ratio).sum() == 2


@pytest.mark.smoke
@pytest.mark.slow
def test_a_smoke_run_writes_its_files_and_thresholding_removes_the_error_of_a_large_scale(tmp_path):
    found = samplers.main(samplers.Config(out=tmp_path, smoke=True))
    assert list(found["usual"]["samplers"]) == ["dpmpp_2m", "ddpm"]
    assert {path.name for path in (tmp_path / "smoke").iterdir()} == {"samplers.png", "metrics.json"}
    assert (found["steps"][1], list(found["interval"])) == (12, ["dpmpp_2m, interval"])
    far, near = (found["large"][way]["distance"][1] for way in ("dpmpp_2m", "dpmpp_2m, thresholded"))
    assert far > 1.0 > 0.3 > near


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": (1,)}, "at least"), ({"targets": (0.1, 0.2)}, "largest first"), ({"only": ("dddim",)}, "only names")],
)
def test_a_config_with_a_wrong_value_raises(change, message):
    with pytest.raises(ValueError, match=message):
        samplers.Config(**change)
