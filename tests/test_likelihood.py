"""Likelihoods against known densities: of mixtures, of guided Gaussians, and of the ODE's own latents."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_keys
from scipy.integrate import cumulative_simpson, quad
from scipy.stats import norm
from worlds import classes, gaussian, keys, mixture

import guidance_jax as gj
from guidance_jax.likelihood import encode
from guidance_jax.noise import normal, step_keys

TINY = functools.partial(encode, tolerance=1e-9)
M_C, V_C, M_U, V_U = 1.3, 0.5, -0.4, 2.0


def gaussians(m_c, v_c, m_u, v_u):
    """The branches `cond` and `uncond` of N(m_c, v_c) and N(m_u, v_u)."""
    return gj.Branches(gaussian(m_c, v_c), {"cond": None}), gj.Branches(gaussian(m_u, v_u), {"uncond": None})


def normal_log_prob(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + math.log(2 * math.pi * variance))


@pytest.mark.slow
def test_the_density_of_a_mixture_is_exact(x64):
    """It is exact except for the start, N(0, sigma^2) instead of the mixture at that level."""
    truth, schedule, labels = mixture(2), gj.schedules.ddpm_linear(), jnp.array([-1, 0, 1, 2, -1])
    network = lambda x, t, y: truth.denoise(x, schedule(t), y).eps
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)) * 2)

    @jax.jit
    def program():
        least, most = map(schedule, (schedule.t_min, schedule.t_max))
        found = TINY(classes(truth, labels)._replace(denoise=gj.denoiser(network, "eps")), gj.chain(), x, schedule)
        return found, most.sigma, truth.log_prob(found.latent, most, labels), truth.log_prob(x, least, labels)

    found, sigma, at_most, expected = jax.tree.map(np.asarray, program())
    start = norm.logpdf(found.latent, scale=sigma).sum(1)
    np.testing.assert_allclose(found.log_likelihood - start + at_most, expected, atol=2e-7)


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
def test_gradient_guidances_are_differentiated_through(x64):
    """REG pulls back through the network, and a classifier has its own gradient. The divergence differentiates both."""
    schedule, share, spread = gj.schedules.edm(0.01, 50.0), 0.7, 1.6
    classify = gj.classifier(lambda x, level: -(x**2).sum(1) / (2 * (spread + level.sigma**2)), share)
    guidance = gj.chain(gj.reg(gj.cfg(3.0)), classify)
    found = TINY(gaussians(0.0, V_C, 0.0, V_U), guidance, jnp.array([[0.8]]), schedule).log_likelihood[0]

    def slope(l):
        r2 = np.exp(2 * l)
        c, u = V_C / (V_C + r2), V_U / (V_U + r2)
        return 1 - c - c * 2.0 * (c - u) + share * r2 / (spread + r2)

    variance = 50.0**2 * np.exp(-2 * quad(slope, np.log(0.01), np.log(50.0), epsabs=1e-12)[0])
    np.testing.assert_allclose(found, normal_log_prob(0.8, 0.0, variance), rtol=1e-6)


@pytest.mark.slow
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


@pytest.mark.slow
def test_hutchinsons_estimate_is_unbiased_has_its_exact_spread_and_none_for_a_diagonal_jacobian(x64):
    """All derivatives of the flow of a Gaussian are functions of its covariance, so they commute.

    Their integral is the logarithm of the whole map, which is the square root of the ratio of the covariances of u.
    """
    n, probes, flow = 400, 4, gj.schedules.flow()
    mixed = np.array([[1.0, 0.6, -0.3], [0.6, 0.8, 0.2], [-0.3, 0.2, 0.5]])

    @jax.jit
    def program(covariance):
        mean = jnp.array([[1.0, 2.0, 3.0]])
        one = gj.oracles.GaussianMixture(mean, covariance[None], jnp.ones(1), jnp.zeros(1, int))
        x, labels, level = jnp.ones((n, 3)), jnp.zeros(n, int), flow(flow.t_min)
        found = gj.log_likelihood(
            gj.branches(one.denoise, cond=labels), gj.chain(), x, flow, keys=keys(n), probes=probes, tolerance=1e-8
        )
        return found, one.log_prob(x, level, labels), level

    np.testing.assert_allclose(*program(jnp.diag(jnp.array([0.2, 1.0, 4.0])))[:2], atol=1e-6)
    found, exact, level = jax.tree.map(np.asarray, program(jnp.asarray(mixed)))
    values, axes = np.linalg.eigh(mixed)
    values = (level.alpha**2 * values + level.sigma**2) / (level.alpha**2 + level.sigma**2)
    integral = axes * np.log(values) @ axes.T / 2
    spread = np.sqrt(2 * (integral**2).sum() - 2 * (np.diag(integral) ** 2).sum()) / np.sqrt(probes)
    assert spread > 0.1
    assert abs(found.mean() - exact[0]) < 3.5 * spread / np.sqrt(n)
    np.testing.assert_allclose(found.std(), spread, rtol=0.15)


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
    """A program of x, labels, noise that gives NaN for class 0, and a scale. With its results, the density of each class."""

    def found(x, labels, above, scale):
        truth, flow = mixture(2), gj.schedules.flow()

        def denoise(x, level, label):
            prediction = truth.denoise(x, level, label)
            return prediction.replace(x0=jnp.where(((label == 0) & (level.sigma > above))[:, None], jnp.nan, prediction.x0))

        branches = gj.branches(denoise, cond=labels, uncond=labels * 0 - 1)
        return encode(branches, gj.cfg(scale), x, flow), truth.log_prob(x, flow(flow.t_min), labels)

    program = jax.jit(found)
    return lambda x, labels, above=2.0, scale=2.0: jax.tree.map(
        np.asarray, program(np.float32(x), np.int32(labels), np.float32(above), np.float32(scale))
    )


POINTS, LABELS = np.array([[0.3, -1.0], [1.0, 0.5], [-0.7, 2.0]]), np.array([1, 0, 2])


@pytest.mark.slow
def test_float32_is_accurate_to_its_own_tolerance():
    for scale, labels in ((1.0, LABELS), (0.0, np.full(3, -1)), (2.0, np.full(3, -1))):
        found, expected = poisoned()(POINTS, labels, scale=scale)
        assert found.log_likelihood.dtype == found.latent.dtype == np.float32
        np.testing.assert_allclose(found.log_likelihood, expected, atol=2e-4)
        assert max(found.steps) < 40


@pytest.mark.slow
@pytest.mark.parametrize("poison", ["x", "infinite x", "a label outside", "the network", "the network, later"])
def test_a_poisoned_sample_is_nan_alone_and_delays_no_other(poison):
    x, labels, above = POINTS.copy(), LABELS.copy(), 2.0
    right, _ = poisoned()(x, labels, above)
    assert np.isfinite(right.log_likelihood).all()
    x[1, 0] = {"x": np.nan, "infinite x": np.inf}.get(poison, 1.0)
    labels[1] = 7 if "label" in poison else 0
    found, _ = poisoned()(x, labels, {"the network": -1.0, "the network, later": 0.6}.get(poison, above))
    for field in (found.log_likelihood, found.latent):
        assert np.isnan(field[1]).all()
    for ours, theirs in zip(found, right, strict=True):
        np.testing.assert_array_equal(np.delete(ours, 1, 0), np.delete(theirs, 1, 0))
    assert found.steps[1] < 100


@pytest.mark.slow
def test_cfg_pp_has_no_ode_also_beside_a_poisoned_sample_and_too_few_steps_raise():
    """With a scale of 0 it is the unconditional model."""
    program = jax.jit(lambda x, scale: call(gj.cfg_pp(scale), x, max_steps=3))
    for first, scale, message in ((1.0, 0.6, "CFG\\+\\+"), (np.nan, 0.6, "CFG\\+\\+"), (1.0, 0.0, "maximum number of")):
        with pytest.raises(Exception, match=message):
            jax.block_until_ready(program(np.array([[first] * 2, [1.0] * 2, [1.0] * 2], np.float32), np.float32(scale)))


def test_a_missing_diffrax_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match="pip install diffrax"):
        call(gj.cfg(2.0))


@pytest.mark.slow
def test_a_guidance_that_draws_receives_the_same_draws_at_every_level():
    """With new noise at each level there would be no ODE, and a solver would not end."""

    def update(prediction, context):
        shift = 0.1 * normal(step_keys(context.step), context.x)
        return prediction.x0 + shift

    branches = gj.Branches(gaussian(0.0, 1.0), {"cond": None})
    found = encode(branches, gj.stateless(update), jnp.asarray(np.ones((2, 2)), float), gj.schedules.flow(), keys=quick_keys(2))
    assert (found.steps < 40).all()
    assert found.log_likelihood[0] != found.log_likelihood[1]
