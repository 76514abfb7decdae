"""Tests of the notebooks: they run at toy size, equal their scripts, are stored with outputs, and keep the installed JAX."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from published import write_model

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))}
NAMES = ("bring_your_own", "every_method", "quickstart", "text_to_image", "which_guidance")
PICTURES = {"bring_your_own": 3, "every_method": 1, "quickstart": 4, "text_to_image": 3, "which_guidance": 2}


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
    one = lambda down, up: {"block_out_channels": [8], "down_block_types": [down], "up_block_types": [up]}
    unet, vae = one("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), one("DownEncoderBlock2D", "UpDecoderBlock2D")
    notebook, model = read("text_to_image"), write_model(tmp_path / "model", unet=unet, vae=vae)
    sweep = next(i for i, cell in enumerate(notebook.cells) if "images = pictures(gj.cfg" in cell.source)
    notebook.cells = notebook.cells[: sweep + 1]
    outputs = execute(client, notebook, model)
    assert str(model) in printed(outputs)
    assert shown(outputs) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_equals_its_script_and_is_stored_with_its_outputs(name):
    notebook, script = read(name), jupytext.read(NOTEBOOKS[name].with_suffix(".py"))
    cells = lambda book: [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in book.cells]
    assert cells(notebook) == cells(script), f"the pair differs, run: jupytext --sync experiments/notebooks/{name}.py"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)], "run all cells, from the first to the last"
    outputs = [output for cell in code for output in cell.outputs]
    assert shown(outputs) == PICTURES[name]
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert NOTEBOOKS[name].stat().st_size < 2**20


def installed(name, repository, here, monkeypatch):
    """The commands that the second cell of a notebook runs in a folder, on a machine without this library."""
    commands, (setting, install) = [], [cell.source for cell in read(name).cells if cell.cell_type == "code"][:2]
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command[command[0] == sys.executable :]))
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "guidance_jax" else found(name))
    exec(setting.replace('""', repr(repository), 1) + "\n" + install, {})
    return commands


@pytest.mark.parametrize("name", NAMES)
def test_the_install_cell_needs_an_address_or_a_clone_and_keeps_the_installed_jax(name, tmp_path, monkeypatch):
    texts = [cell.source for cell in read(name).cells]
    assert texts[1].startswith('REPOSITORY = ""  # Set it to the address')
    assert not re.search(r"OWNER|github\.com|colab\.research|file://|\]\(/", "\n".join(texts))
    own = [f"{package}=={importlib.metadata.version(package)}" for package in ("jax", "jaxlib")]
    address = "https://example.org/guidance_jax"
    for repository, here in (("", NOTEBOOKS[name].parent), (address, tmp_path)):
        *before, pip = installed(name, repository, here, monkeypatch)
        assert pip[:4] == ["-m", "pip", "install", "-q"]
        assert pip[-2:] == own
        assert not {"-U", "--upgrade", "--force-reinstall"} & {*pip}
        assert not [part for part in pip if re.search(r"\bjax\[", part)]
        address_in = [part for command in (*before, pip) for part in command if address in part]
        local = [part for part in pip if part.startswith("../..[")]
        assert (len(address_in), len(local)) == ((1, 0) if repository else (0, 1))
    with pytest.raises(AssertionError, match="Set REPOSITORY, in the first cell"):
        installed(name, "", tmp_path, monkeypatch)


def test_every_notebook_is_tested():
    assert tuple(NOTEBOOKS) == NAMES
