"""Every method that reads branches against the formula of its paper, in NumPy, sample by sample, in float64."""

import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from walks import LENGTH, NAMES, SHARE, WORLDS, K, W, cfg, clipped, close, context, draw, projected, walk

import guidance_jax as gj

SPACES = {
    "x0": (lambda x0, eps, a, s: x0, lambda out, x, a, s: out),
    "eps": (lambda x0, eps, a, s: eps, lambda out, x, a, s: (x - s * out) / a),
    "v": (lambda x0, eps, a, s: a * eps - s * x0, lambda out, x, a, s: (a * x - s * out) / (a**2 + s**2)),
    "score": (lambda x0, eps, a, s: -eps / s, lambda out, x, a, s: (x + s**2 * out) / a),
    "velocity": (lambda x0, eps, a, s: eps - x0, lambda out, x, a, s: (x - s * out) / (a + s)),
}
"""The output of a network of each kind at x, and the x0 that follows from it."""


BASES = ("cond", "uncond", "weak")


def agrees(guidance, formula, world, space="x0", bases=BASES, found=None):
    """The prediction is `formula(branches of sample i, i)` in the given space, and `alpha x0 + sigma eps` equals x.

    `found` is the prediction with each base in turn, if another program has computed it.
    """
    x, x0, level = draw(world)
    a, s = float(level.alpha), float(level.sigma)
    out, back = SPACES[space]
    outputs = {name: out(p, (x - a * p) / s, a, s) for name, p in x0.items()}
    each = [formula(SimpleNamespace(**{name: o[i] for name, o in outputs.items()}), i) for i in range(len(x))]
    wanted = back(np.stack(each), x, a, s)
    for k, base in enumerate(bases):
        if found is None:
            (guided,) = walk(guidance, [context(x, x0, level, base)])
        else:
            guided = jax.tree.map(lambda leaf, k=k: leaf[k], found)
        close(guided.x0, wanted)
        close(guided.eps, (x - a * wanted) / s)


def perp_neg(p, w, weights):
    d = p.cond - p.uncond
    total = d
    for negative, weight in zip((p.bad, p.ugly), weights, strict=True):
        n = negative - p.uncond
        total = total - weight * (n - np.vdot(n, d) / np.vdot(d, d) * d)
    return p.uncond + w * total


def tcfg(c, u, w):
    _, _, rows = np.linalg.svd(np.stack([c.ravel(), u.ravel()]), full_matrices=False)
    return cfg(c, (rows[0] * (rows[0] @ u.ravel())).reshape(u.shape), w)


def mambo_g(c, u, w, damping):
    return u + (1 + (w - 1) * np.exp(-damping * np.linalg.norm(c - u) / np.linalg.norm(u))) * (c - u)


def rescaled(guided, c, phi):
    return phi * guided * np.std(c, ddof=1) / np.std(guided, ddof=1) + (1 - phi) * guided


def thresholded(x0, percentile, limit):
    s = max(np.percentile(np.abs(x0), percentile), limit)
    return np.clip(x0, -s, s) * limit / s


