"""Runs of particles: groups, cost and precision, what a run reports, and when it warns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from particle_runs import crescent, edm, pair, quiet, reward
from worlds import classes, gaussian, keys, mixture, peaked

import guidance_jax as gj
from guidance_jax import targets
from guidance_jax.checks.particles import check_particles


@pytest.mark.slow
def test_a_run_warns_where_weights_degenerate(recwarn):
    run = lambda scale: gj.feynman_kac(keys(64), pair(), targets.tilted(scale), gj.heun_sde(), edm(), (1,), size=32)
    jitted = jax.jit(run)
    with pytest.warns(UserWarning, match=r"degenerate in 2 of 2 groups of 32 particles"):
        found = run(15.0)
    assert (found.ancestors < 8).all()
    recwarn.clear()
    jax.block_until_ready(jitted(15.0))
    jax.effects_barrier()
    assert ["degenerate" in str(warning.message) for warning in recwarn.list] == [True]
    recwarn.clear()
    for fine in (run, jitted):
        assert (np.asarray(fine(1.2).ancestors) > 8).all()
    jax.effects_barrier()
    assert not recwarn.list


def test_groups_do_not_affect_each_other():
    size, levels = 16, gj.levels(gj.schedules.edm(0.05, 20.0), 8, gj.spacings.karras())
    run = lambda key, labels: quiet(
        key, peaked(labels), targets.tilted(3.0), gj.heun_sde(), levels, (3,), size=size, threshold=0.9
    )
    # The second group keeps its keys and its label. The others have new ones.
    own = np.repeat([False, True, False], size)
    a = run(keys(3 * size), np.repeat([0, 1, 2], size))
    b = run(jnp.where(own, keys(3 * size), keys(3 * size, 1)), np.repeat([1, 1, 0], size))
    np.testing.assert_array_equal((a.x == b.x).all(1), own)
    np.testing.assert_array_equal(a.log_weights[own], b.log_weights[own])
    for name in ("log_normaliser", "effective", "least", "ancestors", "spread", "spread_error"):
        assert (getattr(a, name) == getattr(b, name)).tolist() == [False, True, False], name
    assert (a.least < 0.9 * size).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:feynman_kac")
def test_many_scales_share_one_trace_and_vmap_is_a_loop():
    traces = []

    def run(scale):
        traces.append(1)
        return gj.feynman_kac(keys(16), pair(), targets.tilted(scale), gj.ddpm(), edm(), (1,), size=8)

    jitted, values = jax.jit(run), np.array([0.0, 1.0, 3.5], np.float32)
    each = [jitted(value) for value in values]
    assert len(traces) == 1
    together = jax.jit(jax.vmap(run))(values)
    for i, one in enumerate(each):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(np.asarray(a)[i], b, rtol=1e-3, atol=1e-3), together, one)
    # Without a tilt: as many samples of the model, with equal weights.
    np.testing.assert_allclose(each[1].effective, 8, rtol=1e-3)
    np.testing.assert_allclose(
        each[1].x, one_program(gj.sample, keys(16), pair(), gj.chain(), gj.ddpm(), edm(), (1,)), rtol=1e-4, atol=1e-5
    )
    assert each[1].evaluations == 2 * 12, "the cost of the sampler, and no more"
    # Another inverse temperature, with kernels, can be traced too.
    cool = lambda beta: gj.feynman_kac(keys(16), pair(), targets.annealed(beta), gj.ddpm(), edm(), (1,), size=8, kernels=True)
    assert jax.eval_shape(jax.vmap(cool), values).log_normaliser.shape == (3, 2)


@pytest.mark.filterwarnings("ignore:feynman_kac")
def test_the_output_has_the_dtype_of_the_input(x64):
    levels = jax.tree.map(lambda field: field.astype(jnp.float32), edm())
    target = targets.rewarded(targets.annealed(1.5), reward)
    half = gj.Branches(lambda x, level, cond: gj.Prediction(x / 2, x / 2), {"cond": None})
    run = lambda x: gj.feynman_kac(keys(8), half, target, gj.heun_sde(), levels, x, size=4)
    assert jax.eval_shape(run, jnp.ones((8, 1))).x.dtype == jnp.float64
    found = jax.jit(run)(jnp.ones((8, 1), jnp.bfloat16))
    assert found.x.dtype == jnp.bfloat16
    assert np.isfinite(found.log_normaliser).all()


def tilt(sampler, steps, n, **how):
    """The variance of particles of the README's two Gaussians relative to the tilted law's, and the spread that the run
    reports.
    """
    v_c, v_u, w = 0.7, 1.9, 2.3
    levels = gj.levels(gj.schedules.cosine(), steps, gj.spacings.karras())
    found = one_program(
        gj.feynman_kac,
        keys(n),
        tuple(gj.Branches(gaussian(0.0, v), {name: None}) for name, v in (("cond", v_c), ("uncond", v_u))),
        targets.tilted(w),
        sampler,
        levels,
        (1,),
        **({"size": n} | how),
    )
    square = (np.exp(found.log_weights) * np.asarray(found.x)[:, 0] ** 2).sum()
    return square * (w / v_c + (1 - w) / v_u), found


@pytest.mark.slow
def test_spread_shows_the_error_of_too_few_steps():
    """The variance is 23 % off in 20 steps of `heun_sde(2.0)`, and a third off in 20 steps of kernels."""
    with pytest.warns(
        UserWarning, match=r"the spread of the particles is 0\.8\d ± 0\.0\d times the spread that the target's score implies"
    ):
        ratio, found = tilt(gj.heun_sde(2.0), 20, 8192)
    assert 0.74 < ratio < 0.80
    assert 0.78 < found.spread[0] < 0.87
    assert min(found.effective[0], found.ancestors[0]) > 7000
    with pytest.warns(UserWarning, match=r"the spread of the particles is 0\.[67]\d"):
        ratio, found = tilt(gj.ddim(1.0), 20, 8192, kernels=True)
    assert 0.6 < ratio < 0.8


@pytest.mark.slow
def test_spread_is_one_for_the_right_law_in_any_dimension_and_group():
    """By Stein's identity, also for mixtures: for each group, and only within the interval."""
    m, size = crescent(), 512
    branches, levels = classes(m, jnp.zeros(4 * size, int)), gj.levels(gj.schedules.edm(0.02, 20.0), 40, gj.spacings.karras())
    run = lambda low: quiet(keys(4 * size), branches, targets.tilted(1.5), gj.heun_sde(), levels, (2,), size=size, low=low)
    found = run(0.0)
    assert (np.abs(found.spread - 1) < 4 * found.spread_error).all()
    assert (found.spread_error < 0.1).all()
    assert len(set(found.spread.tolist())) == 4
    assert np.isnan(run(50.0).spread).all()


