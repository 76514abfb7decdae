"""`gj.guided`: the guided denoiser gives the same results in custom loops as in the library's samplers."""

import functools
import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import keys, peaked

import guidance_jax as gj

LABELS = jnp.asarray(np.arange(3, dtype=np.int32))


def world():
    """The branches of two peaks, EDM's schedule, and noise to start from."""
    x = jnp.asarray(20.0 * np.random.default_rng(0).normal(size=(3, 3)), float)
    return peaked(LABELS), gj.schedules.edm(0.02, 20.0), x


def levels(schedule, steps):
    """A path to the schedule's minimum noise. It does not go to 0, where an ODE in sigma has no end."""
    return gj.levels(schedule, steps, gj.spacings.karras())[:-1]


def solved(denoise, schedule, x, high, low):
    """The solution of the ODE `dx / dsigma = eps` by diffrax, to a tolerance far below the test's."""
    slope = diffrax.ODETerm(lambda sigma, x, args: denoise(x, schedule.at(sigma)).eps)
    control = diffrax.PIDController(rtol=1e-8, atol=1e-8)
    solution = diffrax.diffeqsolve(slope, diffrax.Dopri8(), high, low, None, x, stepsize_controller=control, max_steps=10_000)
    assert solution.ys is not None
    return solution.ys[-1]


GUIDANCES = {"cfg": lambda: gj.cfg(3.0), "rescaled": lambda: gj.chain(gj.cfg(3.0), gj.rescale(0.7))}


@functools.cache
def arrived(guidance):
    """Where the ODE ends, of the world in float64."""
    branches, schedule, x = world()
    return jax.jit(lambda x: solved(gj.guided(branches, GUIDANCES[guidance]()), schedule, x, 20.0, 0.02))(x)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "steps", "guidance"), [("dpmpp_2m", 5000, "rescaled"), ("heun", 400, "cfg")])
def test_an_ode_solver_arrives_where_the_samplers_do(x64, sampler, steps, guidance):
    branches, schedule, x = world()
    ours = gj.sample(keys(3), branches, GUIDANCES[guidance](), getattr(gj, sampler)(), levels(schedule, steps), x)
    np.testing.assert_allclose(ours, arrived(guidance), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_ode_may_be_solved_in_another_time(x64):
    """Rectified flow by its velocity: `dx / dt = eps - x0`, from t = 1 to 0, is EDM's ODE in other coordinates."""
    branches, _, x = world()
    flow = gj.schedules.flow()

    def velocity(t, x, args):
        prediction = gj.guided(branches, gj.cfg(3.0))(x, flow(t))
        return prediction.eps - prediction.x0

    @jax.jit
    def ended():
        high, low = (flow.at(ratio).t for ratio in (20.0, 0.02))
        control = diffrax.PIDController(rtol=1e-8, atol=1e-8)
        start = flow(high).alpha * x
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity), diffrax.Dopri8(), high, low, None, start, stepsize_controller=control, max_steps=10_000
        )
        assert solution.ys is not None
        return solution.ys[-1] / flow(low).alpha

    np.testing.assert_allclose(ended(), arrived("cfg"), rtol=1e-5, atol=1e-5)


