"""Methods that take gradients against the formulae of their papers, in NumPy, per sample, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import updates
from walks import W, close, gaussian, kernel, walk
from worlds import SCHEDULES, keys, step

import guidance_jax as gj
from guidance_jax.base import GuidedDenoiser
from guidance_jax.noise import normal, step_keys

SHAPE = (4, 2, 3, 1)
RATE, DRAWS = np.array([0.1, 0.0, 0.4, -0.2]), 5
RNG = np.random.default_rng(7)
MIX, A, LOGITS = RNG.normal(size=(6, 6)) / 2, RNG.normal(size=(2, 6)), RNG.normal(size=(6, 3))
BIAS, PITCH, LABELS = RNG.normal(size=6), RNG.normal(size=6), np.array([2, 0, 1, 2])
MEASURED = {"first": RNG.normal(size=(4, 2)), "square": RNG.normal(size=(4, 6))}


def flat(x):
    return x.reshape(len(x), -1)


def log_prob(x0):
    return (jnp.sin(PITCH[None] * flat(x0)) - flat(x0) ** 2 / 2).sum(1)


def slope(x0):
    return PITCH * np.cos(PITCH * x0) - x0


def measure(x0):
    return {"first": flat(x0)[:, :2], "square": flat(x0) ** 2}


def network(x, t, shift):
    return jnp.tanh(flat(x) @ MIX + shift).reshape(x.shape)


CLASS_LOG_PROB = gj.scores.class_log_prob(lambda x, t: t[:, None] * flat(x) @ LOGITS, jnp.asarray(LABELS))


def class_slope(x, t, label):
    odds = np.exp(t * x @ LOGITS)
    return t * (LOGITS[:, label] - LOGITS @ odds / odds.sum())


def place():
    """x and its step."""
    schedule = gj.schedules.flow()
    return np.random.default_rng(0).normal(size=SHAPE), step(schedule(0.6), schedule(0.4), number=3, batch=4)


def at_work(guidance):
    """x, its step, and the guided prediction at x, as the loop computes it."""
    x, at = place()
    branches = gj.branches(gj.denoiser(network, predicts="x0"), cond=jnp.tile(BIAS, (4, 1)))
    state = gj.State(jnp.asarray(x), (), guidance.init(jnp.asarray(x)), jnp.int32(0), jnp.zeros_like(x))
    return x, at, gj.guide(branches, guidance, at)(state, at.level)[0]


class Sample:
    """The closed forms of sample i, with its axes flattened."""

    def __init__(self, x, at, i):
        self.x, self.i, self.at = x[i].ravel(), i, at
        self.a, self.s, self.t = (float(value) for value in (at.level.alpha, at.level.sigma, at.level.t))
        self.a1, self.s1, self.t1 = (float(value) for value in (at.next.alpha, at.next.sigma, at.next.t))
        self.x0 = np.tanh(self.x @ MIX + BIAS)
        self.eps = (self.x - self.a * self.x0) / self.s
        self.jacobian = (1 - self.x0**2)[:, None] * MIX.T  # d x0_j / d x_i
        self.r = self.s / np.hypot(self.a, self.s)
        like = jax.ShapeDtypeStruct((len(x), DRAWS, x[i].size), jnp.float64)
        self.z = np.asarray(normal(step_keys(at), like))[i]

    def with_score(self, gradient):
        return self.x0 + self.s**2 / self.a * gradient, self.eps - self.s * gradient

    def with_step(self, shift):
        """DDIM's next x, `alpha' x0 + sigma' eps`, moves by the shift, and eps does not change."""
        after = self.a1 * self.x0 + self.s1 * self.eps + shift
        return (after - self.s1 * self.eps) / self.a1, self.eps

    def ascended(self, gradient, count):
        z = self.x0
        for _ in range(count):
            z = z + RATE[self.i] * gradient(z)
        return z - self.x0

    def smooth_slope(self, x0, radius):
        """The gradient of `log mean_k exp log_prob(x0 + radius z_k)`."""
        points = x0 + radius * self.z
        likelihoods = np.exp((np.sin(PITCH * points) - points**2 / 2).sum(1))
        return likelihoods / likelihoods.sum() @ np.stack([slope(point) for point in points])


def universal(p, count):
    x0, eps = p.with_score(W[p.i] * p.jacobian.T @ slope(p.x0))
    change = p.ascended(slope, count)
    return x0 + change, eps - p.a / p.s * change


def dps(p):
    first, square = MEASURED["first"][p.i] - p.x0[:2], MEASURED["square"][p.i] - p.x0**2
    gradient = -2 * p.x0 * square - np.append(first, np.zeros(4))
    return p.with_step(-RATE[p.i] * p.jacobian.T @ gradient / np.sqrt((first**2).sum() + (square**2).sum()))


