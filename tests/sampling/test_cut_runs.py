"""Noise depends on the key and the level: a run cut and continued equals the whole run exactly, and no noise is reused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import COSINE, SAMPLERS, SHAPE, TABLE, B, network, updates, world
from quick import quick_keys
from worlds import keys, path, step

import guidance_jax as gj
from guidance_jax import conditions
from guidance_jax.noise import normal, step_keys

W = world()._replace(keys=quick_keys(B))
STEPS = 3
LEVELS = gj.levels(COSINE, STEPS, gj.spacings.karras())
DENOISE = gj.denoiser(network, predicts="v")
X = jnp.asarray(np.random.default_rng(7).normal(size=(B, *SHAPE)), float)


def drawn(step):
    return jax.vmap(lambda key: jax.random.normal(key, (2,)))(step_keys(step))


BRANCHES = gj.branches(DENOISE, batched=True, **W.conds | {"random": drawn})
DRAWS = gj.branches(DENOISE, random=drawn)
"""One branch, whose condition is drawn in every step. All draws of guidances and conditions have these keys."""
ALL = SAMPLERS | {
    "predictor_corrector": gj.predictor_corrector(gj.ddpm(), 2, guided=True),
    "recur": gj.recur(gj.inpaint(gj.ddpm(), jnp.ones(SHAPE), jnp.arange(SHAPE[0])[:, None] < 2), 2),
}
"""Those of the contract, and two that draw more often."""
FORGETFUL = {name: sampler for name, sampler in ALL.items() if not jax.tree.leaves(jax.eval_shape(sampler.init, X))}
REMEMBERING = {name: ALL[name] for name in ALL if name not in FORGETFUL}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def begun(sampler, guidance):
    return gj.State(X, sampler.init(X), guidance.init(X), jnp.int32(0), jnp.zeros_like(X), jnp.int32(0))


def check_cuts(sampler, start, guidance=gj.chain(), branches=DRAWS):  # noqa: B008
    """Each step but the first is the second of a run and the first of a run that continues it, from the x or the state before.

    Both are one program, so they agree to the last bit. Runs of other lengths are compared below.
    """
    run = lambda levels, start: gj.run(W.keys, branches, guidance, sampler, levels, start, trace=lambda state: state)
    two = jax.jit(lambda levels, start: run(levels, start)[1])
    remembered, continued = isinstance(start, gj.State), start
    for number in range(STEPS - 1):
        both = two(path(LEVELS, slice(number, number + 3)), start)
        first, second = (jax.tree.map(lambda field, i=i: field[i], both) for i in (0, 1))
        if number:
            same(*((first, continued) if remembered else (first.x, continued.x)))
        continued, start = second, first if remembered else first.x
    assert np.isfinite(continued.x).all()
    return continued


@pytest.mark.slow
@pytest.mark.parametrize("name", FORGETFUL)
def test_without_memory_x_is_enough_to_continue(name):
    check_cuts(FORGETFUL[name], X)


@pytest.mark.slow
@pytest.mark.parametrize("name", REMEMBERING)
def test_with_memory_the_state_is_enough_to_continue(name):
    check_cuts(REMEMBERING[name], begun(REMEMBERING[name], gj.chain()))


ROWS = {name: row.make(row.usual, W) for name, row in TABLE.items()}
COUNTING = {
    **{name: guidance for name, guidance in ROWS.items() if jax.tree.leaves(guidance.init(X))},
    "cfg_zero_star": gj.cfg_zero_star(2.0, 2),
    "feedback": gj.feedback(0.7, offset=-0.3),
    "reuse": gj.reuse(gj.apg(2.0), 2),
}
"""Guidances that have memory or depend on the number of the step."""


def test_guidance_with_memory_continues_from_the_state():
    """All side by side, each with its own memory in the state."""
    guidance = gj.add(*(gj.chain(part, gj.amplify(1 / len(COUNTING))) for part in COUNTING.values()))
    assert check_cuts(gj.ddpm(), begun(gj.ddpm(), guidance), guidance, BRANCHES).number == STEPS


def test_guidance_without_memory_is_the_same_whatever_the_number_of_the_step():
    """So a run from x alone, which counts from 0 again, continues with it."""
    parts = {name: ROWS[name] for name in ROWS if name not in COUNTING}
    guided = jax.jit(lambda number: updates(parts, BRANCHES, W.keys, X, number, path(LEVELS, 1), path(LEVELS, 2)))
    first, later = guided(0), guided(2)
    for name in parts:
        assert np.isfinite(first[name].x0).all(), name
        np.testing.assert_array_equal(later[name].x0, first[name].x0, name)
        np.testing.assert_array_equal(later[name].eps, first[name].eps, name)


@pytest.mark.slow
def test_a_run_from_noise_continues_with_all_that_it_reports():
    """Not jitted, from a shape. The evaluations and the trace continue, and the dtypes are those of the whole run."""
    guidance, sampler = gj.chain(gj.reuse(gj.cfg(2.0), 2), gj.momentum(-0.5)), gj.dpmpp_sde()
    record = lambda state: (state.number, state.x0)
    run = functools.partial(gj.run, W.keys, BRANCHES, guidance, sampler, trace=record)
    whole, along = run(LEVELS, SHAPE)
    half, before = run(path(LEVELS, slice(2)), SHAPE)
    rest, after = run(path(LEVELS, slice(1, None)), half)
    same(rest, whole)
    same(jax.tree.map(lambda a, b: np.concatenate([a, b]), before, after), along)
    assert along[0].tolist() == [1, 2, 3]
    ends = W.keys, BRANCHES, guidance, sampler, path(LEVELS, slice(1, None)), half
    same(gj.sample(*ends, trace=record), (whole.x, after))
    assert rest.evaluations == 5
    # From x alone the sampler restarts at first order, and the guidance from its initial memory.
    assert np.abs(gj.sample(*ends[:-1], half.x) - whole.x).max() > 1e-3


def test_a_state_of_another_run_raises():
    run = lambda guidance, sampler, start, given=W.keys: gj.run(given, BRANCHES, guidance, sampler, LEVELS, start)[0]
    state = begun(gj.dpmpp_2m(), gj.cfg(2.0))
    half = gj.dpmpp_2m().init(X[:2])
    for call, message in (
        (lambda: run(gj.cfg(2.0), gj.ddim(), state), r"memory must be \(\), .* got Past\(x0.*float32.*; .*use state.x"),
        (lambda: run(gj.apg(2.0), gj.dpmpp_2m(), state), r"guidance must be .*float32.*, got \(\)"),
        (lambda: run(gj.cfg(2.0), gj.dpmpp_3m(), state), "memory must be"),
        (lambda: run(gj.cfg(2.0), gj.dpmpp_2m(), state._replace(memory=half)), r"memory must be .* x \(4, 8, 2\), got"),
        (lambda: run(gj.cfg(2.0), gj.dpmpp_2m(), state, W.keys[:2]), r"B = 2.*\(4, 8, 2\)"),
        (lambda: run(gj.cfg(2.0), gj.dpmpp_2m(), state._replace(x=X.at[1].set(jnp.nan))), r"NaN .*1 of 4 samples: \[1\]"),
        (
            lambda: run(gj.cfg(2.0), gj.dpmpp_2m(), state._replace(x0=X[..., :1])),
            r"x0 must be float32\[4,8,2\].*got float32\[4,8,1\]",
        ),
        (lambda: run(gj.cfg(2.0), gj.dpmpp_2m(), state._replace(number=1.5)), r"number must be int32.*got float32"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.slow
def test_particles_draw_by_level_too():
    """With a target without guidance the weights stay equal, so a cut run equals the whole one."""
    one = gj.branches(DENOISE, cond=jnp.zeros((4, 2)), uncond=jnp.ones((4, 2)))
    run = jax.jit(lambda levels, x: gj.feynman_kac(W.keys, one, gj.targets.tilted(1.0), gj.ddpm(), levels, x, size=4).x)
    half = run(path(LEVELS, slice(2)), X)
    same(run(path(LEVELS, slice(1, 3)), half), run(path(LEVELS, slice(3)), X))


N, DIMENSION = 64, 512
EDM = gj.levels(gj.schedules.edm(), 40, gj.spacings.karras())
GAUSSIAN = gj.branches(
    lambda x, level, cond: gj.Prediction(x / (1 + level.sigma**2), x * level.sigma / (1 + level.sigma**2)), a=None
)


def exact(levels, variance):
    """The variance of x at the end of `ddpm()` on N(0, 1), from a variance at the start, by its product of steps in float64."""
    sigma = np.asarray(levels.sigma, np.float64)
    for s, t in itertools.pairwise(sigma):
        q2 = (t / s) ** 2
        gain = 1 / (1 + s**2) + q2 * s**2 / (1 + s**2)
        variance = gain**2 * variance + t**2 * (1 - q2)
    return variance


RUN = jax.jit(lambda keys, levels, x: gj.sample(keys, GAUSSIAN, gj.chain(), gj.ddpm(), levels, x))
DIFFUSE = jax.jit(gj.diffuse)


@pytest.fixture(scope="module")
def walked():
    start = float(EDM.sigma[0]) * jax.random.normal(jax.random.key(5), (N, DIMENSION))
    return start, RUN(keys(N), EDM, start)


def is_of(x, variance):
    """Compares to five standard deviations. Runs that reuse the noise of x0 would be off by forty."""
    np.testing.assert_allclose(np.square(x, dtype=np.float64).mean(), variance, rtol=5 * (2 / x.size) ** 0.5)


def test_the_variance_of_a_whole_and_of_a_cut_run_is_exact(walked):
    start, whole = walked
    is_of(whole, exact(EDM, 6400.0))
    assert abs(exact(EDM, 6400.0) - 0.7666) < 1e-3
    same(RUN(keys(N), path(EDM, slice(20, None)), RUN(keys(N), path(EDM, slice(21)), start)), whole)


def test_image_to_image_of_a_runs_own_result_has_the_right_variance_with_its_own_keys(walked):
    _, whole = walked
    end = gj.schedules.strength(EDM, 0.5)
    level = path(end, 0)
    same(gj.schedules.below(EDM, float(level.sigma)), end)
    x = DIFFUSE(keys(N), whole, level)
    expected = exact(end, exact(EDM, 6400.0) + float(level.sigma) ** 2)
    again = RUN(keys(N), end, x)
    is_of(again, expected)
    same(RUN(keys(N), path(end, slice(10, None)), RUN(keys(N), path(end, slice(11)), x)), again)
    # By hand the steps repeat the noise of x0. To avoid this, use the mark or other keys, as the docstring says.
    by_hand = gj.NoiseLevel(**vars(end))
    assert np.square(RUN(keys(N), by_hand, x)).mean() > 1.04 * expected
    others = jax.vmap(jax.random.fold_in, (0, None))(keys(N), 1)
    is_of(RUN(others, by_hand, DIFFUSE(others, whole, level)), expected)


def test_the_end_of_a_run_is_marked_and_samplers_receive_a_plain_level():
    end = gj.schedules.below(gj.schedules.strength(LEVELS, 0.9), 1e6)
    for taken in (end, path(end, slice(1, None)), path(end, 0), gj.schedules.reverse(end), jax.jit(lambda p: p)(end)):
        assert type(taken).__name__ == "PathEnd"
        assert isinstance(taken, gj.NoiseLevel)
    seen = []

    def kernel(prediction, level, next):
        seen.extend(map(type, (level, next)))
        return next.alpha * prediction.x0 + next.sigma * prediction.eps, 0.0

    two = gj.branches(DENOISE, cond=W.conds["cond"], weak=lambda step: seen.append(type(step.level)) or W.conds["weak"])
    deterministic = gj.sample(W.keys, two, gj.autoguidance(2.0), gj.samplers.gaussian(kernel), end, SHAPE)
    # The start, and everything that draws nothing, is the same as on any path.
    same(gj.sample(W.keys, two, gj.autoguidance(2.0), gj.ddim(), gj.NoiseLevel(**vars(end)), SHAPE), deterministic)
    target = gj.targets.rewarded(gj.targets.tilted(1.0), lambda x0, level: seen.append(type(level)) or 0 * x0.sum((1, 2)))
    one = gj.branches(DENOISE, cond=jnp.zeros((4, 2)), uncond=jnp.ones((4, 2)))
    before = len(seen)
    jax.eval_shape(lambda: gj.feynman_kac(W.keys, one, target, gj.ddpm(), end, SHAPE, size=4))
    assert len(seen) > before
    assert set(seen) == {gj.NoiseLevel}


def test_every_stream_is_distinct_and_a_level_in_float64_is_that_in_float32(x64):
    levels = gj.levels(gj.schedules.cosine(), 5, gj.spacings.karras())
    x0 = jnp.zeros((2, 4), jnp.float32)

    @jax.jit
    def drawn(level):
        return normal(step_keys(step(level, batch=2)), x0), gj.diffuse(keys(2), x0, level)

    rows = []
    for i in range(5):
        wide = path(levels, i)
        narrow = jax.tree.map(lambda field: field.astype(jnp.float32), wide)
        noise, data = drawn(wide)
        same(drawn(narrow), (noise, data))
        rows += [*np.asarray(noise), *np.asarray(data / float(narrow.sigma))]
    rows = np.stack(rows)
    close = np.abs(rows[:, None] - rows[None]).max(2) < 1e-3
    np.testing.assert_array_equal(close, np.eye(len(rows), dtype=bool))


def test_conditions_drawn_in_every_step_depend_on_the_level():
    """At a level they are the same for any start of the run. At another level they differ."""
    levels = gj.levels(COSINE, 40, gj.spacings.karras())
    draws = (conditions.random_labels(1000), conditions.time_noise(1.0))
    every = jax.jit(lambda level, number: [draw(step(level, number=number, batch=4)) for draw in draws])
    at = lambda i, number: every(path(levels, i), number)
    same(at(3, 3), at(3, 0))
    assert all((a != b).any() for a, b in zip(at(3, 0), at(4, 0), strict=True))


def test_a_path_made_within_a_jit_draws_as_one_made_outside():
    def run():
        return gj.sample(W.keys, BRANCHES, gj.chain(), gj.ddpm(), gj.levels(gj.schedules.edm(), 9, gj.spacings.karras()), SHAPE)

    np.testing.assert_allclose(jax.jit(run)(), run(), rtol=1e-4, atol=1e-5)
