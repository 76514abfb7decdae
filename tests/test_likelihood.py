"""Likelihoods against known densities: of mixtures, of guided Gaussians, and of the ODE's own latents."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import cumulative_simpson, quad
from scipy.stats import norm
from worlds import classes, gaussians, keys, mixture

import guidance_jax as gj
from guidance_jax.denoisers import OUTPUTS
from guidance_jax.likelihood import encode
from guidance_jax.noise import normal, step_keys

TINY = functools.partial(encode, tolerance=1e-9)
M_C, V_C, M_U, V_U = 1.3, 0.5, -0.4, 2.0


def normal_log_prob(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


@pytest.mark.parametrize(
    ("make", "predicts"),
    [(gj.schedules.ddpm_linear, "eps"), (gj.schedules.flow, "velocity")],
)
def test_the_density_of_a_mixture_is_exact(x64, make, predicts):
    """It is exact except for the start, N(0, sigma^2) instead of the mixture at that level. Where alpha is 0 they are equal."""
    truth, schedule, labels = mixture(2), make(), jnp.array([-1, 0, 1, 2, -1])

    def network(x, t, y):
        level = schedule(t)
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        exact = truth.denoise(x, level, y)
        return OUTPUTS[predicts](exact.x0, exact.eps, alpha, sigma)

    @jax.jit
    def program():
        x, (least, most) = truth.sample(jax.random.key(1), 5, labels), map(schedule, (schedule.t_min, schedule.t_max))
        found = TINY(classes(truth, labels)._replace(denoise=gj.denoiser(network, predicts)), gj.chain(), x, schedule)
        return found, most.sigma, truth.log_prob(found.latent, most, labels), truth.log_prob(x, least, labels)

    found, sigma, at_most, expected = jax.tree.map(np.asarray, program())
    start = norm.logpdf(found.latent, scale=sigma).sum(1)
    np.testing.assert_allclose(found.log_likelihood - start + at_most, expected, atol=2e-7)
    if predicts == "velocity":
        np.testing.assert_allclose(start, at_most, atol=1e-12)


def guided_law(w, interval, low, high):
    """Mean and variance at `low` of `dy/dl = sum_i w_i r^2 / (v_i + r^2) (y - m_i)`, l = log r, from N(0, high^2).

    The weights are w and 1 - w in the interval, 1 and 0 elsewhere.
    """
    edges = (low, *interval, high)
    weights = ((1.0, 0.0), (w, 1 - w), (1.0, 0.0))

    def growth(r):
        """The integral of `sum_i w_i r^2 / (v_i + r^2)` from low."""
        pieces = zip(edges, edges[1:], weights, strict=False)
        terms = [(k, v, a, min(b, r)) for a, b, each in pieces if r > a for k, v in zip(each, (V_C, V_U), strict=True)]
        return sum(k / 2 * np.log((v + b**2) / (v + a**2)) for k, v, a, b in terms)

    mean = 0.0
    for a, b, (c, u) in zip(edges, edges[1:], weights, strict=False):
        pull = lambda r, c=c, u=u: r**2 * (c * M_C / (V_C + r**2) + u * M_U / (V_U + r**2)) * np.exp(-growth(r))
        mean += quad(lambda l, pull=pull: pull(np.exp(l)), np.log(a), np.log(b), epsabs=1e-11, limit=200)[0]
    return mean, high**2 * np.exp(-2 * growth(high))


@pytest.mark.slow
def test_guided_gaussians_in_intervals_have_their_exact_density(x64):
    """CFG of Gaussians in an interval is Gaussian, by an affine ODE. vmap over scales and intervals."""
    schedule = gj.schedules.edm(0.01, 50.0)
    x, branches = jnp.array([[0.3], [2.0]]), gaussians(M_C, V_C, M_U, V_U)
    cases = [(w, low, high) for w in (0.0, 0.5, 3.0, 8.0) for low, high in ((0.01, 50.0), (0.4, 3.0))]
    solve = lambda w, low, high: TINY(branches, gj.during(gj.cfg(w), low, high), x, schedule).log_likelihood
    for (w, *interval), found in zip(cases, jax.jit(jax.vmap(solve))(*np.array(cases).T), strict=True):
        mean, variance = guided_law(w, interval, 0.01, 50.0)
        np.testing.assert_allclose(found, normal_log_prob(np.asarray(x[:, 0]), mean, variance), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_densities_from_infinite_noise_and_their_gradients_are_the_closed_forms(x64):
    """From sigma / alpha = infinity, the variance is `(v_c + s)^w (v_u + s)^(1 - w)`, with s the square of the minimum sigma /
    alpha.
    """
    schedule = gj.schedules.flow()
    level = schedule(schedule.t_min)
    s = float(level.ratio) ** 2
    branches = gaussians(0.7, V_C, 0.7, V_U)

    def found(x, w):
        return TINY(branches, gj.cfg(w), x[None, None], schedule).log_likelihood[0]

    def exact(x, w):
        variance = level.alpha**2 * (V_C + s) ** w * (V_U + s) ** (1 - w)
        return -0.5 * ((x - level.alpha * 0.7) ** 2 / variance + jnp.log(2 * jnp.pi * variance))

    both = jax.jit(lambda *at: [jax.value_and_grad(f, argnums=(0, 1))(*at) for f in (found, exact)])
    for a, b in zip(*both(1.9, 3.0), strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-6)


@pytest.mark.slow
def test_a_gradient_guidance_is_differentiated_through(x64):
    """REG pulls back through the network, and the divergence differentiates that. The exact classifier is Bayes' rule."""
    schedule = gj.schedules.edm(0.01, 50.0)
    found = TINY(gaussians(0.0, V_C, 0.0, V_U), gj.reg(gj.cfg(3.0)), jnp.array([[0.8]]), schedule).log_likelihood[0]

    def slope(l):
        r2 = np.exp(2 * l)
        c, u = V_C / (V_C + r2), V_U / (V_U + r2)
        return 1 - c - c * 2.0 * (c - u)

    variance = 50.0**2 * np.exp(-2 * quad(slope, np.log(0.01), np.log(50.0), epsabs=1e-12)[0])
    np.testing.assert_allclose(found, normal_log_prob(0.8, 0.0, variance), rtol=1e-6)

    truth, flow, labels = mixture(2), gj.schedules.flow(), jnp.array([0, 2])

    def of_class(x, label):
        classify = gj.classifier(lambda x, level: truth.class_log_prob(x, level, label[None]), 1.0)
        return TINY(gj.branches(truth.denoise, uncond=jnp.array([-1])), classify, x[None], flow).log_likelihood[0]

    @jax.jit
    def program():
        x = truth.sample(jax.random.key(1), 2, labels)
        return jax.vmap(of_class)(x, labels), truth.log_prob(x, flow(flow.t_min), labels)

    np.testing.assert_allclose(*program(), atol=2e-7)


