"""The part that trains: its data, its number of steps, and what a training that is cut leaves."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from experiments.accelerator import timing, training
from experiments.tools import data


def write(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_idx_files_are_read_without_preparation(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "FOLDERS", ())
    monkeypatch.delenv("FASHION_MNIST", raising=False)
    assert training.found() is None
    rng = np.random.default_rng(0)
    made = {}
    for prefix, count in (("train", 12), ("t10k", 7)):
        made[prefix] = rng.integers(0, 256, (count, 28, 28), np.uint8), rng.integers(0, 10, count, np.uint8)
        for kind, array in zip(("images-idx3", "labels-idx1"), made[prefix], strict=True):
            write(tmp_path / f"{prefix}-{kind}-ubyte.gz", array)
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    assert training.found() == tmp_path
    name, train, held_out = training.images(tmp_path)
    assert name == "fashion_mnist"
    assert (len(train), len(held_out), train.classes) == (12, 7, 10)
    assert train.images.shape == (12, 28, 28, 1)
    assert (np.round((train.images[..., 0] + 1) * 127.5) == made["train"][0]).all()
    assert (held_out.labels == made["t10k"][1]).all()


def test_the_digits_are_those_of_the_other_jobs(tmp_path):
    name, train, held_out = training.images(None)
    assert name == "digits"
    for ours, split in ((train, "train"), (held_out, "test")):
        theirs = data.load("digits", split, tmp_path)
        order = [np.lexsort(one.images.reshape(len(one), -1).T) for one in (ours, theirs)]
        assert (ours.images[order[0]] == theirs.images[order[1]]).all()
        assert (ours.labels[order[0]] == theirs.labels[order[1]]).all()


def test_the_number_of_steps_follows_from_the_time():
    each = 8e12
    assert training.steps_in(60, each, 8e14, 50_000) == int(60 * training.SHARE * 100)
    assert training.steps_in(0, each, 8e14, 50_000) == 100
    assert training.steps_in(1e6, each, 8e14, 50_000) == 50_000


def test_at_full_size_the_preset_keeps_its_network_and_the_judge_is_that_of_the_cpu(tmp_path):
    from experiments.fashion_mnist import study

    gpu, default = (study.PRESETS[name][1] for name in ("gpu", "default"))
    config = training.configured(False, "fashion_mnist", tmp_path)
    assert (config.network, config.loss, config.drop_rate) == (gpu.network, gpu.loss, gpu.drop_rate)
    assert (config.evaluator, config.evaluator_width, config.seed) == (default.evaluator, default.evaluator_width, default.seed)
    assert config.headline == 5000
    made = study.make(config, (28, 28, 1), 10)
    short, each = training.shortened(config, made, (28, 28, 1), 60.0, 7e14)
    assert each == pytest.approx(3 * 512 * 5.483e9, rel=1e-3)
    assert dataclasses.replace(short.denoiser, steps=1, snapshots=(), checkpoint_every=1) == dataclasses.replace(
        gpu.denoiser, steps=1, snapshots=(), checkpoint_every=1
    )
    assert 1000 < short.denoiser.steps < 2000


class Counted(timing.Clock):
    """A clock whose time is up after some batches."""

    def __init__(self, batches):
        super().__init__(1.0)
        self.batches = batches

    @property
    def left(self):
        return self.batches


@pytest.mark.slow
@pytest.mark.parametrize(("batches", "steps"), [(5, 4), (1, 0), (99, 6)])
def test_a_training_that_is_cut_leaves_its_last_checkpoint(lenient, tmp_path, batches, steps):
    from experiments.fashion_mnist import study

    clock = Counted(batches)

    class Until(training.Until):
        def __next__(self):
            found = super().__next__()
            clock.batches -= 1
            return found

    name, train_set, _ = training.images(None)
    config = training.configured(True, name, tmp_path)
    often = dataclasses.replace(config.denoiser, checkpoint_every=2)
    config = dataclasses.replace(config, denoiser=often)
    made = study.make(config, train_set.images.shape[1:], train_set.classes)
    params, row = training.train(config, made, train_set, lambda source: Until(source, clock, 1))
    assert (row["steps"], row["planned"], row["cut"], params is None) == (steps, 6, batches < 6, steps == 0)
    assert json.loads(json.dumps(row)) == row
    if params is not None:
        training.keep(tmp_path, params)
        assert (tmp_path / "denoiser.safetensors").exists()
        assert not (tmp_path / "checkpoints").exists()


@pytest.mark.smoke
@pytest.mark.slow
def test_every_stage_runs_at_toy_size(lenient, tmp_path):
    rows = list(training.measure(True, 5.0, tmp_path))
    assert [row["stage"] for row in rows] == ["judge", "training", "conditional", "cfg"]
    assert training.table(json.loads(json.dumps(rows))).count("\n") > 4
    assert {path.name for path in tmp_path.iterdir()} == {"training", "training.png"}


def test_batches_end_when_the_time_is_up():
    class Source:
        def get_state(self):
            return 3

        def set_state(self, state):
            pass

        def __next__(self):
            return "batch"

    clock = timing.Clock(1.0)
    assert next(training.Until(Source(), clock, 10)) == "batch"
    assert training.Until(Source(), clock, 10).get_state() == 3
    with pytest.raises(training.TimeUpError):
        next(training.Until(Source(), clock, 61))
