"""The report of the study of Fashion-MNIST: its figures and its words, all from what was measured."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import guidance_jax as gj
from experiments.fashion_mnist.sweep import Sweep
from experiments.tools import data, models
from experiments.tools.pictures import INK, MUTED, STYLE, montage

COLOURS = {way: plt.colormaps["tab20"]((2 * i) % 20 + i // 10) for i, way in enumerate(models.WAYS)}
Curves = dict[str, list[dict[str, Any]]]
CURVES = {
    "Of the trained model": ("cfg", "interval", "rescale", "apg", "cfg_zero_star", "autoguidance", "calibrated"),
    "Of the unconditional model, by classifiers": ("classifier", "clean_classifier"),
    "Of the under-trained model": ("early_cfg", "early_autoguidance"),
}


def curve(path: Path, curves: Curves, x: str, y: str, labels: tuple[str, str], real: float | None = None) -> None:
    """One measure against another along the scales of every way, a panel a model."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(CURVES), figsize=(4.4 * len(CURVES), 3.8), layout="constrained")
        for axis, (title, ways) in zip(axes, CURVES.items(), strict=True):
            for way in ways:
                xs, ys = ([row[key] for row in curves[way]] for key in (x, y))
                axis.plot(xs, ys, "-o", ms=3, color=COLOURS[way], label=models.WAYS[way].title)
                if x != "scale":
                    for row in curves[way][1:]:
                        axis.annotate(f"{row['scale']:g}", (row[x], row[y]), fontsize=7, color=COLOURS[way])
            if real is not None:
                axis.axhline(real, color=MUTED, lw=0.8, ls=":", label="real images")
            if y == "fd":
                axis.set_yscale("log")
            axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
            axis.legend(fontsize=7)
        figure.savefig(path)
        plt.close(figure)


def grids(path: Path, pictures: dict[str, np.ndarray], title: str, names: tuple[str, ...]) -> None:
    """Montages `[classes, n, H, W, C]` in bytes side by side, a row a class."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(pictures), figsize=(2.6 * len(pictures), 5.4), squeeze=False, layout="constrained")
        for axis, (name, grid) in zip(axes[0], pictures.items(), strict=True):
            canvas = montage(grid.astype(np.float32) / 127.5 - 1, least=grid.shape[2])
            axis.imshow(canvas if canvas.shape[2] == 3 else canvas[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_title(name, fontsize=9, color=INK)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        bottom = axes[0][0].get_ylim()[0]
        axes[0][0].set_yticks((np.arange(len(names)) + 0.5) * bottom / len(names), names, fontsize=7)
        figure.suptitle(title, color=INK)
        figure.savefig(path)
        plt.close(figure)


def by_class(shown: tuple[np.ndarray, np.ndarray], classes: int, each: int) -> np.ndarray:
    """The first images of each class, `[classes, each, H, W, C]`."""
    images, labels = shown
    return np.stack([images[labels == y][:each] for y in range(classes)])


def gradients(path: Path, run: models.Run, held_out: data.Data) -> None:
    """What each classifier would change in a noisy image to make it more of its class, from little noise to much."""
    ratios, count = jnp.array([0.1, 0.3, 1.0, 3.0]), 2
    x0, labels = jnp.asarray(held_out.images[:count]), jnp.asarray(held_out.labels[:count])
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    rows: list[list[np.ndarray]] = [[] for _ in range(3)]
    for ratio in ratios:
        level = models.SCHEDULE.at(ratio)
        x = level.alpha * x0 + level.sigma * noise
        rows[0].extend(np.asarray(x / (level.alpha + level.sigma)))
        for row, (name, way) in enumerate((("classifier", "classifier"), ("clean", "clean_classifier")), 1):
            apply, params, _ = run.networks[name]
            time = (lambda t: t) if way == "classifier" else jnp.zeros_like
            classify = lambda x, t, apply=apply, params=params, time=time: apply(params, x, time(t))
            log_prob = gj.scores.class_log_prob(classify, labels)
            gradient = np.asarray(gj.scores.classifier_score(log_prob, x, level))
            size = np.quantile(np.abs(gradient), 0.995, axis=(1, 2, 3), keepdims=True)
            rows[row].extend(gradient / np.maximum(size, 1e-12))
    titles = ("noisy image", "noise-aware classifier's gradient", "clean-trained classifier's gradient")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(3, count * len(ratios), figsize=(1.5 * count * len(ratios), 5), layout="constrained")
        for row, (title, pictures) in enumerate(zip(titles, rows, strict=True)):
            for axis, picture in zip(axes[row], pictures, strict=True):
                axis.imshow(picture.mean(2), cmap="RdBu_r" if row else "gray", vmin=-1, vmax=1)
                axis.set(xticks=[], yticks=[])
            axes[row][0].set_ylabel(title.replace("'s ", "'s\n"), fontsize=8)
        for column, ratio in enumerate(np.repeat(ratios, count)):
            axes[0][column].set_title(f"sigma / alpha {ratio:g}", fontsize=8)
        figure.savefig(path)
        plt.close(figure)


COLUMNS = {
    "samples": "",
    "accuracy": ".3f",
    "fd": ".2f",
    "precision": ".3f",
    "recall": ".3f",
    "density": ".3f",
    "coverage": ".3f",
}


def table(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Rows of measures in Markdown."""
    heads = ["", "scale", *(name.replace("fd", "FD") for name in COLUMNS), "KID", "Vendi", "evaluations", "ms a sample"]
    yield f"| {' | '.join(heads)} |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for name, row in rows.items():
        cells = [name, f"{row['scale']:g}" if "scale" in row else ""]
        cells += [format(row[column], form) for column, form in COLUMNS.items()]
        cells += [f"{row['kid']:.2f}", f"{row['vendi']:.1f}"]
        cells += [str(row["evaluations"]), f"{1000 * row['seconds']:.1f}"] if "seconds" in row else ["", ""]
        yield f"| {' | '.join(cells)} |"


