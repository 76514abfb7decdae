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


@pytest.fixture(scope="module")
def client():
    """A kernel as in a clone, which inherits the flags of these tests. The notebooks share it, because JAX starts slowly."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=300)
    with client.setup_kernel(env=os.environ | {"GUIDANCE_JAX_TOY": "1", "PYTHONPATH": path}, cwd=str(ROOT)):
        yield client


def execute(client, notebook, model=""):
    """The outputs of all cells of a notebook, which sees no names of the notebooks before it."""
    begin = f"%reset -f\nimport os\nos.environ['GUIDANCE_JAX_MODEL'] = {str(model)!r}\ndel os"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(begin))
    client.nb = notebook
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index)
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def shown(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_its_pictures(name, client):
    outputs = execute(client, read(name))
    assert shown(outputs) == PICTURES[name]
    assert "8 cpu" in printed(outputs)
    errors = "".join(output.text for output in outputs if output.get("name") == "stderr")
    assert not re.findall(r"^.*(?<!Tqdm)Warning.*", errors, re.MULTILINE)


@pytest.mark.slow
def test_the_text_to_image_notebook_reads_a_directory(tmp_path, client):
    """It is run until the first picture. The test above runs all cells, with another model."""
    notebook, model = read("text_to_image"), write_model(tmp_path / "model")
    sweep = next(i for i, cell in enumerate(notebook.cells) if "images = pictures(gj.cfg" in cell.source)
    notebook.cells = notebook.cells[: sweep + 1]
    outputs = execute(client, notebook, model)
    assert str(model) in printed(outputs)
    assert shown(outputs) == 1


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