def test_the_density_of_a_guided_mixture_on_the_line_is_normalised_and_not_the_tilted_one(x64):
    """It integrates to one, and its cumulative distribution is that of the latents."""
    truth, schedule, n = mixture(1), gj.schedules.flow(), 401
    x, labels, w = jnp.asarray(np.linspace(-9.0, 9.0, n)), jnp.asarray(np.zeros(n, int)), 3.0

    @jax.jit
    def program():
        found = encode(classes(truth, labels), gj.cfg(w), x[:, None], schedule, tolerance=1e-8)
        level = schedule(schedule.t_min)
        return found, sum(k * truth.log_prob(x[:, None], level, y) for k, y in ((w, labels), (1 - w, labels - 1)))

    found, tilted = jax.tree.map(np.asarray, program())
    p, tilted = np.exp(found.log_likelihood), np.exp(tilted)
    cumulative = cumulative_simpson(p, x=np.asarray(x), initial=0)
    np.testing.assert_allclose(cumulative[-1], 1, atol=1e-5)
    np.testing.assert_allclose(cumulative, norm.cdf(found.latent[:, 0]), atol=2e-5)
    tilted /= np.trapezoid(tilted, x)
    assert np.trapezoid(np.abs(p - tilted), x) / 2 > 0.03


@functools.cache
def estimated(probes):
    """A program of a Gaussian, samples and keys: Hutchinson's estimates, and the exact log-likelihood, in float64."""

    @jax.jit
    def program(one, x, keys):
        labels, flow = jnp.zeros(len(x), int), gj.schedules.flow()
        branches = gj.branches(one.denoise, cond=labels)
        found = gj.log_likelihood(branches, gj.chain(), x, flow, keys=keys, probes=probes, tolerance=1e-8)
        return found, one.log_prob(x, flow(flow.t_min), labels)

    return program


