"""The skeletons of CONTRIBUTING.md run and pass the documentation test, and the files that it names exist."""

import doctest
import importlib.util
import re
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from docstrings import lacking, pasted, wide
from worlds import classes, keys, mixture

import guidance_jax as gj

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text()


@pytest.fixture(params=["contrast", "straight"])
def skeleton(request, tmp_path, monkeypatch):
    """The function of a skeleton, in a module of the library that consists of its code block."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    block = next(block for block in blocks if f"def {request.param}(" in block)
    file = tmp_path / f"{request.param}.py"
    file.write_text(block)
    layer = {"contrast": "guidance", "straight": "samplers"}[request.param]
    spec = importlib.util.spec_from_file_location(f"guidance_jax.{layer}.{request.param}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return getattr(module, request.param)


def test_a_skeleton_computes_what_it_documents(skeleton):
    m, labels = mixture(), jnp.array([0, 1, 2])
    path = gj.levels(gj.schedules.cosine(), 8, gj.spacings.karras())
    run = lambda guidance, sampler: gj.sample(keys(3), classes(m, labels), guidance, sampler, path, (3,))
    expected = run(gj.cfg(3.0), gj.ddim())
    ours = run(skeleton(3.0), gj.ddim()) if skeleton.__name__ == "contrast" else run(gj.cfg(3.0), skeleton())
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_skeleton_is_documented(skeleton, monkeypatch):
    assert not lacking(skeleton, skeleton.__doc__)
    monkeypatch.setattr(gj, skeleton.__name__, skeleton, raising=False)  # step 1 of the tests exports it
    test = doctest.DocTestParser().get_doctest(skeleton.__doc__, {}, skeleton.__name__, None, 0)
    assert test.examples
    assert not pasted(test).failed
    assert not wide(skeleton.__doc__, 1)


def test_contributing_is_one_page_and_its_files_exist():
    assert len(GUIDE.splitlines()) < 150
    names = re.findall(r"`((?:tests|experiments|\.github|\.ci|[a-z]+)/[\w/.]*)`", GUIDE)
    assert len(names) > 20
    for name in names:
        file = name.partition("NAME")[0]  # of a file that is still to be written, its folder
        assert (ROOT / file).exists() or (ROOT / "guidance_jax" / file).exists(), name
