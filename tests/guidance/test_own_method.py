"""Custom methods: a formula in one line, an update that returns the new x0, masks, and warnings of guidance without effect."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from walks import STOP, StoppedError, along, apart, same, walk
from worlds import classes, keys

import guidance_jax as gj

B = 4
LABELS = np.arange(B) % 2
NAMES = ("cond", "uncond")
SCALE = np.linspace(0.0, 5.0, B)
SHAPE = (4, 6, 2)


def network(x, t, cond):
    """It mixes no pixels."""
    return jnp.tanh(x + cond[:, None, None, None]) + 0.3 * t[:, None, None, None]


DENOISE = gj.denoiser(network, predicts="v")


def run(guidance, sampler=None):
    conds: dict[str, Any] = {"cond": jnp.full(B, 0.3), "uncond": jnp.full(B, -0.5)}
    conds |= {"left": jnp.linspace(0.5, 1.0, B), "right": jnp.full(B, -1.0)}
    levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())
    return gj.sample(keys(B), gj.branches(DENOISE, **conds), guidance, sampler or gj.ddim(), levels, SHAPE)


def stopped(guidance):
    """Begins a run and ends it where it would be compiled, after all checks and warnings."""
    with pytest.raises(StoppedError):
        run(guidance, STOP)


def cfg_by_x0(scale):
    """CFG by the x0 of its branches only. Its eps follows from x0."""

    def update(prediction, context):
        c, u = context["cond"].x0, context["uncond"].x0
        return prediction.x0 + (u + scale * (c - u) - context.base.x0)

    return gj.stateless(update, needs=("cond", "uncond"))


@pytest.mark.parametrize("base", ["cond", "weak"])
def test_a_formula_in_one_line_is_cfg(x64, base):
    contexts = along("vector", base=base)
    for name, given in {"one": 3.0, "each": SCALE, "curve": lambda level: 1 + SCALE / (1 + level.ratio)}.items():
        mine = gj.source(lambda c, u, w: u + w * (c - u), "cond", "uncond", w=given)
        more = gj.direction(lambda c, u, w: (w - 1) * (c - u), "cond", "uncond", w=given)
        by_x0 = gj.source(lambda c, u, w: u.x0 + w * (c.x0 - u.x0), *NAMES, w=given)
        for guidance in (mine, gj.chain(gj.cfg(1.0), more), by_x0):
            same(guidance, gj.cfg(given), contexts, f"{name}: {guidance!r}")
        after = gj.chain(gj.cfg(2.0), by_x0)
        same(after, gj.chain(gj.cfg(2.0), mine), contexts, f"{name}: {after!r}")
        assert apart(gj.cfg(given), gj.chain(), contexts) > 0.1


def test_eps_follows_from_x0_so_cfg_by_x0_gives_the_samples_of_cfg(x64):
    """An update that kept the old eps would give other samples without an error."""
    same(cfg_by_x0(3.0), gj.cfg(3.0), along("vector"))
    guided = run(gj.cfg(3.0))
    np.testing.assert_allclose(run(cfg_by_x0(3.0)), guided, rtol=1e-11, atol=1e-11)

    def trapped(prediction, context):
        return prediction.replace(x0=cfg_by_x0(3.0).update(prediction, (), context)[0].x0)

    assert np.abs(run(gj.stateless(trapped, needs=NAMES)) - guided).max() > 0.05


def test_cfg_written_by_x0_ends_near_the_mean_of_its_class():
    """Two narrow classes, guided at scale 3. Samples end at the mean of their class. With the old eps they would move away from
    it.
    """
    means = jnp.array([[-4.0, 0.0], [4.0, 0.0]])
    two = gj.oracles.GaussianMixture(means, 0.25 * jnp.stack([jnp.eye(2)] * 2), jnp.ones(2), jnp.arange(2))
    levels = gj.levels(gj.schedules.edm(), 10, gj.spacings.karras())
    x = gj.sample(keys(B), classes(two, jnp.asarray(LABELS)), cfg_by_x0(3.0), gj.ddim(), levels, (2,))
    assert np.linalg.norm(x - means[LABELS], axis=1).mean() < 1.0


def test_an_update_may_return_a_prediction_with_another_eps(x64):
    def update(prediction, context):
        c, u = context["cond"], context["uncond"]
        return prediction + ((u + 0.6 * (c - u)).replace(eps=u.eps) - context.base)

    same(gj.stateless(update, needs=NAMES), gj.cfg_pp(0.6), along("vector"))


@pytest.mark.slow
def test_a_custom_method_composes_is_data_and_prints_its_call(x64):
    mine = lambda w: gj.source(contrast, *NAMES, w=w)
    inside = lambda guidance: gj.chain(gj.during(guidance, 0.1, 20.0), gj.rescale(0.5))
    same(inside(mine(3.0)), inside(gj.cfg(3.0)), along("vector"))
    assert repr(mine(3.0)) == "source(contrast, 'cond', 'uncond', w=3.0)"
    assert jax.tree.leaves(mine(3.0)) == [3.0]
    assert jax.tree.structure(mine(3.0)) == jax.tree.structure(mine(2.0))

    def total(guidance):
        x = run(guidance)
        return x.sum(), x

    by_mine, by_cfg = (jax.jit(jax.vmap(jax.grad(total, has_aux=True)))(make(np.array([1.0, 3.0]))) for make in (mine, gj.cfg))
    np.testing.assert_allclose(*(jax.tree.leaves(slopes) for slopes, _ in (by_mine, by_cfg)), rtol=1e-9)
    np.testing.assert_allclose(by_mine[1], by_cfg[1], rtol=1e-9, atol=1e-9)
    assert np.abs(by_cfg[1][0] - by_cfg[1][1]).max() > 0.1


def contrast(c, u, w):
    return u + w * (c - u)


def test_a_branch_or_a_scale_may_have_the_name_of_a_parameter():
    guidance = gj.source(lambda c, formula: c + formula * c, "update", formula=2.0)
    assert guidance.needs == {"update"}
    assert gj.compose({"formula": 1.0, "w": 2.0}).needs == {"formula", "w", "uncond"}


RETURNS = {
    "nothing": (None, TypeError, r"must return a Prediction, or an array of floating numbers, the new x0, got None"),
    "a number": (0.0, TypeError, r"must return a Prediction.*got the float 0\.0"),
    "a pair": ((jnp.zeros((B, *SHAPE)), ()), TypeError, r"must return a Prediction.*got the tuple"),
    "integers": (jnp.zeros((B, *SHAPE), int), TypeError, r"must return a Prediction.*floating.*got int32\[4,4,6,2\]"),
    "one column": (jnp.zeros((B, 4, 6, 1)), ValueError, r"x0 .*must be \[4, 4, 6, 2\], got float32\[4,4,6,1\]; .*shaped as x"),
    "another eps": (
        gj.Prediction(jnp.zeros((B, *SHAPE)), jnp.zeros((B, 4, 6, 1))),
        ValueError,
        r"the eps .*must be \[4, 4, 6, 2\], got float32\[4,4,6,1\]",
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
        (lambda: gj.source(lambda c: c, LABELS), r"source: branches\[0\] must be the name of a branch, got int64\[4\]"),  # pyright: ignore[reportArgumentType]
        (lambda: gj.source(lambda c, w: c, "cond", w="2"), r"source: scales\['w'\] must be a finite number"),  # pyright: ignore[reportArgumentType]
    ]:
        with pytest.raises(TypeError, match=message):
            build()


def test_a_mask_of_ones_is_the_guidance_and_a_mask_of_zeros_no_guidance(x64):
    contexts = along("image")
    ones = {"()": 1.0, "B11": np.ones((B, 1, 1, 1)), "HW1": np.ones((12, 16, 1)), "all": np.ones((B, 12, 16, 2), int)}
    for guidance in (gj.apg(3.0), gj.cfg_pp(0.6)):
        for name, one in ones.items():
            same(gj.masked(guidance, one), guidance, contexts, f"ones {name}: {guidance!r}")
            same(gj.masked(guidance, 0 * one), gj.chain(), contexts, f"zeros {name}: {guidance!r}")
        assert apart(guidance, gj.chain(), contexts) > 0.01


def test_regional_prompts_apply_in_their_regions(x64):
    """If a network does not mix pixels, each region is the result of its own prompt."""
    mask = np.broadcast_to(np.arange(6)[:, None] < 3, (B, 4, 6, 1)).astype(float)
    left, right = (gj.cfg(w, cond=name) for w, name in ((np.full(B, 3.0), "left"), (SCALE, "right")))
    both, of_left, of_right = (
        run(guidance, gj.dpmpp_2m()) for guidance in (gj.chain(gj.masked(left, mask), gj.masked(right, 1 - mask)), left, right)
    )
    np.testing.assert_allclose(both, np.where(mask > 0, of_left, of_right), rtol=1e-10, atol=1e-10)
    assert np.abs(of_left - of_right).max() > 0.1


def test_a_fractional_mask_applies_that_fraction_of_the_change(x64):
    share = np.linspace(0.0, 1.0, 16)[:, None]
    by_scale = gj.source(lambda c, u: u + (1 + 2 * share[None, None]) * (c - u), *NAMES)
    same(gj.masked(gj.cfg(3.0), share), by_scale, along("image"))


@pytest.mark.slow
def test_a_mask_is_data_keeps_memory_and_still_skips_evaluations(x64):
    """`reuse` remembers its change and asks for its branch in every second step, also under a `vmap` over masks."""
    one = np.ones((4, 6, 1))
    guidance, contexts = gj.reuse(gj.cfg(3.0), 2), along("sequence")
    asked, asked_within = [], []
    walk(guidance, contexts, asked_within)
    walk(gj.masked(guidance, np.ones((12, 1))), contexts, asked)
    assert asked == asked_within == [True, False, True]
    drawn = jax.vmap(lambda mask: run(gj.masked(guidance, mask)))(np.stack([one, 0 * one]))
    np.testing.assert_allclose(drawn, np.stack([run(guidance), run(gj.chain())]), rtol=1e-10, atol=1e-10)


def test_a_wrong_mask_raises():
    for build, message in [
        (lambda: gj.masked(gj.cfg(2.0), jnp.array([0.0, 2.0])), r"masked: mask must be a mask, in \[0, 1\], got \[0\. 2\.\]"),
        (lambda: run(gj.masked(gj.cfg(2.0), np.ones((4, 5, 1)))), r"masked: mask has shape \(4, 5, 1\).*\(4, 4, 6, 2\)"),
        (lambda: run(gj.masked(gj.cfg(2.0), np.ones((1, B, 4, 6, 1)))), r"masked: mask has shape \(1, 4, 4, 6, 1\)"),
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
    (message,) = warned(lambda: gj.chain(shaper, gj.cfg(2.0)))
    assert f"chain({shaper!r}, cfg(scale=2.0))" in message
    assert f"put it after a source: chain(cfg(scale=2.0), {shaper!r})" in message
    assert not warned(lambda: gj.chain(gj.cfg(2.0), shaper))
    assert not warned(lambda: gj.chain(gj.chain(gj.cfg(2.0), shaper), shaper))


def test_a_run_of_a_chain_with_a_source_does_not_warn_again():
    assert len(warned(lambda: stopped(gj.chain(SHAPERS[0], gj.cfg(2.0))))) == 1
    assert not warned(lambda: stopped(gj.chain(gj.chain(gj.cfg(2.0), SHAPERS[0]), SHAPERS[0])))


def test_nothing_warns_inside_a_trace():
    assert not warned(lambda: jax.eval_shape(lambda w: run(gj.chain(gj.rescale(w), gj.cfg(2.0))), 0.7))
    assert not warned(lambda: jax.eval_shape(jax.jit(lambda w: run(gj.rescale(w))), 0.7))


def test_sampling_with_shapers_only_warns():
    for guidance in (gj.rescale(0.7), gj.during(gj.rescale(0.7), 0.1), gj.chain(gj.project(), gj.rescale(0.7))):
        (message,) = warned(lambda guidance=guidance: stopped(guidance))
        assert repr(guidance) in message
        assert "only changes what others add" in message
    own = gj.stateless(lambda prediction, context: prediction.x0 / 2, shapes=True)
    assert len(warned(lambda: stopped(own))) == 1
    assert not warned(lambda: stopped(gj.stateless(lambda prediction, context: prediction.x0 / 2)))
    assert not warned(lambda: stopped(gj.chain()))


def test_a_warning_names_the_line_of_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gj.chain(gj.rescale(0.7), gj.cfg(2.0))
        run(gj.rescale(0.7))
    assert [warning.filename for warning in caught] == [__file__, __file__]
