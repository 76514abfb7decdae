"""Puts small faults into the library, one at a time, and runs the tests of their rooms until one fails.

    python3 tests/mutants                    every fault
    python3 tests/mutants guidance/apg ddim  those whose names contain one of the words
    python3 tests/mutants --tree ../old      the same faults in another checkout, with its tests

Each fault is a patch in the folder of its room. Its first line says what is wrong.
"""

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tyro

HERE = Path(__file__).parent
TESTS = {
    "guidance": ("guidance", "test_contract.py", "test_calibration.py"),
    "samplers": ("samplers", "sampling", "test_contract.py", "guidance/test_closed_forms.py", "guidance/test_forms.py"),
    "schedules": ("schedules", "sampling"),
    "arrays": ("test_contract.py", "guidance"),
    "noise": ("sampling", "samplers"),
    "scores": ("test_oracles.py", "guidance"),
    "guided": ("test_guided.py", "guidance", "sampling"),
    "networks": ("networks", "pretrained"),
}
"""The tests of a room, where they are not only those in the folder or the file of its name."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Which test caught a fault, and after how many seconds. `caught_by` is empty if every test passed."""

    fault: str
    sentence: str
    caught_by: str
    seconds: float


def changed(patch: str) -> Iterator[tuple[str, int]]:
    """The file and the line, after the patch, of each hunk's first change."""
    file = ""
    line = 0
    for text in patch.splitlines():
        if text.startswith("+++ b/"):
            file = text[6:]
        elif found := re.match(r"@@ -\S+ \+(\d+)", text):
            line = int(found[1])
        elif file and line and text[:1] in "+-":
            yield file, line
            line = 0
        elif line:
            line += 1


def names(tree: Path, patch: str) -> set[str]:
    """The public functions and classes that a patch changes, and their modules.

    If it changes a private one, all public ones of the module.
    """
    found = set()
    for file, line in changed(patch):
        body = ast.parse((tree / file).read_text()).body
        named = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        public = {node.name for node in named if not node.name.startswith("_")}
        own = {node.name for node in named if node.lineno <= line <= (node.end_lineno or 0)} & public
        found |= {Path(file).stem} | (own or public)
    return found


def tests_of(tree: Path, room: str) -> list[str]:
    """The tests that a fault's room has in a checkout."""
    own = TESTS.get(room, (room, f"test_{room}.py"))
    return [f"tests/{path}" for path in own if (tree / "tests" / path).exists()]


def judge(patch: Path, tree: Path, timeout: float) -> Outcome:
    """The outcome of one fault, in a copy of a checkout."""
    fault = f"{patch.parent.name}/{patch.stem}"
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(".git", "out", ".venv", ".pytest_cache"))
        subprocess.run(["git", "apply", "--unsafe-paths", f"--directory={copy}", patch], cwd=folder, check=True)
        first = " ".join(names(copy, patch.read_text()))
        environment = os.environ | {"PYTHONPATH": f"{copy}:{HERE}", "TESTS_FIRST": first}
        command = [sys.executable, "-m", "pytest", "-p", "first", "-p", "no:cacheprovider", "-n0", "-qx", "--tb=no", "-rfE"]
        command += tests_of(copy, patch.parent.name)
        try:
            run = subprocess.run(
                command, cwd=copy, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            caught_by = f"no end after {timeout:.0f} s"
        else:
            if run.returncode not in (0, 1):  # Tests that cannot be collected show nothing of the fault.
                raise RuntimeError(f"{fault}: pytest ended with {run.returncode}\n{run.stdout}\n{run.stderr}")
            failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", run.stdout, re.MULTILINE)
            caught_by = failed[1] if failed else ""
    return Outcome(fault, patch.read_text().splitlines()[0], caught_by, time.perf_counter() - start)


def main(
    words: tyro.conf.Positional[tuple[str, ...]] = (),
    tree: Path = HERE.parents[1],
    jobs: int = 2,
    timeout: float = 900.0,
    out: Path | None = None,
) -> int:
    """Print for each fault the test that caught it. The exit status is 1 if one was not caught.

    Args:
      words: Run the faults whose names contain one of these. All if there are none.
      tree: The checkout to put the faults into, with its own tests.
      jobs: How many faults to run at a time.
      timeout: Seconds after which a fault counts as caught, because the tests do not end.
      out: A file for the outcomes, as JSON.
    """
    patches = sorted(HERE.glob("*/*.patch"))
    chosen = [p for p in patches if not words or any(word in f"{p.parent.name}/{p.stem}" for word in words)]
    if not chosen:
        raise SystemExit(f"mutants: words must be part of a fault's name, got {words}; the faults are in {HERE}")
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(lambda patch: judge(patch, tree.resolve(), timeout), chosen):
            outcomes.append(outcome)
            verdict = "caught" if outcome.caught_by else "NOT CAUGHT"
            print(f"{verdict:10} {outcome.seconds:4.0f} s  {outcome.fault}  {outcome.caught_by}", flush=True)
            if out:
                out.write_text(json.dumps([dataclasses.asdict(o) for o in outcomes], indent=1))
    missed = sum(not outcome.caught_by for outcome in outcomes)
    print(f"{len(outcomes)} faults, {len(outcomes) - missed} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
