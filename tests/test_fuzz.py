"""Random chains of random guidances never crash, stay finite, and couple no samples; `python -m tests.fuzz 1000` tries more."""

from collections import Counter

from fuzz import EVERY, tried
from hypothesis import Phase

from guidance_jax import guidance

COMBINATORS = {"stateless", "fit_linear"}
"""No guidances of their own."""
CHAINS = 25


def test_every_public_guidance_is_met():
    assert set(guidance.__all__) - COMBINATORS == EVERY.keys()


def test_random_chains_are_finite_and_couple_no_samples():
    seen = Counter[str]()
    tried(CHAINS, seen, derandomize=True, phases=[Phase.generate])()
    assert seen["chains"] >= CHAINS
