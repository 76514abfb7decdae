"""The examples of the docstrings run, and say what comes out; the README's code runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import guidance_jax as gj

ROOT = Path(__file__).parent.parent
MODULES = sorted(m.name for m in pkgutil.walk_packages(gj.__path__, "guidance_jax.") if not m.ispkg)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    names = {name: getattr(gj, name) for name in gj.__all__}
    names |= {"gj": gj, "jax": jax, "jnp": jnp, "np": np, "nnx": nnx, "linen": linen}
    failures, _ = doctest.testmod(
        importlib.import_module(module), extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert not failures


def test_public_functions_are_documented():
    """One sentence, what it takes, an example: of every public function of the layers that users call."""
    checked = 0
    for module in map(importlib.import_module, MODULES):
        for name, function in vars(module).items():
            public = callable(function) and not name.startswith("_") and getattr(gj, name, None) is function
            if public and function.__module__ == module.__name__ and not isinstance(function, type):
                doc = function.__doc__ or ""
                assert ">>>" in doc, name
                takes_arguments = function.__code__.co_argcount + function.__code__.co_kwonlyargcount
                assert "Args:" in doc or not takes_arguments, name
                checked += 1
    assert checked >= 15


def test_every_public_name_is_there():
    assert sorted(gj.__all__, key=str) == gj.__all__
    assert all(hasattr(gj, name) for name in gj.__all__)


def test_the_readmes_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert np.isfinite(np.asarray(names["grid"])).all()
