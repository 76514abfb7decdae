"""Tests of noise levels as a sequence: indexed, cut, reversed, and rounded once."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidance_jax as gj


def test_levels_are_rounded_once_from_float64():
    """So the bits of a level, which select its noise, are the same inside and outside jit, on any device, with any compiler."""
    ramp = np.linspace(0, 1, 20)
    ratio = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    alpha = 1 / np.hypot(1, ratio)
    for schedule, expected in ((gj.schedules.edm, (1 + 0 * ratio, ratio)), (gj.schedules.cosine, (alpha, ratio * alpha))):
        make = lambda schedule=schedule: gj.levels(schedule(), 20, gj.spacings.karras(7.0, 0.002, 80.0))
        for path in (make(), jax.jit(make)()):
            assert path.sigma.dtype == jnp.float32
            for found, exact in zip((path.alpha, path.sigma), expected, strict=True):
                np.testing.assert_array_equal(found[:-1], exact.astype(np.float32))


def test_levels_are_a_sequence():
    levels = gj.levels(gj.schedules.edm(), 5, gj.spacings.karras())
    assert len(levels) == 6
    assert bool(levels[0]), "`level or another` is the level"
    assert isinstance(levels[3], gj.NoiseLevel)
    assert [float(level.sigma) for level in levels] == levels.sigma.tolist()
    assert (levels[3].t, levels[3].alpha, levels[3].sigma) == (levels.t[3], levels.alpha[3], levels.sigma[3])
    assert levels[3].ratio == levels.ratio[3]
    assert levels[-1].sigma == 0
    np.testing.assert_array_equal(levels[1:3].sigma, levels.sigma[1:3])
    np.testing.assert_array_equal(levels[::-1].sigma, levels.sigma[::-1])
    assert len(levels[:-1]) == len(list(itertools.pairwise(levels))) == 5
    doubled = jax.tree.map(lambda field: 2 * field, levels)
    assert isinstance(doubled, gj.NoiseLevel)
    np.testing.assert_array_equal(doubled.sigma, 2 * levels.sigma)
    with pytest.raises(AttributeError):
        levels.sigma = 0  # pyright: ignore[reportAttributeAccessIssue]
    end = gj.schedules.strength(levels, 0.6)
    assert len(end) == 4
    for taken in (end[1:], end[::-1], gj.schedules.reverse(end)):
        assert type(taken) is type(end) is not gj.NoiseLevel
    for one in (end[0], next(iter(end))):
        assert type(one) is gj.NoiseLevel


def test_levels_are_a_sequence_inside_jit():
    levels = gj.levels(gj.schedules.edm(), 5, gj.spacings.karras())

    @jax.jit
    def walk(levels, i):
        total = sum(level.sigma for level in levels) + levels[-2].sigma
        return total, levels[1:], levels[i]

    total, rest, one = walk(levels, 2)
    np.testing.assert_allclose(total, levels.sigma.sum() + levels.sigma[-2], rtol=1e-6)
    assert isinstance(rest, gj.NoiseLevel)
    assert (len(rest), one.sigma) == (5, levels.sigma[2])
