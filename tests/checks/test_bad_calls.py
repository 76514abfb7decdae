"""Every wrong call raises an error of the library that states what it got and how to fix it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bad_calls.__main__ import TABLES

TESTS = Path(__file__).parents[1]
OWN = tuple(str(TESTS.parent / part) for part in ("guidance_jax", "experiments", "tests/bad_calls/jobs.py"))


@pytest.mark.slow
def test_every_wrong_call_raises_with_what_it_got_and_the_fix_and_a_right_call_costs_less_than_50_microseconds():
    """The calls run in one process without the checked annotations of these tests, because users do not have them."""
    cheap = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"XLA_FLAGS": cheap}
    done = subprocess.run(
        [sys.executable, "-m", "bad_calls"], cwd=TESTS, env=clean, capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("a right call")["seconds"] < 50e-6
    assert {name.partition(":")[0] for name in report} == set(TABLES)
    assert len(report) >= 700
    wrong = []
    for name, got in report.items():
        said = re.search(got["pattern"], got["message"], re.DOTALL) and got["error"] == got["expected"]
        if not (said and got["file"].startswith(OWN)):
            expected = f"{got['expected']} {got['pattern']!r}"
            wrong.append(f"{name}: expected {expected}, got {got['error']} {got['message']!r} of {got['file']!r}")
    print(f"{len(report)} wrong calls, {len(report) - len(wrong)} with the right error")
    assert not wrong, "\n".join(wrong)
