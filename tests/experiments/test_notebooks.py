"""Tests of the notebooks: they run at toy size, equal their scripts, and are stored without outputs."""

import os
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from published import write_model

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))}
NAMES = ("bring_your_own", "every_method", "quickstart", "text_to_image")
PICTURES = {"bring_your_own": 3, "every_method": 1, "quickstart": 4, "text_to_image": 3}


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def execute(name, monkeypatch, **environment):
    """The outputs of all cells of the notebook, which runs in its own kernel as in a clone."""
    monkeypatch.setenv("GUIDANCE_JAX_TOY", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    notebook = read(name)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def shown(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_its_pictures(name, monkeypatch):
    outputs = execute(name, monkeypatch, GUIDANCE_JAX_MODEL="")
    assert shown(outputs) == PICTURES[name]
    assert "8 cpu" in printed(outputs)
    errors = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not re.findall(r"^.*(?<!Tqdm)Warning.*", errors, re.MULTILINE)


def test_the_text_to_image_notebook_reads_a_directory(tmp_path, monkeypatch):
    outputs = execute("text_to_image", monkeypatch, GUIDANCE_JAX_MODEL=str(write_model(tmp_path / "model")))
    assert str(tmp_path / "model") in printed(outputs)
    assert shown(outputs) == PICTURES["text_to_image"]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_equals_its_script_and_is_stored_without_outputs(name):
    notebook, script = read(name), jupytext.read(NOTEBOOKS[name].with_suffix(".py"))
    cells = lambda book: [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in book.cells]
    assert cells(notebook) == cells(script), f"the pair differs, run: jupytext --sync experiments/notebooks/{name}.py"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_can_be_opened_in_colab_and_keeps_the_installed_jax(name):
    first, install, *_ = (cell.source for cell in read(name).cells)
    badge = re.search(r"https://colab\.research\.google\.com/github/(\S+?)/blob/main/(\S+\.ipynb)", first)
    assert badge is not None
    assert ROOT / badge[2] == NOTEBOOKS[name]
    addresses = {badge[1], *re.findall(r"https://github\.com/([\w.-]+/[\w.-]+)", install)}
    addresses |= set(re.findall(r"colab\.research\.google\.com/github/(\S+?)/blob", (ROOT / "README.md").read_text()))
    assert len(addresses) == 1
    assert not re.search(r"\bjax\[|-U\b|--upgrade", install)
    assert '("jax", "jaxlib")' in install


def test_every_notebook_is_tested():
    assert tuple(NOTEBOOKS) == NAMES