def fresca(c, u, w, low, high, cutoff):
    axes = tuple(range(c.ndim - 1))
    bands = np.fft.fftshift(np.fft.fftn(c - u, axes=axes), axes=axes)
    for index in np.ndindex(*bands.shape[:-1]):
        inside = all(abs(k - n // 2) < cutoff * n / 2 for k, n in zip(index, bands.shape[:-1], strict=True))
        bands[index] *= low if inside else high
    return u + w * np.fft.ifftn(np.fft.ifftshift(bands, axes=axes), axes=axes).real


def blur(x):
    kernel = functools.reduce(np.multiply.outer, [np.array([1, 4, 6, 4, 1]) / 16] * (x.ndim - 1))
    return scipy.ndimage.convolve(x, kernel[..., None], mode="mirror")


def down(x):
    x = blur(x)
    for axis in range(x.ndim - 1):
        x = (np.take(x, range(0, x.shape[axis], 2), axis) + np.take(x, range(1, x.shape[axis], 2), axis)) / 2
    return x


def up(x):
    for axis in range(x.ndim - 1):
        n = x.shape[axis]
        places = (np.arange(2 * n) + 0.5) / 2 - 0.5
        x = np.apply_along_axis(lambda row, n=n, places=places: np.interp(places, np.arange(n), row), axis, x)
    return blur(x)


def pyramid(x, levels):
    gaussian = [x]
    for _ in range(levels - 1):
        gaussian.append(down(gaussian[-1]))
    return [fine - up(coarse) for fine, coarse in itertools.pairwise(gaussian)] + gaussian[-1:]


def fdg(c, u, scales):
    levels = zip(pyramid(c, len(scales)), pyramid(u, len(scales)), scales, strict=True)
    *details, image = [pc + (w - 1) * (pc - pu) for pc, pu, w in levels]
    for detail in reversed(details):
        image = up(image) + detail
    return image


def length(p):
    return np.linalg.norm(p.cond - p.uncond)


METHODS = {
    "cfg": (gj.cfg(W), lambda p, i: cfg(p.cond, p.uncond, W[i])),
    "negative prompt": (gj.cfg(7.5, uncond="bad"), lambda p, i: cfg(p.cond, p.bad, 7.5)),
    "autoguidance": (gj.autoguidance(W), lambda p, i: p.weak + W[i] * (p.cond - p.weak)),
    "compose": (
        gj.compose({"image": W, "random": 2.0, "bad": lambda level: -0.5}),
        lambda p, i: p.uncond + W[i] * (p.image - p.uncond) + 2 * (p.random - p.uncond) - (p.bad - p.uncond) / 2,
    ),
    "dual_cfg": (gj.dual_cfg(W, K), lambda p, i: p.uncond + K[i] * (p.image - p.uncond) + W[i] * (p.cond - p.image)),
    "perturbed": (
        gj.chain(gj.cfg(W), gj.perturbed(K)),
        lambda p, i: p.cond + (W[i] - 1) * (p.cond - p.uncond) + K[i] * (p.cond - p.perturbed),
    ),
    "icg": (gj.icg(W), lambda p, i: p.random + W[i] * (p.cond - p.random)),
    "tsg": (gj.tsg(W), lambda p, i: p.retimed + W[i] * (p.cond - p.retimed)),
    "perp_neg": (gj.perp_neg(W, {"bad": 0.8, "ugly": SHARE}), lambda p, i: perp_neg(p, W[i], (0.8, SHARE[i]))),
    "tcfg": (gj.tcfg(W), lambda p, i: tcfg(p.cond, p.uncond, W[i])),
    "mambo_g": (gj.mambo_g(W, SHARE), lambda p, i: mambo_g(p.cond, p.uncond, W[i], SHARE[i])),
    "power_law": (
        gj.power_law(W, SHARE),
        lambda p, i: p.cond + (W[i] - 1) * length(p) ** SHARE[i] * (p.cond - p.uncond),
    ),
    "beta_cfg": (gj.beta_cfg(W, SHARE), lambda p, i: p.uncond + W[i] * (p.cond - p.uncond) / length(p) ** SHARE[i]),
    "recfg": (gj.recfg(W, K), lambda p, i: W[i] * p.cond + (1 - W[i]) * K[i] * p.uncond),
    "apg": (
        gj.apg(W, max_norm=LENGTH, eta=SHARE),
        lambda p, i: p.cond + (W[i] - 1) * projected(clipped(p.cond - p.uncond, LENGTH[i]), p.cond, SHARE[i]),
    ),
    "relative_to": (
        gj.chain(gj.perturbed(K), gj.relative_to("cond", gj.chain(gj.cfg(W), gj.rescale(SHARE)))),
        lambda p, i: rescaled(cfg(p.cond, p.uncond, W[i]), p.cond, SHARE[i]) + K[i] * (p.cond - p.perturbed),
    ),
}
SPECTRAL = {
    "one level": (gj.fdg((W,)), lambda p, i: cfg(p.cond, p.uncond, W[i])),
    "two levels": (gj.fdg((10.0, W)), lambda p, i: fdg(p.cond, p.uncond, (10.0, W[i]))),
    "three levels": (gj.fdg((K, lambda level: 4.0, W)), lambda p, i: fdg(p.cond, p.uncond, (K[i], 4.0, W[i]))),
    "fresca": (gj.fresca(W), lambda p, i: fresca(p.cond, p.uncond, W[i], 1.0, 1.25, 0.5)),
    "narrow fresca": (gj.fresca(3.0, K, SHARE, cutoff=0.3), lambda p, i: fresca(p.cond, p.uncond, 3.0, K[i], SHARE[i], 0.3)),
}
SHAPERS = {
    "rescale": (gj.rescale(SHARE), lambda g, c, i: rescaled(g, c, SHARE[i])),
    "momentum": (gj.momentum(K), lambda g, c, i: g),
    "clip_norm": (gj.clip_norm(LENGTH), lambda g, c, i: c + clipped(g - c, LENGTH[i])),
    "no clip_norm": (gj.clip_norm(np.inf), lambda g, c, i: g),
    "project": (gj.project(SHARE), lambda g, c, i: c + projected(g - c, c, SHARE[i])),
    "amplify": (gj.amplify(K), lambda g, c, i: c + K[i] * (g - c)),
    # Where guidance is off, nothing is thresholded.
    "dynamic_threshold": (
        gj.dynamic_threshold(100 * SHARE, 0.8),
        lambda g, c, i: c if W[i] == 1 else thresholded(g, 100 * SHARE[i], 0.8),
    ),
}


SHAPED = {name: gj.chain(gj.cfg(W), shaper) for name, (shaper, _) in SHAPERS.items()}


@functools.cache
def found(world):
    """The predictions of every method of the tables, with each base in turn, as NumPy arrays: one program."""
    x, x0, level = draw(world)
    guidances = {name: guidance for name, (guidance, _) in (METHODS | (SPECTRAL if world != "vector" else {})).items()}
    guidances |= {f"shaped by {name}": gj.relative_to("cond", shaped) for name, shaped in SHAPED.items()}

    def along(guidance, here, bases):
        return jax.vmap(lambda base: walk(guidance, [here._replace(base=base)])[0])(bases)

    @jax.jit
    def every(arrays):
        here = arrays._replace(space="x0")
        bases = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(here.branches[base] for base in BASES))
        by_base = {name: along(guidance, here, bases) for name, guidance in guidances.items()}
        one = jax.tree.map(lambda leaf: leaf[:1], bases)
        return by_base | {name: along(shaped, here, one) for name, shaped in SHAPED.items()}

    return jax.tree.map(np.asarray, every(context(x, x0, level)._replace(space=())))


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_the_formula_of_its_paper(x64, name, world):
    agrees(*METHODS[name], world, found=found(world)[name])


@pytest.mark.parametrize("world", ["sequence", "image"])
@pytest.mark.parametrize("name", SPECTRAL)
def test_a_spectral_method_is_the_formula_of_its_paper(x64, name, world):
    agrees(*SPECTRAL[name], world, found=found(world)[name])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", SHAPERS)
def test_a_shaper_is_the_formula_of_its_paper_for_any_base(x64, name, world):
    _, formula = SHAPERS[name]
    shaped = lambda p, i: formula(cfg(p.cond, p.uncond, W[i]), p.cond, i)
    agrees(SHAPED[name], shaped, world, bases=("cond",), found=found(world)[name])
    agrees(gj.relative_to("cond", SHAPED[name]), shaped, world, found=found(world)[f"shaped by {name}"])


def test_apg_has_the_defaults_of_its_paper():
    """No parallel part, momentum -1/2 and a norm of at most 15."""
    x, x0, level = draw("vector")
    x0["cond"] *= 20
    contexts = [context(x, x0, level), context(x, x0, level)]
    d = x0["cond"] - x0["uncond"]
    for k, got in enumerate(walk(gj.apg(3.0), contexts)):
        changes = [projected(clipped(d[i] * (1 - 0.5 * k), 15.0), c, 0.0) for i, c in enumerate(x0["cond"])]
        np.testing.assert_allclose(got.x0, x0["cond"] + 2 * np.array(changes), rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "world"),
    [("x0", "sequence"), ("eps", "image"), ("v", "vector"), ("v", "image"), ("score", "vector"), ("velocity", "sequence")],
)
def test_a_space_is_the_output_of_a_network_of_that_kind(x64, space, world):
    for name in ("cfg", "tcfg", "apg", "mambo_g", "beta_cfg", "recfg", "relative_to"):
        guidance, formula = METHODS[name]
        agrees(gj.in_space(space, guidance), formula, world, space)
    agrees(gj.in_space(space, gj.cfg(W)), METHODS["cfg"][1], world, "x0")
    shaped = lambda p, i: rescaled(cfg(p.cond, p.uncond, W[i]), p.cond, 0.7)
    agrees(gj.in_space(space, gj.chain(gj.cfg(W), gj.rescale(0.7))), shaped, world, space, bases=("cond",))
    agrees(gj.chain(gj.cfg(W), gj.in_space(space, gj.rescale(0.7))), shaped, world, space, bases=("cond",))


