"""Tests of the benchmarks: each runs at toy size and measures what it says."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

pytestmark = [
    pytest.mark.smoke,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_loading_measures_every_pair_of_dtypes(tmp_path, monkeypatch):
    from experiments.benchmarks import loading
    from experiments.benchmarks.loading import LOADED, SMOKE, STORED, Config, main

    pools = []

    def threads(count, context, max_tasks_per_child):
        """In this process. Six more would each start JAX."""
        pools.append((count, context.get_start_method(), max_tasks_per_child))
        return ThreadPoolExecutor(count)

    assert pickle.loads(pickle.dumps((loading.write, loading.measure, SMOKE))) == (loading.write, loading.measure, SMOKE)
    monkeypatch.setattr(loading, "ProcessPoolExecutor", threads)
    rows = main(Config(out=tmp_path, smoke=True))
    assert pools == [(1, "spawn", 1)]
    assert min(row["peak"] for row in rows) > 0
    assert json.loads((tmp_path / "loading.json").read_text()) == rows
    assert [(row["stored"], row["loaded"]) for row in rows] == [(stored, loaded) for stored in STORED for loaded in LOADED]
    assert rows[0]["gigabytes"] == 2 * rows[1]["gigabytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["loading.json"]


def test_overhead_counts_evaluations_and_compiles_once_for_other_values(lenient, tmp_path, monkeypatch):
    from experiments.benchmarks.overhead import CASES, Config, main

    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # The other tests of this process keep their programs.
    found = main(Config(out=tmp_path, smoke=True))
    assert json.loads((tmp_path / "smoke" / "overhead.json").read_text()) == found
    assert list(found["cases"]) == list(CASES)
    for name, rows in found["cases"].items():
        counts = {row["method"]: row["evaluations"] for row in rows}
        assert counts == {"no guidance": 4, "CFG": 8, "CFG in an interval": 6, "classifier": 4}, name
    traces = {row["call"]: row["traces"] for row in found["programs"]}
    assert traces["first"] > 0
    assert {traces[call] for call in ("second", "another scale", "another interval", "other parameters", "another key")} == {0}
