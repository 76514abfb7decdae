"""Evaluations counted at run time: skipped branches, one forward and one backward pass, one condition after another."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counted import LABELS, LEVELS, B, Counted
from walks import DENOISE, predicted
from worlds import keys, mixture

import guidance_jax as gj

RATIO = np.asarray(LEVELS.ratio)
ONCE, TWICE = [B], [2 * B]


CONDS = {"cond": np.linspace(-1.0, 1.5, B), "uncond": np.full(B, -0.3)}


def two():
    conds: dict = {name: jnp.asarray(cond) for name, cond in CONDS.items()}
    return gj.branches(DENOISE, **conds)


def quadratic(x0):
    return -(x0**2).sum(1)


def batches_of(guidance, sampler=None):
    """The batch sizes of the calls in a run of the small network."""
    return Counted(DENOISE).run(guidance, sampler, conds={name: jnp.asarray(c, jnp.float32) for name, c in CONDS.items()})


@pytest.mark.parametrize("every", [1, 3])
def test_reuse_evaluates_every_kth_step(every):
    batches = batches_of(gj.reuse(gj.cfg(3.0), every))
    assert batches == [2 * B if i % every == 0 else B for i in range(20)]


def test_reuse_in_an_interval_evaluates_the_first_step_inside():
    """The interval opens at an odd step. The steps are counted from there."""
    batches = batches_of(gj.during(gj.reuse(gj.cfg(3.0), 2), RATIO[12], RATIO[3]))
    assert batches == [2 * B if i in (3, 5, 7, 9, 11) else B for i in range(20)]


def test_reuse_treats_a_corrector_as_part_of_its_step():
    batches = batches_of(gj.reuse(gj.cfg(3.0), 2), gj.heun())
    assert batches == [2 * B, 2 * B, B, B] * 9 + [2 * B, 2 * B, B]


def test_reuse_counts_from_the_start_of_a_run_that_starts_midway(x64):
    """The first step of image-to-image is evaluated. The second part of a divided run also counts from its own start."""
    late = gj.levels(gj.schedules.edm(), 12, gj.spacings.karras())[5:]
    x = jnp.asarray(3 * np.random.default_rng(0).normal(size=(B, 3)))
    run = lambda guidance: gj.sample(keys(B), two(), guidance, gj.ddim(), late, x)
    guided, third = run(gj.cfg(3.0)), run(gj.reuse(gj.cfg(3.0), 3))
    np.testing.assert_allclose(run(gj.reuse(gj.cfg(3.0), 1)), guided, rtol=1e-12)
    assert np.isfinite(third).all()
    assert np.abs(third - guided).max() > 1e-3


def test_reuse_repeats_the_change_of_eps_too(x64):
    """CFG++ renoises with another eps. Skipped steps use the eps of the last difference, converted to the current level."""
    levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())
    x = start = np.random.default_rng(0).normal(size=(B, 3))
    d = 0.0
    for i in range(6):
        level, (a, s), after = levels[i], (float(levels.alpha[i]), float(levels.sigma[i])), levels[i + 1]
        x0, eps = predicted(x, level, CONDS["cond"])
        if i % 3 == 0:
            d = x0 - predicted(x, level, CONDS["uncond"])[0]
        x = float(after.alpha) * (x0 - 0.4 * d) + float(after.sigma) * (eps + a / s * d)
    found = gj.sample(keys(B), two(), gj.reuse(gj.cfg_pp(0.6), 3), gj.ddim(), levels, jnp.asarray(start))
    np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "wrap"),
    [
        ("conditions and keys", lambda g: gj.reuse(g, 3)),
        ("scales", lambda g: gj.adaptive(g, 0.9)),
        ("conditions and keys", lambda g: gj.adaptive(g, 0.9)),
    ],
    ids=["reuse", "adaptive scales", "adaptive conditions"],
)
def test_skipping_stays_a_conditional_under_vmap(over, wrap):
    counted = Counted(DENOISE)

    def generate(scale, number, key):
        branches = gj.branches(counted, cond=number, uncond=jnp.full_like(number, -0.3))
        return gj.sample(key, branches, wrap(gj.cfg(scale)), gj.ddim(), LEVELS, (3,))

    mapped = {"scales": (0, None, None), "conditions and keys": (None, 0, 0)}[over]
    numbers = jnp.asarray(np.linspace([-1.0] * B, [1.5] * B, 3), jnp.float32)
    axes = np.linspace(1, 4, 3, dtype=np.float32), numbers, jnp.stack([keys(B, s) for s in range(3)])
    given = [all_ if axis == 0 else all_[0] for all_, axis in zip(axes, mapped, strict=True)]
    together = jax.block_until_ready(jax.vmap(generate, in_axes=mapped)(*given))
    jax.effects_barrier()
    calls = np.array(counted.batches)
    # Under vmap, a callback runs once for each of the three. Both sizes occur, the larger one much less often.
    assert (calls == B).any()
    assert 0 < (calls == 2 * B).sum() < len(calls)
    alone = jax.jit(generate)
    for i in range(3):
        one = alone(*(a[i] if axis == 0 else a for a, axis in zip(given, mapped, strict=True)))
        np.testing.assert_allclose(together[i], one, rtol=1e-4, atol=1e-4)


def test_adaptive_ends_for_each_sample_and_saves_evaluations_once_all_have_ended():
    m, threshold, guidance = mixture(), 0.95, gj.adaptive(gj.cfg(3.0), 0.95)
    counted = Counted(m.denoise)
    branches = gj.branches(counted, cond=LABELS, uncond=jnp.full_like(LABELS, -1))
    x = np.float32(LEVELS.sigma[0]) * np.random.default_rng(0).normal(size=(B, 3)).astype(np.float32)
    state, _ = jax.block_until_ready(gj.run(keys(B), branches, guidance, gj.ddim(), LEVELS, jnp.asarray(x)))
    jax.effects_barrier()
    # By hand: a sample is guided up to and including the step in which its cosine first passes the threshold.
    both = jax.jit(lambda x, level: [m.denoise(x, level, label) for label in (LABELS, jnp.full_like(LABELS, -1))])
    ended, last = np.zeros(B, bool), 0
    for i in range(20):
        (c, c_eps), (u, u_eps) = ((np.asarray(p.x0), np.asarray(p.eps)) for p in both(x, LEVELS[i]))
        scale = np.where(ended, 1.0, 3.0)[:, None].astype(np.float32)
        alpha, sigma = (np.asarray(field[i + 1]) for field in (LEVELS.alpha, LEVELS.sigma))
        x = alpha * (u + scale * (c - u)) + sigma * (u_eps + scale * (c_eps - u_eps))
        last = last if ended.all() else i + 1
        cosine = (c_eps * u_eps).sum(1) / np.linalg.norm(c_eps, axis=1) / np.linalg.norm(u_eps, axis=1)
        ended |= cosine > threshold
    np.testing.assert_allclose(state.x, x, rtol=1e-3, atol=1e-3)
    assert 0 < last < 20
    assert counted.batches == TWICE * last + ONCE * (20 - last)
    assert int(state.evaluations) == 20 + last


def test_adaptive_at_a_threshold_of_one_never_ends():
    """Rounding may raise the cosine of equal branches above 1."""
    c = jax.random.normal(jax.random.key(0), (256, 3))
    two = gj.branches(gj.denoiser(lambda x, t, cond: x * 0 + cond, predicts="x0"), cond=c, uncond=c)
    state, _ = gj.run(keys(256), two, gj.adaptive(gj.cfg(2.0), 1.0), gj.ddim(), LEVELS, (3,))
    assert (state.guidance[1] == -1).all()


@pytest.mark.parametrize("first", ["cond", "uncond"])
def test_adaptive_continues_with_the_conditional_model_for_any_base(x64, first):
    levels = gj.levels(gj.schedules.edm(), 20, gj.spacings.karras())
    given: dict = {name: jnp.asarray(CONDS[name]) for name in sorted(CONDS, reverse=first == "uncond")}
    x = 80 * np.random.default_rng(0).normal(size=(B, 3))
    guidance = gj.adaptive(gj.cfg(5.0), -2.0)  # it ends after the first step
    found = gj.sample(keys(B), gj.branches(DENOISE, **given), guidance, gj.ddim(), levels, jnp.asarray(x))
    for i in range(20):
        (c, c_eps), (u, u_eps) = (predicted(x, levels[i], CONDS[name]) for name in ("cond", "uncond"))
        scale = 5.0 if i == 0 else 1.0
        alpha, sigma = float(levels.alpha[i + 1]), float(levels.sigma[i + 1])
        x = alpha * (u + scale * (c - u)) + sigma * (u_eps + scale * (c_eps - u_eps))
    np.testing.assert_allclose(found, x, rtol=1e-9)


def test_cfg_zero_star_evaluates_only_the_base_in_its_first_steps():
    batches = batches_of(gj.cfg_zero_star(3.0, 4))
    assert batches == ONCE * 4 + TWICE * 16


def test_linear_reuse_saves_evaluations_between_its_steps():
    batches = batches_of(gj.linear_reuse(3.0, jnp.array([1.0, -0.5, -0.5, 0.5, 0.5]), 4))
    assert batches == [2 * B if i < 2 or i % 4 == 0 else B for i in range(20)]


class Passes:
    """A denoiser that records its forward and backward passes with their batch size."""

    def __init__(self):
        self.forward, self.backward = [], []

        @jax.custom_vjp
        def network(x):
            jax.debug.callback(lambda x: self.forward.append(len(x)), x)
            return jnp.tanh(x)

        def forward(x):
            return network(x), x

        def backward(x, cotangent):
            jax.debug.callback(lambda x: self.backward.append(len(x)), x)
            return (cotangent * (1 - jnp.tanh(x) ** 2),)

        network.defvjp(forward, backward)
        self.denoise = gj.denoiser(lambda x, t, cond: network(x) + cond[:, None], predicts="x0")

    def run(self, guidance, sampler=None):
        self.forward.clear()
        self.backward.clear()
        conds: dict = {"cond": jnp.ones(B), "uncond": jnp.zeros(B)}
        arguments = keys(B), gj.branches(self.denoise, **conds), guidance, sampler or gj.ddim(), LEVELS, (3,)
        state, _ = jax.block_until_ready(gj.run(*arguments))
        jax.effects_barrier()
        counted = list(self.forward), list(self.backward)
        assert int(state.evaluations) == sum(counted[0]) // B
        return counted


GRADIENTS = {
    "universal": gj.universal(quadratic, 0.1, inner_steps=3),
    "dps": gj.dps(lambda x0: x0[:, :1], jnp.ones((B, 1)), 0.1),
    "pigdm": gj.pigdm(lambda x0: x0[:, :1], lambda y: jnp.pad(y, ((0, 0), (0, 2))), jnp.ones((B, 1))),
    "lgd": gj.lgd(quadratic, 0.1, draws=5),
    "freedom": gj.freedom(quadratic, 0.1),
    "tfg": gj.tfg(quadratic, 0.1, 0.1, inner_steps=3, smoothing=0.1, draws=5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_methods_cost_one_forward_and_one_backward_pass(name):
    assert Passes().run(GRADIENTS[name]) == (ONCE * 20, ONCE * 20)


def test_mpgd_has_no_backward_pass():
    assert Passes().run(gj.mpgd(quadratic, 0.1)) == (ONCE * 20, [])


def test_reg_costs_two_forward_passes_and_one_backward():
    assert Passes().run(gj.reg(gj.cfg(2.0))) == (ONCE * 40, ONCE * 20)


def test_an_interval_skips_the_backward_pass():
    forward, backward = Passes().run(gj.during(gj.freedom(quadratic, 0.1), RATIO[15], RATIO[2]))
    assert (forward, backward) == (ONCE * 20, ONCE * 13)


def test_a_gradient_beside_cfg_does_not_change_the_calls_of_cfg():
    forward, backward = Passes().run(gj.chain(gj.cfg(2.0), gj.freedom(quadratic, 0.1)))
    assert (forward, backward) == (ONCE * 40, ONCE * 20)


def test_recurrence_costs_its_repetitions_inside_its_interval():
    batches = batches_of(gj.cfg(2.0), gj.recur(gj.ddim(), 3, RATIO[15], RATIO[2]))
    assert batches == TWICE * (7 + 3 * 13)


def test_one_condition_after_another_gives_the_samples_of_the_batch(x64):
    """With `batched=False` there is one call of size B per condition, and the samples are the same."""
    calls, levels = [], gj.levels(gj.schedules.edm(), 6, gj.spacings.karras())

    def denoise(x, level, cond):
        jax.debug.callback(lambda x: calls.append(len(x)), x)
        return DENOISE(x, level, cond)

    conds: dict = {name: jnp.asarray(cond) for name, cond in CONDS.items()} | {"negative": jnp.asarray(1 - CONDS["cond"])}
    guidance = gj.compose({"cond": 3.0, "negative": -1.0})
    sample = lambda branches: gj.sample(keys(B), branches, guidance, gj.heun(), levels, (3,))
    x = jax.block_until_ready(sample(gj.branches(denoise, batched=False, **conds)))
    jax.effects_barrier()
    assert calls == ONCE * (3 * 11)
    np.testing.assert_allclose(x, sample(gj.branches(DENOISE, **conds)), rtol=1e-10)


def test_one_condition_after_another_needs_less_memory():
    """It stores the intermediate values of a wide network for one condition (two, in XLA's loop) instead of eight."""
    width = 20_000
    weights = jnp.ones((3, width)) / width

    def network(x, t, cond):
        return jnp.tanh(x @ weights + cond[:, None]) @ weights.T

    def program(batched):
        conds: dict = {name: jnp.ones(16) for name in "abcdefgh"}
        branches = gj.branches(gj.denoiser(network, "x0"), batched=batched, **conds)
        guidance = gj.compose(dict.fromkeys("bcdefgh", 1.0), uncond="a")
        run = lambda x: gj.sample(keys(16), branches, guidance, gj.ddim(), LEVELS, x)
        used: Any = jax.jit(run).lower(jnp.ones((16, 3))).compile().memory_analysis()
        return used.temp_size_in_bytes

    assert program(False) < 0.3 * program(True)


def test_a_condition_may_be_drawn_in_every_step():
    seen = []

    def network(x, t, cond):
        jax.debug.callback(lambda c: seen.append(np.asarray(c)), cond)
        return x * 0

    branches = gj.branches(gj.denoiser(network, "x0"), cond=LABELS, random=gj.conditions.random_labels(1000))
    run = lambda key: jax.block_until_ready(gj.sample(key, branches, gj.icg(2.0), gj.heun(), LEVELS, (3,)))
    run(keys(B))
    jax.effects_barrier()
    drawn = np.stack(seen).reshape(39, B, 2)[..., 1]
    # The draw changes in every step, is shared with the step's corrector, and depends on the sample's key.
    np.testing.assert_array_equal(drawn[0], drawn[1])
    # 160 draws of a thousand labels have 148 distinct values on average, with a standard deviation of 3.
    assert len(np.unique(drawn)) > 0.85 * 20 * B
    assert drawn.min() >= 0
    assert drawn.max() < 1000


def test_retimed_changes_the_time_of_its_branch_only():
    seen = []

    def network(x, t, cond):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
        return x * 0

    noise = gj.conditions.time_noise(lambda level: 0.1 * level.sigma)
    denoise = gj.conditions.retimed(gj.denoiser(network, "x0"))
    branches = gj.branches(denoise, cond=(LABELS, jnp.zeros(B)), retimed=lambda step: (LABELS, noise(step)))
    jax.block_until_ready(gj.sample(keys(B), branches, gj.tsg(2.0), gj.ddim(), LEVELS, (3,)))
    jax.effects_barrier()
    times = np.stack(seen).reshape(20, B, 2)
    np.testing.assert_allclose(times[..., 0], np.broadcast_to(np.asarray(LEVELS.t)[:-1, None], (20, B)), rtol=1e-6)
    offsets = (times[..., 1] - times[..., 0]) / (0.1 * np.asarray(LEVELS.sigma)[:-1, None])
    assert abs(offsets.std() - 1) < 0.2
    assert abs(offsets.mean()) < 0.3
