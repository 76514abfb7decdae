"""Tests of schedules against the formulae of their papers in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_program import one_program
from quick import quick_keys
from worlds import SCHEDULES, gaussian

import guidance_jax as gj

zero_terminal = lambda: gj.schedules.zero_terminal_snr(gj.schedules.scaled_linear())
shifted = lambda: gj.schedules.shift(gj.schedules.cosine(), 2.0)
ALL = SCHEDULES | {"scaled_linear": gj.schedules.scaled_linear, "zero_terminal": zero_terminal, "shifted": shifted}


TWO = gj.Branches(gaussian(3.0, 0.25), {"cond": None}), gj.Branches(gaussian(1.0, 2.0), {"uncond": None})


def rates(name: str) -> np.ndarray:
    """The betas of the discrete schedules, as in the papers."""
    if name == "ddpm_linear":
        return np.linspace(1e-4, 0.02, 1000)
    if name in ("scaled_linear", "zero_terminal"):
        return np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.array([min(1 - f((i + 1) / 1000) / f(i / 1000), 0.999) for i in range(1000)])


def reference(name: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(alpha, sigma)`, as in the papers."""
    if name == "cosine":
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    if name == "linear":
        integral = 0.1 * t + (20.0 - 0.1) * t**2 / 2
        return np.sqrt(np.exp(-integral)), np.sqrt(1 - np.exp(-integral))
    if name == "edm":
        return np.ones_like(t), np.exp(4 * t)
    if name == "flow":
        return 1 - t, t
    if name == "shifted":
        # Simple diffusion: the log-SNR of cosine, minus 2 log 2.
        log_snr = -2 * np.log(np.tan(np.pi * t / 2)) - 2 * np.log(2)
        return np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))
    root = np.sqrt(np.cumprod(1 - rates(name)))
    if name == "zero_terminal":
        # Lin et al., algorithm 1, line by line.
        first, last = root[0], root[-1]
        root = root - last
        root = root * first / (first - last)
    alpha = root[t.astype(int)]
    return alpha, np.sqrt(1 - alpha**2)


def test_every_public_schedule_is_among_those_that_are_tested():
    tested = {repr(make()).partition("(")[0] for make in ALL.values()} | {"discrete"}
    makers = {name: getattr(gj.schedules, name) for name in gj.schedules.__all__}
    made = {name for name, make in makers.items() if getattr(make, "__annotations__", {}).get("return") is gj.Schedule}
    assert {name.rpartition(".")[2] for name in tested} == made


