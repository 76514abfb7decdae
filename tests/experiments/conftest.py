"""What several tests of the experiments need."""

import jax
import pytest


@pytest.fixture
def no_constants():
    """No program may hold an array of more than 4 kB: XLA would fold it, for seconds, and say so."""
    before = jax.config.values["jax_captured_constants_warn_bytes"]
    jax.config.update("jax_captured_constants_warn_bytes", 4000)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", before)
