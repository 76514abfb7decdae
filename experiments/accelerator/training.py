"""Fashion-MNIST's networks for a GPU, trained in minutes, and the judge of the CPU's study on their samples.

The denoiser, its loss and its batch size are those of the preset `gpu` of `experiments.fashion_mnist`. The number of steps
follows from the time. The judge is trained as in the default of that study, but on the device, so that distances compare only
roughly.
"""

import dataclasses
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from experiments.accelerator import timing
from experiments.accelerator.flops import operations

if TYPE_CHECKING:
    from experiments.fashion_mnist import study
    from experiments.tools import data

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FOLDERS = (Path("wheels/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist"))
"""Where the four IDX files are sought, after the folder that the environment variable FASHION_MNIST names."""
ON_CPU = 37.74
"""The Frechet distance of the conditional model of `python3 -m experiments.fashion_mnist` on a CPU: experiments/README.md."""
SHARE = 0.25
"""The share of the device's peak that the training is expected to reach. It sets the number of steps."""
COMPILING, AFTER = 25.0, 50.0
"""Seconds to compile the training step, and for all that follows the training."""
SCALES = {"conditional": 1.0, "cfg": 2.0}


class TimeUpError(Exception):
    """The time for the training is over."""


class Until:
    """Batches until a time. Then they raise, and the last checkpoint is what remains.

    Args:
      batches: The batches.
      clock: The time of the part.
      reserve: Seconds to leave.
    """

    def __init__(self, batches: Any, clock: timing.Clock, reserve: float):
        self._batches, self._clock, self._reserve = batches, clock, reserve
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self) -> tuple[np.ndarray, np.ndarray]:
        if self._clock.left < self._reserve:
            raise TimeUpError
        return next(self._batches)


def found() -> Path | None:
    """The folder with Fashion-MNIST's four IDX files, or None."""
    given = os.environ.get("FASHION_MNIST")
    if given and not Path(given).is_dir():
        raise FileNotFoundError(f"FASHION_MNIST must name the folder of the four IDX files, got {given}, which is no folder.")
    return next((folder for folder in (*([Path(given)] if given else []), *FOLDERS) if folder.is_dir()), None)


def images(folder: Path | None) -> "tuple[str, data.Data, data.Data]":
    """The name of the set, its training images and its held-out images. Without a folder, scikit-learn's digits."""
    from experiments.tools import bundled, data, idx

    if folder is None:
        pixels, labels, index = bundled.digits()
        name, names = "digits", tuple("0123456789")
        parts = {split: (pixels[at], labels[at].astype(np.uint8)) for split, at in index.items()}
    else:
        name, names = "fashion_mnist", NAMES
        parts = {split: idx.pair(*paths, (28, 28, 1), len(names)) for split, paths in idx.find(folder).items()}
    version = idx.digest(parts)[:12]
    train, test = (
        data.Data(pixels.astype(np.float32) / 127.5 - 1, labels.astype(np.int32), names, version)
        for pixels, labels in (parts["train"], parts["test"])
    )
    return name, train, test


def steps_in(seconds: float, each: float, peak: float, most: int) -> int:
    """The number of training steps that fit into a time.

    Args:
      seconds: The time.
      each: The operations of a step.
      peak: The operations per second of the device's large products.
      most: The maximum.
    """
    return int(min(max(seconds * SHARE * peak / each, 100), most))


def configured(smoke: bool, name: str, out: Path) -> "study.Config":
    """The preset `gpu` with the judge and the number of samples of the default; or the preset `smoke`."""
    from experiments.fashion_mnist import study

    gpu, default = (study.PRESETS[preset][1] for preset in ("gpu", "default"))
    if smoke:
        return dataclasses.replace(study.PRESETS["smoke"][1], out=out, dataset=name)
    judge = {"evaluator": default.evaluator, "evaluator_width": default.evaluator_width}
    return dataclasses.replace(gpu, out=out, dataset=name, headline=default.headline, samples=default.samples, **judge)


