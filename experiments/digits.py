"""Guided handwritten digits: classifier-free guidance, classifier guidance, and CFG with a calibrated scale.

`python -m experiments.digits` trains a denoiser, a noise-aware classifier and a judge in minutes on a CPU. It samples each
method over a range of scales. It writes pictures, curves, `metrics.json` and checkpoints to `out/digits`. A second run reads
the checkpoints and only samples.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.tools import checks, data, pictures
from experiments.tools.evaluator import Evaluator, jitter
from experiments.tools.fit import Training, fit
from experiments.tools.stages import Progress, Stages, duration

AXES = "methods", "scales", "classes", "samples"
SCHEDULE, SPACING = gj.schedules.cosine(), gj.spacings.karras(sigma_min=0.02, sigma_max=40.0)


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a network.

    Args:
      width: Width of the hidden layers. In a convolutional network it is the width of the first layer.
      blocks: Number of residual blocks. In a convolutional network it is the number of convolutions.
    """

    width: int = 256
    blocks: int = 4

    def __post_init__(self) -> None:
        if self.width < 1 or self.blocks < 1:
            raise ValueError(f"width and blocks must be at least 1, got {self.width} and {self.blocks}.")


@dataclasses.dataclass(frozen=True)
class Config:
    """Guided handwritten digits.

    Args:
      out: The directory for pictures, metrics and checkpoints.
      dataset: A folder of PNG or JPEG files with one subfolder per class, or the TFDS name of a set of labelled images.
      size: For a folder of images: crop the largest centred square of each, and resize it to this many pixels (Lanczos filter).
      seed: The seed of all random numbers.
      denoiser: Training of the denoiser that is guided. It predicts v, and labels are dropped in training.
      classifier: Training of the noise-aware classifier that guides.
      evaluator: Training of the judge, a convolutional classifier of clean images that no guidance method uses.
      denoiser_size: The size of the denoiser.
      classifier_size: The size of the classifier.
      evaluator_size: The size of the judge.
      drop_rate: The probability of dropping the label in training.
      scales: Guidance scales of every method. In CFG, 1 is the conditional model and 0 the unconditional one.
      samples: Number of samples per scale, with equal numbers per class.
      steps: Number of sampler steps.
      calibrations: Also compare calibrations on other numbers of samples, another seed, real images and fewer noise levels.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = Path("out/digits")
    dataset: str = "digits"
    size: int | None = None
    seed: int = 0
    denoiser: Training = Training(steps=8000)
    classifier: Training = Training(steps=3000, weight_decay=0.05)
    evaluator: Training = Training(steps=1500, batch=128, weight_decay=0.05)
    denoiser_size: Size = Size()
    classifier_size: Size = Size(blocks=3)
    evaluator_size: Size = Size(width=32, blocks=2)
    drop_rate: float = 0.15
    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
    samples: int = 1000
    steps: int = 30
    calibrations: bool = False
    smoke: bool = False

    def __post_init__(self) -> None:
        for scale in (0.0, 1.0):
            if scale not in self.scales:
                raise ValueError(f"scales must include {scale}, an unguided model, got {self.scales}.")
        if self.samples < 1 or self.steps < 1 or not 0 <= self.drop_rate <= 1:
            raise ValueError(
                "samples and steps must be at least 1 and drop_rate in [0, 1], got "
                f"{self.samples}, {self.steps} and {self.drop_rate}."
            )


def plan(config: Config) -> Stages:
    """Print what the job will do. The times are those of the default configuration on 2 CPU cores."""
    usual = dataclasses.replace(config, out=Config.out, seed=Config.seed, calibrations=False) == Config()
    about = lambda name, time: time if usual else f"{getattr(config, name).steps:,} steps"
    known = {
        "data": "built in" if config.dataset == Config.dataset else config.dataset,
        "denoiser": about("denoiser", "about 2 minutes"),
        "classifier": about("classifier", "about 40 s"),
        "judge": about("evaluator", "about 15 s"),
        "calibration": f"on {config.samples:,} samples",
        "sampling": f"3 methods at {len(config.scales)} scales" + (", about 40 s" if usual else ""),
        "tables and pictures": "about 10 s" if usual else "",
    }
    return Stages("Guided digits" + (", about 4 minutes on 2 CPU cores" if usual else ""), known)


def train(config: Config, train_set: data.Data, stages: Stages) -> dict[str, tuple[Any, Any]]:
    """`{name: (apply, params)}` of the denoiser, the classifier and the evaluator."""
    shape, classes, null = train_set.images.shape[1:], train_set.classes, train_set.classes
    size = lambda name: dataclasses.asdict(getattr(config, f"{name}_size"))
    rngs = lambda: nnx.Rngs(config.seed)
    modules = {
        "denoiser": gj.networks.MLP(shape, classes, **size("denoiser"), rngs=rngs()),
        "classifier": gj.networks.MLPClassifier(shape, classes, **size("classifier"), rngs=rngs()),
        "evaluator": Evaluator(shape, classes, **size("evaluator"), rngs=rngs()),
    }
    networks = {name: gj.networks.from_nnx(module) for name, module in modules.items()}
    apply = {name: network for name, (network, _) in networks.items()}

    def denoiser_loss(params: Any, key: Array, images: Array, labels: Array) -> Array:
        drop, levels, noise = jax.random.split(key, 3)
        labels = gj.training.drop(drop, labels, null, config.drop_rate)
        level = gj.training.noise_levels(levels, SCHEDULE, len(images))
        network = lambda x, t, cond: apply["denoiser"](params, x, t, cond)
        return gj.training.denoising_loss(network, "v", noise, images, level, labels).mean()

    def classifier_loss(params: Any, key: Array, images: Array, labels: Array) -> Array:
        levels, noise = jax.random.split(key)
        level = gj.training.noise_levels(levels, SCHEDULE, len(images))
        classify = lambda x, t: apply["classifier"](params, x, t)
        return gj.training.classifier_loss(classify, noise, images, level, labels).mean()

    def evaluator_loss(params: Any, key: Array, images: Array, labels: Array) -> Array:
        logits = apply["evaluator"](params, jitter(key, images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    losses = {"denoiser": denoiser_loss, "classifier": classifier_loss, "evaluator": evaluator_loss}
    identity = {"data": data.described(config.dataset, train_set.version), "images": len(train_set.labels)}
    trained = {}
    for name, (network, params) in networks.items():
        training = getattr(config, name)
        own = size(name) | ({"drop_rate": config.drop_rate} if name == "denoiser" else {})
        batches = data.batches(train_set, training.batch, config.seed)
        checkpoints = config.out / "checkpoints"
        with stages({"evaluator": "judge"}.get(name, name)) as tell:
            params = fit(name, losses[name], params, batches, training, config.seed, checkpoints, identity | own, tell=tell)
        batches.close()
        trained[name] = network, params
    return trained


def measure(
    config: Config, trained: dict[str, tuple[Any, Any]], shape: tuple[int, ...], classes: int, seed: int = 2, steps: int = 40
) -> Callable[..., gj.Calibration]:
    """A function `(count, real=None)` that calibrates on `count` samples of the network, or on `count` real images."""
    denoiser, params = trained["denoiser"]
    run = gj.levels(SCHEDULE, config.steps, SPACING)
    levels = gj.levels(SCHEDULE, steps, SPACING)

    @jax.jit
    def calibrate(params: Any, keys: Array, labels: Array, x0: Array | None) -> gj.Calibration:
        denoise = gj.denoiser(functools.partial(denoiser, params), predicts="v")
        branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, classes))
        own = gj.sample(keys, branches, gj.chain(), gj.dpmpp_2m(), run, shape) if x0 is None else x0
        return gj.calibrate(keys, branches, own, levels)

    def measured(count: int, real: data.Data | None = None) -> gj.Calibration:
        keys = jax.random.split(jax.random.key(config.seed + seed), count)
        labels = jnp.arange(count) % classes if real is None else jnp.asarray(real.labels[:count])
        return calibrate(params, keys, labels, None if real is None else jnp.asarray(real.images[:count]))

    return measured


def generate(
    config: Config, trained: dict[str, tuple[Any, Any]], shape: tuple[int, ...], classes: int, curve: gj.Calibration
) -> dict[str, Any]:
    """Samples of every method, `[scales, classes, n, H, W, C]`, by one program that is compiled once for all scales."""
    denoiser, denoiser_params = trained["denoiser"]
    classifier, classifier_params = trained["classifier"]
    levels = gj.levels(SCHEDULE, config.steps, SPACING)
    each = -(-config.samples // classes)

    def one(params: tuple[Any, ...], keys: Array, label: Array, scale: Array) -> dict[str, Array]:
        labels = jnp.full(each, label)
        null = jnp.full(each, classes)
        denoise = gj.denoiser(lambda x, t, cond: denoiser(params[0], x, t, cond), predicts="v")
        log_prob = gj.scores.class_log_prob(lambda x, t: classifier(params[1], x, t), labels, classes)
        ways = {
            "cfg": (gj.branches(denoise, cond=labels, uncond=null), gj.cfg(scale)),
            "classifier": (gj.branches(denoise, uncond=null), gj.classifier(log_prob, scale)),
            "calibrated": (
                gj.branches(denoise, cond=labels, uncond=null),
                gj.cfg(gj.scales.calibrated(params[2], scale)),
            ),
        }
        return {
            way: gj.sample(keys, branches, guidance, gj.dpmpp_2m(), levels, shape) for way, (branches, guidance) in ways.items()
        }

    over_labels = jax.jit(jax.vmap(one, in_axes=(None, 0, 0, None)))
    keys = jax.random.split(jax.random.key(config.seed + 1), (classes, each))
    params, samples = (denoiser_params, classifier_params, curve), []
    with Progress("sampling", len(config.scales), "scale") as bar:
        for scale in config.scales:
            samples.append(jax.tree.map(np.asarray, over_labels(params, keys, jnp.arange(classes), jnp.float32(scale))))
            bar.update()
    return jax.tree.map(lambda *scales: np.stack(scales), *samples)


def by_measurement(
    config: Config, trained: dict[str, tuple[Any, Any]], evaluator: Evaluator, train_set: data.Data, test_set: data.Data
) -> list[dict[str, Any]]:
    """Samples by a calibrated scale at 4, 8 and 12: one row per way to calibrate, and the mean over ten seeds."""
    shape, classes, (denoiser, params) = train_set.images.shape[1:], train_set.classes, trained["denoiser"]
    labels = jnp.repeat(jnp.arange(classes), -(-config.samples // classes))
    levels, scales = gj.levels(SCHEDULE, config.steps, SPACING), (4.0, 8.0, 12.0)

    @jax.jit
    def drawn(params: Any, curve: gj.Curve, scale: Array, seed: Array) -> Array:
        keys = jax.random.split(jax.random.key(seed), len(labels))
        denoise = gj.denoiser(functools.partial(denoiser, params), predicts="v")
        branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, classes))
        x = gj.sample(keys, branches, gj.cfg(gj.scales.calibrated(curve, scale)), gj.dpmpp_2m(), levels, shape)
        return x.reshape(classes, -1, *shape)

    def judged(curve: gj.Curve, seed: int) -> list[Any]:
        samples = np.stack([drawn(params, curve, scale, seed) for scale in scales])
        return judge(trained, evaluator, samples, test_set, train_set)

    measured = {
        (seed, steps): measure(config, trained, shape, classes, seed, steps) for seed, steps in ((2, 40), (3, 40), (2, 10))
    }
    tried = {
        **{f"{count} generated": measured[2, 40](count) for count in (100, 300, 1000)},
        **{f"{count} generated, another seed": measured[3, 40](count) for count in (100, 300, 1000)},
        "1000 generated, ten levels": measured[2, 10](1000),
        f"{len(test_set)} real, held out": measured[2, 40](len(test_set), test_set),
    }
    print("\n  measured on                             error   accuracy, precision, recall and distance at scales 4, 8 and 12")
    rows = []
    for name, curve in tried.items():
        found = judged(curve.for_classes, config.seed + 1)
        error = float(jnp.sqrt((jnp.asarray(curve.projected.error) ** 2).mean()))
        rows.append({"measured": name, "error": error, "at": dict(zip(scales, found, strict=True))})
        cells = "   ".join(" ".join(f"{value:.3f}" for value in row.values()) for row in found)
        print(f"  {name:32s} {error:12.3f}   {cells}", flush=True)
    curves = {seed: measure(config, trained, shape, classes, seed)(1000).for_classes for seed in range(10, 20)}
    drawings = [[list(row.values()) for row in judged(curve, config.seed + 100 + seed)] for seed, curve in curves.items()]
    mean, error = np.mean(drawings, axis=0), np.std(drawings, axis=0, ddof=1) / len(drawings) ** 0.5
    cells = "   ".join(
        " ".join(f"{m:.4f} ± {e:.4f}" for m, e in zip(*row, strict=True)) for row in zip(mean, error, strict=True)
    )
    print(f"  {len(drawings)} seeds of curve and samples, mean ± standard error: {cells}", flush=True)
    rows.append({"measured": f"{len(drawings)} seeds", "mean": mean.tolist(), "error": error.tolist()})
    return rows


def components(real: data.Data, count: int = 16) -> tuple[Callable[[Array], Array], list[Any]]:
    """A projection to the principal components of real images, and the moments of each class there."""
    flat = lambda images: images.reshape(len(images), -1)
    mean = flat(real.images).mean(0)
    _, _, axes = np.linalg.svd(flat(real.images) - mean, full_matrices=False)
    project = lambda images: (flat(images) - mean[None]) @ axes[:count].T
    classes = [project(real.images[real.labels == y]) for y in range(real.classes)]
    return project, [gj.metrics.moments(jnp.asarray(each)) for each in classes]


def judge(
    trained: dict[str, tuple[Any, Any]], evaluator: Evaluator, samples: Any, test_set: data.Data, train_set: data.Data
) -> list[Any]:
    """Accuracy, precision and recall of the samples at each scale, and their Frechet distance, averaged over the classes."""
    _, params = trained["evaluator"]
    nnx.update(evaluator, params)
    graph, weights = nnx.split(evaluator)
    project, real = components(train_set)

    # The weights and the held-out images are arguments. If they were constants, XLA would evaluate them while it compiles.
    @jax.jit
    def measure(weights: Any, real: Array, images: Array) -> tuple[Array, ...]:
        judged = nnx.merge(graph, weights)
        classes, each, *shape = images.shape
        flat = images.reshape(classes * each, *shape)
        accuracy = gj.metrics.accuracy(judged(flat), jnp.repeat(jnp.arange(classes), each))
        return accuracy, *gj.metrics.precision_recall(judged.features(real), judged.features(flat))

    held_out = jnp.asarray(test_set.images)
    apart = jax.jit(gj.metrics.fid)
    rows = [
        (
            *measure(weights, held_out, images),
            np.mean([apart(one, project(part)) for one, part in zip(real, images, strict=True)]),
        )
        for images in samples
    ]
    return [dict(zip(("accuracy", "precision", "recall", "class_fd"), map(float, row), strict=True)) for row in rows]


def main(config: Config) -> dict[str, Any]:
    """Run the job. Returns the contents of `metrics.json`."""
    start = time.perf_counter()
    if config.smoke:
        names = ("denoiser", "classifier", "evaluator")
        config = dataclasses.replace(
            config,
            **{n: dataclasses.replace(getattr(config, n), steps=5, batch=32) for n in names},
            **{f"{n}_size": Size(width=8, blocks=1) for n in names},
            scales=(0.0, 1.0, 4.0),
            samples=50,
            steps=3,
            out=config.out / "smoke",
        )
    config.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str((config.out / "compilation_cache").absolute()))
    stages = plan(config)
    with stages("data") as tell:
        train_set, test_set = (
            data.load(config.dataset, split, config.out / "data", size=config.size) for split in ("train", "test")
        )
        checks.check_count(config.dataset, "train", train_set, images=2, per_class=2)  # A covariance per class needs two.
        checks.check_count(config.dataset, "test", test_set, images=4)  # Precision and recall use three neighbours.
        tell(f"{len(train_set):,} images for training, {len(test_set):,} held out")
    trained = train(config, train_set, stages)
    shape, classes = train_set.images.shape[1:], train_set.classes
    with stages("calibration") as tell:
        curve = jax.block_until_ready(measure(config, trained, shape, classes)(config.samples))
        tell(f"the scale of CFG, measured on {config.samples:,} unguided samples of the denoiser")
    with stages("sampling") as tell:
        samples = generate(config, trained, shape, classes, curve)
        tell(" x ".join(f"{count} {of}" for count, of in zip((3, *samples["cfg"].shape[:3]), AXES, strict=True)))
    with stages("tables and pictures"):
        evaluator = Evaluator(shape, classes, **dataclasses.asdict(config.evaluator_size), rngs=nnx.Rngs(0))
        apply, params = trained["evaluator"]
        judged = judge(trained, evaluator, np.concatenate([*samples.values()]), test_set, train_set)
        count = len(config.scales)
        metrics = {
            "evaluator_accuracy": float(gj.metrics.accuracy(apply(params, test_set.images), jnp.asarray(test_set.labels))),
            "scales": config.scales,
            **{way: judged[i * count : (i + 1) * count] for i, way in enumerate(samples)},
            "samples_a_scale": int(np.prod(samples["cfg"].shape[1:3])),
            "seconds": time.perf_counter() - start,
        }
        if config.calibrations:
            metrics["calibrations"] = by_measurement(config, trained, evaluator, train_set, test_set)
        (config.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
        pictures.digits(config.out, samples, config.scales, metrics, test_set)
        above = [scale for scale in config.scales if scale > 1]
        shown = [scale for scale in (2.0, 4.0, 8.0, 12.0) if scale in above] or above[:4]
        pictures.calibration(config.out / "calibration.png", curve.for_classes, shown)
    report(config, metrics)
    return metrics


def report(config: Config, metrics: dict[str, Any]) -> None:
    """Print the tables, what their columns mean, and which picture to open first."""
    print(f"\nThe judge reads {metrics['evaluator_accuracy']:.1%} of the held-out images.\n")
    print("          CFG                             classifier, unconditional model")
    print("  w       accuracy  precision  recall     accuracy  precision  recall")
    line = lambda row, names: "   ".join(f"{row[name]:8.3f}" for name in names)
    quality = ("accuracy", "precision", "recall")
    for scale, *rows in zip(metrics["scales"], metrics["cfg"], metrics["classifier"], strict=True):
        print(f"  {scale:5.1f} {'   '.join(line(row, quality) for row in rows)}")
    print("\n          CFG, calibrated scale           distance of each method")
    print("  w       accuracy  precision  recall     calibrated  CFG     classifier")
    for scale, *rows in zip(metrics["scales"], *(metrics[way] for way in ("calibrated", "cfg", "classifier")), strict=True):
        print(f"  {scale:5.1f} {line(rows[0], quality)}   {'   '.join(line(row, ('class_fd',)) for row in rows)}")
    print(f"""
w is the guidance scale. CFG at 1 is the conditional model, without guidance. Every method at 0 is the unconditional model.
  accuracy   the share of samples that the judge reads as the class asked for
  precision  the share of samples near held-out images; it falls when samples leave the data
  recall     the share of held-out images near samples; it falls when samples become alike
  distance   the Frechet distance to training images in principal components, averaged over the classes; 0 is the best

Open {config.out / "overview.png"} first. It has samples of every method, one row per class.
Then open {config.out / "fidelity_diversity.png"}, which has the tables as curves.
{config.out / "calibration.png"} has the calibrated scale at each noise level, and rho, the error with the class relative to the
error without. rho is small where a noisy image does not show its class yet, and the calibrated scale is close to 1 there.
Metrics, checkpoints and more pictures are beside them. The run took {duration(metrics["seconds"])}.""")


if __name__ == "__main__":
    main(tyro.cli(Config))
