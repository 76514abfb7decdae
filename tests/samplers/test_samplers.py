"""Samplers against independent NumPy versions from their papers, with noise, and further properties of single samplers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from quick import quick_keys
from sampler_rows import MEAN_C, MEAN_U, ROWS, RUNS, SCALE, STEPS, VAR_C, VAR_U, guided, one, two_gaussians
from worlds import SCHEDULES, path, sampler_noise

import guidance_jax as gj


def schedule_named(name):
    return gj.schedules.flow(t_max=0.99) if name == "flow" else SCHEDULES[name]()


@functools.cache
def known_branches():
    return two_gaussians(RUNS)


def generated(sampler, levels, guidance=None):
    """The samples, `[RUNS]`, and evaluations of a run. Samplers that differ in numbers share a program."""
    guidance = gj.cfg(SCALE) if guidance is None else guidance
    state, _ = one_program(gj.run, quick_keys(RUNS), known_branches(), guidance, sampler, levels, (1,))
    return state.x.ravel(), state.evaluations


@functools.cache
def spaced(name, spacing):
    return jax.tree.map(np.asarray, gj.levels(schedule_named(name), STEPS, spacing))


@jax.jit
def drawn(levels):
    x = jnp.zeros((RUNS, 1))
    start = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), (1,)))(quick_keys(RUNS))
    steps = lambda fold: [sampler_noise(quick_keys(RUNS), levels, i, x, fold) for i in range(STEPS)]
    return [jnp.concatenate([start, *steps(fold)], axis=1) for fold in (None, 1)]


def noise(levels, fold=None):
    """The standard normal numbers of every run, at its start and in each step: `[RUNS, STEPS + 1]`."""
    return np.asarray(drawn(levels)[fold == 1])


def read(step, levels, start, z, denoise=guided):
    """A run of the NumPy version. start and z may be arrays of runs."""
    pairs = [(float(a), float(s)) for a, s in zip(levels.alpha, levels.sigma, strict=True)]
    x, memory = start, None
    for n, (now, after) in enumerate(itertools.pairwise(pairs)):
        x, memory = step(denoise, x, memory, now, after, z[n])
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_samples_are_those_of_the_paper_for_the_same_noise(x64, name):
    row = ROWS[name]
    sampler = row.make(row.schedule and schedule_named(row.schedule))
    for schedule in [row.schedule] if row.schedule else SCHEDULES:
        levels = spaced(schedule, gj.spacings.trailing())
        samples, evaluations = generated(sampler, levels)
        z0, *z = noise(levels, row.fold).T
        np.testing.assert_allclose(samples, read(row.reading, levels, levels.sigma[0] * z0, z), rtol=1e-9, err_msg=schedule)
        assert evaluations == 2 * (row.evaluations * (STEPS - 1) + 1)


def adjusted_ddim(denoise, x, memory, now, after, z):
    """A DDIM whose eps enters the next level with the current level's fraction of noise."""
    x0 = denoise(x, *now)
    return after[0] * x0 + now[1] * (x - now[0] * x0) / now[1], memory


def heun_from_the_predicted_point(denoise, x, memory, now, after, z):
    y, t, t_next = x / now[0], now[1] / now[0], after[1] / after[0]
    d = (y - denoise(y, 1.0, t)) / t
    y_next = y + (t_next - t) * d
    if t_next > 0:
        y_next = y_next + (t_next - t) * (d + (y_next - denoise(y_next, 1.0, t_next)) / t_next) / 2
    return after[0] * y_next, memory


def heun_with_the_first_conditional_output(denoise, x, memory, now, after, z):
    y, t, t_next = x / now[0], now[1] / now[0], after[1] / after[0]
    c, d = one(MEAN_C, VAR_C)(y, 1.0, t), (y - denoise(y, 1.0, t)) / t
    y_next = y + (t_next - t) * d
    if t_next > 0:
        u = one(MEAN_U, VAR_U)(y_next, 1.0, t_next)
        y_next = y + (t_next - t) * (d + (y_next - u - SCALE * (c - u)) / t_next) / 2
    return after[0] * y_next, memory


@pytest.mark.parametrize(
    ("name", "defective"),
    [
        ("ddim", adjusted_ddim),
        ("heun", heun_from_the_predicted_point),
        ("heun", heun_with_the_first_conditional_output),
        ("ddpm learned", ROWS["ddpm small"].reading),
    ],
)
def test_defects_of_other_libraries_are_detected(x64, name, defective):
    levels = spaced("cosine", gj.spacings.trailing())
    z0, *z = noise(levels).T
    wrong = read(defective, levels, levels.sigma[0] * z0, z)
    assert np.abs(generated(ROWS[name].make(None), levels)[0] - wrong).min() > 1e-4


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "dpmpp_sde eta", "unipc 3"])
def test_cfg_plus_plus_is_the_unconditional_step_plus_the_difference(x64, name):
    """A multistep sampler remembers the x0 that its eps implies, which is the unconditional one."""
    share, step = 0.7, ROWS[name].reading
    levels = spaced("cosine", gj.spacings.trailing())
    samples, _ = generated(ROWS[name].make(None), levels, gj.cfg_pp(share))
    c, u = one(MEAN_C, VAR_C), one(MEAN_U, VAR_U)

    def beside(denoise, x, memory, now, after, z):
        moved, memory = step(u, x, memory, now, after, z)
        return moved + after[0] * share * (c(x, *now) - u(x, *now)), memory

    z0, *z = noise(levels).T
    np.testing.assert_allclose(samples, read(beside, levels, levels.sigma[0] * z0, z), rtol=1e-9)


