"""Fixtures that several tests of the experiments share."""

import jax
import pytest


@pytest.fixture
def lenient():
    """The default promotion of users, because optax mixes integers and floats. Jobs keep compiled programs in their folder."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def no_constants():
    """A program with a constant array of more than 4 kB fails with a warning, because XLA would spend seconds on folding it."""
    before = jax.config.values["jax_captured_constants_warn_bytes"]
    jax.config.update("jax_captured_constants_warn_bytes", 4000)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", before)
