"""The examples of the docstrings can be pasted, and print what they show. The README's code runs."""

import ast
import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from docstrings import pasted, wide
from flax import nnx
from worlds import classes, keys, mixture

import guidance_jax as gj
from guidance_jax import guidance, samplers

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    f"guidance_jax.{'.'.join(file.relative_to(ROOT / 'guidance_jax').with_suffix('').parts)}"
    for file in (ROOT / "guidance_jax").rglob("*.py")
    if ">>> " in file.read_text()
)
"""The modules with examples."""


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=pytest.mark.slow) if name == "guidance_jax.likelihood" else name for name in MODULES]
)
def test_every_example_can_be_pasted(module):
    found = [pasted(test) for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))]
    assert sum(each.attempted for each in found)
    assert not sum(each.failed for each in found)


def test_an_example_that_needs_another_name_is_detected(capsys):
    """A name of its own module, one of the library, or one that another docstring defines."""
    parse = lambda source: doctest.DocTestParser().get_doctest(source, vars(gj), "fault", None, 0)
    assert pasted(parse(">>> gj.cfg(3.0)\ncfg(scale=3.0)\n")).failed == 0
    for name in ("cfg(3.0)", "np.ones(3)", "denoise", "gj.sampling.nothing"):
        assert pasted(parse(f">>> found = {name}\n")).failed == 1
    assert capsys.readouterr().out.count("NameError") == 3


def test_no_line_of_an_example_has_more_than_100_columns():
    documented, seen = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef), 0
    for file in sorted((ROOT / "guidance_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            text = ast.get_docstring(node, clean=False) if isinstance(node, documented) else None
            if text and ">>> " in text:
                assert not wide(text, node.body[0].lineno), file
                seen += 1
    assert seen > 200
    assert wide(f"    >>> x = {'1' * 88}\n    >>> x = {'1' * 89}\n", 7) == [f"8: >>> x = {'1' * 89}"]


def test_every_public_name_is_an_attribute_of_its_module():
    assert sorted(gj.__all__, key=str) == gj.__all__
    assert all(hasattr(gj, name) for name in gj.__all__)


def names_after(readme: str) -> dict[str, Any]:
    """The names that a README's code defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), flags=re.DOTALL):
        exec(compile(block, readme, "exec"), names)
    return names


@pytest.mark.slow
def test_the_readmes_code_gives_the_results_it_states():
    names = names_after("README.md")
    assert names["grid"].shape == (3, 4, 28, 28, 1)
    assert np.isfinite(names["grid"]).all()

    m, labels = mixture(), jnp.array([0, 1, 2])
    two, edm = classes(m, labels), gj.levels(gj.schedules.edm(), 40, gj.spacings.karras())
    x = 80 * jax.random.normal(jax.random.key(0), (3, 3))
    run = lambda guidance, sampler: np.asarray(gj.sample(keys(3), two, guidance, sampler, edm, x))
    euler = run(gj.cfg(3.0), gj.ddim())
    np.testing.assert_allclose(run(names["contrast"](3.0), names["euler"]()), euler, rtol=1e-4, atol=1e-4)
    remembering = gj.chain(gj.cfg(3.0), gj.momentum(-0.5))
    looped = names["looped"](two, remembering, x, edm)
    np.testing.assert_allclose(looped, run(remembering, gj.ddim()), rtol=1e-4, atol=1e-4)
    solved, ours = names["solved"](two, gj.cfg(3.0), x), run(gj.cfg(3.0), gj.dpmpp_3m())
    assert np.abs(solved - ours).max() < 0.05 < np.abs(euler - ours).max()

    denoise = gj.denoiser(lambda x, t, y: jnp.tanh(x), predicts="v")
    made, scales = names["guidance"], jnp.array([1.0, 3.0])
    assert f"print(guidance)  # {made}\n" in (ROOT / "README.md").read_text()
    grid = names["over"](jax.vmap(gj.cfg)(scales), denoise, keys(2), jnp.array([3, 7]))
    alone = [names["contents"](gj.cfg(scale), denoise, keys(2), jnp.array([3, 7])) for scale in scales]
    np.testing.assert_allclose(grid, jnp.stack(alone), rtol=1e-5)
    slope = jax.eval_shape(names["slope"], made, denoise, keys(2), jnp.array([3, 7]))
    assert jax.tree.structure(slope) == jax.tree.structure(made)

    classify = lambda x, t: x.reshape(len(x), -1)[:, :10]
    samples = names["classifier_guided"](classify, denoise, keys(2), jnp.array([3, 7]), 200.0)
    assert (samples.reshape(2, -1)[:, :10].argmax(1) == jnp.array([3, 7])).all()

    attend, h = names["Attention"](6, nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (2, 5, 6))
    out, v = attend(h, jnp.array([False, True])), jnp.split(attend.qkv(h), 3, axis=-1)[2]
    np.testing.assert_allclose(out[1], v[1], rtol=1e-5)
    assert np.abs(out[0] - v[0]).max() > 1e-2
    named = names["perturbed_branches"](denoise, jnp.array([3, 7]), jnp.array([10, 10]))
    assert list(named.conds) == ["cond", "uncond", "perturbed"]

    image, labels = jax.random.normal(jax.random.key(1), (2, 28, 28, 1)), jnp.array([3, 7])
    edited, predictions, latent = names["edit"](denoise, keys(2), image, labels, 0.5, 1.0)
    assert predictions.shape == (10, 2, 28, 28, 1)
    assert np.abs(edited - predictions[-1]).max() < 0.2 < np.abs(edited - image).max()
    back = gj.sample(keys(2), gj.branches(denoise, cond=labels), gj.chain(), gj.heun(), names["levels"][:-1], latent)
    assert np.abs(back - image).max() < 0.05 < np.abs(latent - image).max()
    near = gj.oracles.GaussianMixture(0.3 * m.means, jnp.tile(jnp.eye(3), (5, 1, 1)), jnp.ones(5), m.labels)
    found = names["weighed"](near.denoise, keys(512), 0, 2.0)
    assert found.effective.shape == (2,)
    assert (found.effective > 100).all()


def test_the_chinese_readme_has_the_content_of_the_english_one():
    english, chinese = (ROOT / "README.md").read_text(), (ROOT / "README.zh-CN.md").read_text()
    figures = re.findall(r"\d+\.\d+", chinese)
    assert len(figures) > 20
    for figure in figures:
        assert figure in english, figure
    commands = re.findall(r"^python3 -m .*$", chinese, flags=re.MULTILINE)
    assert len(commands) == 4
    assert english.count(commands[0]) == english.count(commands[1]) == 1
    for path in re.findall(r"\]\(([^)]+)\)", chinese):
        assert (ROOT / path).exists(), path
    names = names_after("README.zh-CN.md")
    alone = gj.branches(names["denoise"], cond=names["labels"])
    conditional = gj.sample(names["keys"], alone, gj.chain(), gj.dpmpp_2m(), names["levels"], (28, 28, 1))
    np.testing.assert_allclose(names["grid"][0], conditional, rtol=1e-4, atol=1e-4)
    assert np.abs(names["grid"][2] - conditional).max() > 0.1
    assert (names["steered"].reshape(4, -1)[:, :10].argmax(1) == names["labels"]).all()


def test_the_readme_names_every_method_and_sampler():
    """Every public name of `guidance` and of `samplers` is in its tables, or beside them."""
    readme = (ROOT / "README.md").read_text()
    for name in (*guidance.__all__, *samplers.__all__):
        assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", readme), name
