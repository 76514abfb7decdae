"""Every test runs with strict dtypes, no rank promotion, warnings as errors, 8 CPU devices, and checked annotations."""

import importlib.metadata
import os
from pathlib import Path

# Optimise for compile time, which is most of the time of these tests. The last flag halves it, but aborts in later versions.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * (tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11))
)
os.environ["JAX_PLATFORMS"] = "cpu"

import annotations
import jax
import pytest

annotations.install()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def pytest_xdist_auto_num_workers(config):
    """No workers for a selection of tests: each would start JAX and import every test again."""
    everything = config.args_source.name != "ARGS" or Path(__file__).parent in {Path(arg).resolve() for arg in config.args}
    return None if everything and not config.option.keyword else 0
