"""The guidance table of a paper on Fashion-MNIST: training, a sweep of every method's scale, judgement, and a report.

`python -m experiments.fashion_mnist` takes one to two hours on 2 CPU cores, and `... small` about ten minutes. `... gpu` has
the networks and sample sizes of a paper. Every stage continues where it was stopped. All files are in `out/fashion_mnist`.
Read `report.md` first.

The judge is a classifier of clean images that no guidance method uses. Its features give the Frechet distance, precision,
recall, density and coverage, all against the 10,000 held-out images. The Frechet distance is called FD. It is not FID, which
uses Inception.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.fashion_mnist import report
from experiments.fashion_mnist.sweep import SCALES, Sweep, headlines
from experiments.tools import checks, data, devices, generate, models
from experiments.tools.evaluator import Evaluator, Judge, jitter
from experiments.tools.fit import Batches, Training, fit, run_directory
from experiments.tools.stages import Stages, Tell, tera

CLEAN = 0.0
TITLES = {"clean": "classifier of clean images", "evaluator": "judge"}
"""The names of the stages that train a network, unless they are the network's own."""
NEAREST = 5
"""The number of neighbours of each image that the judge uses."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Guidance on Fashion-MNIST or your own images, from the data to the report.

    Args:
      out: The directory for data, checkpoints, samples and the report.
      dataset: A folder of PNG or JPEG files with one subfolder per class, or the TFDS name of a set of labelled images. Without
        subfolders there are no labels: then only an unconditional model is trained and sampled. TFDS needs TensorFlow once to
        prepare a set, unless `manual_dir` is given.
      manual_dir: A folder with the four IDX files of "fashion_mnist" or another set like MNIST. They need neither network nor
        TensorFlow. Debian's package dataset-fashion-mnist puts them in /usr/share/datasets/fashion-mnist.
      size: For a folder of images: crop the largest centred square of each, and resize it to this many pixels (Lanczos filter).
      seed: The seed of all random numbers.
      network: The denoiser that is guided. Its shape and classes are replaced by those of the data.
      classifier_network: The network of both classifiers that guide. One is trained on noisy images, the other on clean images.
      evaluator_width: Number of channels of the judge's first convolution. The judge has three convolutions.
      denoiser: Training of the denoiser. The under-trained model is its second snapshot, and the weaker guide is its first
        snapshot.
      classifier: Training of both classifiers that guide.
      evaluator: Training of the judge.
      loss: The denoiser's loss: the error of v, the same with min-SNR weights, or EDM's loss with its preconditioning.
      drop_rate: The probability of dropping the label in training.
      steps: Number of steps of DPM-Solver++ 2M, on Karras' noise levels.
      samples: Number of samples per point of the sweeps, with equal numbers per class.
      headline: Number of samples per row of the main table.
      calibration: Number of samples on which the calibrated scale is measured.
      batch: Number of samples per batch.
      coordinator: For several processes: host:port of process 0, or "auto" on a cluster that provides it. None: one process.
      processes: The number of processes.
      process: The number of this process, from 0.
    """

    out: Path = Path("out/fashion_mnist")
    dataset: str = "fashion_mnist"
    manual_dir: Path | None = None
    size: int | None = None
    seed: int = 0
    network: gj.networks.UNetConfig = gj.networks.UNetConfig((28, 28, 1), 10, widths=(32, 64), patch=2)
    classifier_network: gj.networks.UNetConfig = gj.networks.UNetConfig((28, 28, 1), 10, widths=(32, 64), patch=2)
    evaluator_width: int = 32
    denoiser: Training = Training(steps=7000, batch=64, learning_rate=2e-3, snapshots=(300, 1000))
    classifier: Training = Training(steps=3500, batch=64, weight_decay=0.05)
    evaluator: Training = Training(steps=5000, batch=64, learning_rate=2e-3, weight_decay=0.05)
    loss: Literal["v", "min_snr", "edm"] = "v"
    drop_rate: float = 0.1
    steps: int = 12
    samples: int = 2000
    headline: int = 5000
    calibration: int = 1000
    batch: int = 250
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        if len(self.denoiser.snapshots) != 2:
            raise ValueError(f"denoiser.snapshots must be two steps, weak and under-trained, got {self.denoiser.snapshots}.")
        if not 1 <= self.samples <= self.headline or self.steps < 1 or not 0 <= self.drop_rate <= 1:
            raise ValueError(
                "samples and steps must be at least 1, headline at least samples, and drop_rate in [0, 1], got "
                f"{self.samples}, {self.steps}, {self.headline} and {self.drop_rate}."
            )


