"""Every job is a command that reads its configuration from options."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest
import tyro

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILES = (*EXPERIMENTS.glob("*.py"), *EXPERIMENTS.glob("benchmarks/*.py"))
JOBS = sorted(
    ".".join(file.relative_to(EXPERIMENTS).with_suffix("").parts)
    for file in FILES
    if "smoke: bool" in file.read_text() and file.stem != "diffusers"  # which needs torch
)
"""The jobs of one file that have a smoke run."""


def test_the_jobs_are_found():
    assert {"digits", "toy_2d", "benchmarks.loading"} <= set(JOBS)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_reads_its_options(job):
    config = importlib.import_module(f"experiments.{job}").Config
    assert tyro.cli(config, args=["--smoke", "--out", "there"]) == config(smoke=True, out=Path("there"))
    assert tyro.cli(config, args=[]) == config()


@pytest.mark.parametrize(
    ("job", "arguments", "expected"),
    [
        ("text_digits", ["--smoke", "--out", "there"], lambda study: study.Config(smoke=True, out=Path("there"))),
        ("fashion_mnist", ["smoke"], lambda study: study.PRESETS["smoke"][1]),
        ("fashion_mnist", [], lambda study: study.PRESETS["default"][1]),
    ],
)
def test_a_job_of_several_files_reads_its_preset_and_options(monkeypatch, job, arguments, expected):
    study = importlib.import_module(f"experiments.{job}.study")
    seen = []
    monkeypatch.setattr(study, "main", seen.append)
    monkeypatch.setattr(sys, "argv", [job, *arguments])
    runpy.run_module(f"experiments.{job}", run_name="__main__")
    assert seen == [expected(study)]


def test_generate_reads_the_run_that_it_draws_from():
    from experiments.tools.generate import Config

    options = "run --guidance cfg --scale 2 --samples 20 --steps 3 --batch 10 --shard 10 --out there"
    expected = Config(Path("run"), Path("there"), guidance="cfg", scale=2.0, samples=20, steps=3, batch=10, shard=10)
    assert tyro.cli(Config, args=options.split()) == expected
