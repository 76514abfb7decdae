"""Figures of all jobs: their style, the colours of methods and samplers, image grids, and labelled curves."""

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.patheffects import withStroke
from PIL import Image, ImageDraw, ImageFont

import guidance_jax as gj

STYLE = Path(__file__).with_name("style.mplstyle")
"""The style of all figures. Use it as `with plt.style.context(STYLE):`."""
INK, MUTED = "#222222", "#777777"
METHODS = {
    "exact": INK,
    "real": INK,
    "conditional": MUTED,
    "unconditional": "#a0522d",
    "weaker": "#a0522d",
    "cfg": "#1f6fb4",
    "cfg_sde": "#14a3c7",
    "constant": "#1f6fb4",
    "interval": "#e07b00",
    "rescale": "#e0479e",
    "apg": "#cc2b2b",
    "cfg_zero_star": "#008b8b",
    "autoguidance": "#2b8a3e",
    "calibrated": "#7b3fa0",
    "calibrated_prompts": "#c264d6",
    "calibrated_autoguidance": "#a67c00",
    "classifier": "#8c4b1f",
    "clean_classifier": "#d1477a",
    "learned": "#c2185b",
    "particles": "#6a9a00",
}
"""The colour of each method in every figure. A constant scale is CFG; `exact` also stands for the tilted density."""
SAMPLERS = {
    "ddim": "#1f6fb4",
    "heun": "#e07b00",
    "dpmpp_2s": "#2b8a3e",
    "dpmpp_2m": "#cc2b2b",
    "dpmpp_3m": "#7b3fa0",
    "unipc": "#8c4b1f",
    "ddpm": "#e0479e",
    "dpmpp_sde": "#555555",
    "heun_sde": "#008b8b",
}
"""The colour of each sampler in every figure."""
CURVES = (METHODS["cfg"], METHODS["interval"], METHODS["autoguidance"], METHODS["calibrated"], INK)
"""Colours of curves that are neither methods nor samplers."""


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file and close it. A file larger than 400 kB is reduced to 256 colours."""
    figure.savefig(path)
    plt.close(figure)
    if path.stat().st_size > 400_000:
        with Image.open(path) as image:
            reduced = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        reduced.save(path, optimize=True)


def legend_below(axis: Axes, columns: int, down: float = 0.2, **options: Any) -> None:
    """Place the legend below the axes, so that it covers no curve."""
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -down), ncols=columns, columnspacing=1.2, **options)


def label_points(axis: Axes, points: Iterable[tuple[float, float, str, Any]], size: float = 11) -> None:
    """Add labels `(x, y, text, colour)` of points on curves, each as far as possible from the curves and the other labels.

    Call it last: the limits of the axes must be final.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    pixels, (low, high) = figure.dpi / 72, axis.get_window_extent().get_points()
    corners = [line.get_transform().transform(line.get_xydata()) for line in axis.lines]
    parts = [np.linspace(a, b, 40) for line in corners for a, b in itertools.pairwise(line)]
    taken = np.concatenate(parts or [np.empty((0, 2))])
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for x, y, text, colour in points:
        shape = size * pixels * np.array([0.32 * len(text), 0.42])
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        candidates = np.concatenate([around * (shape + gap * pixels)[None] for gap in (5, 9)])
        at = axis.transData.transform((x, y)) + candidates
        apart = np.linalg.norm((at[:, None] - taken[None]) / shape[None, None], axis=2).min(1)
        inside = ((at - shape[None] > low[None]) & (at + shape[None] < high[None])).all(1)
        best = (np.minimum(apart, 2.2) + inside - 0.02 * np.linalg.norm(candidates, axis=1) / pixels).argmax()
        taken = np.concatenate([taken, at[best] + shape[None] * np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)])])
        axis.annotate(
            text,
            (x, y),
            xytext=tuple(candidates[best] / pixels),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def montage(images: np.ndarray, minimum: int = 32, rows: Sequence[str] = ()) -> np.ndarray:
    """A grid `[R, C, H, W, channels]` in [-1, 1] as one image in [0, 1].

    Images are enlarged to a height of at least `minimum` pixels. Each one has a white border.

    Args:
      images: The images.
      minimum: The minimum height of an image in pixels.
      rows: Names of the rows, written on their left; empty: none.
    """
    times = -(-minimum // images.shape[2])
    tiles = np.clip((images + 1) / 2, 0, 1).repeat(times, axis=2).repeat(times, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), constant_values=1)
    count, columns, height, width, channels = tiles.shape
    canvas = tiles.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, channels)
    return np.concatenate([_margin(rows, height, channels), canvas], axis=1) if rows else canvas