@pytest.mark.parametrize("world", WORLDS)
def test_recfg_accepts_one_ratio_per_element(x64, world):
    ratio = np.random.default_rng(1).normal(size=WORLDS[world][0])
    agrees(gj.recfg(W, lambda level: ratio), lambda p, i: W[i] * p.cond + (1 - W[i]) * ratio[i] * p.uncond, world)


def test_recfg_accepts_one_ratio_per_sample_when_there_are_as_many_elements_as_samples(x64):
    x, x0, level = draw("vector")
    x, x0 = x[:, :4], {name: p[:, :4] for name, p in x0.items()}
    (guided,) = walk(gj.recfg(2.0, K), [context(x, x0, level)])
    close(guided.x0, np.stack([2 * x0["cond"][i] - K[i] * x0["uncond"][i] for i in range(4)]))


@pytest.mark.parametrize("size", [2, 3, 192, 12288])
def test_rescale_leaves_a_constant_sample_and_is_exact_close_to_it(size):
    """In float32 the deviation of equal entries is not always 0: the mean is rounded."""
    values = jnp.array([0.1, 0.7, 1.3, -2.7])[:, None]
    base = jnp.asarray(np.random.default_rng(0).normal(size=(4, size)), jnp.float32)
    denoise = gj.denoiser(lambda x, t, c: c, predicts="x0")
    branches = lambda given: gj.branches(denoise, cond=base, other=given)
    replace = gj.chain(gj.source(lambda o: o, "other"), gj.rescale(1.0))
    at = jax.jit(lambda given: gj.guided(branches(given), replace)(base, gj.schedules.cosine()(0.5)).x0)
    np.testing.assert_allclose(at(jnp.broadcast_to(values, base.shape)), np.broadcast_to(values, base.shape), rtol=1e-4)
    near = np.broadcast_to(values, base.shape) * (1 + 0.01 * np.random.default_rng(1).normal(size=base.shape))
    wanted = [rescaled(one, c, 1.0) for one, c in zip(near, np.asarray(base, float), strict=True)]
    np.testing.assert_allclose(at(jnp.asarray(near, jnp.float32)), wanted, rtol=1e-3)


