"""Equivalent forms of guidance agree: classifiers, CFG++, shifts, through whole runs on exact mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from worlds import classes, keys, mixture, path

import guidance_jax as gj
from guidance_jax.noise import normal

B = 6
LABELS = jnp.arange(B) % 3
SAMPLERS = {"ddim": gj.ddim(), "ddpm": gj.ddpm(), "heun": gj.heun(), "dpmpp_2m": gj.dpmpp_2m()}


def levels(steps=6, schedule=None):
    return gj.levels(schedule or gj.schedules.cosine(), steps, gj.spacings.karras())


def run(branches, guidance, sampler=None, at=None, shape: tuple = (3,)):
    return gj.sample(keys(B), branches, guidance, sampler or gj.ddim(), at or levels(), shape)


def null():
    return jnp.full_like(LABELS, -1)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
@pytest.mark.parametrize("at_mean", [False, True])
def test_the_mean_shift_moves_the_mean_of_a_ddpm_step_by_its_variance_times_the_gradient(x64, variance, at_mean):
    """One step of Dhariwal & Nichol's algorithm 1 by hand, for a conditional and an unconditional base."""
    m, at = mixture(), levels()
    for start, base in ((1, LABELS), (3, null())):
        ends = path(at, slice(start, start + 2))
        x = jax.random.normal(jax.random.key(1), (B, 3)) * ends.sigma[0]
        log_prob = lambda x, level: m.class_log_prob(x, level, LABELS)
        denoise = lambda x, level, y: m.denoise(x, level, y).replace(variance=jnp.cos(x) ** 2)
        branches, ddpm = gj.branches(denoise, base=base), gj.ddpm(variance)
        plain = gj.sample(keys(B), branches, gj.chain(), ddpm, ends, x)
        guided = gj.sample(keys(B), branches, gj.mean_shift(log_prob, 1.7, variance=variance, at_mean=at_mean), ddpm, ends, x)
        (a, a1), (s, s1) = ends.alpha, ends.sigma
        beta = 1 - (a * s1 / (a1 * s)) ** 2
        share = {"small": 0.0, "large": 1.0, "learned": jnp.cos(x) ** 2}[variance]
        sigma2 = beta * s1 ** (2 - 2 * share) * s ** (2 * share)
        p = m.denoise(x, path(ends, 0), base)
        mean = a1 * beta * p.x0 + (a * s1**2) / (a1 * s**2) * x
        at_x, level = (mean, path(ends, 1)) if at_mean else (x, path(ends, 0))
        gradient = gj.scores.classifier_score(log_prob, at_x, level)
        np.testing.assert_allclose(guided - plain, 1.7 * sigma2 * gradient, rtol=1e-8, atol=1e-12)


def test_the_post_step_form_is_the_step_and_then_the_gradient(x64):
    m, ends = mixture(), path(levels(), slice(2, 4))
    x = jax.random.normal(jax.random.key(1), (B, 3))
    log_prob = lambda x, level: m.class_log_prob(x, level, LABELS)
    for base in (LABELS, null()):
        branches = gj.branches(m.denoise, base=base)
        plain = gj.sample(keys(B), branches, gj.chain(), gj.ddim(), ends, x)
        weight = jnp.linspace(0.0, 0.5, B)
        after = gj.sample(keys(B), branches, gj.chain(), gj.post_step(gj.ddim(), log_prob, weight), ends, x)
        gradient = jax.grad(lambda x: m.class_log_prob(x, path(ends, 1), LABELS).sum())(plain)
        np.testing.assert_allclose(after, plain + weight[:, None] * gradient, rtol=1e-10)


def test_a_classifier_on_a_conditional_model_is_cfg_at_the_scale_plus_one(x64):
    m = mixture()
    log_prob = lambda x, level: m.class_log_prob(x, level, LABELS)
    by_classifier = run(gj.branches(m.denoise, cond=LABELS), gj.classifier(log_prob, 1.5))
    np.testing.assert_allclose(by_classifier, run(classes(m, LABELS), gj.cfg(2.5)), rtol=1e-8, atol=1e-8)


def test_several_classifiers_add_up_and_temperature_divides_the_logits(x64):
    weights = jax.random.normal(jax.random.key(0), (2, 3, 4))
    one, two = (gj.scores.class_log_prob(lambda x, t, w=w: x @ w, LABELS) for w in weights)
    both = lambda x, level: one(x, level) + two(x, level)
    m = mixture()
    base = gj.branches(m.denoise, uncond=null())
    together = run(base, gj.classifier(both, 2.0))
    for several in (gj.chain, gj.add):
        np.testing.assert_allclose(run(base, several(gj.classifier(one, 2.0), gj.classifier(two, 2.0))), together, rtol=1e-9)
    temperature = jnp.linspace(0.5, 2.0, B)
    soft = gj.scores.class_log_prob(lambda x, t: x @ weights[0], LABELS, temperature=temperature)
    by_hand = gj.scores.class_log_prob(lambda x, t: x @ weights[0] / temperature[:, None], LABELS)
    np.testing.assert_allclose(run(base, gj.classifier(soft, 2.0)), run(base, gj.classifier(by_hand, 2.0)), rtol=1e-12)
    assert np.abs(run(base, gj.classifier(soft, 2.0)) - run(base, gj.classifier(one, 2.0))).max() > 1e-3


