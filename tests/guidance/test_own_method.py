"""Custom methods: a formula in one line, an update that returns the new x0, masks, and warnings of guidance without effect."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from worlds import classes, keys, mixture

import guidance_jax as gj

B = 6
LABELS = jnp.arange(B) % 3
NAMES = ("cond", "uncond")
SAMPLERS = {"ddim": gj.ddim(), "dpmpp_2m": gj.dpmpp_2m(), "heun": gj.heun()}


def path(steps=10):
    return gj.levels(gj.schedules.edm(), steps, gj.spacings.karras())


def run(guidance, sampler="ddim", branches=None, shape=(3,)):
    return gj.sample(keys(B), branches or classes(mixture(), LABELS), guidance, SAMPLERS[sampler], path(), shape)


def cfg_by_x0(scale):
    """CFG by the x0 of its branches only. Its eps follows from x0."""

    def update(prediction, context):
        c, u = context["cond"].x0, context["uncond"].x0
        return prediction.x0 + (u + scale * (c - u) - context.base.x0)

    return gj.stateless(update, needs=("cond", "uncond"))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_formula_in_one_line_is_cfg(x64, sampler):
    scale = jnp.linspace(0.0, 5.0, B)
    for given in (3.0, scale, lambda level: 1 + scale / (1 + level.ratio)):
        mine = gj.source(lambda c, u, w: u + w * (c - u), "cond", "uncond", w=given)
        more = gj.chain(gj.cfg(1.0), gj.direction(lambda c, u, w: (w - 1) * (c - u), "cond", "uncond", w=given))
        by_x0 = gj.source(lambda c, u, w: u.x0 + w * (c.x0 - u.x0), *NAMES, w=given)
        theirs = run(gj.cfg(given), sampler)
        for guidance in (mine, more, by_x0):
            np.testing.assert_allclose(run(guidance, sampler), theirs, rtol=1e-11, atol=1e-11)
    assert np.abs(theirs - run(gj.chain(), sampler)).max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_eps_follows_from_x0_so_cfg_by_x0_gives_the_samples_of_cfg(x64, sampler):
    """An update that kept the old eps would give other samples without an error."""
    guided, unguided = run(gj.cfg(3.0), sampler), run(gj.chain(), sampler)
    np.testing.assert_allclose(run(cfg_by_x0(3.0), sampler), guided, rtol=1e-11, atol=1e-11)

    def trapped(prediction, context):
        return prediction.replace(x0=cfg_by_x0(3.0).update(prediction, (), context)[0].x0)

    kept = run(gj.stateless(trapped, needs=NAMES), sampler)
    assert np.abs(kept - guided).max() > 0.3
    assert np.abs(guided - unguided).max() > 0.3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_cfg_written_by_x0_ends_near_the_mean_of_its_class(sampler):
    """Two narrow classes, guided at scale 3. Samples end at the mean of their class. With the old eps they would move away from
    it.
    """
    means = jnp.array([[-4.0, 0.0], [4.0, 0.0]])
    two = gj.oracles.GaussianMixture(means, 0.25 * jnp.stack([jnp.eye(2)] * 2), jnp.ones(2), jnp.arange(2))
    labels = jnp.arange(B) % 2
    x = run(cfg_by_x0(3.0), sampler, classes(two, labels), (2,))
    np.testing.assert_allclose(x, run(gj.cfg(3.0), sampler, classes(two, labels), (2,)), atol=1e-4)
    assert np.linalg.norm(x - means[labels], axis=1).mean() < 1.0


def test_an_update_may_return_a_prediction_with_another_eps(x64):
    def update(prediction, context):
        c, u = context["cond"], context["uncond"]
        return prediction + ((u + 0.6 * (c - u)).replace(eps=u.eps) - context.base)

    np.testing.assert_allclose(run(gj.stateless(update, needs=NAMES)), run(gj.cfg_pp(0.6)), rtol=1e-11)


def test_a_custom_method_composes_is_data_and_prints_its_call(x64):
    mine = lambda w: gj.source(contrast, *NAMES, w=w)
    inside = lambda guidance: gj.chain(gj.during(guidance, 0.1, 20.0), gj.rescale(0.5))
    np.testing.assert_allclose(run(inside(mine(3.0))), run(inside(gj.cfg(3.0))), rtol=1e-11, atol=1e-11)
    assert repr(mine(3.0)) == "source(contrast, 'cond', 'uncond', w=3.0)"
    assert jax.tree.leaves(mine(3.0)) == [3.0]
    assert jax.tree.structure(mine(3.0)) == jax.tree.structure(mine(2.0))
    grid = jax.vmap(run)(mine(jnp.array([1.0, 3.0])))
    np.testing.assert_allclose(grid[1], run(gj.cfg(3.0)), rtol=1e-9, atol=1e-9)
    slopes = [jax.grad(lambda w, make=make: run(make(w)).sum())(3.0) for make in (mine, gj.cfg)]
    np.testing.assert_allclose(*slopes, rtol=1e-9)


def contrast(c, u, w):
    return u + w * (c - u)


def test_a_branch_or_a_scale_may_have_the_name_of_a_parameter():
    guidance = gj.source(lambda c, formula: c + formula * c, "update", formula=2.0)
    assert guidance.needs == {"update"}
    assert gj.compose({"formula": 1.0, "w": 2.0}).needs == {"formula", "w", "uncond"}


RETURNS = {
    "nothing": (None, TypeError, r"must return a Prediction, or an array of floating numbers, the new x0, got None"),
    "a number": (0.0, TypeError, r"must return a Prediction.*got the float 0\.0"),
    "a pair": ((jnp.zeros((B, 3)), ()), TypeError, r"must return a Prediction.*got the tuple"),
    "integers": (jnp.zeros((B, 3), int), TypeError, r"must return a Prediction.*floating.*got int32\[6,3\]"),
    "one column": (jnp.zeros((B, 1)), ValueError, r"x0 .*must be \[6, 3\], got float32\[6,1\]; .*shaped as x"),
    "another eps": (
        gj.Prediction(jnp.zeros((B, 3)), jnp.zeros((B, 1))),
        ValueError,
        r"the eps .*must be \[6, 3\], got float32\[6,1\]",
    ),
}


@pytest.mark.parametrize("name", RETURNS)
def test_a_wrong_return_value_raises(name):
    value, error, message = RETURNS[name]
    with pytest.raises(error, match="stateless: update.*" + message if error is TypeError else message):
        run(gj.stateless(lambda prediction, context: value))
    for make in (gj.source, gj.direction):
        with pytest.raises(error, match="the formula.*" + message if error is TypeError else message):
            run(make(lambda c: value, "cond"))


def test_the_error_of_a_wrong_function_points_to_the_line_that_passes_it():
    for build, message in [
        (lambda: gj.stateless(lambda prediction: prediction), r"stateless: update must take \(prediction, context\)"),  # pyright: ignore[reportArgumentType]
        (lambda: gj.stateless("cfg"), r"stateless: update must be a function, got the str 'cfg'"),  # pyright: ignore[reportArgumentType]
        (lambda: gj.stateless(lambda p, c: p, needs="cond"), r"stateless: needs must be the names of branches, in a tuple"),
        (lambda: gj.source(lambda c: c, "cond", w=1.0), r"source: formula must take \(cond, w=\).*takes \(c\)"),
        (lambda: gj.direction(lambda c: c, *NAMES), r"direction: formula must take \(cond, uncond\)"),
        (lambda: gj.source(lambda c: c, LABELS), r"source: branches\[0\] must be the name of a branch, got int32\[6\]"),  # pyright: ignore[reportArgumentType]
        (lambda: gj.source(lambda c, w: c, "cond", w="2"), r"source: scales\['w'\] must be a finite number"),  # pyright: ignore[reportArgumentType]
    ]:
        with pytest.raises(TypeError, match=message):
            build()


def image(x, t, cond):
    return jnp.tanh(x + cond[:, None, None, None]) + 0.3 * t[:, None, None, None]


SHAPE = (4, 6, 2)
LEFT = jnp.broadcast_to(jnp.arange(6)[:, None] < 3, (4, 6, 1))
"""`[H, W, 1]`."""


def prompts():
    conds: dict[str, Any] = {"cond": jnp.full(B, 0.3), "uncond": jnp.full(B, -0.5)}
    conds |= {"left": jnp.linspace(0.5, 1.0, B), "right": jnp.full(B, -1.0)}
    return gj.branches(gj.denoiser(image, predicts="v"), **conds)


def draw(guidance, sampler="ddim"):
    levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())
    return gj.sample(keys(B), prompts(), guidance, SAMPLERS[sampler], levels, SHAPE)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_of_ones_is_the_guidance_and_a_mask_of_zeros_no_guidance(x64, sampler):
    for guidance in (gj.apg(3.0), gj.cfg_pp(0.6)):
        guided, free = draw(guidance, sampler), draw(gj.chain(), sampler)
        for ones in (1.0, jnp.ones((B, 1, 1, 1)), np.ones((4, 6, 1)), jnp.ones((B, *SHAPE), int)):
            np.testing.assert_allclose(draw(gj.masked(guidance, ones), sampler), guided, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(draw(gj.masked(guidance, 0 * ones), sampler), free, rtol=1e-10, atol=1e-10)
        assert np.abs(guided - free).max() > 0.01


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_regional_prompts_apply_in_their_regions(x64, sampler):
    """If a network does not mix pixels, each region is the result of its own prompt."""
    mask = jnp.broadcast_to(LEFT[None], (B, 4, 6, 1)).astype(float)
    left, right = (gj.cfg(w, cond=name) for w, name in ((3.0, "left"), (jnp.linspace(0.0, 4.0, B), "right")))
    both = draw(gj.chain(gj.masked(left, mask), gj.masked(right, 1 - mask)), sampler)
    by_hand = jnp.where(mask > 0, draw(left, sampler), draw(right, sampler))
    np.testing.assert_allclose(both, by_hand, rtol=1e-10, atol=1e-10)
    assert np.abs(draw(left, sampler) - draw(right, sampler)).max() > 0.1


def test_a_fractional_mask_applies_that_fraction_of_the_change(x64):
    share = jnp.linspace(0.0, 1.0, 6)[:, None]
    by_scale = gj.source(lambda c, u: u + (1 + 2 * share[None, None]) * (c - u), *NAMES)
    np.testing.assert_allclose(draw(gj.masked(gj.cfg(3.0), share)), draw(by_scale), rtol=1e-10, atol=1e-10)


def test_a_mask_is_data_keeps_memory_and_still_skips_evaluations(x64):
    one = jnp.ones((4, 6, 1))
    levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())
    assert gj.evaluations(keys(B), prompts(), gj.masked(gj.reuse(gj.cfg(3.0), 2), one), gj.ddim(), levels, SHAPE) == 6 + 3
    masks = jnp.stack([one, 0 * one])
    drawn = jax.jit(jax.vmap(lambda mask: draw(gj.masked(gj.cfg(3.0), mask))))(masks)
    np.testing.assert_allclose(drawn, jnp.stack([draw(gj.cfg(3.0)), draw(gj.chain())]), rtol=1e-10, atol=1e-10)


def test_a_wrong_mask_raises():
    for build, message in [
        (lambda: gj.masked(gj.cfg(2.0), jnp.array([0.0, 2.0])), r"masked: mask must be a mask, in \[0, 1\], got \[0\. 2\.\]"),
        (lambda: draw(gj.masked(gj.cfg(2.0), jnp.ones((4, 5, 1)))), r"masked: mask has shape \(4, 5, 1\).*\(6, 4, 6, 2\)"),
        (lambda: draw(gj.masked(gj.cfg(2.0), jnp.ones((1, B, 4, 6, 1)))), r"masked: mask has shape \(1, 6, 4, 6, 1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            build()


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


SHAPERS = (gj.rescale(0.7), gj.momentum(0.5), gj.clip_norm(1.0), gj.project(), gj.amplify(2.0), gj.dynamic_threshold())


@pytest.mark.parametrize("shaper", SHAPERS, ids=repr)
def test_a_shaper_that_comes_first_in_a_chain_warns_once(shaper):
    (message,) = warned(lambda: run(gj.chain(shaper, gj.cfg(2.0))))
    assert f"chain({shaper!r}, cfg(scale=2.0))" in message
    assert f"put it after a source: chain(cfg(scale=2.0), {shaper!r})" in message
    assert not warned(lambda: run(gj.chain(gj.cfg(2.0), shaper)))
    assert not warned(lambda: run(gj.chain(gj.chain(gj.cfg(2.0), shaper), shaper)))


def test_nothing_warns_inside_jit():
    assert not warned(lambda: jax.jit(lambda w: run(gj.chain(gj.rescale(w), gj.cfg(2.0))))(0.7))
    assert not warned(lambda: jax.jit(lambda w: run(gj.rescale(w)))(0.7))


def test_sampling_with_shapers_only_warns():
    for guidance in (gj.rescale(0.7), gj.during(gj.rescale(0.7), 0.1), gj.chain(gj.project(), gj.rescale(0.7))):
        (message,) = warned(lambda guidance=guidance: run(guidance))
        assert repr(guidance) in message
        assert "only changes what others add" in message
    own = gj.stateless(lambda prediction, context: prediction.x0 / 2, shapes=True)
    assert len(warned(lambda: run(own))) == 1
    assert not warned(lambda: run(gj.stateless(lambda prediction, context: prediction.x0 / 2)))
    assert not warned(lambda: run(gj.chain()))


def test_a_warning_names_the_line_of_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gj.chain(gj.rescale(0.7), gj.cfg(2.0))
        run(gj.rescale(0.7))
    assert [warning.filename for warning in caught] == [__file__, __file__]