def shortened(config: "study.Config", made: "study.Made", shape: tuple[int, ...], seconds: float, peak: float) -> Any:
    """The configuration with the number of steps that fits, and the operations of a step."""
    apply, params, _ = made.networks["denoiser"]
    batch = config.denoiser.batch
    inputs = ((batch, *shape), "float32"), ((batch,), "float32"), ((batch,), "int32")
    x, t, labels = (jax.ShapeDtypeStruct(size, kind) for size, kind in inputs)
    each = 3 * operations(apply, params, x, t, labels)  # A gradient costs as much as two forward passes.
    steps = steps_in(seconds, each, peak, config.denoiser.steps)
    saved = {"snapshots": (max(1, steps // 2), steps), "checkpoint_every": max(1, steps // 8)}
    return dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, steps=steps, **saved)), each


def train(
    config: "study.Config", made: "study.Made", train_set: "data.Data", until: Callable[[Any], Any]
) -> tuple[Any, dict[str, Any]]:
    """The averaged parameters of the denoiser, and the row of its training.

    If the time ends early, they are those of the last checkpoint, or None if there is none.
    """
    from experiments.fashion_mnist import study
    from experiments.tools.checkpoints import restore, steps
    from experiments.tools.progress import scalars

    start, cut = time.perf_counter(), False
    try:
        params, folder = study.train_one(config, "denoiser", made, train_set, order=until)
    except TimeUpError:
        cut, folder = True, next((config.out / "checkpoints").glob("denoiser-*"))
        params = restore(folder, made.networks["denoiser"].params) if steps(folder) else None
    rates = list(scalars(folder, "samples_per_second").values())
    return params, {
        "stage": "training",
        "steps": max(steps(folder), default=0),
        "planned": config.denoiser.steps,
        "cut": cut,
        "batch": config.denoiser.batch,
        "seconds": time.perf_counter() - start,
        "samples_per_second": statistics.median(rates) if rates else None,
    }


def measure(smoke: bool, minutes: float, out: Path) -> Iterator[dict[str, Any]]:
    """One row for the judge, one for the training, and one for the samples of each way to guide.

    Args:
      smoke: The digits, and networks of toy size.
      minutes: The time. The training is made shorter to fit.
      out: The folder for `training.png`, and for the parameters and samples in `training`.
    """
    from experiments.fashion_mnist import study
    from experiments.fashion_mnist.sweep import Sweep
    from experiments.tools import models
    from experiments.tools.evaluator import Judge

    clock, start = timing.Clock(minutes), time.perf_counter()
    folder = None if smoke else found()
    name, train_set, held_out = images(folder)
    place = out / "training"
    shutil.rmtree(place, ignore_errors=True)  # A run that is continued would measure nothing.
    config = configured(smoke, name, place)
    shape, peak = train_set.images.shape[1:], timing.peak(smoke)
    made = study.make(config, shape, train_set.classes)
    params, _ = study.train_one(config, "evaluator", made, train_set)
    assert made.judge is not None
    judge = Judge(made.judge, params, held_out)
    shared = {"data": name, "smoke": smoke}
    yield {"stage": "judge", **shared, "accuracy": judge.accuracy, "seconds": time.perf_counter() - start}
    each = 0.0
    if not smoke:
        config, each = shortened(config, made, shape, clock.left - COMPILING - AFTER, peak)
    reserve = 0.0 if smoke else AFTER
    params, row = train(config, made, train_set, lambda batches: Until(batches, clock, reserve))
    rate = row["samples_per_second"]
    yield {**shared, **row, "share": rate / row["batch"] * each / peak if rate and each else None}
    if params is None:
        yield {"stage": "samples", **shared, "reason": "left out: the time ended before the first checkpoint"}
        return
    trained = made.networks["denoiser"]._replace(params=params)
    run = models.Run(shape, train_set.names, {"denoiser": trained})
    sweep = Sweep(run, judge, place / "samples", "network", steps=config.steps, batch=config.batch, seed=config.seed + 1)
    for way, scale in SCALES.items():
        yield {"stage": way, **shared, **sweep.row(way, scale, config.headline)}
    pictures(out / "training.png", sweep, config.headline, held_out)
    keep(place, params)


def pictures(path: Path, sweep: Any, count: int, held_out: "data.Data") -> None:
    """Draw held-out images and the samples of each way, one row per class."""
    from experiments.fashion_mnist.report import by_class
    from experiments.tools.pictures import grids

    held = np.round((held_out.images + 1) * 127.5).astype(np.uint8), held_out.labels
    drawn = {way if scale == 1 else f"{way}, scale {scale:g}": sweep.images(way, scale, count) for way, scale in SCALES.items()}
    names, most = held_out.names, min(8, count // held_out.classes)
    shown = {title: by_class(images, len(names), most) for title, images in {"held-out images": held, **drawn}.items()}
    grids(path, shown, names, "Samples of the network for a GPU, one row per class", labels=1.2)


def keep(place: Path, params: Any) -> None:
    """Write the averaged parameters to one file, and remove the checkpoints, which are many times larger."""
    from safetensors.numpy import save_file

    from experiments.tools.checkpoints import leaves

    save_file({name: np.asarray(leaf) for name, leaf in leaves(params).items()}, place / "denoiser.safetensors")
    shutil.rmtree(place / "checkpoints")


def sentences(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The judge and the training in words."""
    for row in rows:
        if row["stage"] == "judge":
            yield f"Data: {row['data']}. The judge reads {row['accuracy']:.1%} of the held-out images."
            if row["data"] == "fashion_mnist":
                yield f"The FD of the conditional model of the default on a CPU is {ON_CPU}, by a judge trained there."
        elif row["stage"] == "training":
            size = f"{row['steps']:,} steps of {row['batch']} images in {row['seconds']:.0f} s"
            yield f"Training: {size}, of {row['planned']:,} steps planned." if row["cut"] else f"Training: {size}."
            if row["samples_per_second"]:
                share = f", {row['share']:.0%} of the peak" if row["share"] else ""
                yield f"It used {row['samples_per_second']:,.0f} images per second{share}."


def table(rows: list[dict[str, Any]]) -> str:
    """The training in sentences, and the Markdown table of the samples."""
    lines = [" ".join(sentences(rows)), ""]
    heads = ("scale", "FD", "accuracy", "precision", "recall", "coverage", "evaluations", "samples per second")
    lines += [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for row in rows:
        if "reason" in row:
            lines.append(f"| {row['stage']} | {row['reason']} {'| ' * (len(heads) - 1)}|")
        elif "fd" in row:
            measures = (f"{row[key]:.3f}" for key in ("accuracy", "precision", "recall", "coverage"))
            cells = (f"{row['scale']:g}", f"{row['fd']:.2f}", *measures, str(row["evaluations"]), f"{1 / row['seconds']:,.0f}")
            lines.append(f"| {row['stage']} | {' | '.join(cells)} |")
    return "\n".join(lines)