REMEMBERING = {
    "adaptive": lambda: gj.adaptive(gj.cfg(3.0), 0.9),
    "two that remember": lambda: gj.chain(gj.reuse(gj.cfg(3.0), 2), gj.momentum(0.3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REMEMBERING)
def test_guidance_with_memory_is_the_same_in_a_custom_loop_as_in_sample(x64, name):
    """DDIM step by step, with the memory as input and output. Two that remember run operation by operation too."""
    branches, schedule, x = world()
    guidance, path = REMEMBERING[name](), levels(schedule, 8)
    denoise = gj.guided(branches, guidance)

    def step(x, memory, level, after):
        prediction, memory = denoise(x, level, memory, next=after)
        return after.alpha * prediction.x0 + after.sigma * prediction.eps, memory

    jitted = jax.jit(step)

    def looped(step):
        along, memory, steps = x, denoise.init(x), []
        for level, after in itertools.pairwise(path):
            along, memory = step(along, memory, level, after)
            steps.append(np.asarray(along))
        assert int(memory.number) == len(path) - 1
        return steps, memory

    ours, trace = gj.sample(keys(3), branches, guidance, gj.ddim(), path, x, trace=lambda state: state.x)
    steps, memory = looped(jitted)
    np.testing.assert_allclose(trace, np.stack(steps), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ours, steps[-1], rtol=1e-10, atol=1e-10)
    forgetful, remembering = (jitted(x, held, path[0], path[1])[0] for held in (denoise.init(x), memory))
    assert np.abs(forgetful - remembering).max() > 1e-3, "the memory changes nothing, so the test proves nothing"
    if name == "two that remember":
        np.testing.assert_allclose(looped(step)[0], steps, rtol=1e-10, atol=1e-10)


def test_a_guided_denoiser_may_be_jitted():
    branches, schedule, x = world()
    denoise = gj.guided(branches, gj.cfg(3.0))
    jitted, eager = jax.jit(denoise)(x, schedule(0.5)), denoise(x, schedule(0.5))
    np.testing.assert_allclose(jitted.x0, eager.x0, rtol=1e-5)


def test_guidance_without_memory_works_with_and_without_a_memory():
    branches, schedule, x = world()
    denoise, level = gj.guided(branches, gj.cfg(3.0)), schedule.at(2.0)
    alone, (along, memory) = jax.jit(lambda x: (denoise(x, level), denoise(x, level, denoise.init(x))))(x)
    assert isinstance(alone, gj.Prediction)
    np.testing.assert_array_equal(alone.x0, along.x0)
    assert int(memory.number) == 1


def test_every_sample_may_have_its_own_level():
    branches, schedule, x = world()
    ratios = np.array([0.5, 2.0, 8.0], np.float32)
    at = jax.jit(lambda ratio: gj.guided(branches, gj.cfg(3.0))(x, schedule.at(ratio)).x0)
    each = [at(ratio)[i] for i, ratio in enumerate(ratios)]
    np.testing.assert_allclose(at(ratios), np.stack(each), rtol=1e-5, atol=1e-5)


def test_parts_as_arguments_work_outside_the_loop_that_reads_them_first():
    """A scale with its own table, as an argument of `jit`, is read in a `cond` within a `scan` and then once more."""
    branches, schedule, x = world()
    curve = gj.Curve(ratio=jnp.array([0.1, 1.0, 10.0]), rho=jnp.array([1.0, 0.5, 0.0]))
    scale = gj.scales.calibrated(curve, 3.0)
    guidance = gj.unless_one(gj.during(gj.cfg(scale), 0.1), scale)

    @jax.jit
    def twice(guidance, x):
        denoise = gj.guided(branches, guidance)
        along, _ = jax.lax.scan(lambda x, ratio: (denoise(x, schedule.at(ratio)).x0, None), x, jnp.array([2.0, 1.0]))
        return denoise(along, schedule.at(0.5)).x0

    by_hand, once = x, jax.jit(lambda x, ratio: gj.guided(branches, guidance)(x, schedule.at(ratio)).x0)
    for ratio in (2.0, 1.0, 0.5):
        by_hand = once(by_hand, ratio)
    np.testing.assert_allclose(twice(guidance, x), by_hand, rtol=1e-5, atol=1e-5)


def test_an_interval_requires_one_level_for_all_samples():
    """With one level per sample, some are inside and others outside. Under `vmap`, one program separates them."""
    branches, schedule, x = world()
    guidance, ratios = gj.during(gj.cfg(3.0), 1.0, 4.0), np.array([0.5, 2.0, 8.0], np.float32)
    message = r"during: the level must be one for all samples, got a level of shape \(3,\); use gj.sample, or jax.vmap over"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda ratios: gj.guided(branches, guidance)(x, schedule.at(ratios)), ratios)

    def one(x, label, ratio):
        return gj.guided(peaked(label[None]), guidance)(x[None], schedule.at(ratio)).x0[0]

    at = jax.jit(lambda ratio: gj.guided(branches, guidance)(x, schedule.at(ratio)).x0)
    alone = [at(ratio)[i] for i, ratio in enumerate(ratios)]
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(x, LABELS, ratios), np.stack(alone), rtol=1e-5, atol=1e-5)


def test_a_guidance_that_draws_uses_the_given_keys():
    branches, schedule, x = world()
    guidance = gj.lgd(lambda x0: -(x0**2).sum(1), 0.1, draws=2)
    level = schedule.at(2.0)
    at = jax.jit(lambda *given: gj.guided(branches, guidance, *given)(x, level).eps)
    again = jax.jit(lambda: gj.guided(branches, guidance)(x, level).eps)
    np.testing.assert_array_equal(at(), again())
    assert np.abs(at() - at(keys(3, 5))).max() > 1e-6
    assert np.abs(at(keys(3)) - at(keys(3, 5))).max() > 1e-6


def test_gradients_pass_through_the_guided_denoiser():
    """The gradient of a run by Euler's method in the scale, against a difference quotient."""
    branches, schedule, x = world()
    path = gj.levels(schedule, 6, gj.spacings.karras())

    def end(scale):
        denoise, along = gj.guided(branches, gj.cfg(scale)), x
        for level, after in itertools.pairwise(path):
            prediction = denoise(along, level)
            along = after.alpha * prediction.x0 + after.sigma * prediction.eps
        return along.sum()

    (low, _, high), (_, slope, _) = jax.jit(jax.vmap(jax.value_and_grad(end)))(np.array([1.95, 2.0, 2.05], np.float32))
    np.testing.assert_allclose(slope, (high - low) / 0.1, rtol=0.02, atol=0.02)
