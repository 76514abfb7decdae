"""Equivalent forms of guidance agree: classifiers, CFG++, shifts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from quick import quick_keys
from walks import DENOISE, GIVEN, predicted, run
from worlds import keys, path, peaks

import guidance_jax as gj

B = 6
LABELS = np.arange(B) % 3
X = np.random.default_rng(1).normal(size=(B, 3))


def levels(steps=6, schedule=None):
    return gj.levels(schedule or gj.schedules.cosine(), steps, gj.spacings.karras())


def two():
    conds: dict = {name: jnp.asarray(cond) for name, cond in GIVEN.items()}
    return gj.branches(DENOISE, **conds)


def near(x, level):
    """A log-probability of the noisy x."""
    return -((x - level.alpha) ** 2).sum(1) / (1 + level.sigma**2)


def near_slope(x, level):
    a, s = float(level.alpha), float(level.sigma)
    return -2 * (x - a) / (1 + s**2)


def varied(x, level, cond):
    """The network, with a variance between the small and the large one."""
    return DENOISE(x, level, cond).replace(variance=jnp.cos(x) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize(("variance", "at_mean"), [("small", True), ("large", False), ("learned", True)], ids=str)
def test_the_mean_shift_moves_the_mean_of_a_ddpm_step_by_its_variance_times_the_gradient(x64, variance, at_mean):
    """One step of Dhariwal & Nichol's algorithm 1 by hand, for a conditional and an unconditional base."""
    guidance = gj.mean_shift(near, 1.7, variance=variance, at_mean=at_mean)
    for start, name in ((1, "cond"), (3, "uncond")):
        ends = path(levels(), slice(start, start + 2))
        level, after = path(ends, 0), path(ends, 1)
        (a, a1), (s, s1) = np.asarray(ends.alpha), np.asarray(ends.sigma)
        x = s * X
        branches = gj.branches(varied, base=jnp.asarray(GIVEN[name]))
        guided, plain = (
            np.asarray(gj.sample(keys(B), branches, part, gj.ddpm(variance), ends, jnp.asarray(x)))
            for part in (guidance, gj.chain())
        )
        beta = 1 - (a * s1 / (a1 * s)) ** 2
        share = {"small": 0.0, "large": 1.0, "learned": np.cos(x) ** 2}[variance]
        sigma2 = beta * s1 ** (2 - 2 * share) * s ** (2 * share)
        mean = a1 * beta * predicted(x, level, GIVEN[name])[0] + (a * s1**2) / (a1 * s**2) * x
        gradient = near_slope(mean, after) if at_mean else near_slope(x, level)
        np.testing.assert_allclose(guided - plain, 1.7 * sigma2 * gradient, rtol=1e-8, atol=1e-12, err_msg=name)


def test_the_post_step_form_is_the_step_and_then_the_gradient(x64):
    ends, weight = path(levels(), slice(2, 4)), np.linspace(0.0, 0.5, B)
    for name, cond in GIVEN.items():
        one = gj.branches(DENOISE, base=jnp.asarray(cond))
        plain, after = (
            np.asarray(gj.sample(keys(B), one, gj.chain(), sampler, ends, jnp.asarray(X)))
            for sampler in (gj.ddim(), gj.post_step(gj.ddim(), near, weight))
        )
        wanted = plain + weight[:, None] * near_slope(plain, path(ends, 1))
        np.testing.assert_allclose(after, wanted, rtol=1e-10, err_msg=name)


def test_several_classifiers_add_up_and_temperature_divides_the_logits(x64):
    weights = np.random.default_rng(0).normal(size=(2, 3, 4))
    one, other = (gj.scores.class_log_prob(lambda x, t, w=w: x @ w, jnp.asarray(LABELS)) for w in weights)
    both = lambda x, level: one(x, level) + other(x, level)
    temperature = np.linspace(0.5, 2.0, B)
    soft = gj.scores.class_log_prob(lambda x, t: x @ weights[0], jnp.asarray(LABELS), temperature=jnp.asarray(temperature))
    by_hand = gj.scores.class_log_prob(lambda x, t: x @ weights[0] / temperature[:, None], jnp.asarray(LABELS))
    apart = gj.classifier(one, 2.0), gj.classifier(other, 2.0)
    guidances = (
        gj.classifier(both, 2.0),
        gj.chain(*apart),
        gj.add(*apart),
        gj.classifier(soft, 2.0),
        gj.classifier(by_hand, 2.0),
    )
    at = lambda level: [gj.guided(two(), guidance)(jnp.asarray(X), level) for guidance in (*guidances, apart[0])]
    found = jax.jit(at)(gj.schedules.cosine()(0.6))
    for ours, theirs in ((1, 0), (2, 0), (3, 4)):
        np.testing.assert_allclose(found[ours].x0, found[theirs].x0, rtol=1e-9, err_msg=repr(guidances[ours]))
        np.testing.assert_allclose(found[ours].eps, found[theirs].eps, rtol=1e-9, err_msg=repr(guidances[ours]))
    assert np.abs(found[3].x0 - found[5].x0).max() > 1e-3