def test_a_classifier_may_be_nnx_linen_a_function_or_any_log_probability():
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
    base = gj.branches(mixture().denoise, uncond=null())
    guided = [run(base, gj.classifier(gj.scores.class_log_prob(c, LABELS), 3.0)) for c in classify.values()]
    np.testing.assert_allclose(guided[1], guided[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(guided[2], guided[0], rtol=1e-5, atol=1e-5)
    # An energy, and a reward like CLIP's, which is the cosine to an embedding.
    target = jnp.array([[1.0, 2.0, 0.5]])
    cosine = lambda x, level: (x * target).sum(1) / (jnp.linalg.norm(x, axis=1) * jnp.linalg.norm(target) + 1e-6)
    free, pulled = run(base, gj.chain()), run(base, gj.classifier(cosine, 20.0))
    clean = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
    assert cosine(pulled, clean).mean() > cosine(free, clean).mean() + 0.2


@pytest.mark.parametrize("schedule", [gj.schedules.cosine(), gj.schedules.edm(), gj.schedules.flow(t_max=0.99)])
def test_cfg_pp_on_ddim_is_cfg_with_a_scale_that_depends_on_the_step(x64, schedule):
    m, at, scale = mixture(), levels(8, schedule), 0.4
    q = (at.sigma[1:] * at.alpha[:-1]) / (at.sigma[:-1] * at.alpha[1:])
    by_step = lambda level: (scale / (1 - q))[jnp.argmin(jnp.abs(at.sigma[:-1] - level.sigma))]
    plus = run(classes(m, LABELS), gj.cfg_pp(scale), at=at)
    np.testing.assert_allclose(plus, run(classes(m, LABELS), gj.cfg(by_step), at=at), rtol=1e-8, atol=1e-8)


def test_cfg_pp_on_2m_is_the_authors_sampler(x64):
    """As in their code, in sigma / alpha = sigma. A step extrapolates uncond and adds the guided x0."""
    m, at, scale = mixture(), levels(8, gj.schedules.edm()), 0.4
    x = at.sigma[0] * jax.random.normal(jax.random.key(0), (B, 3))
    found = gj.sample(keys(B), classes(m, LABELS), gj.cfg_pp(scale), gj.dpmpp_2m(), at, x)
    old = None
    for i in range(8):
        s, s1 = at.sigma[i], at.sigma[i + 1]
        u, c = m.denoise(x, path(at, i), null()).x0, m.denoise(x, path(at, i), LABELS).x0
        guided = u + scale * (c - u)
        if old is None or s1 == 0:
            x = guided + s1 * (x - u) / s
        else:
            h, h_last = jnp.log(s / s1), jnp.log(at.sigma[i - 1] / s)
            extra = -jnp.exp(-h) * u - jnp.expm1(-h) * (u - old) / (2 * h_last / h)
            x = guided + extra + jnp.exp(-h) * x
        old = u
    np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_cfg_pp_at_zero_is_the_unconditional_model_with_every_sampler(x64, sampler):
    m = mixture()
    free = run(gj.branches(m.denoise, uncond=null()), gj.chain(), SAMPLERS[sampler])
    np.testing.assert_allclose(run(classes(m, LABELS), gj.cfg_pp(0.0), SAMPLERS[sampler]), free, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_freedom_moves_the_step_of_every_sampler_by_its_gradient(x64, sampler):
    """`x' <- x' + rate grad`, exactly, whatever the sampler does in a step. For heun this holds at least in its first stage."""
    m, ends = mixture(), path(levels(), slice(2, 4))
    x = jax.random.normal(jax.random.key(1), (B, 3))
    branches = gj.branches(m.denoise, cond=LABELS)
    log_prob = lambda x0: -((x0 - 1) ** 2).sum(1)
    step = lambda guidance: gj.sample(keys(B), branches, guidance, SAMPLERS[sampler], ends, x)
    gradient = jax.grad(lambda x: log_prob(m.denoise(x, path(ends, 0), LABELS).x0).sum())(x)
    if sampler == "heun":
        assert np.isfinite(step(gj.freedom(log_prob, 0.3))).all()
    else:
        np.testing.assert_allclose(step(gj.freedom(log_prob, 0.3)) - step(gj.chain()), 0.3 * gradient, rtol=1e-8)


def test_universal_is_the_denoiser_form_of_the_classifier(x64):
    """k-diffusion's form: `x0 <- x0 + sigma^2 grad` of the log-probability at the predicted x0, for alpha = 1."""
    m, at = mixture(), levels(6, gj.schedules.edm())
    log_prob = lambda x0: -((x0 - 1) ** 2).sum(1)
    through = lambda x, level: log_prob(m.denoise(x, level, LABELS).x0)
    branches = gj.branches(m.denoise, cond=LABELS)
    np.testing.assert_allclose(
        run(branches, gj.universal(log_prob, 0.2), at=at), run(branches, gj.classifier(through, 0.2), at=at), rtol=1e-10
    )


def test_pigdm_on_standard_normal_data_samples_the_exact_posterior(x64):
    """Data N(0, I), with two of three coordinates measured. The guided denoiser is E[x0 | x, y] at every level."""
    standard = gj.oracles.GaussianMixture(jnp.zeros((1, 3)), jnp.eye(3)[None], jnp.ones(1), jnp.zeros(1, int))
    y = jax.random.normal(jax.random.key(2), (B, 2))
    guidance = gj.pigdm(lambda x0: x0[:, :2], lambda y: jnp.pad(y, ((0, 0), (0, 1))), y)
    x = run(gj.branches(standard.denoise, all=jnp.zeros(B, int)), guidance)
    np.testing.assert_allclose(x[:, :2], y, rtol=1e-9, atol=1e-9)
    free = run(gj.branches(standard.denoise, all=jnp.zeros(B, int)), gj.chain())
    np.testing.assert_allclose(x[:, 2], free[:, 2], rtol=1e-9)


@pytest.mark.parametrize("name", ["dps", "universal", "lgd", "mpgd", "tfg"])
def test_training_free_guidance_brings_samples_closer_to_the_measurement(name):
    """On a mixture with a wide posterior, each method comes at least four times closer to y than no guidance."""
    m, n = mixture(), 64
    y, labels = jnp.full((n, 1), 1.0), jnp.zeros(n, int)
    log_prob = lambda x0: -((x0[:, :1] - y) ** 2).sum(1)
    methods = {
        "dps": gj.dps(lambda x0: x0[:, :1], y, 0.3),
        "universal": gj.universal(log_prob, 20.0),
        "lgd": gj.lgd(log_prob, 20.0, spread=0.05),
        "mpgd": gj.mpgd(log_prob, 0.4),
        "tfg": gj.tfg(log_prob, 0.2, 0.3, inner_steps=2),
    }
    sampled = lambda g: gj.sample(keys(n), gj.branches(m.denoise, cond=labels), g, gj.ddim(), levels(40), (3,))
    error = lambda x: float(jnp.abs(x[:, :1] - y).mean())
    assert error(sampled(methods[name])) < error(sampled(gj.chain())) / 4


def test_composition_accepts_any_set_of_conditions_and_any_pytree(x64):
    """AND and NOT, on labels, with an embedding and a mask in one batch, agree with the formula by hand."""
    m, rng = mixture(), np.random.default_rng(0)
    mask = jnp.asarray(rng.random((B, 4)) < 0.5)
    text = {"tokens": jnp.asarray(rng.normal(size=(B, 4, 3))), "mask": mask}

    def denoise(x, level, cond):
        labels, text = cond
        mean = (text["tokens"] * text["mask"][..., None].astype(x.dtype)).mean(1)
        p = m.denoise(x, level, labels)
        return gj.Prediction(p.x0 + level.sigma * mean, p.eps - level.alpha * mean)

    conds: dict = {"both": (LABELS, text), "label": (LABELS, jax.tree.map(jnp.zeros_like, text)), "uncond": (null(), text)}
    conds["not"] = ((LABELS + 1) % 3, text)
    guidance = gj.compose({"both": 2.0, "label": 1.5, "not": -0.5})
    found = run(gj.branches(denoise, **conds), guidance)
    x = levels().sigma[0] * normal(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys(B), 0), jnp.zeros((B, 3)))
    for i in range(6):
        p = {name: denoise(x, path(levels(), i), cond) for name, cond in conds.items()}
        after = path(levels(), i + 1)
        both, label, uncond, other = p.values()
        guided = uncond + 2 * (both - uncond) + 1.5 * (label - uncond) - 0.5 * (other - uncond)
        x = after.alpha * guided.x0 + after.sigma * guided.eps
    np.testing.assert_allclose(found, x, rtol=1e-9, atol=1e-9)
