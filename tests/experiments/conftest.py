"""Fixtures that several tests of the experiments share."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture
def lenient():
    """The default promotion of users, because optax mixes integers and floats. Jobs keep compiled programs in their folder."""
    before = jax.config.values["jax_compilation_cache_dir"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", before)
            compilation_cache.reset_cache()


@pytest.fixture
def no_constants():
    """A program with a constant array of more than 4 kB fails with a warning, because XLA would spend seconds on folding it."""
    before = jax.config.values["jax_captured_constants_warn_bytes"]
    jax.config.update("jax_captured_constants_warn_bytes", 4000)
    yield
    jax.config.update("jax_captured_constants_warn_bytes", before)


@pytest.fixture(scope="module")
def kept_programs(tmp_path_factory):
    """Programs that are built again, as each training builds its own, are compiled once per module."""
    changes = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in changes}
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
