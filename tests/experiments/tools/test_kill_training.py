"""Tests of trainings that are killed and restarted: the same bits, or equal up to rounding on other devices and processes."""

import os
import re
import shutil
import signal
import socket
import time
import warnings

import numpy as np
import orbax.checkpoint as ocp
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def trainees(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tests.experiments.tools.trainee import Trainees

    trainees = Trainees(tmp_path_factory.mktemp("outputs"))
    yield trainees
    trainees.close()


@pytest.fixture(scope="module")
def undisturbed(trainees, tmp_path_factory):
    """One training on one device without interruption."""
    task = trained(tmp_path_factory.mktemp("undisturbed"))
    trainees.finish(task)
    return task


def trained(directory, **where):
    from tests.experiments.tools.trainee import Task

    return Task(str(directory), **where)


def arrays(task):
    """Every array of the snapshot and of the last checkpoint, read by Orbax alone."""
    found = {}
    for step in (10, 16):
        for part in ("params", "average", "optimiser"):
            with ocp.PyTreeCheckpointer() as reader:
                named = reader.restore(task.run / str(step) / part)
            found |= {(step, part, name): np.asarray(leaf) for name, leaf in named.items()}
    assert len(found) == 2 * (2 + 2 + 6)  # Adam has two moments of two kernels, and two counts.
    return found


def losses(task):
    from experiments.tools.progress import scalars

    found = scalars(task.run, "loss")
    assert list(found) == list(range(16))
    return np.array(list(found.values()))


def until(condition):
    for _ in range(60_000):
        if condition():
            return
        time.sleep(0.001)
    raise TimeoutError


def written(task, begun):
    """Whether a checkpoint is being written that was started after `begun`."""
    try:
        return any(path.stat().st_mtime > begun for path in task.run.glob("*.orbax-checkpoint-tmp"))
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_training_killed_three_times_ends_in_the_same_bits(trainees, undisturbed, tmp_path):
    task, rng, half = trained(tmp_path, pause=0.01), np.random.default_rng(0), 0
    for number in range(3):
        begun = time.time()
        process = trainees.start(task)
        if number % 2:
            until(lambda begun=begun: written(task, begun))
        else:
            until(lambda number=number: any(task.run.glob("events*")) and (not number or (task.run / str(4 * number)).exists()))
            time.sleep(rng.uniform(0, 0.1))
        os.kill(process, signal.SIGKILL)
        assert trainees.wait(process) == -signal.SIGKILL
        half += any(task.run.glob("*.orbax-checkpoint-tmp"))
    assert half >= 1
    output = trainees.finish(task)
    assert "continues from step" in output
    killed, whole = arrays(task), arrays(undisturbed)
    assert killed.keys() == whole.keys()
    for name, array in whole.items():
        assert killed[name].tobytes() == array.tobytes(), name
    assert losses(task).tobytes() == losses(undisturbed).tobytes()


def near(task, undisturbed):
    np.testing.assert_allclose(losses(task), losses(undisturbed), rtol=1e-5, atol=1e-6)
    expected = arrays(undisturbed)
    for name, array in arrays(task).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_killed_processes_continue_together_to_the_result_of_one(trainees, undisturbed, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    tasks = [trained(tmp_path, devices=4, processes=2, process=i, port=port, pause=0.02) for i in range(2)]
    processes = [trainees.start(task) for task in tasks]
    until(lambda: (tasks[0].run / "8").exists())
    for process in processes:  # Both at once, because one that is left alone may end by itself.
        os.kill(process, signal.SIGKILL)
    assert [trainees.wait(process) for process in processes] == [-signal.SIGKILL] * 2
    assert "continues from step" in trainees.finish(*tasks)
    near(tasks[0], undisturbed)
    # One device continues the run of the two processes.
    os.replace(tasks[0].run / "16", tmp_path / "16")
    assert "continues from step 12" in trainees.finish(trained(tmp_path))
    near(tasks[0], undisturbed)


@pytest.mark.slow
def test_a_full_disk_raises_with_the_last_good_checkpoint_and_nothing_is_lost(trainees, undisturbed, tmp_path):
    shutil.copytree(undisturbed.run, trained(tmp_path).run)
    for step in (12, 16):  # The snapshot of step 10 is left.
        shutil.rmtree(trained(tmp_path).run / str(step))
    for largest_file in (1200, 200):  # First the checkpoint does not fit, then the log does not fit either.
        full = trained(tmp_path, largest_file=largest_file)
        last = max(int(path.name) for path in full.run.glob("[0-9]*") if path.name.isdecimal())
        assert trainees.wait(trainees.start(full)) == 1
        output = (trainees.outputs / "0.txt").read_text()
        what = "checkpoint" if largest_file == 1200 else "log"
        assert re.search(rf"OSError: the {what} of step \d+ could not be written to .*Is the disk full\?", output), output
        assert f"The last good checkpoint is of step {last}." in output
    trainees.finish(trained(tmp_path))
    whole = arrays(undisturbed)
    assert all(array.tobytes() == whole[name].tobytes() for name, array in arrays(trained(tmp_path)).items())
    assert losses(trained(tmp_path)).tobytes() == losses(undisturbed).tobytes()