def findings(metrics: dict[str, Any]) -> Iterator[str]:
    """What the numbers say, whichever way they fall."""
    rows, curves = metrics["headlines"], metrics["curves"]
    plain, free = rows["conditional"], rows["unconditional"]
    yield (
        f"The judge reads {metrics['evaluator_accuracy']:.1%} of the held-out real images. Real training images have an FD of "
        f"{metrics['real']['fd']:.2f}, the conditional model {plain['fd']:.2f}, the unconditional one {free['fd']:.2f}: "
        f"{plain['fd'] / free['fd']:.2f} of it for the former."
    )
    cfg = curves["cfg"]
    first, last = cfg[0], cfg[-1]
    best = min(cfg, key=lambda row: row["fd"])
    yield (
        f"Fidelity up, diversity down: from scale {first['scale']:g} to {last['scale']:g} of CFG the accuracy goes from "
        f"{first['accuracy']:.3f} to {last['accuracy']:.3f} (highest {max(row['accuracy'] for row in cfg):.3f}), recall from "
        f"{first['recall']:.3f} to {last['recall']:.3f}, coverage from {first['coverage']:.3f} to {last['coverage']:.3f}. "
        f"The FD is lowest at scale {best['scale']:g}, {best['fd']:.2f} against {first['fd']:.2f} without guidance."
    )
    equal = [(name, row) for name, row in rows.items() if "at accuracy" in name]
    if len(equal) > 1:
        told = "; ".join(
            f"{row['fd']:.2f} ({row['way']}, scale {row['scale']:g}, measured {row['accuracy']:.3f})" for _, row in equal
        )
        yield f"Ways at equal accuracy: FD {told}."
    if (found := rows.get("CFG, calibrated, lowest FD")) and (plainest := rows.get("CFG, lowest FD")):
        yield (
            f"By a calibrated scale the lowest FD is {found['fd']:.2f} (scale {found['scale']:g}, accuracy "
            f"{found['accuracy']:.3f}), {found['fd'] / plainest['fd']:.2f} of CFG's lowest."
        )
    early, weak = rows["under-trained, conditional"], rows["under-trained, autoguidance, lowest FD"]
    text = (
        f"Autoguidance takes the under-trained FD from {early['fd']:.2f} to {weak['fd']:.2f}, accuracy {weak['accuracy']:.3f}"
    )
    other = rows.get("under-trained, CFG, at its accuracy")
    yield text + (
        f"; CFG of that accuracy ({other['accuracy']:.3f}) has {other['fd']:.2f}."
        if other
        else "; CFG reaches no such accuracy."
    )
    aware, clean = (next(row for row in rows.values() if row["way"] == way) for way in ("classifier", "clean_classifier"))
    yield (
        f"Why a classifier must know noise: at scale {aware['scale']:g} the noise-aware one gives accuracy "
        f"{aware['accuracy']:.3f} and FD {aware['fd']:.2f}, the one trained on clean images {clean['accuracy']:.3f} and "
        f"{clean['fd']:.2f}."
    )