def _margin(names: Sequence[str], height: int, channels: int) -> np.ndarray:
    """A white margin with a name per row of that height, set flush right, as an image in [0, 1]."""
    size = min(max(height // 5, 11), 28)
    font, lines = ImageFont.truetype(findfont("DejaVu Sans"), size), max(1, height // (size + 6))
    wrapped = [textwrap.fill(name, max(14, -(-len(name) // lines))) for name in names]
    wide = max(font.getlength(line) for name in wrapped for line in name.split("\n"))
    margin = Image.new("L", (round(wide) + 2 * size, len(names) * height), 255)
    draw = ImageDraw.Draw(margin)
    for row, name in enumerate(wrapped):
        draw.text((margin.width - size, (row + 0.5) * height), name, fill=34, font=font, anchor="rm", align="right")
    return np.repeat(np.asarray(margin)[..., None] / 255, channels, axis=2)


def grids(path: Path, columns: dict[str, np.ndarray], rows: Sequence[str], title: str, labels: float = 0.8) -> None:
    """Write image grids `[R, C, H, W, channels]` in [-1, 1] side by side, with names above the grids and left of the rows.

    Args:
      path: the PNG file.
      columns: the grids by their names.
      rows: the name of each row.
      title: the title of the figure.
      labels: the width of the names of the rows, in inches.
    """
    canvases = {name: montage(grid) for name, grid in columns.items()}
    height, width = next(iter(canvases.values())).shape[:2]
    wide = min((10 - labels) / len(columns), 0.45 * next(iter(columns.values())).shape[1] * width / height * len(rows))
    with plt.style.context(STYLE):
        lines = title.count("\n") + max(name.count("\n") for name in columns)
        size = labels + wide * len(columns), (wide - 0.15) * height / width + 1.1 + 0.25 * lines
        figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False)
        for axis, (name, canvas) in zip(axes[0], canvases.items(), strict=True):
            axis.imshow(canvas if canvas.shape[2] == 3 else canvas[..., 0], vmin=0, vmax=1)
            axis.set_title(name, fontsize=13)
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
        axes[0][0].set_yticks((np.arange(len(rows)) + 0.5) * height / len(rows) - 0.5, rows)
        axes[0][0].tick_params(length=0)
        figure.suptitle(title)
        save(figure, path)


def bands(path: Path, grids: dict[str, dict[str, np.ndarray]], rows: Sequence[str], labels: float = 1.5) -> None:
    """Write image grids `[R, C, H, W, channels]` in [-1, 1], one band per method and one column per scale.

    Args:
      path: The PNG file.
      grids: The grids by the name of their column, by the name of their band.
      rows: The name of each row of a band.
      labels: The width of the names of bands and rows, in inches.
    """
    columns = list(next(iter(grids.values())))
    height, width = montage(next(iter(next(iter(grids.values())).values()))).shape[:2]
    wide = (10 - labels) / len(columns)
    with plt.style.context(STYLE):
        size = 10, len(grids) * wide * height / width + 0.5
        figure, axes = plt.subplots(len(grids), len(columns), figsize=size, squeeze=False)
        for column, name in zip(axes[0], columns, strict=True):
            column.set_title(name, fontsize=13)
        for line, (band, shown) in zip(axes, grids.items(), strict=True):
            for axis, grid in zip(line, shown.values(), strict=True):
                canvas = montage(grid)
                axis.imshow(canvas if canvas.shape[2] == 3 else canvas[..., 0], vmin=0, vmax=1)
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
                axis.spines[:].set_visible(False)
            line[0].set_yticks((np.arange(len(rows)) + 0.5) * height / len(rows) - 0.5, rows)
            line[0].tick_params(length=0)
            line[0].set_ylabel(band, fontsize=14, fontweight="bold", labelpad=8)
        figure.set_layout_engine("constrained", h_pad=0.04, hspace=0.0, w_pad=0.05)
        save(figure, path)


def digits(
    out: Path, samples: dict[str, np.ndarray], scales: tuple[float, ...], metrics: dict[str, Any], test_set: Any
) -> None:
    """Write a grid of samples for each method, an overview of all methods, and the curves of fidelity and diversity."""
    each = min(5, samples["cfg"].shape[2], np.bincount(test_set.labels).min())
    names = [f"class {name}" if name.isdecimal() else name for name in test_set.names]
    rows = "one row per class (the unconditional model has none)"
    at = {scale: i for i, scale in enumerate(scales)}
    shown = [scale for scale in (1.0, 2.0, 4.0, 12.0) if scale in at] or list(scales[:4])
    real = np.stack([test_set.images[test_set.labels == y][:each] for y in range(test_set.classes)])
    titles = {
        "cfg": "Classifier-free guidance (CFG)",
        "classifier": "Classifier guidance of the unconditional model",
        "calibrated": "CFG with a calibrated scale",
    }
    unguided = {
        "held-out images": real,
        "unconditional model": samples["cfg"][at[0.0], :, :each],
        "conditional model": samples["cfg"][at[1.0], :, :each],
    }
    grids(out / "samples_unguided.png", unguided, names, f"Samples without guidance, {rows}")
    for way, title in titles.items():
        columns = {f"w = {scale:g}": samples[way][at[scale], :, :each] for scale in shown}
        grids(out / f"samples_{way}.png", columns, names, f"{title}, one row per class")
    best = max(range(len(scales)), key=lambda i: metrics["classifier"][i]["accuracy"])
    some, high = 4.0 if 4.0 in at else scales[-1], max(scales)
    overview = {
        "unconditional\nw = 0": samples["cfg"][at[0.0], :, :each],
        "no guidance\nw = 1": samples["cfg"][at[1.0], :, :each],
        f"CFG\nw = {some:g}": samples["cfg"][at[some], :, :each],
        f"CFG\nw = {high:g} ": samples["cfg"][at[high], :, :each],
        f"calibrated\nw = {high:g}": samples["calibrated"][at[high], :, :each],
        f"classifier\nw = {scales[best]:g}": samples["classifier"][best, :, :each],
    }
    grids(out / "overview.png", overview, names, f"Guided handwritten digits, {rows}")
    curve(out / "fidelity_diversity.png", scales, metrics)


def curve(path: Path, scales: tuple[float, ...], metrics: dict[str, Any]) -> None:
    """Plot accuracy, precision, recall and distance over the scale, and precision against recall."""
    ways = {"cfg": "CFG", "classifier": "classifier guidance", "calibrated": "CFG, calibrated scale"}
    titles = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "class_fd": "Distance"}
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(14, 8))
        *over, against, legend = axes.flat
        for way, label in ways.items():
            column = {name: [row[name] for row in metrics[way]] for name in titles}
            for axis, name in zip(over, titles, strict=True):
                axis.plot(scales, column[name], "o-", color=METHODS[way], label=label)
            against.plot(column["recall"], column["precision"], "o-", color=METHODS[way])
        over[0].axhline(metrics["evaluator_accuracy"], color=METHODS["real"], lw=1.2, ls=":", label="held-out images")
        for axis, title in zip(over, titles.values(), strict=True):
            axis.set(title=title, xlabel="guidance scale w", ylabel=title.lower())
        for axis in over[:3]:
            axis.set_ylim(0, 1.04)
        over[3].set(title="Distance to training images", yscale="log")
        over[3].yaxis.set_major_formatter("{x:g}")
        against.set(title="Precision against recall\n(labels: w)", xlabel="recall", ylabel="precision")
        legend.axis("off")
        legend.legend(*over[0].get_legend_handles_labels(), loc="center")
        labelled = {"cfg": (0, 1, 4, 8, 12), "classifier": (1, 4, 8, 12), "calibrated": (12,)}
        label_points(
            against,
            [
                (row["recall"], row["precision"], f"{scale:g}", METHODS[way])
                for way in ways
                for scale, row in zip(scales, metrics[way], strict=True)
                if scale in labelled[way]
            ],
        )
        save(figure, path)


def calibration(path: Path, curve: gj.Curve, scales: Sequence[float]) -> None:
    """Plot rho of the form for classes, with its standard error, and the guidance scale that follows, over the noise level."""
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4.8))
        ratio, rho, error = map(np.asarray, curve)
        axes[0].plot(ratio, rho, color=METHODS["calibrated"], label="measured on unguided samples")
        axes[0].fill_between(ratio, rho - error, rho + error, color=METHODS["calibrated"], alpha=0.2, lw=0)
        for scale, color in zip(scales, CURVES, strict=False):
            axes[1].plot(ratio, scale / (rho + scale * (1 - rho)), color=color, label=f"w = {scale:g}")
        name = r"$\rho$: error with the class / without"
        axes[0].set(title=r"Calibration curve $\rho$" "\n(band: standard error)", ylabel=name, ylim=(0, 1.04))
        axes[1].set(title=r"Calibrated scale, $w / (\rho + w (1 - \rho))$", ylabel="guidance scale at the level")
        for axis in axes:
            axis.set(xscale="log", xlabel="noise level sigma / alpha")
        legend_below(axes[0], 1)
        legend_below(axes[1], 4 if len(axes[1].lines) > 2 else 2)
        save(figure, path)