def gaussian(covariance):
    mean = jnp.array([[1.0, 2.0, 3.0]])
    return gj.oracles.GaussianMixture(mean, jnp.array(covariance)[None], jnp.ones(1), jnp.zeros(1, int))


@pytest.mark.slow
def test_hutchinsons_estimate_is_unbiased_and_narrows_with_more_probes(x64):
    one, n = gaussian([[1.0, 0.6, -0.3], [0.6, 0.8, 0.2], [-0.3, 0.2, 0.5]]), 200
    spreads = []
    for probes in (1, 4):
        found, exact = map(np.asarray, estimated(probes)(one, jnp.ones((n, 3)), keys(n, probes)))
        spreads.append(found.std())
        assert 0.05 < spreads[-1] < 2
        assert abs(found.mean() - exact[0]) < 3.5 * spreads[-1] / math.sqrt(n)
    np.testing.assert_allclose(spreads[0] / spreads[1], 2, rtol=0.3)


def test_hutchinsons_estimate_is_exact_for_a_diagonal_jacobian(x64):
    one = gaussian([[0.2, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 4.0]])
    np.testing.assert_allclose(*estimated(1)(one, jnp.ones((200, 3)), keys(200)), atol=1e-6)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch_and_its_latent_leads_back(x64):
    truth, schedule, labels = mixture(2), gj.schedules.cosine(), jnp.array([0, 1, 2, 0])
    x = jnp.asarray(np.asarray(truth.means)[[0, 2, 4, 1]] * np.array([[1.0], [1.5], [3.0], [1.0]]))
    program = jax.jit(lambda x, labels: encode(classes(truth, labels), gj.cfg(2.0), x, schedule, tolerance=1e-6))
    together = program(x, labels)
    assert len(set(together.steps.tolist())) > 1
    among_others = program(jnp.where(np.arange(4)[:, None] == 1, x, -2 * x), jnp.array([2, 1, 0, 1]))
    assert among_others.steps.tolist() != together.steps.tolist()
    np.testing.assert_allclose(among_others.log_likelihood[1], together.log_likelihood[1], rtol=1e-11)
    down = gj.levels(schedule, 400, gj.spacings.karras())[:-1]
    back = gj.sample(keys(4), classes(truth, labels), gj.cfg(2.0), gj.heun(), down, together.latent)
    np.testing.assert_allclose(back, x, rtol=1e-3, atol=1e-3)


def test_float32_is_accurate_to_its_own_tolerance():
    truth, schedule, labels = mixture(2), gj.schedules.flow(), jnp.array([0, 1, 2, -1])

    @jax.jit
    def program():
        x = truth.sample(jax.random.key(5), 4, labels)
        return encode(classes(truth, labels), gj.chain(), x, schedule), truth.log_prob(x, schedule(schedule.t_min), labels)

    found, expected = program()
    assert found.log_likelihood.dtype == found.latent.dtype == jnp.float32
    np.testing.assert_allclose(found.log_likelihood, expected, atol=2e-4)
    assert max(found.steps) < 40


def test_bits_per_dimension_of_uniform_noise_are_exact():
    """The density is uniform over 32 of the 256 values: 5 bits."""
    nats = jnp.array([3 * math.log(256 / 32 / 2)])
    np.testing.assert_allclose(gj.likelihood.bits_per_dimension(nats, (3,)), [5.0], rtol=1e-6)


X = jnp.asarray(np.ones((3, 2)), float)


def call(guidance, x=None, **keywords):
    x = X if x is None else x
    conds = keywords.pop("conds", {"cond": jnp.array([0, 1, 2]), "uncond": jnp.array([-1] * 3)})
    keywords |= {"keys": keys(keywords["keys"])} if "keys" in keywords else {}
    denoise = gj.denoiser(lambda x, t, label: jnp.tanh(x) + label[:, None].astype(x.dtype), predicts="x0")
    return gj.log_likelihood(gj.branches(denoise, **conds), guidance, x, gj.schedules.edm(), **keywords)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": gj.chain(gj.cfg(2.0), gj.momentum(-0.5))}, "keeps 1 arrays"),
        ({"guidance": gj.reuse(gj.cfg(2.0), 2)}, "must have no memory"),
        ({"guidance": gj.cfg(2.0), "probes": 4}, "needs keys"),
        ({"guidance": gj.cfg(2.0), "probes": 0, "keys": 3}, "at least 1, got 0"),
        ({"guidance": gj.cfg(2.0), "keys": 2}, r"B = 2 keys"),
        ({"guidance": gj.cfg(2.0, cond="cnd")}, "Did you mean 'cond'"),
        ({"guidance": gj.cfg(2.0), "x": jnp.asarray(np.full((3, 2), np.nan), float)}, "NaN or infinite"),
        (
            {"guidance": gj.icg(2.0), "conds": {"cond": jnp.array([0, 1, 2]), "random": gj.conditions.random_labels(3)}},
            "the same in every step",
        ),
    ],
)
def test_runs_without_a_likelihood_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


