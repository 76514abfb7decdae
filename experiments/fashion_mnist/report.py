"""The report of the study of Fashion-MNIST: figures, tables and text from the measurements."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

import guidance_jax as gj
from experiments.fashion_mnist.sweep import Sweep, shown
from experiments.tools import data, folders, models
from experiments.tools.pictures import METHODS, STYLE, bands, grids, label_points, legend_below, save

Curves = dict[str, list[dict[str, Any]]]
CURVES = {
    "Conditional model": ("cfg", "interval", "rescale", "apg", "cfg_zero_star", "autoguidance", "calibrated"),
    "Unconditional model with a classifier": ("classifier", "clean_classifier"),
    "Under-trained conditional model": ("early_cfg", "early_autoguidance"),
}
LABELLED = {
    "cfg": (1.5, 3.0, 5.0, 8.0),
    "autoguidance": (2.0, 4.0),
    "calibrated": (3.0, 12.0),
    "interval": (8.0,),
    "classifier": (1.0, 4.0, 16.0),
    "clean_classifier": (1.0, 16.0),
    "early_cfg": (1.5, 3.0, 8.0),
    "early_autoguidance": (1.5, 2.0, 4.0),
}
"""The points of the curves that are labelled with their scale."""


def curve(path: Path, curves: Curves, x: str, y: str, labels: tuple[str, str], real: float | None = None) -> None:
    """One measure against another along the scales of every method, one panel for each model."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplot_mosaic("AB;AC", figsize=(10.5, 8.4), width_ratios=(1.25, 1))
        for axis, (title, ways) in zip(axes.values(), CURVES.items(), strict=True):
            for way in ways:
                xs, ys = ([row[key] for row in curves[way]] for key in (x, y))
                axis.plot(xs, ys, "-o", color=METHODS[way.removeprefix("early_")], label=models.WAYS[way].title)
            if y == "fd":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
            legend_below(axis, 2 if len(ways) > 2 else 1, down=0.12 if len(ways) > 2 else 0.25)
        note = f"(real images: {real:.2f})" if real is not None else "(labels: guidance scale)"
        figure.suptitle(f"{labels[1].capitalize()} against {labels[0]} {note}")
        for axis, ways in zip(axes.values(), CURVES.values(), strict=True) if x != "scale" else ():
            rows = [(way, row) for way in ways for row in curves[way] if row["scale"] in LABELLED.get(way, ())]
            color = {way: METHODS[way.removeprefix("early_")] for way in ways}
            label_points(axis, [(row[x], row[y], f"{row['scale']:g}", color[way]) for way, row in rows])
        save(figure, path)


def by_class(shown: tuple[np.ndarray, np.ndarray], classes: int, each: int) -> np.ndarray:
    """The first images of each class, in bytes, as `[classes, each, H, W, C]` in [-1, 1]."""
    images, labels = shown
    return np.stack([images[labels == y][:each] for y in range(classes)]).astype(np.float32) / 127.5 - 1


def strip(path: Path, sweep: Sweep, count: int, each: int) -> None:
    """The first samples of the first classes over the scale, by CFG and by its calibrated scale, from the same noise."""
    names = sweep.run.names[:4]
    pick = lambda way, scale: by_class(sweep.images(way, scale, count), len(sweep.run.names), each)[: len(names)]
    free = {"w = 0\nunconditional": pick("unconditional", 1.0), "w = 1\nno guidance": pick("conditional", 1.0)}
    methods = {
        title: free | {f"w = {scale:g}": pick(way, scale) for scale in (2.0, 5.0, 8.0)}
        for title, way in (("CFG", "cfg"), ("calibrated", "calibrated"))
    }
    bands(path, methods, names)