def pigdm(p, variance):
    pull = np.linalg.pinv(A) @ (MEASURED["first"][p.i] - A @ p.x0)
    return p.with_score(W[p.i] * p.jacobian.T @ pull / variance)


def tfg(p, smoothing, count):
    smooth_slope = lambda x0: p.smooth_slope(x0, smoothing * p.r)
    in_x, in_x0 = W[p.i] * p.jacobian.T @ smooth_slope(p.x0), p.ascended(smooth_slope, count)
    return p.with_step(in_x / (p.a / p.a1) + p.a1 * in_x0)


def mean_shift(p, variance, at_mean):
    mean, small, large = kernel(p.x, p.x0, p.at.level, p.at.next)
    gradient = class_slope(mean, p.t1, LABELS[p.i]) if at_mean else class_slope(p.x, p.t, LABELS[p.i])
    wanted = mean + W[p.i] * (small if variance == "small" else large) * gradient
    x0 = p.x0 + (wanted - mean) / (p.a1 * large) * p.s**2
    return x0, (p.x - p.a * x0) / p.s


def reg(p):
    eps_u = (p.x - p.a * np.tanh(p.x @ MIX)) / p.s
    of_sum = (1 - p.a * p.jacobian.sum(0)) / p.s
    eps = p.eps + (W[p.i] - 1) * (p.eps - eps_u) * (1 - p.s * of_sum)
    return (p.x - p.s * eps) / p.a, eps


def by_pinv(**more):
    back = lambda y: (y @ np.linalg.pinv(A).T).reshape(SHAPE)
    return gj.pigdm(lambda x0: flat(x0) @ A.T, back, MEASURED["first"], W, **more)


GRADIENTS = {
    "classifier": (
        gj.classifier(CLASS_LOG_PROB, W),
        lambda p: p.with_score(W[p.i] * class_slope(p.x, p.t, LABELS[p.i])),
    ),
    "universal": (gj.universal(log_prob, W), lambda p: universal(p, 0)),
    "backward universal": (gj.universal(log_prob, W, inner_steps=3, rate=RATE), lambda p: universal(p, 3)),
    "dps": (gj.dps(measure, MEASURED, RATE), dps),
    "freedom": (
        gj.freedom(log_prob, lambda level: level.alpha * RATE),
        lambda p: p.with_step(p.a * RATE[p.i] * p.jacobian.T @ slope(p.x0)),
    ),
    "mpgd": (gj.mpgd(log_prob, RATE), lambda p: (p.x0 + RATE[p.i] * slope(p.x0), p.eps)),
    "pigdm": (by_pinv(), lambda p: pigdm(p, p.s**2 / (p.a**2 + p.s**2))),
    "pigdm of a variance": (by_pinv(variance=0.3), lambda p: pigdm(p, 0.3)),
    "lgd": (
        gj.lgd(log_prob, W, draws=DRAWS),
        lambda p: p.with_score(W[p.i] * p.jacobian.T @ p.smooth_slope(p.x0, p.r)),
    ),
    "lgd of a spread": (
        gj.lgd(log_prob, W, draws=DRAWS, spread=RATE),
        lambda p: p.with_score(W[p.i] * p.jacobian.T @ p.smooth_slope(p.x0, RATE[p.i])),
    ),
    "tfg": (gj.tfg(log_prob, W, RATE), lambda p: tfg(p, 0.0, 4)),
    "smoothed tfg": (
        gj.tfg(log_prob, W, RATE, inner_steps=2, smoothing=0.7, draws=DRAWS),
        lambda p: tfg(p, 0.7, 2),
    ),
    "reg": (gj.reg(gj.cfg(W)), reg),
} | {
    f"mean_shift {variance} {at_mean}": (
        gj.mean_shift(CLASS_LOG_PROB, W, variance=variance, at_mean=at_mean),
        lambda p, v=variance, m=at_mean: mean_shift(p, v, m),
    )
    for variance in ("small", "large")
    for at_mean in (False, True)
}