PRESETS: dict[str, tuple[str, Config]] = {
    "default": ("One to two hours on 2 CPU cores.", Config()),
    "small": (
        "About ten minutes on 2 CPU cores: fewer steps and samples.",
        Config(
            out=Path("out/fashion_mnist_small"),
            denoiser=Training(steps=1000, batch=64, learning_rate=2e-3, ema=0.99, snapshots=(100, 300)),
            classifier=Training(steps=500, batch=64, weight_decay=0.05),
            evaluator=Training(steps=1000, batch=64, learning_rate=2e-3, weight_decay=0.05),
            steps=8,
            samples=200,
            headline=400,
            batch=200,
        ),
    ),
    "gpu": (
        "Networks and sample sizes of a paper, for one GPU.",
        Config(
            out=Path("out/fashion_mnist_gpu"),
            network=gj.networks.UNetConfig(
                (28, 28, 1), 10, widths=(128, 256), blocks=2, attention=(1,), patch=1, dtype="bfloat16"
            ),
            denoiser=Training(steps=50_000, batch=512, snapshots=(1000, 5000)),
            classifier=Training(steps=10_000, batch=512, weight_decay=0.05),
            evaluator=Training(steps=10_000, batch=256, weight_decay=0.05),
            steps=18,
            samples=10_000,
            headline=50_000,
            batch=1000,
        ),
    ),
    "smoke": (
        "A check of the job at toy size: a few minutes, most of them compilation. The numbers of such a run mean nothing.",
        Config(
            out=Path("out/fashion_mnist_smoke"),
            dataset="digits",
            network=gj.networks.UNetConfig((8, 8, 1), 10, widths=(8,), heads=2),
            classifier_network=gj.networks.UNetConfig((8, 8, 1), 10, widths=(8,), heads=2),
            evaluator_width=8,
            denoiser=Training(steps=6, batch=32, snapshots=(2, 4)),
            classifier=Training(steps=3, batch=32),
            evaluator=Training(steps=3, batch=32),
            steps=3,
            samples=40,
            headline=40,
            calibration=40,
            batch=40,
        ),
    ),
}


def losses(config: Config, apply: dict[str, Callable[..., Array]], null: int) -> dict[str, Callable[..., Array]]:
    """`{network: loss(params, key, images, labels)}`."""

    def denoiser(params: Any, key: Array, images: Array, labels: Array) -> Array:
        drop, levels, noise = jax.random.split(key, 3)
        labels = gj.training.drop(drop, labels, null, config.drop_rate)
        draw = gj.training.log_normal_levels if config.loss == "edm" else gj.training.noise_levels
        level = draw(levels, models.SCHEDULE, len(images))
        network = lambda x, t, cond: apply["denoiser"](params, x, t, cond)
        if config.loss == "edm":
            return gj.training.edm_loss(network, models.SIGMA_DATA, noise, images, level, labels).mean()
        weight = gj.training.min_snr(level, "v") if config.loss == "min_snr" else 1.0
        return (weight * gj.training.denoising_loss(network, "v", noise, images, level, labels)).mean()

    def classifier(params: Any, key: Array, images: Array, labels: Array) -> Array:
        levels, noise = jax.random.split(key)
        level = gj.training.noise_levels(levels, models.SCHEDULE, len(images))
        return gj.training.classifier_loss(lambda x, t: apply["classifier"](params, x, t), noise, images, level, labels).mean()

    cross_entropy = optax.softmax_cross_entropy_with_integer_labels

    def clean(params: Any, key: Array, images: Array, labels: Array) -> Array:
        return cross_entropy(apply["clean"](params, images, jnp.full(len(images), CLEAN)), labels).mean()

    def evaluator(params: Any, key: Array, images: Array, labels: Array) -> Array:
        return cross_entropy(apply["evaluator"](params, jitter(key, images, noise=0.0)), labels).mean()

    return {"denoiser": denoiser, "classifier": classifier, "clean": clean, "evaluator": evaluator}


