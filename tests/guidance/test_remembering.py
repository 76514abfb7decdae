"""Methods with memory against the formulae of their papers, in NumPy, per sample, in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from walks import LENGTH, SHARE, K, W, cfg, clipped, close, context, draw, kernel, projected, walk
from worlds import SCHEDULES

import guidance_jax as gj


def steps(count, first=0, twice=False):
    """`(x, x0 of the branches, level, context)` of a run at decreasing noise. `twice` includes each step's corrector."""
    schedule, found = SCHEDULES["cosine"](), []
    for k in range(count * (1 + twice)):
        x, x0, _ = draw("vector", ("cond", "uncond"), seed=k)
        number = k // (1 + twice)
        level, start = schedule(0.95 - 0.1 * (k - number)), schedule(0.95 - 0.1 * number)
        found.append((x, x0, level, context(x, x0, level, number=first + number, start=start)))
    return found


def moved(got, x, x0, level):
    close(got.x0, x0)
    close(got.eps, (x - float(level.alpha) * x0) / float(level.sigma))


@pytest.mark.parametrize("base", ["cond", "uncond"])
def test_apg_over_several_steps_is_the_formula_of_its_paper(x64, base):
    run = steps(6)
    contexts = [here._replace(base=here.branches[base]) for *_, here in run]
    ours = walk(gj.apg(W, beta=K, max_norm=LENGTH, eta=SHARE), contexts)
    m = np.zeros((4, 6))
    for got, (x, x0, level, _) in zip(ours, run, strict=True):
        c = x0["cond"]
        m = c - x0["uncond"] + K[:, None] * m
        change = [projected(clipped(m[i], LENGTH[i]), c[i], SHARE[i]) for i in range(4)]
        moved(got, x, c + (W[:, None] - 1) * np.stack(change), level)


@pytest.mark.parametrize(("count", "twice"), [(7, False), (4, True)])
def test_reuse_with_momentum_inside_is_the_formula_by_hand(x64, count, twice):
    run, asked = steps(count, first=5, twice=twice), []
    ours = walk(gj.reuse(gj.chain(gj.cfg(W), gj.momentum(-0.5)), 3), [here for *_, here in run], asked)
    change = np.zeros((4, 6))
    for k, (got, (x, x0, level, _)) in enumerate(zip(ours, run, strict=True)):
        fresh = k // (1 + twice) in (0, 3, 6)
        assert asked[k] == fresh
        if fresh:
            change = (W[:, None] - 1) * (x0["cond"] - x0["uncond"]) - 0.5 * change
        moved(got, x, x0["cond"] + change, level)


def agreeing(distances):
    """Contexts in which eps of the two branches differ by `distances[step, sample]`, relative to their size."""
    contexts, rng = [], np.random.default_rng(0)
    for number, apart in enumerate(distances):
        level = SCHEDULES["cosine"]()(0.9 - 0.1 * number)
        x, u, noise = rng.normal(size=(3, len(apart), 6))
        eps = {"uncond": u, "cond": u + np.asarray(apart)[:, None] * noise}
        x0 = {name: (x - float(level.sigma) * e) / float(level.alpha) for name, e in eps.items()}
        contexts.append(context(x, x0, level, number=number))
    return contexts


def test_adaptive_is_the_formula_by_hand(x64):
    contexts = agreeing([[2, 2, 0.01, 2], [0.01, 2, 2, 2], [2, 0.01, 2, 2], [2, 2, 2, 0.01], [2, 2, 2, 2], [2, 2, 2, 2]])
    ended, asked = np.zeros(4, bool), []
    for got, here in zip(walk(gj.adaptive(gj.cfg(3.0)), contexts, asked), contexts, strict=True):
        c, u = here.branches["cond"], here.branches["uncond"]
        for i in range(4):
            close(got.x0[i], c.x0[i] if ended[i] else cfg(c.x0[i], u.x0[i], 3.0))
            close(got.eps[i], c.eps[i] if ended[i] else cfg(c.eps[i], u.eps[i], 3.0))
            cosine = np.vdot(c.eps[i], u.eps[i]) / np.linalg.norm(c.eps[i]) / np.linalg.norm(u.eps[i])
            ended[i] |= cosine > 0.991
    assert asked == [True] * 4 + [False] * 2


def test_adaptive_ends_after_a_step_and_not_within_it(x64):
    (first,), asked = agreeing([[0.01]]), []
    ours = walk(gj.adaptive(gj.cfg(3.0)), [first, first, first._replace(step=first.step._replace(number=jnp.int32(1)))], asked)
    assert asked == [True, True, False]
    close(ours[1].x0, ours[0].x0)
    close(ours[2].x0, first.base.x0)


