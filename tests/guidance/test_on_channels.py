"""Guidance of some channels only, as in the published sampling of DiT."""

import jax.numpy as jnp
import numpy as np
import pytest
from worlds import classes, keys, mixture

import guidance_jax as gj

LABELS = jnp.arange(6) % 3
SAMPLERS = {"ddim": gj.ddim(), "ddpm": gj.ddpm(), "heun": gj.heun()}


def path():
    return gj.levels(gj.schedules.cosine(), 6, gj.spacings.trailing())


def run(branches, guidance, sampler="ddim", shape=(3,)):
    return gj.sample(keys(6), branches, guidance, SAMPLERS[sampler], path(), shape)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_channels_do_not_mix_the_first_are_guided_and_the_others_conditional(x64, sampler):
    wave = jnp.linspace(0.5, 2.0, 4)[None, None]
    denoise = gj.denoiser(lambda x, t, c: jnp.tanh(x * wave + c[:, None, None]) + 0.3 * t[:, None, None], predicts="v")
    branches = gj.branches(denoise, cond=LABELS.astype(float), uncond=jnp.full(6, -0.5))
    scale = jnp.array([4.0, -1.0, 0.0, 3.0, 2.0, 0.5])
    every, none = (run(branches, guidance, sampler, (3, 4)) for guidance in (gj.cfg(scale), gj.chain()))
    some = run(branches, gj.on_channels(gj.cfg(scale), 3), sampler, (3, 4))
    np.testing.assert_allclose(some[..., :3], every[..., :3], rtol=1e-12)
    np.testing.assert_allclose(some[..., 3:], none[..., 3:], rtol=1e-12)
    assert np.abs(every - none).min() > 1e-4
    np.testing.assert_allclose(run(branches, gj.on_channels(gj.cfg(scale), 4), sampler, (3, 4)), every, rtol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_where_channels_mix_the_run_is_that_of_the_published_network(x64, sampler):
    m, null = mixture(), jnp.full_like(LABELS, -1)

    def published(x, level, labels):
        cond, uncond = m.denoise(x, level, labels), m.denoise(x, level, null)
        pick = lambda c, u: jnp.where(jnp.arange(3)[None] < 2, u + 3.0 * (c - u), c)
        return gj.Prediction(pick(cond.x0, uncond.x0), pick(cond.eps, uncond.eps))

    by_hand = run(gj.branches(published, cond=LABELS), gj.chain(), sampler)
    some = gj.on_channels(gj.cfg(3.0), 2)
    for guidance in (some, gj.in_space("eps", some)):
        np.testing.assert_allclose(run(classes(m, LABELS), guidance, sampler), by_hand, rtol=1e-10, atol=1e-10)
    for other in (gj.cfg(3.0), gj.chain()):
        assert np.abs(run(classes(m, LABELS), other, sampler) - by_hand).max() > 1e-2


def doubled(channels):
    """A shaper of the first channels."""
    factors = jnp.where(jnp.arange(3)[None] < channels, 2.0, 1.0)
    return gj.stateless(lambda prediction, context: factors * prediction.x0, shapes=True)


def test_the_other_channels_keep_the_result_of_earlier_guidance(x64):
    ours, by_hand = gj.on_channels(doubled(3), 1), doubled(1)
    both = [run(classes(mixture(), LABELS), gj.chain(gj.cfg(2.0), shaper)) for shaper in (ours, by_hand)]
    np.testing.assert_allclose(*both, rtol=1e-12)


def test_its_cost_is_that_of_the_guidance_within():
    ratio = path().ratio
    count = lambda guidance: int(gj.evaluations(keys(6), classes(mixture(), LABELS), guidance, gj.ddim(), path(), (3,)))
    assert count(gj.on_channels(gj.during(gj.cfg(3.0), ratio[4], ratio[1]), 2)) == 6 + 3
    assert count(gj.on_channels(gj.reuse(gj.cfg(3.0), 2), 2)) == 6 + 3


def test_it_keeps_the_memory_and_the_gradients_of_the_guidance_within(x64):
    branches = classes(mixture(), LABELS)
    for inner in (gj.apg(4.0), gj.dps(lambda x0: x0[:, :1], jnp.ones((6, 1)), 0.5)):
        np.testing.assert_allclose(run(branches, gj.on_channels(inner, 3)), run(branches, inner), rtol=1e-12)
        assert np.abs(run(branches, gj.on_channels(inner, 1)) - run(branches, inner)).max() > 1e-3


def test_channels_that_do_not_exist_raise():
    with pytest.raises(ValueError, match="channels must be an integer, at least 1, got 0"):
        gj.on_channels(gj.cfg(2.0), 0)
    with pytest.raises(ValueError, match=r"on_channels: channels must be at most those of x, 3.*got 4"):
        run(classes(mixture(), LABELS), gj.on_channels(gj.cfg(2.0), 4))