@functools.cache
def steps():
    """x, its step, and the guided prediction of every method at x, from one program."""
    x, at = place()
    branches = gj.branches(gj.denoiser(network, predicts="x0"), cond=jnp.tile(BIAS, (4, 1)), uncond=jnp.zeros((4, 6)))
    methods = {name: guidance for name, (guidance, _) in GRADIENTS.items()}
    guide = jax.jit(lambda x, at: updates(methods, branches, at.keys, x, at.number, at.level, at.next))
    return x, at, guide(jnp.asarray(x), at)


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_method_is_the_formula_of_its_paper(x64, name):
    (_, formula), (x, at, found) = GRADIENTS[name], steps()
    guided = found[name]
    for i in range(4):
        x0, eps = formula(Sample(x, at, i))
        close(guided.x0[i].ravel(), x0)
        close(guided.eps[i].ravel(), eps)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_ddpm_step_with_mean_shift_moves_by_w_sigma_g(x64, variance):
    x, at, plain = at_work(gj.chain())
    _, _, guided = at_work(gj.mean_shift(CLASS_LOG_PROB, W, variance=variance))
    context = gj.Context(jnp.asarray(x), at.level, at, plain, {"cond": plain})

    def after(prediction):
        state = gj.State(jnp.asarray(x), (), (), jnp.int32(0), jnp.zeros_like(x))
        look, base = lambda state, level: (prediction, state, context), lambda state, level: (plain, state)
        guided = GuidedDenoiser(look, base, lambda *step: guided)
        return gj.ddpm(variance).step(guided, state, at.level, at.next, at.keys).x

    shift = after(guided) - after(plain)
    for i in range(4):
        p = Sample(x, at, i)
        _, small, large = kernel(p.x, p.x0, at.level, at.next)
        close(shift[i].ravel(), W[i] * (small if variance == "small" else large) * class_slope(p.x, p.t, LABELS[i]))
    # A step without noise has no shift.
    clean = at._replace(next=gj.NoiseLevel(*(jnp.float64(value) for value in (0, 1, 0))))
    (last,) = walk(gj.mean_shift(CLASS_LOG_PROB, W, variance=variance), [context._replace(step=clean)])
    close(last.x0, plain.x0)


@pytest.mark.parametrize("schedule", ["cosine", "flow", "edm"])
def test_pigdm_is_the_posterior_mean_of_gaussian_data(x64, schedule):
    """`x0 ~ N(0, I)`, `x = a x0 + s z`, `y = Q x0`: `E[x0 | x, y]` by conditioning the joint Gaussian."""
    level = SCHEDULES[schedule]()(0.6)
    a, s = float(level.alpha), float(level.sigma)
    Q = np.linalg.qr(A.T)[0].T
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4, 6)), rng.normal(size=(4, 2))
    branches = gj.branches(gj.denoiser(lambda x, t, cond: a / (a**2 + s**2) * x, predicts="x0"), cond=None)
    guidance = gj.pigdm(lambda x0: x0 @ Q.T, lambda y: y @ Q, y)
    state = gj.State(jnp.asarray(x), (), (), jnp.int32(0), jnp.zeros_like(x))
    guided, _ = gj.guide(branches, guidance, step(level, batch=4))(state, level)
    joint = np.block([[(a**2 + s**2) * np.eye(6), a * Q.T], [a * Q, np.eye(2)]])
    mean = np.concatenate([a * np.eye(6), Q.T], axis=1) @ np.linalg.solve(joint, np.concatenate([x, y], axis=1).T)
    close(guided.x0, mean.T)
    close(guided.eps, (x - a * mean.T) / s)


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_method_in_another_space_raises(x64, name):
    with pytest.raises(ValueError, match=r"in_space.*its own space"):
        gj.in_space("eps", GRADIENTS[name][0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gj.mean_shift(CLASS_LOG_PROB, 1.0, variance="medium"), "variance must be 'small' or 'large' or 'learned'"),
        (lambda: gj.universal(lambda x0: x0, 1.0), "one number per sample"),
        (lambda: gj.mpgd(lambda x0: x0.sum(), 1.0), "one number per sample"),
        (lambda: gj.classifier(lambda x, level: x.mean(), 1.0), "one number per sample"),
        (
            lambda: gj.dps(measure, {"first": MEASURED["first"], "square": np.ones((4, 5))}, 1.0),
            "must match the measurement, .* leaf by leaf",
        ),
        (lambda: gj.dps(measure, MEASURED, np.ones(3)), r"has shape \(3,\), but must be \(\) or \[B\]"),
        (lambda: gj.tfg(log_prob, 1.0, 1.0, smoothing=np.ones((4, 1))), r"has shape \(4, 1\), but must be \(\) or \[B\]"),
    ],
)
def test_a_wrong_gradient_method_raises(x64, build, message):
    with pytest.raises(ValueError, match=message):
        at_work(build())


def test_a_traced_label_outside_the_range_gives_nan_instead_of_no_guidance():
    """Indexing with such a label has no gradient, so the sample would silently be unguided."""
    path, still = gj.levels(gj.schedules.cosine(), 2, gj.spacings.karras()), lambda x, level, cond: gj.Prediction(x, 0 * x)

    def generate(labels):
        guidance = gj.classifier(gj.scores.class_log_prob(lambda x, t: x, labels), 2.0)
        return gj.sample(keys(2), gj.branches(still, uncond=jnp.zeros(2)), guidance, gj.ddim(), path, (3,))

    found = jax.jit(generate)(jnp.array([1, 7]))
    assert jnp.isfinite(found[0]).all()
    assert jnp.isnan(found[1]).all()


