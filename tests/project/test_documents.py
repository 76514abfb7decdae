"""The examples of the docstrings can be pasted, and print what they show. The READMEs say the same."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import pytest
from docstrings import pasted, wide

import guidance_jax as gj

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    f"guidance_jax.{'.'.join(file.relative_to(ROOT / 'guidance_jax').with_suffix('').parts)}"
    for file in (ROOT / "guidance_jax").rglob("*.py")
    if ">>> " in file.read_text()
)
"""The modules with examples."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=pytest.mark.slow) if name == "guidance_jax.likelihood" else name for name in MODULES]
)
def test_every_example_can_be_pasted(module):
    found = [pasted(test) for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))]
    assert sum(each.attempted for each in found)
    assert not sum(each.failed for each in found)


def test_an_example_that_needs_another_name_is_detected(capsys):
    """A name of its own module, one of the library, or one that another docstring defines."""
    parse = lambda source: doctest.DocTestParser().get_doctest(source, dict(vars(gj)), "fault", None, 0)
    assert pasted(parse(">>> gj.cfg(3.0)\ncfg(scale=3.0)\n")).failed == 0
    for name in ("cfg(3.0)", "np.ones(3)", "denoise", "gj.sampling.nothing"):
        assert pasted(parse(f">>> found = {name}\n")).failed == 1
    assert capsys.readouterr().out.count("NameError") == 3


def test_no_line_of_an_example_has_more_than_100_columns():
    documented, seen = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef), 0
    for file in sorted((ROOT / "guidance_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, documented) and ">>> " in (text := ast.get_docstring(node, clean=False) or ""):
                assert not wide(text, node.body[0].lineno), file
                seen += 1
    assert seen > 200
    assert wide(f"    >>> x = {'1' * 88}\n    >>> x = {'1' * 89}\n", 7) == [f"8: >>> x = {'1' * 89}"]


def test_every_public_name_is_an_attribute_of_its_module():
    assert sorted(gj.__all__, key=str) == gj.__all__
    assert all(hasattr(gj, name) for name in gj.__all__)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_the_chinese_readme_has_the_content_of_the_english_one():
    english, chinese = (ROOT / "README.md").read_text(), (ROOT / "README.zh-CN.md").read_text()
    figures = re.findall(r"\d+\.\d+", chinese)
    assert len(figures) > 20
    for figure in figures:
        assert figure in english, figure
    commands = re.findall(r"^python3 -m .*$", chinese, flags=re.MULTILINE)
    assert len(commands) == 2
    assert english.count(commands[0]) == english.count(commands[1]) == 1
    for path in re.findall(r"\]\(([^)]+)\)", chinese):
        assert (ROOT / path).exists(), path
