"""Tests of what a job prints: its plan, its stages, and the progress on a terminal and in a file."""

import io
import sys
import threading

import pytest

from experiments.tools import stages

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stages, "time", clock)
    return clock


def test_a_job_prints_its_plan_at_once_and_one_line_per_stage(capsys, clock):
    job = stages.Stages("A job", {"data": "built in", "network": "about 2 minutes", "report": ""})
    assert capsys.readouterr().out == "A job\n1/3 data, built in · 2/3 network, about 2 minutes · 3/3 report\n"
    with job("data") as tell:
        clock.now += 2.04
        tell("10 images")
    assert capsys.readouterr().out == "1/3 data: 2.0 s (10 images)\n"
    with job("network"):
        clock.now += 760
    assert capsys.readouterr().out == "2/3 network: 12 min 40 s\n"
    with pytest.raises(OSError, match="full"), job("report"):
        raise OSError("full")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (119.4, "119 s"), (119.6, "2 min 0 s"), (7500, "2 h 5 min")],
)
def test_a_duration_is_in_words(seconds, text):
    assert stages.duration(seconds) == text


def test_a_number_of_operations_never_rounds_to_zero():
    assert [stages.tera(count * 1e12) for count in (0.00123, 0.5, 3.44, 1250)] == ["0.0012", "0.5", "3.4", "1,250"]


def test_a_file_has_a_line_every_half_minute_whose_estimate_leaves_out_the_first_step(capsys, clock):
    with stages.Progress("training", 102, "step", done=1) as progress:
        for _ in range(101):
            clock.now += 1.0 if progress.done > 1 else 20.0  # The first step compiles.
            progress.update()
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "    training: 12 of 102 steps in 30 s, about 90 s left",
        "    training: 42 of 102 steps in 60 s, about 60 s left",
        "    training: 72 of 102 steps in 90 s, about 30 s left",
    ]
    assert not err


def test_a_terminal_has_a_bar_whose_time_begins_after_the_first_step(monkeypatch, capsys):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with stages.Progress("training", 10, "step") as progress:
        assert "training: compiling" in terminal.getvalue()
        assert "0/10" not in terminal.getvalue()
        progress.update()
        assert "1/10 [00:00<?" in terminal.getvalue()
        progress.note("loss=1")
    assert list(stages.each("loop", iter("ab"))) == ["a", "b"]
    assert not capsys.readouterr().out


def test_a_file_says_that_a_long_first_step_compiles(monkeypatch, capsys):
    monkeypatch.setattr(stages, "SILENT", 0.01)
    said = threading.Event()
    monkeypatch.setattr(stages, "say", lambda text: (print(text), said.set()))
    with stages.Progress("training", 3, "step") as progress:
        assert said.wait(10)
        progress.update()
    monkeypatch.setattr(stages, "SILENT", 100.0)
    with stages.Progress("sampling", 3, "step") as progress:
        progress.update()
    assert capsys.readouterr().out == "    training: compiling\n"
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(10)
    assert not any(timer.is_alive() for timer in timers)


def test_a_hidden_progress_shows_nothing(monkeypatch, capsys):
    monkeypatch.setattr(stages, "EVERY", 0.0)
    monkeypatch.setattr(stages, "SILENT", 0.0)
    with stages.Progress("training", 3, "step", hidden=True) as progress:
        progress.update()
        progress.update()
    assert capsys.readouterr() == ("", "")