COSINE = gj.schedules.cosine()
MOVED = {
    "ddim": (gj.ddim(), 0, 0),
    "ddim, eta": (gj.ddim(0.7), 0, 0),
    "ddpm": (gj.ddpm(), 0, 0),
    "euler_ancestral": (gj.euler_ancestral(), 0, 0),
    "dpmpp_2m": (gj.dpmpp_2m(), 0, 0),
    "dpmpp_3m": (gj.dpmpp_3m(), 0, 0),
    "dpmpp_sde": (gj.dpmpp_sde(), 0, 0),
    "unipc": (gj.unipc(3), 0, 0),
    "flow_heun": (gj.flow_heun(), 0.25, 0.09),
    "dpmpp_2s": (gj.dpmpp_2s(COSINE), 0.30, 0.26),
    "heun": (gj.heun(), 0.37, 0.42),
    "heun_sde": (gj.heun_sde(), 1.782, 0.619),
    "predictor_corrector": (gj.predictor_corrector(gj.ddim()), 1.661, 0.269),
}
"""The error of a step relative to the move that the docstrings of `freedom` and `tfg` state."""


MOVE, CLASS = 0.05, np.arange(16) % 3
MEANS = np.array([[-1.0, 0.5], [1.0, -0.3], [0.2, 1.0]])[CLASS]
VARIANCES = np.array([[0.3, 0.6], [0.5, 0.2], [0.4, 0.4]])[CLASS]


def near_point(x0):
    return -((x0 - jnp.array([[1.0, 2.0]])) ** 2).sum(1)


def three_levels():
    return gj.levels(COSINE, 10, gj.spacings.karras())[4:7]


@functools.cache
def said():
    """A program: the moves of `freedom` and of `tfg` in a step from x at the second level, as their docstrings state them."""
    level, next = three_levels()[1:]
    denoise = lambda x: gaussian(x, level, (MEANS, VARIANCES)).x0

    def moves(x):
        in_x = MOVE * jax.grad(lambda x: near_point(denoise(x)).sum())(x)
        in_x0 = MOVE * jax.grad(lambda x0: near_point(x0).sum())(denoise(x))
        return in_x, next.alpha / level.alpha * in_x + next.alpha * in_x0

    return jax.jit(moves)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVED)
def test_a_step_of_one_evaluation_moves_by_exactly_the_documented_amount(x64, name):
    sampler, *missed = MOVED[name]
    ends = three_levels()
    start = float(ends.sigma[0]) * np.asarray(jax.random.normal(jax.random.key(3), (16, 2))) + float(ends.alpha[0])
    branches = gj.branches(gaussian, cond=(jnp.asarray(MEANS), jnp.asarray(VARIANCES)))
    guidances = gj.freedom(near_point, MOVE), gj.tfg(near_point, MOVE, MOVE, inner_steps=1)

    def run(which):
        """Unguided, and in the second step with the guidance of this number, counted from 1; 0 is none."""

        def update(prediction, context):
            guided = [guidance.update(prediction, (), context)[0] for guidance in guidances]
            chosen = jnp.where(context.step.number == 1, which, 0)
            return jax.tree.map(lambda *leaves: jnp.stack(leaves)[chosen], prediction, *guided)

        either = gj.stateless(update, derivatives=(None,))
        return gj.sample(keys(16), branches, either, sampler, ends, jnp.asarray(start), trace=lambda state: state.x)

    x, along = (np.asarray(found) for found in jax.jit(jax.vmap(run))(np.arange(3)))
    for moved, move, share in zip((x[1] - x[0], x[2] - x[0]), said()(along[0, 0]), missed, strict=True):
        off = np.linalg.norm(moved - move) / np.linalg.norm(move)
        assert abs(off - share) < (0.005 if share else 1e-9), off


def test_a_step_to_pure_noise_is_not_moved():
    """In a step from data to alpha' = 0, no finite shift of x0 would give the move."""
    x, up = jnp.ones((2, 3)), gj.schedules.reverse(gj.levels(gj.schedules.flow(), 4, gj.spacings.trailing()))
    for guidance in (gj.freedom(lambda x0: -(x0**2).sum(1), 0.1), gj.mean_shift(lambda x, level: -(x**2).sum(1), 0.1)):
        one = gj.branches(gj.denoiser(lambda x, t, cond: x / 2, predicts="x0"), cond=None)
        assert jnp.isfinite(gj.sample(keys(2), one, guidance, gj.ddim(), up, x)).all()
