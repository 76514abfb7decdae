"""Guided images without training: real digits in PCA space, one Gaussian per class, with exact scores and classifier.

`python -m experiments.exact_digits` compares methods and scans their parameters in a minute on a CPU. No network is used, so
every error comes from the guidance.

The principal components are scaled to a mean variance of 0.25, which EDM assumes for its data. Noise levels and distances use
this unit. Two classifiers judge the samples. "accuracy" is by a kernel regression on held-out images. "exact" is by the
mixture's own posterior, which guidance follows. "FD" is the Frechet distance to the exact moments of all classes together.
"class FD" is the mean of the distances of the single classes. It also shows whether a class loses or gains diversity. The first
row of the table has exact samples. Their distances come from the finite number of samples.
"""

import dataclasses
import functools
import itertools
import json
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from jax import Array
from sklearn.decomposition import PCA

import guidance_jax as gj
from experiments.tools import checks, data, idx, pictures
from experiments.tools.pictures import METHODS
from experiments.tools.stages import Stages, duration, each

CLEAN = gj.NoiseLevel(*map(jnp.float32, (0.0, 1.0, 0.0)))
COLOURED = {"CFG": "cfg", "APG": "apg"}
SHOWN = {
    "CFG": "CFG",
    "classifier": "exact classifier",
    "interval": "CFG in an interval",
    "APG": "APG",
    "calibrated": "CFG, calibrated",
    "autoguidance": "autoguidance",
}
"""The names of the methods in the figures."""
PARAMETERS = {
    "low": "lower end (sigma / alpha)",
    "high": "upper end (sigma / alpha)",
    "beta": "momentum beta",
    "max_norm": "maximum norm of the update",
}
"""The names of the parameters of the scans in the figures."""
SCANS = {
    "interval": {"low": (0.0, 0.15, 0.3), "high": (0.4, 0.5, 0.7, 1.0, 1.5, 3.0)},  # sigma / alpha
    "APG": {"beta": (0.0, -0.5, -0.75), "max_norm": (0.1, 0.2, 0.35, 0.5)},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Guided images without training.

    Args:
      out: The directory for pictures and `metrics.json`.
      dataset: A folder of PNG or JPEG files with one subfolder per class, or the TFDS name of a set of labelled images.
      size: For a folder of images: crop the largest centred square of each, and resize it to this many pixels (Lanczos filter).
      fashion: A folder with the four IDX files of Fashion-MNIST, such as Debian's dataset-fashion-mnist. It replaces `dataset`.
      components: Number of principal components.
      underfit: Blur of the under-fitted model: its square is added to the variance of every component.
      weak: Blur of the weaker model of autoguidance.
      scales: Guidance scales. 1 is the unguided model.
      shown: The scale of the exact model and of the under-fitted one, in pictures and summary. The scans use the first.
      budget: Maximum increase of the class FD for the interval and for APG. Each scan chooses the highest accuracy within it.
      samples: Number of samples per class and setting.
      steps: Number of sampler steps.
      seed: The seed of the samples. The scans use other random numbers.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = Path("out/exact_digits")
    dataset: str = "digits"
    size: int | None = None
    fashion: Path | None = None
    components: int = 24
    underfit: float = 0.2
    weak: float = 0.4
    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    shown: tuple[float, float] = (4.0, 2.0)
    budget: float = 0.05
    samples: int = 300
    steps: int = 32
    seed: int = 0
    smoke: bool = False

    def __post_init__(self) -> None:
        if not {1.0, *self.shown} <= set(self.scales):
            raise ValueError(f"scales must include 1 and those of shown, {self.shown}, got {self.scales}.")
        if not 0 < self.underfit < self.weak:
            raise ValueError(f"underfit must be positive and below weak, got {self.underfit} and {self.weak}.")
        if min(self.components, self.samples) < 2 or self.steps < 1:
            raise ValueError(
                "components and samples must be at least 2 and steps at least 1, got "
                f"{self.components}, {self.samples} and {self.steps}."
            )


def fashion(folder: Path, split: str) -> data.Data:
    """A split of Fashion-MNIST, "train" or "test", in the order of its files."""
    images, labels = idx.pair(*idx.find(folder)[split], (28, 28, 1), 10)
    return data.Data(images.astype(np.float32) / 127.5 - 1, labels.astype(np.int32), tuple(map(str, range(10))), "idx")


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """Classes of images as Gaussians in PCA space, the judge's logits, and the map from PCA space to images.

    Args:
      moments: The mean and the covariance of each class.
      weights: The weight of each class.
      judge: From points in PCA space to logits.
      images: From points in PCA space to images.
    """

    moments: tuple[Array, Array]
    weights: Array
    judge: Callable[[Array], Array]
    images: Callable[[Array], np.ndarray]

    def model(self, blur: float = 0.0) -> gj.oracles.GaussianMixture:
        blurred = self.moments[1] + blur**2 * jnp.eye(self.moments[1].shape[1])[None]
        return gj.oracles.GaussianMixture(self.moments[0], blurred, self.weights, jnp.arange(len(blurred)))


def fit(config: Config, train: data.Data, test: data.Data) -> tuple[World, float]:
    """The world, and the judge's accuracy on the images that the mixture was fitted to."""
    flat, shape = lambda images: images.reshape(len(images), -1), train.images.shape[1:]
    pca = PCA(config.components, svd_solver="covariance_eigh").fit(flat(train.images))
    unit = 0.5 / np.sqrt(pca.explained_variance_.mean())
    x, held_out = ((unit * pca.transform(flat(part))).astype(np.float32) for part in (train.images, test.images[:2000]))
    parts = [x[train.labels == y] for y in range(train.classes)]
    covariances = np.stack([np.cov(part, rowvar=False) for part in parts]) + 1e-3 * np.eye(config.components)
    moments = jnp.array([part.mean(0) for part in parts]), jnp.array(covariances, jnp.float32)
    weights = jnp.array([len(part) / len(x) for part in parts], jnp.float32)
    kernel = lambda a, b: jnp.exp(-0.2 * ((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T))
    gram = np.asarray(kernel(held_out, held_out)) + 0.1 * np.eye(len(held_out))
    answers = jnp.asarray(np.linalg.solve(gram, np.eye(train.classes)[test.labels[:2000]]), jnp.float32)
    judge = jax.tree_util.Partial(lambda held_out, answers, x: kernel(x, held_out) @ answers, jnp.asarray(held_out), answers)
    images = lambda x: (np.asarray(x) / unit @ pca.components_ + pca.mean_).reshape(*x.shape[:-1], *shape)
    reading = gj.metrics.accuracy(judge(x[:10_000]), jnp.asarray(train.labels[:10_000]))
    return World(moments, weights, judge, images), float(reading)


@functools.partial(jax.jit, static_argnums=0)
def measure(world: World, judge: Callable[[Array], Array], samples: Array) -> dict[str, Array]:
    """Accuracy and Frechet distance of samples `[classes, n, D]`. The judge's arrays are arguments because they are large."""
    with jax.ensure_compile_time_eval():  # the program needs no second decomposition, see frechet_distance
        mixture = world.model()
    classes, x = jnp.arange(len(samples)), samples.reshape(-1, samples.shape[2])
    posterior = jax.vmap(lambda y: mixture.class_log_prob(x, CLEAN, jnp.full(len(x), y)), out_axes=1)(classes)

    def and_pooled(m: Array, c: Array) -> tuple[Array, Array]:
        pooled = jnp.tensordot(world.weights, c, 1) + jnp.cov(m, rowvar=False, aweights=world.weights, ddof=0)
        return jnp.concatenate([m, (world.weights @ m)[None]]), jnp.concatenate([c, pooled[None]])

    moments = samples.mean(1), jax.vmap(lambda part: jnp.cov(part, rowvar=False))(samples)
    distances = jax.vmap(gj.metrics.frechet_distance)(*and_pooled(*moments), *and_pooled(*world.moments))
    right = lambda logits: gj.metrics.accuracy(logits, jnp.repeat(classes, samples.shape[1]))
    quality = {"judged": right(judge(x)), "exact": right(posterior)}
    return quality | {"fd": distances[-1], "class_fd": distances[:-1].mean()}


def sweep(config: Config, world: World, make: Any, settings: Any, given: Any = (), seed: int = 0) -> tuple[Array, list[Any]]:
    """Samples `[settings, classes, n, D]` and one row per setting. One program runs `make(labels, *setting, *given)`."""
    classes, size = world.moments[0].shape
    labels, settings = jnp.repeat(jnp.arange(classes), config.samples), jnp.asarray(settings, jnp.float32)
    levels = gj.levels(gj.schedules.edm(), config.steps, gj.spacings.karras(sigma_min=0.01, sigma_max=40.0))
    # The initial noise is an argument, because drawing it would double the time of compilation. The sampler draws nothing.
    x = levels.sigma[0] * np.random.default_rng((config.seed, seed)).standard_normal((len(labels), size), np.float32)
    keys = jax.random.split(jax.random.key(config.seed), len(labels))

    def one(setting: Array, keys: Array, x: Array) -> tuple[Array, Array]:
        branches, guidance = make(labels, *setting, *given)
        state, _ = gj.run(keys, branches, guidance, gj.dpmpp_2m(), levels, x)
        return state.x, state.evaluations

    hasty = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    lowered = jax.jit(jax.vmap(one, in_axes=(0, None, None))).lower(settings, keys, x)
    program = lowered.compile(hasty if config.smoke else None)
    start = time.perf_counter()
    samples, counts = jax.block_until_ready(program(settings, keys, x))
    cost = {"milliseconds": 1e3 * (time.perf_counter() - start) / (len(settings) * len(labels))}
    samples, counts = samples.reshape(len(settings), classes, -1, size), counts.tolist()
    rows = [jax.tree.map(float, measure(world, world.judge, part)) | cost for part in samples]
    return samples, [row | {"evaluations": count} for row, count in zip(rows, counts, strict=True)]


def measured(config: Config, world: World, count: int, seed: int = 0, steps: int = 40) -> gj.Calibration:
    """The calibration of CFG for the exact model, on `count` of its own samples."""
    model, levels = world.model(), gj.levels(gj.schedules.edm(), steps, gj.spacings.karras(sigma_min=0.01, sigma_max=40.0))

    @jax.jit
    def calibrate(draw: Array, noise: Array) -> gj.Calibration:
        labels = jnp.arange(count) % len(world.weights)
        x0, keys = model.sample(draw, count, labels), jax.random.split(noise, count)
        return gj.calibrate(keys, gj.branches(model.denoise, cond=labels, uncond=jnp.full_like(labels, -1)), x0, levels)

    return calibrate(*jax.random.split(jax.random.key(config.seed + 100 + seed)))


def methods(config: Config, world: World) -> dict[str, Callable[..., Any]]:
    """For each method, a function of the labels, the scale and the method's parameters that gives branches and guidance."""
    exact, blurred, weak = (world.model(blur) for blur in (0.0, config.underfit, config.weak))
    one = lambda model, **conds: gj.branches(model.denoise, **conds)
    two = lambda model, y: gj.branches(model.denoise, cond=y, uncond=jnp.full_like(y, -1))
    curve = measured(config, world, 1000)
    by_posterior = lambda y, w: gj.classifier(lambda x, level: exact.class_log_prob(x, level, y), w)
    return {
        "no guidance": lambda y, w: (one(exact, cond=y), gj.chain()),
        "CFG": lambda y, w: (two(exact, y), gj.cfg(w)),
        "classifier": lambda y, w: (one(exact, uncond=jnp.full_like(y, -1)), by_posterior(y, w)),
        "interval": lambda y, w, low, high: (two(exact, y), gj.during(gj.cfg(w), low, high)),
        "APG": lambda y, w, beta, max_norm: (two(exact, y), gj.apg(w, beta=beta, max_norm=max_norm)),
        "calibrated": lambda y, w: (two(exact, y), gj.cfg(gj.scales.calibrated(curve, w))),
        "under-fitted": lambda y, w: (one(blurred, cond=y), gj.chain()),
        "under-fitted, CFG": lambda y, w: (two(blurred, y), gj.cfg(w)),
        "under-fitted, autoguidance": lambda y, w: ((one(blurred, cond=y), one(weak, weak=y)), gj.autoguidance(w)),
    }


def scan(config: Config, world: World, name: str, make: Any, most: float) -> dict[str, Any]:
    """The rows of a scan, and the chosen parameters.

    Parameters with a class FD of at most `most` are compared by accuracy, rounded to 0.1 %, and then by cost.
    """
    grid = [(config.shown[0], *pair) for pair in itertools.product(*SCANS[name].values())]
    _, rows = sweep(config, world, make, grid, seed=1)
    key = lambda row: (max(row["class_fd"], most), -round(row["judged"], 3), row["evaluations"], row["class_fd"])
    chosen = grid[rows.index(min(rows, key=key))][1:]
    values = ", ".join(f"{axis} {value:g}" for axis, value in zip(SCANS[name], chosen, strict=True))
    print(f"The scan of {name} chose {values}.")
    return {"rows": rows, "chosen": chosen}


def paint(config: Config, scans: dict[str, dict[str, Any]], results: dict[str, Any]) -> None:
    """The curves over the scale, and the scans of the parameters."""
    names = {"scale": "guidance scale", "judged": "accuracy", "fd": "FD", "class_fd": "class FD"}
    kind = {"scale": "linear", "judged": "linear", "fd": "log", "class_fd": "log"}
    plots = {
        "Accuracy by the judge": ("scale", "judged"),
        "Frechet distance (FD)": ("scale", "fd"),
        "Mean FD of the classes": ("scale", "class_fd"),
        "Accuracy against class FD": ("class_fd", "judged"),
    }
    with plt.style.context(pictures.STYLE):
        figure, axes = plt.subplots(2, 4, figsize=(12, 7))
        for method, rows in results.items():
            name = method.removeprefix("under-fitted, ")
            style: Any = {"marker": "o"} | ({"ms": 10, "mfc": "none", "ls": "none"} if name == "classifier" else {})
            for axis, (x, y) in zip(axes[int(name != method)], plots.values() if len(rows) > 1 else (), strict=False):
                line = {"label": SHOWN[name], "color": METHODS[COLOURED.get(name, name)]} | style
                axis.plot([row[x] for row in rows], [row[y] for row in rows], **line)
        for line, model in zip(axes, ("exact model", "under-fitted model"), strict=True):
            for axis, (title, (x, y)) in zip(line, plots.items(), strict=True):
                floor = results["exact samples"][0]
                axis.axhline(floor[y], color=METHODS["exact"], lw=1.2, ls="--", label="exact samples")
                axis.plot(floor[x], floor[y], "*", ms=11, color=METHODS["exact"])
                axis.set(
                    title=f"{title}\n{model}" if "\n" not in title else f"{title}, {model}", xscale=kind[x], yscale=kind[y]
                )
                axis.set(xlabel=names[x], ylabel=names[y])
                axis.title.set_fontsize(13)
        handles = {label: handle for line in axes for handle, label in zip(*line[0].get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
        pictures.save(figure, config.out / "curves.png")
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.7), width_ratios=(6, 4))
        for axis, (name, found) in zip(axes, scans.items(), strict=True):
            (vertical, ys), (horizontal, xs) = SCANS[name].items()
            grid = np.reshape([row["judged"] for row in found["rows"]], (len(ys), len(xs)))
            axis.imshow(grid, cmap="Blues", aspect="auto", vmax=2 * grid.max() - grid.min())
            for (i, j), row in zip(np.ndindex(grid.shape), found["rows"], strict=True):
                weight = "bold" if (ys[i], xs[j]) == found["chosen"] else "normal"
                axis.text(j, i, f"{row['judged']:.3f}\n{row['class_fd']:.3f}", ha="center", va="center", size=12, weight=weight)
            axis.set(xticks=range(len(xs)), xticklabels=xs, yticks=range(len(ys)), yticklabels=ys)
            axis.set(title=SHOWN[name], xlabel=PARAMETERS[horizontal], ylabel=PARAMETERS[vertical])
            axis.grid(visible=False)
        figure.suptitle(f"Accuracy (above) and class FD (below) at scale {config.shown[0]:g}; bold: chosen", fontsize=14)
        pictures.save(figure, config.out / "scans.png")


def report(config: Config, results: dict[str, Any]) -> None:
    """Print the table, and compare the shown scales with the unguided models."""
    print("\n  method                      scale accuracy    exact       FD   class FD   evaluations ms per sample")
    notes = []
    for method, rows in results.items():
        under = method.startswith("under")
        base = results["under-fitted" if under else "no guidance"][0]
        for row in rows:
            quality = f"{row['judged']:8.3f} {row['exact']:8.3f} {row['fd']:8.3f} {row['class_fd']:10.3f}"
            print(f"  {method:26s} {row['scale']:6.1f} {quality} {row['evaluations']:13d} {row['milliseconds']:13.2f}")
            times = f"{row['fd'] / base['fd']:.2f} times the FD, {row['class_fd'] / base['class_fd']:.2f} times the class FD"
            if row["scale"] == config.shown[under]:
                notes.append(
                    f"{method} at {row['scale']:g}: {100 * (row['judged'] - base['judged']):+.1f} points of accuracy, {times}"
                )
    print("\nCompared with the same model without guidance:", *notes, sep="\n  ")


def how_many(config: Config, world: World) -> list[dict[str, Any]]:
    """One row per calibration, on other numbers of samples, other seeds, or ten levels instead of forty.

    A row has the deviation of rho and its standard error, both as medians over the levels. It also has the class FD at the
    scales 2, 4 and 8.
    """
    exact = world.model()
    truth, scales = measured(config, world, 20_000, seed=50), [[2.0], [4.0], [8.0]]

    def make(labels: Array, scale: Array, curve: gj.Curve) -> tuple[gj.Branches, gj.Guidance]:
        two = gj.branches(exact.denoise, cond=labels, uncond=jnp.full_like(labels, -1))
        return two, gj.cfg(gj.scales.calibrated(curve, scale))

    print("\nCalibrated scales by the measurement: rho (medians over the levels), and class FD at scales 2, 4 and 8")
    rows = []
    tried = [(count, seed, 40) for count in (100, 300, 1000) for seed in (1, 2)] + [(1000, 1, 10)]
    for count, seed, levels in tried:
        found = measured(config, world, count, seed, levels)
        there = jnp.interp(jnp.log(found.ratio), jnp.log(truth.ratio[::-1]), truth.rho[::-1])
        # At low noise the branches differ for a few samples only. There rho is noisy, and has no effect.
        off, error = jnp.median(jnp.abs(found.rho - there)), jnp.median(found.error)
        _, judged = sweep(config, world, make, scales, (found.for_classes,))
        row = {"samples": count, "seed": seed, "levels": levels, "off": float(off), "error": float(error)}
        rows.append(row | {"class_fd": [each["class_fd"] for each in judged]})
        distances = "  ".join(f"{each['class_fd']:.3f}" for each in judged)
        measurement = f"{count:5d} samples, seed {seed}, {levels} levels"
        print(f"  {measurement}: deviation {off:.3f}, standard error {error:.3f}, class FD {distances}")
    return rows


def main(config: Config) -> dict[str, Any]:
    """Run the job. Returns the contents of `metrics.json`."""
    begin = time.perf_counter()
    if config.smoke:
        small: Any = {"scales": (1.0, *sorted(config.shown)), "samples": 50, "steps": 16}
        config = dataclasses.replace(config, **small, out=config.out / "smoke")
    config.out.mkdir(parents=True, exist_ok=True)
    known = {
        "data and model": str(config.fashion or ("built in" if config.dataset == Config.dataset else config.dataset)),
        "methods": f"{len(config.scales)} scales",
        "calibrations": "" if config.smoke else "7 of them",
        "pictures": "",
    }
    stages = Stages("Exact guidance in PCA space, nothing is trained", known)
    with stages("data and model") as tell:
        load, splits = lambda split: data.load(config.dataset, split, config.out / "data", size=config.size), ("train", "test")
        train, test = (fashion(config.fashion, s) for s in splits) if config.fashion else map(load, splits)
        name, values = str(config.fashion or config.dataset), int(np.prod(train.images.shape[1:]))
        checks.check_count(name, "train", train, config.components, per_class=2)  # A covariance per class needs two.
        checks.check_count(name, "test", test, images=1)
        if values < config.components:
            raise ValueError(
                f"components must be at most {values}, the number of values of an image, got {config.components}; use fewer."
            )
        world, reading = fit(config, train, test)
        tell(f"a mixture fitted to {len(train):,} images, which the judge never saw, and of which it reads {reading:.1%}")
    rng, laws = np.random.default_rng((config.seed, 2)), zip(*map(np.asarray, world.moments), strict=True)
    fresh = np.array([rng.multivariate_normal(mean, covariance, config.samples) for mean, covariance in laws])
    floor = jax.tree.map(float, measure(world, world.judge, jnp.asarray(fresh, jnp.float32)))
    results: dict[str, Any] = {"exact samples": [floor | {"scale": 1.0, "evaluations": 0, "milliseconds": 0.0}]}
    few = min(4, config.samples, np.bincount(test.labels).min())
    real = np.stack([test.images[test.labels == y][:few] for y in range(train.classes)])
    samples, scans, grids = {}, {}, [{"held-out\nimages": real}, {"held-out\nimages": real}]
    with stages("methods"):
        for name, make in each("methods", methods(config, world).items(), "method"):
            if name in SCANS:
                scans[name] = scan(config, world, name, make, results["no guidance"][0]["class_fd"] + config.budget)
            given, under = scans[name]["chosen"] if name in SCANS else (), name.startswith("under")
            scales = (1.0,) if name in ("no guidance", "under-fitted") else config.scales
            samples[name], rows = sweep(config, world, make, [[scale] for scale in scales], given)
            results[name] = [{"scale": scale} | row for scale, row in zip(scales, rows, strict=True)]
            shown = config.shown[under] if len(scales) > 1 else 1.0
            title = textwrap.fill(SHOWN.get(name.removeprefix("under-fitted, "), "no guidance"), 13)
            grids[under][f"{title}\nscale {shown:g}"] = world.images(samples[name][scales.index(shown), :, :few])
    report(config, results)
    with stages("calibrations"):
        counts = [] if config.smoke else how_many(config, world)
    apart = float(jnp.abs(samples["classifier"] - samples["CFG"]).max())
    print(f"The exact classifier guides as CFG does: the maximum difference of their samples is {apart:.0e}.")
    with stages("pictures"):
        for name, model, columns in zip(("exact", "underfit"), ("Exact", "Under-fitted"), grids, strict=True):
            title = f"{model} model: one Gaussian per class in PCA space, one row per class"
            pictures.grids(config.out / f"samples_{name}.png", columns, train.names, title, labels=0.4)
        paint(config, scans, results)
    metrics = {"judge_on_real": reading, "scans": scans, "results": results, "apart": apart, "calibrations": counts}
    metrics["seconds"] = time.perf_counter() - begin
    (config.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    print(f"Open {config.out / 'curves.png'} first, then the samples in {config.out / 'samples_exact.png'}.")
    print(f"Other pictures and metrics are beside them. The run took {duration(metrics['seconds'])}.")
    return metrics


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")  # the world is exact on every device
    main(tyro.cli(Config))
