# type: ignore  # every row is wrong, its types too
"""Wrong flags, configs, checkpoints and files of the experiments."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path

import tyro

import guidance_jax as gj
from bad_calls.world import Row, X
from experiments import digits, gaussians, toy_2d
from experiments.fashion_mnist import study
from experiments.tools import checkpoints, data, devices, generate, idx, models, shards
from experiments.tools.fit import Training

NOWHERE = Path("/nowhere/at/all")


def flags(config, *given):
    """The command line's message about wrong flags, raised as an error."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            tyro.cli(config, args=given)
    except SystemExit as error:
        raise ValueError(re.sub(r"[^\x20-\x7e]+|\s+", " ", said.getvalue())) from error


def generated(**wrong):
    return generate.Config(**{"run": NOWHERE, "out": NOWHERE} | wrong)


ROWS: dict[str, Row] = {
    # Flags, as a user types them.
    "a flag that is not there": (
        lambda: flags(digits.Config, "--scale", "3"),
        ValueError,
        r"Unrecognized options: --scale\b.*--scales",
    ),
    "a flag of no number": (lambda: flags(digits.Config, "--steps", "many"), ValueError, r"--steps: .*'many'"),
    "a flag without its value": (lambda: flags(toy_2d.Config, "--samples"), ValueError, r"--samples\b.*[Ee]xpected 1"),
    # Configs.
    "digits without their conditional model": (
        lambda: digits.Config(scales=(0.0, 2.0)),
        ValueError,
        r"scales must include 1\.0.*\(0\.0, 2\.0\)",
    ),
    "a network of no width": (lambda: digits.Size(width=0), ValueError, r"width and blocks.*at least 1, got 0"),
    "no training": (lambda: Training(steps=0), ValueError, r"steps must be at least 1, got 0"),
    "training downhill": (lambda: Training(10, learning_rate=-1e-3), ValueError, r"learning_rate must be positive.*-0\.001"),
    "an average of nothing": (lambda: Training(10, ema=1.0), ValueError, r"ema in \[0, 1\).*1\.0"),
    "gradients of no length": (lambda: Training(10, clip=0.0), ValueError, r"clip must be positive.*0\.0"),
    "a snapshot after the end": (lambda: Training(steps=10, snapshots=(20,)), ValueError, r"1\.\.steps = 10, got \(20,\)"),
    "a study of one snapshot": (
        lambda: study.Config(denoiser=dataclasses.replace(study.Config().denoiser, snapshots=())),
        ValueError,
        r"two steps, weak and under-trained, got \(\)",
    ),
    "a blur above the weak one": (
        lambda: toy_2d.Config(blur=9.0),
        ValueError,
        r"blur must be positive and below weak_blur.*9\.0",
    ),
    "a scale of no curve": (lambda: toy_2d.Config(scale=7.0), ValueError, r"scales must include scale, 7"),
    "particles of no groups": (
        lambda: gaussians.Config(samples=3),
        ValueError,
        r"at least two groups of 2000 particles.*got 3",
    ),
    # Runs and files.
    "an unknown way to guide": (lambda: generated(guidance="cgf"), ValueError, r"guidance must be one of.*cfg.*'cgf'"),
    "an unknown sampler": (lambda: generated(sampler="euler_a"), ValueError, r"sampler must be one of.*'euler_a'"),
    "a run that is none": (lambda: models.load(NOWHERE), FileNotFoundError, r"/nowhere/at/all has no models\.json"),
    "an unknown network": (lambda: models.build({"kind": "VGG", "config": {}}), ValueError, r"no network 'VGG', only UNet"),
    "a checkpoint that is not there": (
        lambda: checkpoints.restore(NOWHERE, {"a": X}),
        FileNotFoundError,
        r"/nowhere.*holds no checkpoint",
    ),
    "generated images that are none": (lambda: shards.opened(NOWHERE), FileNotFoundError, r"/nowhere.*no generated set"),
    "IDX files that are nowhere": (
        lambda: idx.find(NOWHERE),
        FileNotFoundError,
        r"/nowhere/at/all is not a directory.*four IDX files",
    ),
    "an IDX file that is none": (lambda: idx.read(Path(__file__)), ValueError, r"jobs\.py begins with.*IDX"),
    "batches that processes cannot share": (
        lambda: data.batches([1], 3, 0, process=0, processes=2),
        ValueError,
        r"multiple of processes, got size 3.*of 2",
    ),
    "a process without a coordinator": (lambda: devices.start(None, 2, 0), ValueError, r"need a coordinator.*host:port"),
    "weights that are nowhere": (lambda: gj.pretrained.open_weights(NOWHERE), FileNotFoundError, r"/nowhere/at/all"),
}
