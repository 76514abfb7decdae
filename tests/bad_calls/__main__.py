"""Makes every wrong call, with no annotation checked, as a user would; prints what came of each as JSON."""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLES = ("running", "own_loop", "guiding", "models", "pretrained", "solvers", "measures", "jobs")


def told(call) -> dict:
    """What became of a call: the error's type, its message, and the file that raised it."""
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
    from bad_calls.world import sampled

    assert sampled().shape == (2, 2), "the run that the rows spoil is not right itself"
    report = {}
    for table in sys.argv[1:] or TABLES:
        for name, (call, *_) in importlib.import_module(f"bad_calls.{table}").ROWS.items():
            start = time.perf_counter()
            report[f"{table}: {name}"] = told(call) | {"seconds": time.perf_counter() - start}
    json.dump(report, sys.stdout)