@pytest.mark.slow
@pytest.mark.parametrize(("past", "every", "rowwise"), [(1, 2, False), (2, 3, True)])
def test_linear_reuse_is_the_formula_by_hand(x64, past, every, rowwise):
    run, asked, c, u = steps(8), [], [], []
    rows = np.random.default_rng(1).normal(size=(8, 1 + 2 * past))
    rows = rows if rowwise else np.broadcast_to(rows[0], rows.shape)
    guidance = gj.linear_reuse(W, rows if rowwise else rows[0], every)
    for n, (got, (x, x0, level, _)) in enumerate(zip(walk(guidance, [here for *_, here in run], asked), run, strict=True)):
        c.append(x0["cond"])
        fresh = n < past or n % every == 0
        assert asked[n] == fresh
        known = [c[n], *(c[n - k] for k in range(1, past + 1)), *(u[n - k] for k in range(1, past + 1))] if n >= past else []
        u.append(x0["uncond"] if fresh else sum(a * p for a, p in zip(rows[n], known, strict=True)))
        moved(got, x, cfg(c[n], u[n], W[:, None]), level)


@pytest.mark.slow
def test_linear_reuse_counts_steps_and_not_evaluations(x64):
    asked = []
    walk(gj.linear_reuse(3.0, np.ones(5), every=3), [here for *_, here in steps(4, twice=True)], asked)
    assert asked == [True, True, True, True, False, False, True, True]


def test_fit_linear_is_least_squares(x64):
    rng = np.random.default_rng(0)
    c, u = rng.normal(size=(2, 4, 9, 5))
    fitted = gj.fit_linear(jnp.asarray(c), jnp.asarray(u), past=2)
    close(fitted[:2], np.zeros((2, 5)))
    for n in (2, 3):
        matrix = np.stack([part.ravel() for part in (c[n], c[n - 1], c[n - 2], u[n - 1], u[n - 2])], axis=1)
        close(fitted[n], np.linalg.lstsq(matrix, u[n].ravel(), rcond=None)[0])
    row = np.array([0.5, -1.0, 1.5])
    for n in range(1, 4):
        u[n] = row[0] * c[n] + row[1] * c[n - 1] + row[2] * u[n - 1]
    close(gj.fit_linear(jnp.asarray(c), jnp.asarray(u))[1:], np.broadcast_to(row, (3, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("base", ["cond", "uncond"])
@pytest.mark.parametrize("schedule", ["cosine", "flow", "edm"])
def test_feedback_is_the_formula_by_hand(x64, schedule, base):
    """The ratio of the step's two Gaussian kernels. A corrector keeps the scale of its step."""
    prior, tau, delta, most = np.array([[0.95, 0.9, 0.8, 0.6], [1, 0.5, 2, 1], [0, -0.2, 0.1, -1], [10, 5, 30, 20]])
    schedule, rng = SCHEDULES[schedule](), np.random.default_rng(3)
    log_q, contexts, scales, last = np.zeros(4), [], [], None
    for number in range(2, 10):
        level = schedule(schedule.t_min + (schedule.t_max - schedule.t_min) * (0.8 - 0.05 * number))
        x, u, apart = rng.normal(size=(3, 4, 6))
        if last is not None:
            here, c0, u0, before = last
            (mean_c, variance, _), (mean_u, _, _) = (kernel(here, x0, before, level) for x0 in (c0, u0))
            x = (mean_c + mean_u) / 2 + np.sqrt(variance) * x
            log_p = [scipy.stats.norm.logpdf(x, mean, np.sqrt(variance)).sum(1) for mean in (mean_c, mean_u)]
            log_q = log_q + tau * (log_p[0] - log_p[1]) + delta
            log_q = np.clip(log_q, np.log((1 - prior) * most / (most - 1)), 3)  # 3 as in the released code
        scales += 2 * [np.exp(log_q) / (np.exp(log_q) - (1 - prior))]
        last = x, u + min(1, float(level.ratio)) * apart, u, level
        contexts.append(context(x, {"cond": last[1], "uncond": u}, level, base, number))
        y, x0, _ = draw("vector", ("cond", "uncond"), seed=number)
        contexts.append(context(y, x0, schedule(0.1 * schedule.t_max), base, number, start=level))
    ours = walk(gj.feedback(prior, temperature=tau, offset=delta, max_scale=most), contexts)
    for got, here, w in zip(ours, contexts, scales, strict=True):
        c, u = (here.branches[name].x0 for name in ("cond", "uncond"))
        moved(got, np.asarray(here.x), cfg(c, u, w[:, None]), here.level)
    reached = np.stack(scales)
    assert np.isclose(reached, most).any()
    assert (reached[2:] < 0.9 * most).any()


def test_feedback_in_another_space_is_the_same_or_raises(x64):
    run = [here for *_, here in steps(3)]
    try:
        ours = walk(gj.in_space("eps", gj.feedback(0.9)), run)
    except ValueError:
        return
    for got, wanted in zip(ours, walk(gj.feedback(0.9), run), strict=True):
        close(got.x0, wanted.x0)