@pytest.mark.parametrize("predicts", ["velocity", "eps"])
@pytest.mark.parametrize("world", WORLDS)
def test_cfg_zero_star_is_the_formula_of_its_paper(x64, world, predicts):
    def formula(p, i):
        u = np.vdot(p.cond, p.uncond) / np.vdot(p.uncond, p.uncond) * p.uncond
        return u + W[i] * (p.cond - u)

    star = functools.partial(gj.cfg_zero_star, W, **({} if predicts == "velocity" else {"predicts": predicts}))
    agrees(star(0), formula, world, predicts)
    agrees(star(), lambda p, i: 0 * p.cond, world, predicts)
    x, x0, level = draw(world)
    contexts, asked = [context(x, x0, level, number=number) for number in range(4)], []
    steps = walk(star(2), contexts, asked)
    assert asked == [False, False, True, True]
    for got, number in zip(steps, (0, 0, 1, 1), strict=True):
        close(got.x0, walk(star(), [contexts[number]])[0].x0)


@pytest.mark.parametrize("world", WORLDS)
def test_cfg_pp_renoises_with_the_unconditional_eps(x64, world):
    x, x0, level = draw(world)
    for base in ("cond", "uncond", "weak"):
        here = context(x, x0, level, base)
        (guided,) = walk(gj.cfg_pp(SHARE), [here])
        for i in range(4):
            close(guided.x0[i], (1 - SHARE[i]) * x0["uncond"][i] + SHARE[i] * x0["cond"][i])
        close(guided.eps, here.branches["uncond"].eps)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: gj.compose({}), "compose: scales must have a scale for each condition"),
        (lambda: gj.compose({"uncond": 2.0}), "compose: scales must have a scale for each condition"),
        (lambda: gj.fresca(2.0, cutoff=0.0), "fresca: cutoff must be .* above 0 and at most 1"),
        (lambda: gj.fresca(2.0, cutoff=1.1), "fresca: cutoff must be .* above 0 and at most 1"),
        (lambda: gj.reuse(gj.cfg(2.0), every=0), "at least 1"),
        (lambda: gj.linear_reuse(2.0, np.ones(4)), "1 \\+ 2 K"),
        (lambda: gj.linear_reuse(2.0, np.ones(3), every=0), "at least 1"),
        (lambda: gj.in_space("noise", gj.cfg(2.0)), "noise"),
        (lambda: gj.cfg_zero_star(2.0, predicts="noise"), "noise"),
    ],
)
def test_a_wrong_method_raises_when_it_is_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_period_that_is_not_an_integer_raises():
    with pytest.raises(TypeError, match=r"reuse: every must be an integer, at least 1, got the float 1\.5"):
        gj.reuse(gj.cfg(2.0), every=1.5)


