"""Trainings in processes of their own, to be killed.

`python -m tests.experiments.tools.trainee` forks one for each line that it reads. The imports are done once, before the forks,
so a training starts in a fraction of a second. JAX starts in the children only.
"""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools import data, devices
from experiments.tools.fit import Training, fit, run_directory

TRAINING = Training(steps=40, batch=8, learning_rate=0.05, checkpoint_every=4, snapshots=(10,), ema=0.9)
IDENTITY = {"network": "tiny"}


@dataclasses.dataclass(frozen=True)
class Task:
    """One training: where, on what, and what is done to it."""

    directory: str
    devices: int = 1
    processes: int = 1
    process: int = 0
    port: int = 0
    pause: float = 0.0
    """Seconds between steps."""
    largest_file: int = 0
    """Bytes that a file may hold, where not 0: a disk that is full."""

    @property
    def run(self) -> Path:
        return run_directory("net", TRAINING, 0, Path(self.directory), IDENTITY)


class Slow:
    """Batches with a pause before each."""

    def __init__(self, batches: Any, pause: float):
        self.batches, self.pause = batches, pause

    def __next__(self) -> Any:
        time.sleep(self.pause)
        return next(self.batches)

    def get_state(self) -> Any:
        return self.batches.get_state()

    def set_state(self, state: Any) -> None:
        self.batches.set_state(state)


def loss(params: Any, key: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
    noisy = images.reshape(len(images), -1) + 0.3 * jax.random.normal(key, (len(images), 6))
    logits = jax.nn.tanh(noisy @ params["hidden"]["kernel"]) @ params["last"]["kernel"]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()


def train(task: Task) -> None:
    jax.config.update("jax_num_cpu_devices", task.devices)
    jax.config.update("jax_compilation_cache_dir", f"{task.directory}/compiled-{task.devices}-{task.processes}")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if task.processes > 1:
        devices.start(f"localhost:{task.port}", task.processes, task.process)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(50, 3, 2, 1)).astype(np.float32)
    source = data.Data(images, (images.sum((1, 2, 3)) > 0).astype(np.int32), ("dark", "light"), "1")
    kernel = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))
    params = {"hidden": {"kernel": kernel(6, 16)}, "last": {"kernel": kernel(16, 2)}}
    batches = Slow(data.batches(source, TRAINING.batch, 0), task.pause)
    if task.largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (task.largest_file, resource.RLIM_INFINITY))
    fit("net", loss, params, batches, TRAINING, 0, Path(task.directory), IDENTITY)


def serve() -> None:
    said = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            code = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
            said.pop(order["wait"]).wait()
            print(code, flush=True)
            continue
        with open(order["said"], "w") as file:  # By way of a pipe, which no limit on files reaches.
            writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        assert writer.stdin is not None
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(writer.stdin.fileno(), 1)
                os.dup2(writer.stdin.fileno(), 2)
                train(Task(**order["task"]))
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", flush=True)
            finally:
                os._exit(code)
        writer.stdin.close()
        said[child] = writer
        print(child, flush=True)


class Trainees:
    """Starts trainings, and waits for their ends; the tests' side of it."""

    def __init__(self, said: Path):
        flags = os.environ.get("XLA_FLAGS", "").split()
        flags = " ".join(flag for flag in flags if "device_count" not in flag)
        self.said = said
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.experiments.tools.trainee"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )

    def start(self, task: Task) -> int:
        return self._ask({"task": dataclasses.asdict(task), "said": str(self.said / f"{task.process}.txt")})

    def wait(self, process: int) -> int:
        """The exit code; minus the signal, where it was killed."""
        return self._ask({"wait": process})

    def finish(self, *tasks: Task) -> str:
        """Trains to the end, and returns what was said by the first process."""
        codes = [self.wait(process) for process in [self.start(task) for task in tasks]]
        said = [(self.said / f"{task.process}.txt").read_text() for task in tasks]
        assert codes == [0] * len(tasks), "\n".join(said)
        return said[0]

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def _ask(self, order: dict[str, Any]) -> int:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


if __name__ == "__main__":
    serve()
