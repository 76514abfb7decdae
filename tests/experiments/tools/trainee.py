"""Trainings in separate processes, which tests kill.

`python -m tests.experiments.tools.trainee` forks one process for each line that it reads. All modules are imported once,
before the forks, so a training starts in a fraction of a second. JAX starts only in the children.
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

TRAINING = Training(steps=16, batch=8, learning_rate=0.05, checkpoint_every=4, snapshots=(10,), ema=0.9)
IDENTITY = {"network": "tiny"}


@dataclasses.dataclass(frozen=True)
class Task:
    """One training: its directory, devices and processes, and its limits."""

    directory: str
    devices: int = 1
    processes: int = 1
    process: int = 0
    port: int = 0
    pause: float = 0.0
    """Seconds between steps."""
    largest_file: int = 0
    """The maximum size of a file in bytes, which stands for a full disk. 0: no limit."""
    compiled: str = ""
    """The directory of compiled programs, which all trainings share."""

    @property
    def run(self) -> Path:
        return run_directory("net", TRAINING, 0, Path(self.directory), IDENTITY)


class Slow:
    """Batches with a pause before each one."""

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
    jax.config.update("jax_compilation_cache_dir", f"{task.compiled}/{task.devices}-{task.processes}")
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
    writers = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            code = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
            writers.pop(order["wait"]).wait()
            print(code, flush=True)
            continue
        with open(order["output"], "w") as file:  # Through a pipe, because the limit on files does not apply to pipes.
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
        writers[child] = writer
        print(child, flush=True)


class Trainees:
    """Starts trainings and waits for them. Tests use this class."""

    def __init__(self, outputs: Path):
        flags = os.environ.get("XLA_FLAGS", "").split()
        flags = " ".join(flag for flag in flags if "device_count" not in flag)
        self.outputs = outputs
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.experiments.tools.trainee"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )

    def start(self, task: Task) -> int:
        task = dataclasses.replace(task, compiled=str(self.outputs / "compiled"))
        return self._ask({"task": dataclasses.asdict(task), "output": str(self.outputs / f"{task.process}.txt")})

    def wait(self, process: int) -> int:
        """The exit code, or minus the number of the signal that killed the process."""
        return self._ask({"wait": process})

    def finish(self, *tasks: Task) -> str:
        """Trains to the end and returns the output of the first process."""
        codes = [self.wait(process) for process in [self.start(task) for task in tasks]]
        outputs = [(self.outputs / f"{task.process}.txt").read_text() for task in tasks]
        assert codes == [0] * len(tasks), "\n".join(outputs)
        return outputs[0]

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
