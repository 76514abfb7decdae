"""Guidance of some channels only, as in the published sampling of DiT."""

import jax.numpy as jnp
import numpy as np
import pytest
from walks import DENOISE, GIVEN, SHARE, W, along, apart, close, run, same, walk
from worlds import keys

import guidance_jax as gj

CHANNELS = np.arange(3)


def test_where_channels_do_not_mix_the_first_are_guided_and_the_others_conditional(x64):
    """In every prediction, and so in a run of a network that does not mix channels."""
    contexts = along("image")
    for inner in (gj.cfg(W), gj.cfg_pp(SHARE)):
        same(gj.on_channels(inner, 2), inner, contexts, f"all channels of {inner!r}")
        predictions = (walk(guidance, contexts) for guidance in (gj.on_channels(inner, 1), inner, gj.chain()))
        for some, every, none in zip(*predictions, strict=True):
            for one, all_, no in zip(*((np.asarray(p.x0), np.asarray(p.eps)) for p in (some, every, none)), strict=True):
                close(one[..., :1], all_[..., :1])
                close(one[..., 1:], no[..., 1:])
                assert np.abs(all_[W != 1] - no[W != 1]).max() > 1e-2


def test_where_channels_mix_the_run_is_that_of_the_published_network(x64):
    def published(x, level, cond):
        cond, uncond = DENOISE(x, level, cond), DENOISE(x, level, jnp.asarray(GIVEN["uncond"]))
        pick = lambda c, u: jnp.where(CHANNELS[None] < 2, u + 3.0 * (c - u), c)
        return gj.Prediction(pick(cond.x0, uncond.x0), pick(cond.eps, uncond.eps))

    levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())
    one = gj.branches(published, cond=jnp.asarray(GIVEN["cond"]))
    by_hand = gj.sample(keys(6), one, gj.chain(), gj.heun(), levels, (3,))
    some = gj.on_channels(gj.cfg(3.0), 2)
    for guidance in (some, gj.in_space("eps", some)):
        np.testing.assert_allclose(run(guidance, gj.heun()), by_hand, rtol=1e-10, atol=1e-10)
    assert np.abs(run(gj.cfg(3.0), gj.heun()) - by_hand).max() > 1e-2


def doubled(channels):
    """A shaper of the first channels."""
    factors = np.where(np.arange(2) < channels, 2.0, 1.0)
    return gj.stateless(lambda prediction, context: prediction.x0 * factors[None, None, None], shapes=True)


def test_the_other_channels_keep_the_result_of_earlier_guidance(x64):
    ours, by_hand = (gj.chain(gj.cfg(2.0), shaper) for shaper in (gj.on_channels(doubled(2), 1), doubled(1)))
    same(ours, by_hand, along("image"))


def test_its_cost_is_that_of_the_guidance_within():
    levels = gj.levels(gj.schedules.cosine(), 6, gj.spacings.karras())
    conds: dict = {name: jnp.asarray(cond, float) for name, cond in GIVEN.items()}
    two = gj.branches(DENOISE, **conds)
    count = lambda guidance: int(gj.evaluations(keys(6), two, guidance, gj.ddim(), levels, (3,)))
    assert count(gj.on_channels(gj.during(gj.cfg(3.0), levels.ratio[4], levels.ratio[1]), 2)) == 6 + 3
    assert count(gj.on_channels(gj.reuse(gj.cfg(3.0), 2), 2)) == 6 + 3


def test_it_keeps_the_memory_of_the_guidance_within(x64):
    inner, contexts = gj.apg(4.0), along("image")
    same(gj.on_channels(inner, 2), inner, contexts)
    assert apart(gj.on_channels(inner, 1), inner, contexts) > 1e-3


def test_it_keeps_the_gradients_of_the_guidance_within(x64):
    inner = gj.dps(lambda x0: x0[:, :1], np.ones((6, 1)), 0.5)
    every = run(inner)
    np.testing.assert_allclose(run(gj.on_channels(inner, 3)), every, rtol=1e-12)
    assert np.abs(run(gj.on_channels(inner, 1)) - every).max() > 1e-3


def test_channels_that_do_not_exist_raise():
    with pytest.raises(ValueError, match="channels must be an integer, at least 1, got 0"):
        gj.on_channels(gj.cfg(2.0), 0)
    with pytest.raises(ValueError, match=r"on_channels: channels must be at most those of x, 3.*got 4"):
        run(gj.on_channels(gj.cfg(2.0), 4))
