"""Tests of the closed forms of the Gaussian job."""

import itertools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_the_closed_forms_are_exact():
    from experiments.gaussians import closed_forms

    for w in (0.0, 1.0):
        forms = closed_forms(w, 0.5, 2.0)
        assert {round(v, 12) for v in forms.values()} == {(2.0, 0.5)[int(w)]}
    # The reverse SDE's variance, integrated numerically: dV/dr along r = sigma from infinity to 0.
    w, v_c, v_u = 3.0, 0.5, 2.0
    variance = 1e8
    r = np.geomspace(1e4, 1e-4, 400_001)
    for a, b in itertools.pairwise(r):
        pull = w / (v_c + a * a) + (1 - w) / (v_u + a * a)
        h = (a * a - b * b) / 2
        variance = variance * (1 - 2 * h * pull) ** 2 + 2 * h
    assert math.isclose(variance, closed_forms(w, v_c, v_u)["ddpm"], rel_tol=2e-3)
    assert closed_forms(-1.0, 0.5, 2.0)["tilted"] == np.inf  # not a density


@pytest.mark.slow
def test_the_table_of_the_tilted_density_has_its_exact_moments():
    import guidance_jax as gj
    from experiments.gaussians import exact, pooled, statistics, two_modes

    # At scale 1 the tilted density is p(x | y) with two weights of 0.5. Its moments are known.
    form = exact(two_modes(), 1.0)
    np.testing.assert_allclose([form["mean"], form["variance"]], [-0.25, 1.25**2 + 0.35], rtol=1e-5)
    np.testing.assert_allclose(form["log_normaliser"], 0, atol=1e-5)
    tail = [math.erfc((mean + 0.25) / math.sqrt(2 * v)) / 2 for mean, v in ((-1.5, 0.3), (1.0, 0.4))]
    np.testing.assert_allclose(form["share"], np.mean(tail), rtol=1e-4)

    log_weights = jnp.log(jnp.array([0.25, 0.75, 0.5, 0.5]))
    x = jnp.array([[1.0, 9.0], [2.0, 9.0], [-1.0, 9.0], [3.0, 9.0]])
    two = jnp.array([2.0, 2.0])
    found = gj.particles.Particles(x, log_weights, jnp.log(jnp.array([1.0, 3.0])), two, two, two, two, two, jnp.int32(0))
    means, errors = pooled(found, statistics(x, 1.0))
    np.testing.assert_allclose(means, [0.25 * 1.75 + 0.75 * 1.0, 0.25 * 0.75 + 0.75 * 4.0, 0.75 * 0.5], rtol=1e-6)
    np.testing.assert_allclose(errors[0], np.sqrt(2 * ((0.25 * 0.5625) ** 2 + (0.75 * 0.1875) ** 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"), [({"particles": 3000}, "two groups"), ({"tilted_scales": (0.5,)}, "at least 1")]
)
def test_a_config_with_a_wrong_value_raises(change, message):
    from experiments.gaussians import Config

    with pytest.raises(ValueError, match=message):
        Config(**change)


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:feynman_kac:UserWarning")  # so few particles degenerate
def test_a_smoke_run_writes_its_tables_and_pictures(lenient, tmp_path):
    from experiments.gaussians import SAMPLERS, Config, main

    rows = main(Config(out=tmp_path, smoke=True))
    names = {path.name for path in (tmp_path / "smoke").iterdir()}
    assert names == {"variance.png", "tilted.png", "mixture.png", "metrics.json"}
    found = json.loads((tmp_path / "smoke" / "metrics.json").read_text())
    assert [row["sampler"] for row in found["steps"]] == list(SAMPLERS)
    # Without guidance all laws are those of the data: p(x) at scale 0 and p(x | y) at scale 1.
    for row, variance in zip((rows[0], rows[2]), (2.0, 0.5), strict=True):
        laws = ("ddim", "ddpm", "tilted", "calibrated")
        np.testing.assert_allclose([row[f"{law}_measured"] for law in laws], variance, rtol=0.3)
