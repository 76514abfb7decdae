"""The programs of the tests of generation: guided samples of a small network, stored in bytes to six digits.

Some functions run in separate processes, which tests kill.
"""

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

SIDE = 16.0
SAMPLES, BATCH, SHARD = 80, 4, 8
"""The size of a run that is killed. It has ten shards of two batches."""


def inputs(scale: float = 2.0) -> Any:
    """The parameters of a small network, and a scale. The network predicts x0. Label 3 is no class."""
    import numpy as np

    rng = np.random.default_rng(0)
    classes, first, last = (rng.normal(size=size).astype(np.float32) for size in ((4, 32), (3, 32), (32, 3)))
    return (classes, first, last / 8), np.float32(scale)


def encoded(x: Any) -> Any:
    """Numbers `[B, D]` in (-8, 8) as images `[B, D, 1, 3]`. The three bytes of a pixel hold 24 bits of a number."""
    import jax.numpy as jnp

    bits = jnp.clip((x + SIDE / 2) * (2**24 / SIDE), 0, 2**24 - 1).astype(jnp.uint32)
    digits = jnp.stack([bits >> 16, (bits >> 8) & 255, bits & 255], axis=-1)
    return digits[:, :, None].astype(jnp.float32) / 127.5 - 1


def decoded(images: Any) -> Any:
    """The inverse of `encoded` for uint8 images, with an error of at most 1e-6."""
    digits = images[:, :, 0].astype(float)
    return (digits @ [65536.0, 256.0, 1.0]) * (SIDE / 2**24) - SIDE / 2


def guided(inputs: Any, keys: Any, labels: Any) -> Any:
    """Samples `[B, 3]`. The class is the label modulo 3, so labels can be the numbers of the samples."""
    import jax.numpy as jnp

    import guidance_jax as gj

    (classes, first, last), scale = inputs
    network = lambda x, t, label: jnp.tanh(x @ first + jnp.asarray(classes)[label]) @ last
    branches = gj.branches(gj.denoiser(network, "x0"), cond=labels % 3, uncond=jnp.full_like(labels, 3))
    levels = gj.levels(gj.schedules.cosine(), 5, gj.spacings.karras(sigma_max=50.0))
    return gj.sample(keys, branches, gj.cfg(scale), gj.ddpm(), levels, (3,))


def program(inputs: Any, keys: Any, labels: Any) -> Any:
    return encoded(guided(inputs, keys, labels))


def start(cache: Path, devices: int) -> None:
    """Start JAX in a separate process. Compiled programs are kept in `cache`."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def logged(log: Path, pause: float) -> Any:
    """The program. It writes one line per batch with the numbers of its samples, and pauses."""
    import jax

    compiled = jax.jit(program)

    def call(inputs: Any, keys: Any, labels: Any) -> Any:
        with log.open("a") as file:
            file.write(" ".join(map(str, labels.tolist())) + "\n")
        time.sleep(pause)
        return compiled(inputs, keys, labels)

    # The log is outside of the compiled program, because programs with a callback are not cached.
    call.lower = compiled.lower  # pyright: ignore[reportFunctionMemberAccess]
    return call


def doomed(cache: Path, directory: Path, log: Path, death: str = "") -> None:
    """Draws samples and logs their numbers.

    With `death` it kills itself while it writes its second shard: when the file is "half written", "written", or "in place".
    """
    start(cache, 1)
    import numpy as np

    from experiments.tools.generate import generate

    def dying(call: Any) -> Any:
        shards = itertools.count()

        def once(*arguments: Any) -> None:
            file = os.readlink(f"/proc/self/fd/{arguments[0]}") if call is os_fsync else str(arguments[0])
            last = file.endswith(".npz.tmp") and next(shards) == 1
            if last and death == "half written":
                os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
            if last and death == "in place":
                call(*arguments)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            call(*arguments)

        return once

    os_fsync = os.fsync
    if death == "half written":
        os.fsync = dying(os.fsync)
    elif death in ("written", "in place"):
        os.replace = dying(os.replace)
    slow, labels = logged(log, 0.01), np.arange(SAMPLES)
    generate(slow, inputs(), labels, 0, directory, {"of": "the doomed"}, batch=BATCH, shard=SHARD)


def assembling(cache: Path, directory: Path, begun: Path, go: Path) -> None:
    """Draws the samples of `doomed`, and waits during the assembly until the file `go` exists."""
    start(cache, 1)
    import numpy as np

    from experiments.tools import shards
    from experiments.tools.generate import assembled, generate

    parts = shards.Shards.parts

    def slow(self: Any) -> Any:
        for number, part in enumerate(parts(self)):
            yield part
            begun.touch()
            while number == 2 and not go.exists():
                time.sleep(0.002)

    shards.Shards.parts = slow
    drawn = np.arange(SAMPLES), 0, directory, {"of": "the doomed"}
    generate(program, inputs(), *drawn, batch=BATCH, shard=SHARD, finish=assembled())


def one_of_two(cache: Path, directory: Path, log: Path, port: int, process: int) -> None:
    """Process 0 or 1 of two with four devices each. Process 1 is slower."""
    start(cache, 4)
    import jax
    import jax.numpy as jnp
    import numpy as np
    import pytest

    from experiments.tools import devices
    from experiments.tools.generate import generate

    devices.start(f"localhost:{port}", 2, process)
    assert jax.process_count() == 2
    assert jax.local_device_count() == 4
    slow, labels = logged(log, 0.1 * process), np.arange(SAMPLES)
    drawn = generate(slow, inputs(), labels, 0, directory, {"of": "two"}, batch=8, shard=8)
    # Each process returns when all shards exist, not only its own.
    assert len(drawn.samples()[0]) == SAMPLES

    def nothing(inputs: Any, keys: Any, labels: Any) -> Any:
        return jnp.where(labels == 9, jnp.nan, 0.0)[:, None, None, None]

    # Process 1 stops with an error, and process 0 receives it.
    error, message = ((RuntimeError, "process 1 stopped with Float"), (FloatingPointError, "of 1 samples are not finite: 9"))[
        process
    ]
    with pytest.raises(error, match=message):
        generate(nothing, (), np.arange(16), 0, directory.parent / "not finite", {}, batch=8, shard=8)