def test_the_rates_of_ddpm_scale_with_the_number_of_steps(x64):
    """A schedule of 250 steps ends with about the noise of one of 1000."""
    rates = 4 * np.linspace(1e-4, 0.02, 250)
    np.testing.assert_allclose(gj.schedules.ddpm_linear(250)(249).alpha, np.sqrt(np.prod(1 - rates)), rtol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_a_schedule_is_the_formula_of_its_paper(x64, name):
    schedule = ALL[name]()
    t = np.linspace(float(schedule.t_min), float(schedule.t_max), 37)
    t = np.round(t) if schedule.steps else t
    both = jax.jit(lambda t: (level := schedule(t), level.ratio, schedule.inverse(level.ratio)))
    level, ratio, inverse = jax.tree.map(np.asarray, both(t))
    alpha, sigma = reference(name, t)
    np.testing.assert_allclose(level.alpha, alpha, atol=1e-10)
    np.testing.assert_allclose(level.sigma, sigma, atol=1e-10)
    finite = np.isfinite(ratio)
    np.testing.assert_allclose(inverse[finite], t[finite], atol=1e-9 * (schedule.steps or 1))
    assert (np.diff(ratio) > 0).all()


SPACINGS = ("uniform", "leading", "trailing", "quadratic", "karras", "exponential")
WITH_EVERY_SPACING = ("ddpm_linear", "zero_terminal", "flow")
"""A discrete schedule, one that begins without signal, and a continuous one that does: with every spacing, also one step."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spacing"),
    [
        (name, spacing)
        for i, name in enumerate(ALL)
        for j, spacing in enumerate(SPACINGS)
        if name in WITH_EVERY_SPACING or (i + j) % 3 == 0
    ],
)
def test_every_path_decreases_and_ends_at_clean_data(name, spacing):
    schedule = ALL[name]()
    to_infinity = np.isinf(schedule(schedule.t_max).ratio) and spacing in ("karras", "exponential")
    spaced = getattr(gj.spacings, spacing)(**{"sigma_max": 99.0} if to_infinity else {})
    for steps in (1, 250) if name in WITH_EVERY_SPACING else (250,):
        path = jax.tree.map(np.asarray, gj.levels(schedule, steps, spaced))
        assert [field.shape for field in vars(path).values()] == [(steps + 1,)] * 3
        assert (path.alpha[-1], path.sigma[-1]) == (1, 0)
        with np.errstate(divide="ignore"):
            assert (np.diff(path.sigma / path.alpha) < 0).all()
        assert np.isfinite(path.t).all()


def test_schedules_accept_traced_parameters():
    def last_alpha(beta_max):
        return gj.levels(gj.schedules.linear(beta_max=beta_max), 4, gj.spacings.trailing()).alpha[0]

    step = 1e-2
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(last_alpha)))(np.array([20 - step, 20, 20 + step], np.float32))
    np.testing.assert_allclose(slopes[1], (values[2] - values[0]) / (2 * step), rtol=1e-2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gj.levels(gj.schedules.ddpm_linear(), 1001, gj.spacings.uniform()), "1000 training steps"),
        (lambda: gj.levels(gj.schedules.edm(), 0, gj.spacings.karras()), "levels: steps must be an integer, at least 1, got 0"),
        (
            lambda: gj.levels(gj.schedules.flow(), 9, gj.spacings.karras()),
            r"karras: sigma_max must be finite, got the schedule's inf",
        ),
        (
            lambda: gj.levels(zero_terminal(), 9, gj.spacings.exponential()),
            r"exponential: sigma_max must be finite, got the schedule's inf",
        ),
        (lambda: gj.levels(gj.schedules.ddpm_linear(), 1001, gj.spacings.quadratic()), "1000 training steps"),
        (lambda: gj.spacings.quadratic(1.2), "quadratic: reach must be a share, above 0 and at most 1, got 1.2"),
        (
            lambda: gj.schedules.zero_terminal_snr(gj.schedules.cosine()),
            r"must be discrete, with at least two steps, got schedule cosine\(\); use cosine",
        ),
        (lambda: gj.schedules.shift(gj.schedules.scaled_linear(), 3.0), r"must be continuous.*got schedule scaled_linear\(\)"),
        (lambda: gj.schedules.shift(gj.schedules.flow(), -3.0), "shift: factor must be a positive number, got -3.0"),
        (lambda: gj.schedules.shift(gj.schedules.flow(), jnp.ones(2)), "shift: factor has shape"),
        (lambda: gj.levels(gj.schedules.cosine(), 3, lambda s, n: jnp.array([0.1, 0.5, 0.9])), "decrease"),
        (lambda: gj.levels(gj.schedules.cosine(), 3, lambda s, n: jnp.array([0.9, 0.5, 0.5])), "decrease"),
        (lambda: gj.levels(gj.schedules.cosine(), 3, lambda s, n: jnp.array([0.9])), r"\[steps\] = \(3,\)"),
        (lambda: gj.schedules.discrete(np.array([0.1, 1.5])), "every rate a number in"),
    ],
)
def test_bad_input_raises(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_shifted_flow_is_stable_diffusion_3s_with_the_shifted_time(x64, factor):
    flow = gj.schedules.flow()
    level = gj.schedules.shift(flow, factor)(t := np.linspace(0.002, 1.0, 41))
    moved = factor * t / (1 + (factor - 1) * t)
    for field, expected in zip(vars(level).values(), (moved, 1 - moved, moved), strict=True):
        np.testing.assert_allclose(field, expected, atol=1e-12)
    # With even spacing in sigma / alpha, a shift changes only the ends.
    spaced = gj.spacings.karras(sigma_min=0.01, sigma_max=50.0)
    plain, other = (gj.levels(schedule, 7, spaced) for schedule in (flow, gj.schedules.shift(flow, factor)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), plain, other)
    back = gj.schedules.shift(gj.schedules.shift(flow, factor), 1 / factor)(t)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), back, flow(t))


def test_the_level_of_a_shift_is_the_schedules_at_the_time_that_the_network_receives(x64):
    """So a network trained on the schedule can be sampled on the shifted one. Training draws the shifted times."""
    for schedule in (gj.schedules.flow(), gj.schedules.cosine(), gj.schedules.linear(), gj.schedules.edm()):

        def every(schedule=schedule):
            moved = gj.schedules.shift(schedule, 2.5)
            level = moved(jnp.linspace(moved.t_min, moved.t_max, 9))
            drawn, plain = (gj.training.noise_levels(jax.random.key(0), one, 4) for one in (moved, schedule))
            return level, schedule(level.t), drawn.ratio, plain.ratio, moved.at(drawn.ratio).t, drawn.t

        level, same, moved, plain, back, drawn = jax.tree.map(np.asarray, jax.jit(every)())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), level, same)
        np.testing.assert_allclose(moved, 2.5 * plain, rtol=1e-7, err_msg=str(schedule))
        np.testing.assert_allclose(back, drawn, rtol=1e-6, err_msg=str(schedule))


@pytest.mark.slow
def test_a_shift_accepts_a_traced_factor_from_pure_noise(x64):
    def total(factor):
        levels = gj.levels(gj.schedules.shift(gj.schedules.flow(), factor), 6, gj.spacings.uniform())
        return gj.sample(quick_keys(2), TWO, gj.cfg(2.0), gj.heun(), levels, (1,)).sum()

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(total)))(jnp.array([3 - 1e-5, 3, 3 + 1e-5]))
    np.testing.assert_allclose(slopes[1], (values[2] - values[0]) / 2e-5, rtol=1e-6)


def test_zero_terminal_snr_is_exact_in_float32_and_inside_jit():
    alpha, sigma = reference("zero_terminal", np.arange(1000))
    level = jax.jit(lambda t: zero_terminal()(t))(jnp.arange(1000))
    np.testing.assert_allclose(level.alpha, alpha, rtol=2e-6)
    np.testing.assert_allclose(level.sigma, sigma, rtol=2e-6)
    assert (level.alpha[-1], level.sigma[-1]) == (0, 1)


def test_between_its_last_two_steps_zero_terminal_snr_is_continuous_and_has_an_inverse(x64):
    schedule = zero_terminal()
    t = jnp.array([997.5, 998.0, 998.25, 998.9, 999.0])

    @jax.jit
    def every(t):
        level, total = schedule(t), lambda t: schedule(t).alpha + schedule(t).sigma
        inverse, slopes = jax.vmap(jax.value_and_grad(schedule.inverse))(level.ratio)
        return level.alpha / level.sigma, inverse, slopes, jax.vmap(jax.grad(total))(t)

    quotient, inverse, *slopes = map(np.asarray, every(t))
    np.testing.assert_allclose(inverse, t, atol=1e-9)
    np.testing.assert_allclose(quotient[1:] / quotient[1], [1, 0.75, 0.1, 0], atol=1e-9)
    assert np.isfinite(slopes).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "tolerance"), [(gj.ddim(), 1.2e-2), (gj.heun(), 2e-4), (gj.dpmpp_2m(), 2e-3)], ids=["ddim", "heun", "dpmpp_2m"]
)
def test_from_a_zero_terminal_snr_the_law_is_right(x64, sampler, tolerance):
    """The law of N(3, 1/4) by its ODE from pure noise z. From Stable Diffusion's last step, alpha = 0.07, the mean is too
    small.
    """
    z = np.linspace(-2, 2, 5)[:, None]
    schedule, plain = zero_terminal(), gj.schedules.scaled_linear()

    def run(schedule):
        levels = jax.tree.map(np.asarray, gj.levels(schedule, 200, gj.spacings.trailing()))
        return one_program(gj.sample, quick_keys(5), TWO, gj.cfg(1.0), sampler, levels, levels.sigma[0] * z)

    # The last step, from t = 4, goes to the posterior's mean.
    last = jax.tree.map(np.asarray, schedule(4))
    spread = 0.25 * last.alpha / np.sqrt(0.25 * last.alpha**2 + last.sigma**2)
    np.testing.assert_allclose(x := run(schedule), 3 + spread * z, atol=tolerance)
    np.testing.assert_allclose(x[2], 3, atol=1e-12)
    assert (run(plain) < 3 + spread * z - 0.08).all()


def test_from_a_zero_terminal_snr_the_slope_in_the_scale_is_exact(x64):
    levels = gj.levels(zero_terminal(), 9, gj.spacings.trailing())
    total = lambda scale: gj.sample(quick_keys(5), TWO, gj.cfg(scale), gj.heun(), levels, (1,)).sum()
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(total)))(np.array([2 - 1e-5, 2, 2 + 1e-5]))
    np.testing.assert_allclose(slopes[1], (values[2] - values[0]) / 2e-5, rtol=1e-6)


def test_networks_and_classifiers_receive_the_training_step_and_not_the_number_of_the_step():
    times: dict[str, list[float]] = {"network": [], "classifier": []}

    def seen(name, x, t):
        jax.debug.callback(lambda t: times[name].append(float(t[0])), t, ordered=True)
        return jnp.zeros_like(x)

    levels = gj.levels(gj.schedules.scaled_linear(), 4, gj.spacings.leading(1))
    denoise = gj.denoiser(lambda x, t, cond: seen("network", x, t), predicts="eps")
    classify = gj.scores.class_log_prob(lambda x, t: seen("classifier", x, t), jnp.array([0, 1]))
    guidance = gj.classifier(classify, 1.0)
    gj.sample(quick_keys(2), gj.branches(denoise, cond=None), guidance, gj.ddim(), levels, (3,)).block_until_ready()
    jax.effects_barrier()
    assert times == {"network": [751, 501, 251, 1], "classifier": [751, 501, 251, 1]}


def test_schedules_and_spacings_remember_their_calls():
    schedule = gj.schedules.shift(gj.schedules.cosine(t_max=0.9), 2.0)
    assert repr(schedule) == "shift(cosine(t_max=0.9), factor=2.0)"
    assert jax.tree.leaves(schedule) == [0.9, 2.0]
    assert schedule == gj.schedules.shift(gj.schedules.cosine(t_max=0.9), 2.0)
    assert repr(gj.spacings.karras(5.0)) == "karras(rho=5.0)"
    assert gj.spacings.karras(5.0) == gj.spacings.karras(5.0) != gj.spacings.karras(6.0)
    for made in (gj.schedules.scaled_linear(500, 1e-3), gj.schedules.ddpm_cosine(100, 0.01), gj.spacings.quadratic(0.8)):
        assert jax.tree.leaves(made) == []
    rates = np.linspace(1e-4, 0.02, 50)
    assert gj.schedules.discrete(rates) == gj.schedules.discrete(rates.copy())
    slope = jax.jit(jax.grad(lambda schedule: schedule(0.5).ratio))(schedule)
    assert jax.tree.leaves(slope) == [0.0, pytest.approx(1.0)]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: gj.levels(gj.schedules.edm(), 3), TypeError, r"^levels: spacing is missing; use gj.spacings.karras\(\).$"),  # pyright: ignore[reportCallIssue]
        (lambda: gj.levels(gj.schedules.edm, 3, gj.spacings.karras()), TypeError, r"levels: schedule .*call it, edm\("),  # pyright: ignore[reportArgumentType]
        (lambda: gj.levels(gj.schedules.edm(), 3, gj.spacings.karras), TypeError, r"levels: spacing .*call it, karras\("),  # pyright: ignore[reportArgumentType]
        (lambda: jax.jit(gj.schedules.ddpm_linear)(4), TypeError, "steps must be an integer"),
        (lambda: jax.jit(lambda b: gj.schedules.ddpm_linear(9, b)(0).t)(0.1), ValueError, "beta_min must be known.* traced"),
        (lambda: jax.jit(lambda b: gj.schedules.discrete(b)(0).t)(jnp.ones(3) / 9), ValueError, "betas must be known.* traced"),
    ],
)
def test_missing_or_traced_arguments_raise(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_time_in_half_precision_may_be_rounded_beyond_the_last_step():
    assert gj.schedules.ddpm_linear()(jnp.bfloat16(999)).sigma > 0.99


def test_small_values_by_keyword_are_not_the_order_of_k_diffusion():
    assert gj.spacings.karras(rho=0.5, sigma_min=0.6)(gj.schedules.edm(), 3).shape == (3,)
