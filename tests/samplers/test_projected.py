"""Samplers that are projected to a subspace."""

import numpy as np
import pytest
from one_program import one_program
from quick import quick_keys

import guidance_jax as gj
from guidance_jax.base import Prediction


def centred(x):
    return x - x.mean(1, keepdims=True)


def points(n, count=5):
    """Point clouds whose network keeps the centre of mass at 0, for data `N(0, 1 / 2)` in that subspace."""

    def denoise(x, level, cond):
        x0 = level.alpha * 0.5 / (level.alpha**2 * 0.5 + level.sigma**2) * x
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return gj.branches(denoise, cond=None), (count, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "heun_sde", "churn", "recur", "dpmpp_2m"])
def test_a_projected_point_cloud_keeps_zero_centre_of_mass(x64, name):
    schedule = gj.schedules.cosine()
    project = lambda sampler: gj.projected(sampler, centred)
    sampler = {
        "ddim": project(gj.ddim()),
        "heun_sde": project(gj.heun_sde()),
        "churn": project(gj.churn(project(gj.heun()), schedule, 0.2)),
        "recur": project(gj.recur(project(gj.ddim()), 2)),
        "dpmpp_2m": project(gj.dpmpp_2m()),
    }[name]
    branches, shape = points(4)
    levels = gj.levels(schedule, 5, gj.spacings.karras())
    x, along = one_program(gj.sample, quick_keys(4), branches, gj.chain(), sampler, levels, shape, trace=lambda state: state.x)
    np.testing.assert_allclose(along.mean(2), 0, atol=1e-12)
    np.testing.assert_allclose(x.mean(1), 0, atol=1e-12)
    assert (x.std((1, 2)) > 0.05).all()


def test_every_evaluation_sees_a_point_in_the_subspace(x64):
    """So a run from x is the run from its projection, also for a network that depends on the centre of mass."""
    branches = gj.branches(gj.denoiser(lambda x, t, cond: x * (0.5 + x.mean((1, 2), keepdims=True)), "x0"), cond=None)
    levels = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())
    x = np.random.default_rng(0).normal(0.5, 1.0, (2, 5, 3))
    run = lambda x: one_program(gj.sample, quick_keys(2), branches, gj.chain(), gj.projected(gj.ddim(), centred), levels, x)
    np.testing.assert_allclose(run(x), run(centred(x)), rtol=1e-12)


def test_the_noise_of_a_projected_sampler_is_standard_normal_in_the_subspace(x64):
    """So the law is that of the subspace: the variance per coordinate is (N - 1) / N of the variance without projection."""
    branches, shape = points(2000)
    levels = gj.levels(gj.schedules.cosine(), 60, gj.spacings.karras())
    run = lambda sampler: one_program(gj.sample, quick_keys(2000), branches, gj.chain(), sampler, levels, shape)
    x, plain = run(gj.projected(gj.heun_sde(), centred)), centred(run(gj.heun_sde()))
    np.testing.assert_allclose(x, plain, atol=1e-12)
    covariance = np.einsum("bid,bjd->ij", x, x) / (3 * 2000)
    np.testing.assert_allclose(covariance, 0.5 * (np.eye(5) - 1 / 5), atol=0.04)
    np.testing.assert_allclose(np.trace(covariance) / 5, 0.4, atol=0.015)


@pytest.mark.parametrize(
    ("project", "error", "message"),
    [
        (lambda x: x[:, :2], ValueError, r"projected: what project returns must be \[2, 5, 3\], got float32\[2,2,3\]"),
        (
            lambda x: x.astype(int),
            TypeError,
            r"projected: what project returns must be an array of float32 numbers.*got int32\[2,5,3\]",
        ),
        (lambda x: None, TypeError, "projected: what project returns must be an array of float32 numbers.*got None"),
        (lambda x, level: x, TypeError, r"projected: project must take \(x\), but .* takes \(x, level\)"),
        (1.0, TypeError, "projected: project must be a function, got the float 1.0"),
    ],
)
def test_a_map_that_is_not_a_projection_raises(project, error, message):
    branches, shape = points(2)
    levels = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras())
    with pytest.raises(error, match=message):
        gj.sample(quick_keys(2), branches, gj.chain(), gj.projected(gj.ddim(), project), levels, shape)
