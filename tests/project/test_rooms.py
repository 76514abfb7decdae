"""Imports go one way, methods and samplers stand alone, and tests are in the folder of the code that they test."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY, TESTS, EXPERIMENTS = (ROOT / name for name in ("guidance_jax", "tests", "experiments"))

LAYERS = (
    ("base", "arrays", "programs"),
    ("interfaces",),
    ("checks",),
    ("schedules", "denoisers", "noise", "trees"),
    ("scores",),
    ("guidance", "samplers", "training", "networks", "metrics", "pretrained"),
    ("guided", "oracles"),
    ("sampling", "calibration", "likelihood"),
    ("particles",),
)
"""The rooms of the library from the ground up. A file imports its own room and those below."""
PARTS = {
    "guidance": {"formula", "algebra", "shaping", "gradient", "linear", "scales", "curves"},
    "samplers": {"gaussian", "multistep"},
}
"""What the methods and the samplers of one room share. No method imports another paper's file."""
ACROSS = {"contract", "fuzz", "fuzz_files"}
"""Tests of every method with every sampler, and of every reader of files."""
ELSEWHERE = {"experiments", "parity", "bad_calls", "mutants", "project"}
"""The folders of `tests` that have no room in the library."""


def imported(file, package):
    """The modules of a package that a file imports anywhere in its code."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] == package)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            if node.module == package:
                yield from (f"{package}.{name.name}" for name in node.names)
            elif node.module and node.module.partition(".")[0] == package:
                yield from (node.module, *(f"{node.module}.{name.name}" for name in node.names))


def upward(edges, floors):
    """The imports from a lower layer to a higher one."""
    return [f"{one} imports {other}" for one, other in edges if floors[other] > floors[one]]


def edges():
    """Each pair of rooms in which the first imports the second."""
    for file in sorted(LIBRARY.rglob("*.py")):
        room = file.relative_to(LIBRARY).parts[0].removesuffix(".py")
        for module in imported(file, "guidance_jax") if room != "__init__" else ():
            other = module.split(".")[1]
            if other != room:
                yield room, other


def test_every_room_has_a_layer():
    rooms = {path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(rooms - {"__init__"}) == sorted(room for layer in LAYERS for room in layer)


def test_contributing_draws_these_layers():
    drawing = re.search(r"## Rooms and layers\n+```\n(.*?)```", (ROOT / ".github/CONTRIBUTING.md").read_text(), re.DOTALL)
    assert drawing is not None
    lines = [re.split(r" {2,}", line)[0] for line in drawing[1].splitlines() if not line.startswith(("experiments", " "))]
    assert [set(line.replace("/", "").split(", ")) for line in lines] == [set(layer) for layer in LAYERS]
    folders = {room for line in lines for room in line.split(", ") if room.endswith("/")}
    assert folders == {f"{path.parent.name}/" for path in LIBRARY.glob("*/__init__.py")}


def test_imports_go_one_way():
    floors = {room: floor for floor, layer in enumerate(LAYERS) for room in layer}
    found = set(edges())
    assert len(found) > 50
    assert not upward(found, floors)
    assert upward({("checks", "guidance")}, floors)


def test_no_two_rooms_import_each_other():
    found = set(edges())
    assert not {pair for pair in found if pair[::-1] in found}


def test_base_and_arrays_import_nothing_of_the_library():
    for name in ("base", "arrays"):
        assert not list(imported(LIBRARY / f"{name}.py", "guidance_jax"))


@pytest.mark.parametrize("room", PARTS)
def test_methods_and_samplers_stand_alone(room):
    for file in sorted((LIBRARY / room).glob("*.py")):
        beside = {
            module.split(".")[2] for module in imported(file, "guidance_jax") if module.startswith(f"guidance_jax.{room}.")
        }
        assert file.stem == "__init__" or beside <= PARTS[room], file


@pytest.mark.parametrize("room", ["guidance", "particles", "samplers", "schedules", "training"])
def test_every_file_of_a_room_of_formulae_has_a_fault_that_its_tests_notice(room):
    """`python3 tests/mutants` puts them in."""
    files = {file.stem for file in (LIBRARY / room).glob("*.py")} - {"__init__"}
    assert files == {patch.name.partition(".")[0] for patch in (TESTS / "mutants" / room).glob("*.patch")}


def test_experiments_are_tools_and_jobs():
    for file in sorted((EXPERIMENTS / "tools").rglob("*.py")):
        jobs = [name for name in imported(file, "experiments") if name.split(".")[1] != "tools"]
        assert not jobs, f"{file} imports {jobs}"


def test_every_file_beside_the_folders_of_experiments_is_a_job():
    jobs = [file for file in sorted(EXPERIMENTS.glob("*.py")) if file.stem != "__init__"]
    assert len(jobs) >= 8
    for file in jobs:
        assert "main" in {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}, file


def test_tests_lie_in_the_rooms_of_the_code_that_they_test():
    rooms = {room for layer in LAYERS for room in layer}
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= rooms | ELSEWHERE
    beside = {file.stem.removeprefix("test_") for file in TESTS.glob("test_*.py")}
    assert beside <= rooms | ACROSS
    for room in rooms - {"base", "interfaces", "arrays", "noise", "scores"}:  # Tests of the rooms above cover these.
        assert (TESTS / f"test_{room}.py").exists() or list((TESTS / room).glob("test_*.py")), f"{room} has no tests"
    jobs = {path.stem for path in EXPERIMENTS.iterdir()} | {"experiments", "notebooks"}
    named = {file.stem.removeprefix("test_") for file in (TESTS / "experiments").glob("test_*.py")}
    assert named <= jobs


@pytest.mark.slow
def test_the_tests_of_a_room_use_it():
    """Each file imports the room or one of its public names."""
    for folder in sorted(path for path in TESTS.iterdir() if path.is_dir() and (LIBRARY / path.name / "__init__.py").exists()):
        public = set(getattr(importlib.import_module(f"guidance_jax.{folder.name}"), "__all__", ()))
        modules = {path.stem for path in (LIBRARY / folder.name).glob("*.py")}
        for file in folder.glob("test_*.py") if public else ():
            tree = ast.parse(file.read_text())
            names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            names |= {name for module in imported(file, "guidance_jax") for name in module.split(".")}
            assert names & (public | modules | {folder.name}), file