@pytest.mark.parametrize("name", ["euler churn", "dpmpp_2s eta"])
def test_between_two_levels_the_network_receives_the_time_there(x64, name):
    """A denoiser that computes the level from t gives the same samples. The times here lie between the discrete steps."""
    schedule = gj.schedules.ddpm_linear()
    levels = spaced("ddpm_linear", gj.spacings.trailing())
    branches, sampler = two_gaussians(RUNS, schedule), ROWS[name].make(schedule)
    samples = one_program(gj.sample, quick_keys(RUNS), branches, gj.cfg(SCALE), sampler, levels, (1,)).ravel()
    np.testing.assert_allclose(samples, generated(sampler, levels)[0], rtol=1e-9)


def test_churn_does_not_exceed_the_maximum_of_the_schedule(x64):
    schedule = gj.schedules.ddpm_linear()
    levels = path(spaced("ddpm_linear", gj.spacings.trailing()), slice(None, 2))
    assert levels.t[0] == schedule.t_max
    churned, plain = (generated(sampler, levels)[0] for sampler in (gj.churn(gj.euler(), schedule, 0.3), gj.euler()))
    np.testing.assert_allclose(churned, plain, rtol=1e-12)


def test_the_number_zero_draws_no_noise():
    levels = gj.levels(gj.schedules.cosine(), 3, gj.spacings.trailing())
    schedule = gj.schedules.cosine()
    still = [gj.ddim(), gj.euler(), gj.churn(gj.euler(), schedule, 0), gj.heun(), gj.euler_ancestral(0), gj.dpmpp_sde(0)]
    still.append(gj.dpmpp_2s(schedule))
    run = lambda sampler: lambda x: gj.sample(quick_keys(2), two_gaussians(2), gj.cfg(2.0), sampler, levels, x)
    for sampler, draws in [*((sampler, False) for sampler in still), (gj.euler_ancestral(0.1), True)]:
        assert ("random_bits" in str(jax.make_jaxpr(run(sampler))(jnp.ones((2, 1))))) == draws
    assert gj.euler().reversible
    assert gj.dpmpp_2s(schedule).reversible
    assert gj.churn(gj.heun(), schedule, 0.0).reversible
    assert not gj.churn(gj.heun(), schedule, 0.1).reversible
    own = gj.Sampler(lambda x: (), gj.heun().step)
    assert repr(gj.churn(own, schedule, 0.0)) == "churn(a Sampler, cosine(), amount=0.0)"
    assert own.call is None


@pytest.mark.slow
def test_samplers_that_coincide_for_some_value_give_the_same_samples(x64):
    """Euler ancestral is DDIM for every eta, and the first step of SDE is DDPM's."""
    levels = spaced("cosine", gj.spacings.karras())
    for same, as_this in [
        (gj.euler(), gj.ddim()),
        (gj.euler_ancestral(0.6, noise_scale=1.0), gj.ddim(0.6)),
        (gj.euler_ancestral(), gj.ddpm()),
        (gj.dpmpp_sde(0), gj.dpmpp_2m()),
    ]:
        np.testing.assert_allclose(generated(same, levels)[0], generated(as_this, levels)[0], rtol=1e-10, err_msg=str(same))
    first = path(levels, slice(None, 2))
    np.testing.assert_allclose(generated(gj.dpmpp_sde(), first)[0], generated(gj.ddpm(), first)[0], rtol=1e-10)


def test_a_run_may_start_midway(x64):
    """A run of the second half, from the state after the first half, ends as the whole run does."""
    levels, sampler = spaced("cosine", gj.spacings.trailing()), ROWS["dpmpp_2s"].make(gj.schedules.cosine())
    first, second = path(levels, slice(None, 4)), path(levels, slice(3, None))
    halfway = generated(sampler, first)[0][:, None]
    ended = one_program(gj.sample, quick_keys(RUNS), known_branches(), gj.cfg(SCALE), sampler, second, halfway).ravel()
    np.testing.assert_allclose(ended, generated(sampler, levels)[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gj.ddim(1.5), r"ddim: eta must be a number in \[0, 1\]"),
        (lambda: gj.ddim(jnp.zeros(3)), "scalar"),
        (lambda: gj.ddpm("medium"), "small"),
        (lambda: gj.churn(gj.heun(), gj.schedules.edm(), -0.1), r"churn: amount must be a number in \[0, inf\), got -0.1"),
        (lambda: gj.churn(gj.heun(), gj.schedules.edm(), jnp.ones(2)), "scalar"),
        (
            lambda: gj.churn(gj.heun(), gj.schedules.edm(), 0.1, 2.0, 1.0),
            "churn: low must be at most high, got low 2.0 and high 1.0",
        ),
        (lambda: gj.euler_ancestral(-1.0), "euler_ancestral: eta"),
        (lambda: gj.dpmpp_2s(gj.schedules.edm(), noise_scale=-1.0), "dpmpp_2s: noise_scale"),
        (lambda: gj.dpmpp_sde(jnp.ones(2)), "dpmpp_sde: eta"),
        (lambda: gj.dpmpp_3m(curvature=-1.0), "dpmpp_3m: curvature"),
        (lambda: gj.unipc(4), "order must be 1, 2 or 3, got 4"),
        (lambda: gj.unipc(2, variant=3), "variant must be 1 or 2, got 3"),
    ],
)
def test_bad_input_raises(build, message):
    with pytest.raises(ValueError, match=message):
        build()