def test_a_classifier_may_be_nnx_linen_or_a_function():
    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x, t):
            return linen.Dense(4)(jnp.tanh(x))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)

        def __call__(self, x, t):
            return self.dense(jnp.tanh(x))

    module = Linen()
    apply_linen, params = gj.networks.from_linen(module, dict(module.init(jax.random.key(0), jnp.ones((1, 3)), jnp.ones(1))))
    kernel, bias = params["Dense_0"]["kernel"], params["Dense_0"]["bias"]
    same = Nnx(nnx.Rngs(0))
    nnx.update(same.dense, {"kernel": kernel, "bias": bias})
    apply_nnx, state = gj.networks.from_nnx(same)
    classify = {
        "linen": lambda x, t: apply_linen(params, x, t),
        "nnx": lambda x, t: apply_nnx(state, x, t),
        "function": lambda x, t: jnp.tanh(x) @ kernel + bias[None],
    }
    scores = jax.jit(
        lambda x, level: [
            gj.scores.classifier_score(gj.scores.class_log_prob(c, jnp.asarray(LABELS)), x, level) for c in classify.values()
        ]
    )(jnp.asarray(X), gj.schedules.cosine()(0.6))
    logits = np.tanh(X) @ np.asarray(kernel) + np.asarray(bias)
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = (1 - np.tanh(X) ** 2) * ((np.eye(4)[LABELS] - odds) @ np.asarray(kernel).T)
    for name, score in zip(classify, scores, strict=True):
        np.testing.assert_allclose(score, slope, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_classifier_may_be_any_log_probability():
    """An energy, or a reward like CLIP's, which is the cosine to an embedding."""
    target = np.array([[1.0, 2.0, 0.5]], np.float32)
    cosine = lambda x, level: (x * target).sum(1) / (jnp.linalg.norm(x, axis=1) * np.linalg.norm(target) + 1e-6)
    near = lambda x: np.asarray(x) @ target[0] / (np.linalg.norm(x, axis=1) * np.linalg.norm(target))
    free, pulled = run(gj.chain()), run(gj.classifier(cosine, 20.0))
    assert near(pulled).mean() > near(free).mean() + 0.2


def test_cfg_pp_on_ddim_is_cfg_with_a_scale_that_depends_on_the_step(x64):
    scale = 0.4

    @jax.jit
    def both(at):
        q = (at.sigma[1:] * at.alpha[:-1]) / (at.sigma[:-1] * at.alpha[1:])
        by_step = lambda level: (scale / (1 - q))[jnp.argmin(jnp.abs(at.sigma[:-1] - level.sigma))]
        return [gj.sample(keys(B), two(), guidance, gj.ddim(), at, (3,)) for guidance in (gj.cfg_pp(scale), gj.cfg(by_step))]

    for schedule in (gj.schedules.cosine(), gj.schedules.edm(), gj.schedules.flow(t_max=0.99)):
        plus, by_step = both(levels(8, schedule))
        np.testing.assert_allclose(plus, by_step, rtol=1e-8, atol=1e-8, err_msg=repr(schedule))


def test_cfg_pp_on_2m_is_the_authors_sampler(x64):
    """As in their code, in sigma / alpha = sigma. A step extrapolates uncond and adds the guided x0."""
    at, scale = levels(8, gj.schedules.edm()), 0.4
    sigma = np.asarray(at.sigma)
    x = sigma[0] * X
    found = gj.sample(keys(B), two(), gj.cfg_pp(scale), gj.dpmpp_2m(), at, jnp.asarray(x))
    old = None
    for i in range(8):
        s, s1 = sigma[i], sigma[i + 1]
        c, u = (predicted(x, path(at, i), GIVEN[name])[0] for name in ("cond", "uncond"))
        guided = u + scale * (c - u)
        if old is None or s1 == 0:
            x = guided + s1 * (x - u) / s
        else:
            h, h_last = np.log(s / s1), np.log(sigma[i - 1] / s)
            extra = -np.exp(-h) * u - np.expm1(-h) * (u - old) / (2 * h_last / h)
            x = guided + extra + np.exp(-h) * x
        old = u
    np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-9)