def plan(config: Config, networks: dict[str, models.Trained], shape: tuple[int, ...]) -> Stages:
    """Print the stages of the run, its number of operations as counted by the compiler, and the time of a preset."""
    trainings = {name: training_of(config, name) for name in networks}
    known = {TITLES.get(name, name): f"{each.steps:,} steps" for name, each in trainings.items()}
    if "evaluator" not in networks:
        return Stages("An unconditional denoiser, since the images have no labels", known | {"samples": f"{config.samples:,}"})
    x, t, labels = jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    inputs = {"denoiser": (x, t, labels), "classifier": (x, t), "clean": (x, t), "evaluator": (x,)}
    one = {}
    for name, (apply, params, _) in networks.items():
        counted: Any = jax.jit(apply).lower(params, *inputs[name]).cost_analysis()
        one[name] = counted["flops"]
    # A gradient costs as much as two forward passes.
    training = sum(3 * one[name] * each.steps * each.batch for name, each in trainings.items())
    contrasts = sum(len(scales) for way, scales in SCALES.items() if "classifier" not in way)
    steered = sum(len(scales) for way, scales in SCALES.items() if "classifier" in way)
    # Three models without guidance, and sixteen rows of the main table, most of them with two branches.
    passes = config.samples * (2 * contrasts + steered + 3) + config.headline * 27
    sampling = config.steps * (passes * one["denoiser"] + steered * config.samples * 3 * one["classifier"])
    work = f"Training takes {tera(training)} TFLOP and sampling {tera(sampling)} TFLOP, besides compilation."
    own = {name: getattr(config, name) for name in ("out", "manual_dir", "seed", "coordinator", "processes", "process")}
    about = [f"{text} " for text, preset in PRESETS.values() if dataclasses.replace(preset, **own) == config]
    known |= {
        "calibration": f"on {config.calibration:,} samples",
        "sweeps": f"{contrasts + steered + 3} rows of {config.samples:,} samples",
        "main table": f"up to 16 rows of {config.headline:,} samples",
        "report": "",
    }
    return Stages(f"Guidance table. {''.join(about)}{work}", known)


class Made(NamedTuple):
    """The networks of a study before training.

    Args:
      networks: The networks by name.
      described: What the identity of each training says of its network.
      judge: The judge's architecture. None without labels.
    """

    networks: dict[str, models.Trained]
    described: dict[str, dict[str, Any]]
    judge: Evaluator | None


def make(config: Config, shape: tuple[int, ...], classes: int) -> Made:
    """The networks of a study for images of a shape. Without classes, only a denoiser."""
    # A network without classes has one label: the null label, 0.
    sized = lambda network: dataclasses.replace(network, shape=shape, classes=max(1, classes))
    described = {"denoiser": models.describe("UNet", sized(config.network), "edm" if config.loss == "edm" else "v")}
    if classes:
        for name in ("classifier", "clean"):
            described[name] = models.describe("UNetClassifier", sized(config.classifier_network))
    networks = {name: models.build(entry, config.seed) for name, entry in described.items()}
    judge = Evaluator(shape, classes, config.evaluator_width, 3, rngs=nnx.Rngs(config.seed)) if classes else None
    if judge is not None:
        networks["evaluator"] = models.Trained(*gj.networks.from_nnx(judge))
        described["evaluator"] = {"kind": "Evaluator", "config": {"width": config.evaluator_width, "jitter": "a pixel"}}
    return Made(networks, described, judge)


def train_one(
    config: Config,
    name: str,
    made: Made,
    train_set: data.Data,
    tell: Tell | None = None,
    order: Callable[[data.Batches], Batches] = lambda batches: batches,
) -> tuple[Any, Path]:
    """Train a network of a study. Returns its averaged parameters, and the directory of the training.

    Args:
      config: The configuration of the study.
      name: The name of the network.
      made: The networks, as `make` returns them.
      train_set: The images.
      tell: As for `fit`.
      order: Wraps the batches of the data set, for example to stop them after a time.
    """
    training, checkpoints = training_of(config, name), config.out / "checkpoints"
    identity = {
        "network": made.described[name],
        "data": f"{data.described(config.dataset, train_set.version)}, {len(train_set.labels)} images",
        **({"drop_rate": config.drop_rate, "loss": config.loss} if name == "denoiser" else {}),
    }
    loss = losses(config, {name: network.apply for name, network in made.networks.items()}, train_set.classes)[name]
    params = made.networks[name].params
    with contextlib.closing(data.batches(train_set, training.batch, config.seed)) as batches:
        params = fit(name, loss, params, order(batches), training, config.seed, checkpoints, identity, tell=tell)
    return params, run_directory(name, training, config.seed, checkpoints, identity)


def training_of(config: Config, name: str) -> Training:
    """How a network is trained. Both classifiers that guide are trained alike."""
    return config.classifier if name == "clean" else getattr(config, name)


