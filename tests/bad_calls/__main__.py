"""Makes every wrong call as a user would, with no checked annotations, and prints the outcomes as JSON."""

import importlib
import json
import os
import sys
import time
import timeit
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLES = ("running", "own_loop", "guiding", "models", "pretrained", "solvers", "measures", "jobs")


def outcome(call) -> dict:
    """The outcome of a call: the error's type, its message, and the file that raised it."""
    try:
        call()
    except Exception as error:
        file = traceback.extract_tb(error.__traceback__)[-1].filename
        return {
            "error": type(error).__name__,
            "message": " ".join(map(str, [error, *getattr(error, "__notes__", ())])),
            "file": file,
        }
    return {"error": None, "message": "", "file": ""}


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import guidance_jax as gj
    from bad_calls.world import sampled

    assert sampled().shape == (2, 2), "the unchanged run fails, so its rows prove nothing"
    report = {}
    for table in sys.argv[1:] or TABLES:
        for name, (call, error, pattern) in importlib.import_module(f"bad_calls.{table}").ROWS.items():
            start = time.perf_counter()
            expected = {"expected": error.__name__, "pattern": pattern}
            report[f"{table}: {name}"] = outcome(call) | expected | {"seconds": time.perf_counter() - start}
    made, bounds = gj.cfg(2.0), (0.1, 3.0)
    right = min(timeit.repeat(lambda: gj.during(made, *bounds), number=100, repeat=20)) / 100
    report["a right call"] = {"seconds": right}
    json.dump(report, sys.stdout)