@pytest.mark.parametrize(
    "guidance",
    [
        gj.cfg(jnp.array([0.0, 1.0, 2.0])),
        gj.stateless(lambda p, _: p.replace(x0=p.x0 * jnp.ones((3, 1)), eps=p.eps * jnp.ones((3, 1)))),
        gj.classifier(lambda x, level: -(x**2).sum(1) * jnp.arange(3.0), 1.0),
    ],
    ids=["scale", "silent", "classifier"],
)
def test_one_number_per_sample_hidden_in_the_guidance_raises(guidance):
    with pytest.raises(ValueError, match=r"shape|must be \[1\], got float32\[3\]") as caught:
        call(guidance)
    assert any("vmap" in note for note in caught.value.__notes__)


@functools.cache
def poisoned():
    """A program of x, labels and noise that gives NaN for class 0."""

    def found(x, labels, above):
        def denoise(x, level, label):
            prediction = mixture(2).denoise(x, level, label)
            return prediction.replace(x0=jnp.where(((label == 0) & (level.sigma > above))[:, None], jnp.nan, prediction.x0))

        return encode(gj.branches(denoise, cond=labels, uncond=labels * 0 - 1), gj.cfg(2.0), x, gj.schedules.flow())

    return jax.jit(found)


@pytest.mark.parametrize("poison", ["x", "infinite x", "a label outside", "the network", "the network, later"])
def test_a_poisoned_sample_is_nan_alone_and_delays_no_other(poison):
    x, labels, above = jnp.array([[0.3, -1.0], [1.0, 0.5], [-0.7, 2.0]]), jnp.array([1, 0, 2]), jnp.float32(2.0)
    right = poisoned()(x, labels, above)
    assert np.isfinite(right.log_likelihood).all()
    x = x.at[1, 0].set({"x": jnp.nan, "infinite x": jnp.inf}.get(poison, 1.0))
    labels = labels.at[1].set(7) if "label" in poison else labels
    above = {"the network": jnp.float32(-1.0), "the network, later": jnp.float32(0.6)}.get(poison, above)
    found = poisoned()(x, labels, above)
    for field in (found.log_likelihood, found.latent):
        assert np.isnan(field[1]).all()
    for ours, theirs in zip(found, right, strict=True):
        np.testing.assert_array_equal(np.delete(ours, 1, 0), np.delete(theirs, 1, 0))
    assert found.steps[1] < 100


def test_cfg_pp_has_no_ode_also_beside_a_poisoned_sample():
    program = jax.jit(lambda x: call(gj.cfg_pp(0.6), x))
    for first in (1.0, np.nan):
        with pytest.raises(Exception, match="CFG\\+\\+"):
            jax.block_until_ready(program(np.array([[first] * 2, [1.0] * 2, [1.0] * 2], np.float32)))


def test_too_few_steps_raise():
    with pytest.raises(Exception, match="maximum number of"):
        jax.block_until_ready(call(gj.cfg(2.0), max_steps=3))


def test_a_missing_diffrax_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match="pip install diffrax"):
        call(gj.cfg(2.0))


def test_a_guidance_that_draws_receives_the_same_draws_at_every_level():
    """With new noise at each level there would be no ODE, and a solver would not end."""

    def update(prediction, context):
        shift = 0.1 * normal(step_keys(context.step), context.x)
        return prediction.x0 + shift

    one = gj.oracles.GaussianMixture(jnp.zeros((1, 2)), jnp.eye(2)[None], jnp.ones(1), jnp.zeros(1, int))
    branches = gj.branches(one.denoise, cond=jnp.zeros(2, int))
    found = encode(branches, gj.stateless(update), jnp.ones((2, 2)), gj.schedules.flow(), keys=keys(2))
    assert (found.steps < 40).all()
    assert found.log_likelihood[0] != found.log_likelihood[1]