def train(config: Config, train_set: data.Data, held_out: data.Data) -> tuple[models.Run, Judge | None, str, Stages]:
    """The networks, the judge, a digest of everything that they depend on, and the stages. Without labels, only a denoiser."""
    shape = train_set.images.shape[1:]
    made = make(config, shape, train_set.classes)
    stages = plan(config, made.networks, shape)
    entries, trained = {}, {}
    for name in made.networks:
        with stages(TITLES.get(name, name)) as tell:
            trained[name], kept = train_one(config, name, made, train_set, tell)
        entries[name] = made.described[name] | {"checkpoint": str(kept.relative_to(config.out.absolute()))}
    weak, early = config.denoiser.snapshots
    entries |= {"weak": entries["denoiser"] | {"step": weak}, "early": entries["denoiser"] | {"step": early}}
    judge = None
    if made.judge is not None:
        judge = Judge(made.judge, trained["evaluator"], held_out)
        del entries["evaluator"]
    devices.first(lambda: models.save(config.out, shape, train_set.names, entries))
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:12]
    return models.load(config.out), judge, digest, stages


def unconditional(config: Config, digest: str) -> dict[str, Any]:
    """Samples of a denoiser that was trained without labels. Nothing is judged, since the judge is a classifier."""
    print("The images have no labels: the denoiser is unconditional. Guidance by classes and the judge are left out.")
    out = config.out / "samples" / digest / "unconditional"
    size: Any = {"samples": config.samples, "steps": config.steps, "batch": config.batch, "shard": config.batch}
    generate.draw(generate.Config(config.out, out, guidance="unconditional", scale=1.0, seed=config.seed + 1, **size))
    run, samples = (shlex.quote(str(path)) for path in (config.out, config.out.with_name(config.out.name + "_samples")))
    print(f"More samples: python3 -m experiments.tools.generate {run} --guidance unconditional --samples 50000 --out {samples}")
    return {"samples": str(out)}


def main(config: Config) -> dict[str, Any]:
    """Run the study. Returns the contents of `metrics.json` or, without labels, the place of the samples."""
    devices.start(config.coordinator, config.processes, config.process)
    start = time.perf_counter()
    config.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str((config.out / "compilation_cache").absolute()))
    load = functools.partial(data.load, directory=config.out / "data", manual_dir=config.manual_dir, size=config.size)
    train_set, held_out = (load(config.dataset, split, labelled=False) for split in ("train", "test"))
    if train_set.names:
        checks.check_count(config.dataset, "train", train_set, NEAREST + 1)
        checks.check_count(config.dataset, "test", held_out, NEAREST + 1)
    networks = (config.network, config.classifier_network) if train_set.names else (config.network,)
    checks.check_size(config.dataset, train_set.images.shape[1:], *networks)
    run, judge, digest, stages = train(config, train_set, held_out)
    if judge is None:
        with stages("samples"):
            return unconditional(config, digest)
    trained = time.perf_counter()
    with stages("calibration"):
        run = models.calibrated(run, config.calibration, config.batch)
    assert run.curve is not None
    samples = config.out / "samples"
    sweep = Sweep(run, judge, samples, digest, steps=config.steps, batch=config.batch, seed=config.seed + 1)
    starts = {
        "classifier": "unconditional",
        "clean_classifier": "unconditional",
        "early_cfg": "early",
        "early_autoguidance": "early",
    }
    with stages("sweeps"):
        plain = {way: sweep.row(way, 1.0, config.samples) for way in ("unconditional", "conditional", "early")}
        curves = {
            way: [
                plain[starts.get(way, "conditional")] | {"scale": 0.0 if "classifier" in way else 1.0},
                *(sweep.row(way, scale, config.samples) for scale in scales),
            ]
            for way, scales in SCALES.items()
        }
    with stages("main table"):
        rows = {name: sweep.row(way, scale, config.headline) for name, (way, scale) in headlines(curves).items()}
    real = np.round((train_set.images[: config.headline] + 1) * 127.5).astype(np.uint8)
    metrics = {
        "evaluator_accuracy": judge.accuracy,
        "held_out": len(held_out.labels),
        "real": judge(real, train_set.labels[: config.headline]),
        "curves": curves,
        "rho": dict(zip(map("{:.4g}".format, np.asarray(run.curve.ratio)), np.asarray(run.curve.rho).tolist(), strict=True)),
        "headlines": rows,
        "seconds": {"training": trained - start, "all": time.perf_counter() - start},
    }
    (config.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    with stages("report"):
        report.write(config, metrics, sweep, held_out)
    report.tell(config, metrics)
    return metrics
