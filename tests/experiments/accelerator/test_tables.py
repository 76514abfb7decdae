"""The parts' order, their reasons for what is left out, and the text of their tables."""

import importlib
import json

import jax
import numpy as np
import pytest

from experiments.accelerator import overhead, pytorch, timing, training

LEFT_OUT = "left out: it needs about 60 s, and 12 s were left"


def cells(text):
    """The cells of the tables' rows."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1, text
    return rows


def found(**more):
    return {"ratio": 1.02, "quartiles": [1.01, 1.04], "seconds": [0.5, 0.51], "pairs": [], **more}


def test_a_clock_says_why_a_row_is_left_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    clock = timing.Clock(2.0)
    assert clock.lacks(120.0) is None
    now[0] += 108
    assert clock.left == 12
    assert clock.lacks(60.0) == LEFT_OUT


def test_pairs_change_their_order_and_give_the_median_of_ratios(monkeypatch):
    order = []
    first, second = (lambda name=name: order.append(name) for name in "ab")
    assert len(timing.paired(first, second, 3)) == 3
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert timing.ratio([(1.0, 2.0), (2.0, 2.0), (1.0, 4.0)])["ratio"] == 2
    assert timing.ratio([(2.0, 3.0)])["quartiles"] == [1.5, 1.5]


def test_overhead_begins_with_stable_diffusion_and_leaves_out_what_does_not_fit(monkeypatch, tmp_path):
    assert [name.split(",")[0] for name in overhead.CASES] == ["Stable Diffusion 1.5", "DiT-XL/2", "ADM"]
    monkeypatch.setattr(timing, "peak", lambda smoke: 1e14)
    rows = list(overhead.measure(False, 0.0, tmp_path))
    assert [row["network"] for row in rows] == list(overhead.CASES)
    assert all(row["reason"].startswith("left out: it needs about") for row in rows)
    assert len(cells(overhead.table(rows))) == 2 + 3


def test_a_network_that_fails_does_not_take_the_others_with_it(monkeypatch, tmp_path):
    def fails(smoke):
        raise MemoryError("too large")

    monkeypatch.setattr(overhead, "CASES", {"one": (fails, 1), "two": (lambda smoke: "case", 1)})
    monkeypatch.setattr(overhead, "row", lambda title, case, peak, before: {"network": title, "case": case})
    rows = []

    def collect():
        for found in overhead.measure(True, 1.0, tmp_path):
            rows.append(found)

    with pytest.raises(MemoryError):
        collect()
    assert rows == [{"network": "one", "reason": "it stopped with MemoryError: too large"}, {"network": "two", "case": "case"}]


def test_the_table_of_overhead():
    case = {"network": "U-Net", "parameters": 859_520_964, "batch": 4, "compile": [30.2, 41.0], "program_bytes": 3 * 2**30}
    row = found(**case, peak_bytes=None, rate=2.5e14, share=0.31)
    table = cells(overhead.table([row, {"network": "ADM", "reason": LEFT_OUT}]))
    ratio = "1.020 (1.010 to 1.040)"
    assert table[2] == ["U-Net", "860 M", "4", "0.510 s", ratio, "30 s, 41 s", "3.0 GB", "250", "31%"]
    assert table[3][:2] == ["ADM", LEFT_OUT]
    assert "6.0 GB" in overhead.table([{**row, "peak_bytes": 6 * 2**30}])


def test_pytorch_says_why_it_cannot_run(monkeypatch, tmp_path):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", missing)
        (row,) = pytorch.measure(False, 1.0, tmp_path)
        assert row["reason"] == "torch cannot be imported: No module named 'torch'"
        assert cells(pytorch.table([row]))[2][:2] == ["diffusers", row["reason"]]
    pytest.importorskip("torch")
    monkeypatch.setattr(importlib, "import_module", lambda name: None)
    assert pytorch.unable(True) is None
    assert pytorch.unable(False) == "JAX runs on cpu, and PyTorch has no such device here"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pytorch.unable(False) == "PyTorch finds no GPU"


def test_the_table_of_pytorch():
    apart = {"rms": 0.02, "maximum": 0.1}
    row = found(method=pytorch.EAGER, first_call=1.2, compile=40.0, difference=apart)
    eager = {**row, "from_float32": {"ours": {"rms": 0.01}, "theirs": {"rms": 0.015}}}
    text = pytorch.table([eager, {**row, "method": pytorch.COMPILED, "from_eager": apart}])
    assert cells(text)[2] == [pytorch.EAGER, "0.500", "0.510", "1.02 (1.01 to 1.04)", "1 s, ours 40 s", "2.0e-02, 1.0e-01"]
    assert "1.0e-02 for ours and 1.5e-02 for theirs" in text
    assert "two ways differ from each other by 2.0e-02" in text


def test_differences_are_relative_to_the_spread_of_the_second():
    other = np.array([0.0, 4.0])
    assert pytorch.difference(other + np.array([0.0, 2.0]), other) == {"maximum": 1.0, "rms": pytest.approx(np.sqrt(0.5))}


def test_the_table_of_training():
    judge = {"stage": "judge", "data": "fashion_mnist", "accuracy": 0.927, "seconds": 9.0}
    training_row = {"stage": "training", "steps": 1500, "planned": 2000, "cut": True, "batch": 512, "seconds": 61.0}
    row = {"stage": "cfg", "scale": 2.0, "fd": 12.345, "evaluations": 36, "seconds": 0.001}
    row |= dict.fromkeys(("accuracy", "precision", "recall", "coverage"), 0.5)
    rows = [judge, {**training_row, "samples_per_second": 12_345.6, "share": 0.254}, row]
    text = training.table(json.loads(json.dumps(rows)))
    assert "The judge reads 92.7% of the held-out images." in text
    assert "default on a CPU is 37.74, by a judge trained there." in text
    assert "1,500 steps of 512 images in 61 s, of 2,000 steps planned." in text
    assert "12,346 images per second, 25% of the peak." in text
    assert cells(text)[2] == ["cfg", "2", "12.35", *["0.500"] * 4, "36", "1,000"]
    assert "CPU" not in training.table([{**judge, "data": "digits"}])
    left_out = {"stage": "samples", "reason": "left out: the time ended before the first checkpoint"}
    assert cells(training.table([left_out]))[2][:2] == ["samples", left_out["reason"]]