@pytest.mark.parametrize(
    ("counted", "size", "warns"),
    [(29, 16_000, True), (161, 16_000, False), (7_000, 8_192, False), (9.9, 256, True), (10.1, 256, False), (2, 8, False)],
)
def test_degeneracy_depends_on_the_number_and_on_the_fraction(recwarn, counted, size, warns):
    """A reward puts all weight on a given number of particles. `effective`, `least` and `ancestors` are that number."""
    one = jnp.ones(1)
    for least, ancestors in ((counted, size), (size, counted)):
        recwarn.clear()
        no = jnp.zeros(1, bool)
        check_particles(size, None, no, no, least * one, ancestors * one, one, 0 * one)
        assert ["degenerate" in str(w.message) for w in recwarn.list] == [True] * warns


@pytest.mark.slow
def test_bad_input_raises():
    m = mixture()
    schedule, flow = gj.schedules.edm(), gj.levels(gj.schedules.flow(), 4, gj.spacings.uniform())
    two, tilted, ddpm, own = pair(), targets.tilted(2.0), gj.ddpm(), edm()
    run = lambda target=tilted, sampler=ddpm, levels=own, branches=two, size=4, **how: gj.feynman_kac(
        keys(8), branches, target, sampler, levels, (1,), size=size, **how
    )
    for build, message in [
        (lambda: run(size=3), "divisor of the number of keys, 8, got 3"),
        (lambda: run(size=1), "2 or more"),
        (lambda: run(threshold=1.5), "threshold must be a number in"),
        (lambda: run(low=2.0, high=1.0), "is empty"),
        (lambda: run(sampler=gj.heun(), kernels=True), "samplers that have them"),
        (lambda: run(sampler=gj.ddim(), kernels=True), "draws nothing"),
        (lambda: run(targets.tilted(2.0, cond="conds")), "Did you mean 'cond'"),
        (lambda: run(targets.annealed(2.0), levels=flow), "at alpha = 0"),
        (lambda: run(targets.rewarded(tilted, lambda x0, level: x0)), r"log_reward returns must be \[8\], got float32\[8,1\]"),
        (lambda: run(sampler=gj.recur(gj.ddpm(), 2)), "recurrence"),
        (lambda: run(sampler=gj.restart(gj.heun(), schedule, 2, 1, 0.1, 1.0)), "restarts"),
        (lambda: run(sampler=gj.churn(gj.heun(), schedule, 0.2)), "churn"),
        (lambda: run(sampler=gj.predictor_corrector(gj.ddim())), "follows the base alone"),
        (lambda: run(branches=classes(m, jnp.arange(8) % 3)), r"branches\['cond'\] differs within a group of 4"),
        (lambda: targets.tilted(jnp.ones(2)), r"shape \(2,\)"),
        (lambda: targets.annealed(-1.0), "annealed: beta must be a positive number, got -1"),
        (lambda: targets.product({}), "at least one branch"),
        (lambda: targets.product({"a": 1.0}, rest="a"), "has an exponent already"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()
    with pytest.raises(TypeError, match="got the function <lambda>; use one number for all levels"):
        targets.product({"cond": lambda level: 2.0})  # pyright: ignore[reportArgumentType]
