"""Tests of generation that is killed, and of generation by several processes: the result is that of one uninterrupted run."""

import collections
import multiprocessing
import signal
import socket
import time

import generator
import jax
import numpy as np
import pytest
from generator import BATCH, SAMPLES, SHARD


@pytest.fixture(scope="module")
def processes():
    """A context that forks processes from one that has imported JAX and not used it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.tools.generate", "generator", "pytest", "scipy.linalg"])
    return context


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def numbers(log):
    """The numbers of the samples that were drawn, in order."""
    return [int(number) for number in log.read_text().split()] if log.exists() else []


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_kill_at_any_moment_loses_no_shard_and_repeats_none(processes, cache, tmp_path):
    def started(directory, log, *death):
        process = processes.Process(target=generator.doomed, args=(cache, directory, log, *death))
        process.start()
        return process

    def finished(directory, log):
        process = started(directory, log)
        process.join(120)
        assert process.exitcode == 0
        return contents(directory)

    undisturbed = tmp_path / "undisturbed.log"
    expected = finished(tmp_path / "undisturbed", undisturbed)
    assert numbers(undisturbed) == list(range(SAMPLES))
    assert len(expected) == SAMPLES // SHARD + 1

    seed = time.time_ns()
    print(f"seed of the times of death: {seed}")
    rng = np.random.default_rng(seed)
    deaths = ["half written", *rng.permutation(["written", "in place", "moment", "moment"])]
    directory, log = tmp_path / "killed", tmp_path / "killed.log"
    directory.mkdir()
    killed = torn = 0
    for death in deaths:
        before, there = len(numbers(log)), contents(directory)
        process = started(directory, log, death)
        if death == "moment":
            wait, end = rng.integers(3 * BATCH), time.monotonic() + 60
            while len(numbers(log)) - before <= wait and process.is_alive() and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
            process.kill()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
        drawn, left = numbers(log)[before:], contents(directory)
        assert len(set(drawn)) == len(drawn)
        assert not {f"shard-{i // SHARD:05d}.npz" for i in drawn} & there.keys(), "a finished shard was drawn again"
        torn += any(name.endswith(".tmp") for name in left)
        whole = {name: content for name, content in left.items() if not name.endswith(".tmp")}
        assert whole.items() <= expected.items()
        assert {name for name in there if not name.endswith(".tmp")} <= whole.keys()
    assert killed >= 4
    assert torn >= 1
    assert finished(directory, log) == expected
    counted = collections.Counter(numbers(log))
    assert set(counted) == set(range(SAMPLES))
    assert counted.total() <= SAMPLES + killed * SHARD


def test_a_second_program_is_refused_until_the_first_has_assembled_its_set(processes, cache, tmp_path):
    directory, begun, go = tmp_path / "set", tmp_path / "begun", tmp_path / "go"
    first = processes.Process(target=generator.assembling, args=(cache, directory, begun, go))
    first.start()
    end = time.monotonic() + 120
    while not begun.exists() and time.monotonic() < end:
        time.sleep(0.002)
    before = contents(directory)
    assert len(before) == SAMPLES // SHARD + 2, "expected the shards, the identity, and the file that is being assembled"
    second = processes.Process(target=generator.doomed, args=(cache, directory, tmp_path / "second.log"))
    second.start()
    second.join(120)
    assert second.exitcode == 1
    assert numbers(tmp_path / "second.log") == []
    assert contents(directory).keys() == before.keys()
    go.touch()
    first.join(120)
    assert first.exitcode == 0
    names = {name for name in before if not name.endswith(".tmp")}
    assert contents(directory).keys() == names | {f"samples_{SAMPLES}x3x1x3.npz", "grid.png"}
    with np.load(directory / f"samples_{SAMPLES}x3x1x3.npz") as file:
        assert file["arr_1"].tolist() == list(range(SAMPLES))


def test_two_processes_of_four_devices_draw_the_samples_of_one_device(processes, cache, tmp_path):
    from experiments.tools.generate import generate

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    shared = cache, tmp_path / "two"
    pair = [processes.Process(target=generator.one_of_two, args=(*shared, log, port, i)) for i, log in enumerate(logs)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(120)
    assert [process.exitcode for process in pair] == [0, 0]
    assert numbers(logs[0]) == [i for i in range(SAMPLES) if i // 8 % 2 == 0]
    assert numbers(logs[1]) == [i for i in range(SAMPLES) if i // 8 % 2 == 1]

    arguments = generator.program, generator.inputs(), np.arange(SAMPLES), 0
    one = generate(*arguments, tmp_path / "one", {}, batch=8, shard=8, devices=jax.devices()[:1])
    # One process with eight devices uses the samples of the two processes, and draws equal ones in another directory.
    found = generate(
        lambda *_: pytest.fail("drawn again"), (), *arguments[2:], tmp_path / "two", {"of": "two"}, batch=8, shard=8
    )
    eight = generate(*arguments, tmp_path / "eight", {}, batch=8, shard=8)
    samples = [generator.decoded(shards.samples()[0]) for shards in (one, found, eight)]
    assert np.std(samples[0], axis=0).min() > 0.3
    for other in samples[1:]:
        np.testing.assert_allclose(other, samples[0], atol=1e-5, rtol=0)