def gradients(path: Path, run: models.Run, held_out: data.Data) -> None:
    """Draw the gradients of both classifiers' log-probability on noisy images, from low to high noise."""
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
    titles = ("noisy image", "noise-aware\nclassifier", "clean-trained\nclassifier")
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(3, count * len(ratios), figsize=(10, 4.8))
        for row, (title, pictures) in enumerate(zip(titles, rows, strict=True)):
            for axis, picture in zip(axes[row], pictures, strict=True):
                axis.imshow(picture.mean(2), cmap="RdBu_r" if row else "gray", vmin=-1, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
            axes[row][0].set_ylabel(title, fontsize=12)
        for column, ratio in enumerate(np.repeat(ratios, count)):
            axes[0][column].set_title(rf"$\sigma / \alpha = {ratio:g}$", fontsize=12)
        figure.suptitle("Gradients of the classifiers at four noise levels (blue: darker, red: brighter)")
        save(figure, path)


FEW = 1000
"""With fewer samples or held-out images the report warns. The judge has 128 features."""
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
    """The table of measures in Markdown."""
    heads = ["", "scale", *(name.replace("fd", "FD") for name in COLUMNS), "KID", "Vendi", "evaluations", "ms per sample"]
    yield f"| {' | '.join(heads)} |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    merged: dict[Any, list[str]] = {}
    for name, row in rows.items():
        merged.setdefault((row["way"], row["scale"]) if "way" in row else name, []).append(name)
    for names in merged.values():
        row = rows[names[0]]
        cells = ["; ".join(names), f"{shown(row):g}" if "scale" in row else ""]
        cells += [format(row[column], form) for column, form in COLUMNS.items()]
        cells += [f"{row['kid']:.2f}", f"{row['vendi']:.1f}"]
        cells += [str(row["evaluations"]), f"{1000 * row['seconds']:.1f}"] if "seconds" in row else ["", ""]
        yield f"| {' | '.join(cells)} |"


def chosen(metrics: dict[str, Any]) -> str:
    """The sentence below the main table: where its scales come from."""
    few, many = metrics["curves"]["cfg"][0]["samples"], metrics["headlines"]["conditional"]["samples"]
    return (
        f"The scales were chosen in the sweeps, of {few:,} samples each. The rows are measured on {many:,} samples, so their "
        "accuracy or precision can differ from the one in their name. Scale 0 is the unconditional model, and scale 1 the "
        "conditional one."
    )


def findings(metrics: dict[str, Any]) -> Iterator[str]:
    """Sentences that describe the numbers. They are true for any outcome."""
    rows, curves = metrics["headlines"], metrics["curves"]
    plain, free = rows["conditional"], rows["unconditional"]
    sizes = curves["cfg"][0]["samples"], plain["samples"], metrics["held_out"]
    if min(sizes) < FEW:
        yield (
            f"These are few: {sizes[0]:,} samples per point of the sweeps, {sizes[1]:,} per row of the table, and {sizes[2]:,} "
            f"held-out images. With fewer than {FEW:,} the FD has a large error, so compare only large differences."
        )
    yield (
        f"The judge reads {metrics['evaluator_accuracy']:.1%} of the held-out images. The FD of real training images is "
        f"{metrics['real']['fd']:.2f}. That of the conditional model is {plain['fd']:.2f}, which is "
        f"{plain['fd'] / free['fd']:.2f} of the unconditional model's {free['fd']:.2f}."
    )
    cfg = curves["cfg"]
    first, last = cfg[0], cfg[-1]
    best = min(cfg, key=lambda row: row["fd"])
    yield (
        f"From scale {first['scale']:g} to {last['scale']:g} of CFG, accuracy goes from {first['accuracy']:.3f} to "
        f"{last['accuracy']:.3f} (maximum {max(row['accuracy'] for row in cfg):.3f}), recall from {first['recall']:.3f} to "
        f"{last['recall']:.3f}, and coverage from {first['coverage']:.3f} to {last['coverage']:.3f}. "
        f"The minimum of the FD is {best['fd']:.2f}, at scale {best['scale']:g}. Without guidance it is {first['fd']:.2f}."
    )
    equal = [(name, row) for name, row in rows.items() if "at accuracy" in name]
    if len(equal) > 1:
        each = "; ".join(
            f"{row['fd']:.2f} for {models.WAYS[row['way']].title} at scale {row['scale']:g} (accuracy {row['accuracy']:.3f})"
            for _, row in equal
        )
        yield f"The FD of methods at nearly equal accuracy: {each}."
    if (found := rows.get("CFG, calibrated, lowest FD")) and (plainest := rows.get("CFG, lowest FD")):
        yield (
            f"The minimum FD of the calibrated scale is {found['fd']:.2f} (scale {found['scale']:g}, accuracy "
            f"{found['accuracy']:.3f}). This is {found['fd'] / plainest['fd']:.2f} of CFG's minimum."
        )
    early, weak = rows["under-trained, conditional"], rows["under-trained, autoguidance, lowest FD"]
    text = (
        f"Autoguidance changes the FD of the under-trained model from {early['fd']:.2f} to {weak['fd']:.2f}, at accuracy "
        f"{weak['accuracy']:.3f}."
    )
    other = rows.get("under-trained, CFG, at its accuracy")
    yield text + (
        f" CFG at that accuracy ({other['accuracy']:.3f}) has {other['fd']:.2f}."
        if other
        else " CFG does not reach that accuracy."
    )
    aware, clean = (next(row for row in rows.values() if row["way"] == way) for way in ("classifier", "clean_classifier"))
    yield (
        f"At scale {aware['scale']:g} the noise-aware classifier has accuracy {aware['accuracy']:.3f} and FD {aware['fd']:.2f}."
        f" The classifier trained on clean images has accuracy {clean['accuracy']:.3f} and FD {clean['fd']:.2f}."
    )


def write(config: Any, metrics: dict[str, Any], sweep: Sweep, held_out: data.Data) -> None:
    """Write `report.md` and its figures to `config.out`."""
    out, curves, names = config.out, metrics["curves"], sweep.run.names
    classes, real = len(names), metrics["real"]
    curve(out / "accuracy_coverage.png", curves, "coverage", "accuracy", ("coverage", "accuracy"))
    curve(out / "fd.png", curves, "scale", "fd", ("guidance scale", "Frechet distance"), real["fd"])
    curve(out / "fd_accuracy.png", curves, "accuracy", "fd", ("accuracy", "Frechet distance"))
    curve(out / "precision_recall.png", curves, "recall", "precision", ("recall", "precision"))
    held = np.round((held_out.images + 1) * 127.5).astype(np.uint8)
    each = min(4, config.samples // classes, np.bincount(held_out.labels, minlength=classes).min())
    ways = (("unconditional", 1.0), ("conditional", 1.0), ("cfg", 2.0), ("cfg", 5.0), ("classifier", 4.0))
    shown = {"held-out\nimages": by_class((held, held_out.labels), classes, each)}
    for way, scale in ways:
        title = models.WAYS[way].title.replace(" ", "\n") + (f"\nw = {scale:g}" if scale != 1 else "\nmodel")
        shown[title] = by_class(sweep.images(way, scale, config.samples), classes, each)
    overview = "Samples of each method, one row per class (the unconditional model has none)"
    grids(out / "overview.png", shown, names, overview, labels=1.2)
    for way, rows in curves.items():
        scales = [row["scale"] for row in rows[1:]]
        points = {f"w = {scale:g}": by_class(sweep.images(way, scale, config.samples), classes, each) for scale in scales}
        grids(out / f"classes_{way}.png", points, names, f"Samples by {models.WAYS[way].title}, one row per class", labels=1.2)
    strip(out / "scales.png", sweep, config.samples, each)
    gradients(out / "gradients.png", sweep.run, held_out)
    title = "Fashion-MNIST" if config.dataset == "fashion_mnist" else folders.printable(config.dataset)
    (out / "report.md").write_text("\n".join(text(metrics, title)) + "\n")


def tell(config: Any, metrics: dict[str, Any]) -> None:
    """Print the main table and the findings, and which file to open first."""
    print("", *table(metrics["headlines"]), "", chosen(metrics), *findings(metrics), "", sep="\n")
    print(f"Open {config.out / 'report.md'} first. It has all tables and pictures. {config.out / 'overview.png'} has samples.")


def text(metrics: dict[str, Any], title: str) -> Iterator[str]:
    """The report in Markdown."""
    seconds = metrics["seconds"]
    yield from (f"# Guidance on {title}", "")
    yield from (
        "The judge is a classifier of clean images that no guidance method uses. It gives accuracy and features. All distances "
        "are to the held-out images. FD is the Frechet distance of these features. It is not FID, which uses Inception.",
        "",
        f"This run took {seconds['all'] / 60:.1f} minutes, {seconds['training'] / 60:.1f} of them for training.",
    )
    yield from ("", "![Samples of each method, one row per class](overview.png)", "", "## What was found", "")
    for sentence in findings(metrics):
        yield from (sentence, "")
    yield from (*table({"real training images": metrics["real"], **metrics["headlines"]}), "", chosen(metrics), "")
    yield from ("## Samples of four classes over the scale, from the same noise", "", "![](scales.png)", "")
    yield from ("## Accuracy and coverage of every method", "", "![](accuracy_coverage.png)", "")
    yield from ("## Frechet distance over the scale", "", "![](fd.png)", "", "![](fd_accuracy.png)", "")
    yield from ("## Precision and recall", "", "![](precision_recall.png)", "")
    yield from (
        "## Gradients of the two classifiers",
        "",
        "Each gradient is divided by its own magnitude.",
        "",
        "![](gradients.png)",
        "",
    )
    for way, rows in metrics["curves"].items():
        yield from (f"## {models.WAYS[way].title}", "", f"![](classes_{way}.png)", "")
        yield from table({"without guidance": rows[0]} | {f"at {row['scale']:g}": row for row in rows[1:]})
        yield ""