def write(config: Any, metrics: dict[str, Any], sweep: Sweep, held_out: data.Data) -> None:
    """`report.md` and its figures, in `config.out`."""
    out, curves, names = config.out, metrics["curves"], sweep.run.names
    classes, real = len(names), metrics["real"]
    curve(out / "accuracy_coverage.png", curves, "coverage", "accuracy", ("coverage", "accuracy"))
    curve(out / "fd.png", curves, "scale", "fd", ("guidance scale", "Frechet distance"), real["fd"])
    curve(out / "fd_accuracy.png", curves, "accuracy", "fd", ("accuracy", "Frechet distance"))
    curve(out / "precision_recall.png", curves, "recall", "precision", ("recall", "precision"))
    held = np.round((held_out.images + 1) * 127.5).astype(np.uint8)
    each = min(5, config.samples // classes, np.bincount(held_out.labels, minlength=classes).min())
    shown = {
        "real, held out": by_class((held, held_out.labels), classes, each),
        **{
            f"{models.WAYS[way].title}" + (f", {scale:g}" if scale != 1 else ""): by_class(
                sweep.images(way, scale, config.samples), classes, each
            )
            for way, scale in (("unconditional", 1.0), ("conditional", 1.0), ("cfg", 2.0), ("cfg", 5.0), ("classifier", 4.0))
        },
    }
    grids(out / "overview.png", shown, "A row a class", names)
    for way, rows in curves.items():
        scales = [row["scale"] for row in rows[1:]]
        points = {f"scale {scale:g}": by_class(sweep.images(way, scale, config.samples), classes, each) for scale in scales}
        grids(out / f"classes_{way}.png", points, models.WAYS[way].title, names)
    gradients(out / "gradients.png", sweep.run, held_out)
    title = "Fashion-MNIST" if config.dataset == "fashion_mnist" else config.dataset
    (out / "report.md").write_text("\n".join(text(metrics, title)) + "\n")
    print(f"\n{out / 'report.md'} has the whole table and the pictures.\n")
    print("\n".join(table(metrics["headlines"])), "\n")
    print("\n".join(findings(metrics)))


def text(metrics: dict[str, Any], title: str) -> Iterator[str]:
    """The report in Markdown."""
    seconds = metrics["seconds"]
    yield from (f"# Guidance on {title}", "")
    yield from (
        "Features and accuracy are those of a classifier trained on clean images, which no guidance sees; distances are to "
        "the held-out images. FD is the Frechet distance of these features, an FID but for the network.",
        "",
        f"Training took {seconds['training'] / 60:.1f} minutes in this run, all of it {seconds['all'] / 60:.1f}.",
    )
    yield from ("", "![A row a class](overview.png)", "", "## What was found", "")
    for sentence in findings(metrics):
        yield from (sentence, "")
    yield from (*table({"real training images": metrics["real"], **metrics["headlines"]}), "")
    yield from ("## Accuracy against coverage, every method", "", "![](accuracy_coverage.png)", "")
    yield from ("## The distance over the scale", "", "![](fd.png)", "", "![](fd_accuracy.png)", "")
    yield from ("## Precision and recall", "", "![](precision_recall.png)", "")
    yield from (
        "## The two classifiers' gradients",
        "",
        "Each gradient is scaled by its own size.",
        "",
        "![](gradients.png)",
        "",
    )
    for way, rows in metrics["curves"].items():
        yield from (f"## {models.WAYS[way].title}", "", f"![](classes_{way}.png)", "")
        yield from table({"without guidance": rows[0]} | {f"at {row['scale']:g}": row for row in rows[1:]})
        yield ""
