"""Every wrong call raises an error of the library that states what it got and how to fix it."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from bad_calls.__main__ import TABLES

TESTS = Path(__file__).parents[1]
OWN = tuple(str(TESTS.parent / part) for part in ("guidance_jax", "experiments", "tests/bad_calls/jobs.py"))


def test_every_wrong_call_raises_with_what_it_got_and_the_fix():
    """The calls run in one process without the checked annotations of these tests, because users do not have them."""
    clean = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-m", "bad_calls"], cwd=TESTS, env=clean, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    report = json.loads(done.stdout)
    rows = {
        f"{table}: {name}": row for table in TABLES for name, row in importlib.import_module(f"bad_calls.{table}").ROWS.items()
    }
    assert set(report) == set(rows)
    assert len(rows) >= 200
    wrong = []
    for name, (_, error, pattern) in rows.items():
        got = report[name]
        right = got["error"] == error.__name__ and re.search(pattern, got["message"], re.DOTALL) and got["file"].startswith(OWN)
        if not right:
            wrong.append(
                f"{name}: expected {error.__name__} {pattern!r}, got {got['error']} {got['message']!r} of {got['file']!r}"
            )
    print(f"{len(rows)} wrong calls, {len(rows) - len(wrong)} with the right error")
    assert not wrong, "\n".join(wrong)
