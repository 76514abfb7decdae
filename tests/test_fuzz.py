"""Random chains of guidances do not crash, stay finite, and couple no samples. `python -m tests.fuzz 1000` tries more."""

from collections import Counter

import jax
import pytest
from fuzz import EVERY, SCHEDULES, Recipe, mates_do_nothing, tried
from hypothesis import Phase

from guidance_jax import guidance

COMBINATORS = {"stateless", "fit_linear"}
"""Functions that are not guidances themselves."""
CHAINS = 4


def test_every_public_guidance_can_be_drawn():
    assert set(guidance.__all__) - COMBINATORS == EVERY.keys()


@pytest.mark.slow
def test_random_chains_are_finite_and_couple_no_samples():
    seen = Counter[str]()
    tried(CHAINS, seen, compiled=True, derandomize=True, phases=[Phase.generate])()
    assert seen["chains"] >= CHAINS
    assert len(seen) > 2 * CHAINS


FOUND = {
    "feedback from alpha = 0": (Recipe("feedback", (0.9, 1.0, 0.0)), "flow"),
    "feedback of the model itself, where the path speaks against it": (Recipe("feedback", (1.0, 1.0, -1000.0)), "edm"),
}
"""Chains that were once not finite, or coupled samples."""


@pytest.mark.parametrize("name", FOUND)
def test_earlier_failures_stay_fixed(name):
    recipe, schedule = FOUND[name]
    with jax.enable_x64(True):
        mates_do_nothing(recipe, SCHEDULES[schedule], "ddim", 0, False)