def test_universal_is_the_denoiser_form_of_the_classifier(x64):
    """k-diffusion's form: `x0 <- x0 + sigma^2 grad` of the log-probability at the predicted x0, for alpha = 1."""
    log_prob = lambda x0: -((x0 - 1) ** 2).sum(1)
    through = lambda x, level: log_prob(DENOISE(x, level, jnp.asarray(GIVEN["cond"])).x0)
    guidances = gj.universal(log_prob, 0.2), gj.classifier(through, 0.2), gj.chain()
    at = lambda level: [gj.guided(two(), guidance)(jnp.asarray(2 * X), level) for guidance in guidances]
    ours, theirs, plain = jax.jit(at)(gj.schedules.edm()(0.3))
    np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-10)
    np.testing.assert_allclose(ours.eps, theirs.eps, rtol=1e-10)
    assert np.abs(ours.x0 - plain.x0).max() > 1e-2


def test_pigdm_on_standard_normal_data_samples_the_exact_posterior(x64):
    """Data N(0, I), with two of three coordinates measured. The guided denoiser is E[x0 | x, y] at every level."""

    def denoise(x, level, cond):
        total = level.alpha**2 + level.sigma**2
        return gj.Prediction(level.alpha / total * x, level.sigma / total * x)

    y = np.random.default_rng(2).normal(size=(B, 2))
    guidance = gj.pigdm(lambda x0: x0[:, :2], lambda y: jnp.pad(y, ((0, 0), (0, 1))), y)
    sample = lambda guidance: gj.sample(keys(B), gj.branches(denoise, all=None), guidance, gj.ddim(), levels(), (3,))
    x, free = sample(guidance), sample(gj.chain())
    np.testing.assert_allclose(x[:, :2], y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(x[:, 2], free[:, 2], rtol=1e-9)


N = 64


@functools.cache
def two_peaks():
    return gj.branches(peaks, cond=jnp.full(N, -1))


@functools.cache
def missed(guidance):
    """How far the samples are from 1 in their first coordinate, on average."""
    x = gj.sample(quick_keys(N), two_peaks(), guidance, gj.ddim(), levels(40), (3,))
    return np.abs(np.asarray(x)[:, 0] - 1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dps", "universal", "lgd", "mpgd", "tfg"])
def test_training_free_guidance_brings_samples_closer_to_the_measurement(name):
    """On data with a peak there and another, each method comes at least four times closer to y than no guidance."""
    log_prob = lambda x0: -((x0[:, 0] - 1) ** 2)
    methods = {
        "dps": gj.dps(lambda x0: x0[:, :1], np.ones((N, 1), np.float32), 0.3),
        "universal": gj.universal(log_prob, 20.0),
        "lgd": gj.lgd(log_prob, 20.0, spread=0.05),
        "mpgd": gj.mpgd(log_prob, 0.4),
        "tfg": gj.tfg(log_prob, 0.2, 0.3, inner_steps=2),
    }
    assert missed(methods[name]) < missed(gj.chain()) / 4


def test_composition_accepts_any_set_of_conditions_and_any_pytree(x64):
    """AND and NOT, on a number, with an embedding and a mask in one batch, agree with the formula by hand."""
    rng = np.random.default_rng(0)
    text = {"tokens": rng.normal(size=(B, 4, 3)), "mask": rng.random((B, 4)) < 0.5}
    blank = {"tokens": np.zeros((B, 4, 3)), "mask": np.zeros((B, 4), bool)}
    cond, null = GIVEN["cond"], GIVEN["uncond"]
    conds = {"both": (cond, text), "label": (cond, blank), "uncond": (null, text), "not": (1 - cond, text)}

    def denoise(x, level, cond):
        number, text = cond
        mean = (text["tokens"] * text["mask"][..., None].astype(x.dtype)).mean(1)
        p = DENOISE(x, level, number)
        return gj.Prediction(p.x0 + level.sigma * mean, p.eps - level.alpha * mean)

    def by_hand(x, level, cond):
        number, text = cond
        mean, (x0, eps) = (text["tokens"] * text["mask"][..., None]).mean(1), predicted(x, level, number)
        return np.stack([x0 + float(level.sigma) * mean, eps - float(level.alpha) * mean])

    at, guidance = levels(), gj.compose({"both": 2.0, "label": 1.5, "not": -0.5})
    branches = gj.branches(denoise, **jax.tree.map(jnp.asarray, conds))
    found = gj.sample(keys(B), branches, guidance, gj.ddim(), at, jnp.asarray(X))
    x = X
    for i in range(6):
        both, label, uncond, other = (by_hand(x, path(at, i), cond) for cond in conds.values())
        x0, eps = uncond + 2 * (both - uncond) + 1.5 * (label - uncond) - 0.5 * (other - uncond)
        x = float(at.alpha[i + 1]) * x0 + float(at.sigma[i + 1]) * eps
    np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-9)