@pytest.mark.parametrize(
    ("shape", "make", "message"),
    [
        ((4, 6), lambda: gj.fdg(), "B, T, C"),
        ((4, 6), lambda: gj.fresca(2.0), "B, T, C"),
        ((4, 7, 2), lambda: gj.fdg(), "must halve 1 times"),
        ((4, 12, 10, 2), lambda: gj.fdg((3.0, 2.0, 1.0)), "must halve 2 times"),
        ((4, 2, 2), lambda: gj.fdg(), "to at least 2"),
        ((4, 1), lambda: gj.chain(gj.cfg(2.0), gj.rescale(0.7)), "two elements"),
        ((4, 6), lambda: gj.cfg(np.ones(3)), "cfg: scale has shape"),
        ((4, 6), lambda: gj.cfg(np.ones((4, 1))), "cfg: scale has shape"),
        ((4, 6), lambda: gj.perp_neg(2.0, {"bad": np.ones(5)}), r"perp_neg: negatives\['bad'\] has shape \(5,\)"),
        ((4, 6), lambda: gj.recfg(2.0, np.ones((2, 6))), r"recfg: ratio has shape \(2, 6\)"),
        ((4, 6), lambda: gj.in_space("eps", gj.cfg_pp(0.5)), "its own space"),
        ((4, 6), lambda: gj.in_space("eps", gj.in_space("v", gj.cfg(2.0))), "its own space"),
        ((4, 6), lambda: gj.in_space("eps", gj.cfg_zero_star(2.0)), "its own space"),
    ],
)
def test_parameters_that_do_not_fit_x_raise(shape, make, message):
    x, level = np.zeros(shape, np.float32), gj.schedules.cosine()(0.6)
    branches = gj.branches(gj.denoiser(lambda x, t, cond: x, "x0"), **dict.fromkeys(NAMES))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: gj.guided(branches, make())(x, level), x)
