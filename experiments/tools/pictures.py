"""What people would rather look at."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt

import guidance_jax as gj

INK, MUTED, BLUE, ORANGE, GREEN, PURPLE = "#222222", "#777777", "#1f6fb4", "#d9730d", "#2b8a3e", "#7b3fa0"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "savefig.dpi": 130,
    "savefig.bbox": "tight",
}


def montage(images: np.ndarray, least: int = 32) -> np.ndarray:
    """A grid `[R, C, H, W, channels]` as one image in [0, 1]: pixels enlarged to tiles of `least` or more, white between."""
    times = -(-least // images.shape[2])
    tiles = np.clip((images + 1) / 2, 0, 1).repeat(times, axis=2).repeat(times, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), constant_values=1)
    rows, columns, height, width, channels = tiles.shape
    return tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def panels(path: Path, grids: dict[str, np.ndarray], title: str) -> None:
    """Montages side by side, each under its name."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(grids), figsize=(3 * len(grids), 5), squeeze=False, layout="constrained")
        for axis, (name, grid) in zip(axes[0], grids.items(), strict=True):
            canvas = montage(grid)
            axis.imshow(canvas if canvas.shape[2] == 3 else canvas[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_title(name, color=INK)
            axis.axis("off")
        figure.suptitle(title, color=INK, fontsize=12)
        figure.savefig(path)
        plt.close(figure)


def digits(
    out: Path, samples: dict[str, np.ndarray], scales: tuple[float, ...], metrics: dict[str, Any], test_set: Any
) -> None:
    """A grid of samples a method, the overview of both, and the fidelity-diversity curve."""
    each = min(6, samples["cfg"].shape[2])
    at = {scale: i for i, scale in enumerate(scales)}
    shown = [scale for scale in (1.0, 2.0, 4.0, 12.0) if scale in at] or list(scales[:4])
    real = np.stack([test_set.images[test_set.labels == y][:each] for y in range(test_set.classes)])
    name = {
        "cfg": "Classifier-free guidance",
        "classifier": "Classifier guidance of the unconditional model",
        "calibrated": "Classifier-free guidance by a calibrated scale",
    }
    unguided = {
        "real, held out": real,
        "unconditional": samples["cfg"][at[0.0], :, :each],
        "conditional": samples["cfg"][at[1.0], :, :each],
    }
    panels(out / "samples_unguided.png", unguided, "Without guidance, a row a class")
    for way in name:
        grids = {f"scale {scale:g}": samples[way][at[scale], :, :each] for scale in shown}
        panels(out / f"samples_{way}.png", grids, f"{name[way]}, a row a class")
    best = max(range(len(scales)), key=lambda i: metrics["classifier"][i]["accuracy"])
    high = 8.0 if 8.0 in at else max(scales)
    overview = {
        "unconditional": samples["cfg"][at[0.0], :, :each],
        "conditional": samples["cfg"][at[1.0], :, :each],
        "CFG, scale 2": samples["cfg"][at.get(2.0, -1), :, :each],
        f"classifier, scale {scales[best]:g}": samples["classifier"][best, :, :each],
        **{
            f"{label}, scale {high:g}": samples[way][at[high], :, :each]
            for way, label in (("cfg", "CFG"), ("calibrated", "calibrated"))
        },
    }
    panels(out / "overview.png", overview, "Guided handwritten digits, a row a class")
    curve(out / "fidelity_diversity.png", scales, metrics)


def curve(path: Path, scales: tuple[float, ...], metrics: dict[str, Any]) -> None:
    """Fidelity and diversity over the scale, and one against the other."""
    ways = {"cfg": ("CFG", BLUE), "classifier": ("classifier", ORANGE), "calibrated": ("calibrated", GREEN)}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        for way, (label, color) in ways.items():
            column = {k: [row[k] for row in metrics[way]] for k in ("accuracy", "precision", "recall")}
            axes[0].plot(scales, column["accuracy"], "-", color=color, label=f"{label}: accuracy", marker="o", ms=3)
            axes[0].plot(scales, column["precision"], "--", color=color, label=f"{label}: precision", marker="o", ms=3)
            axes[1].plot(scales, column["recall"], "-", color=color, label=label, marker="o", ms=3)
            axes[2].plot(column["recall"], column["precision"], "-", color=color, label=label, marker="o", ms=3)
            for scale, x, y in zip(scales, column["recall"], column["precision"], strict=True):
                axes[2].annotate(f"{scale:g}", (x, y), xytext=(4, 3), textcoords="offset points", color=color, fontsize=8)
        axes[0].axhline(metrics["evaluator_accuracy"], color=MUTED, lw=0.8, ls=":", label="evaluator on real digits")
        for axis, title, x, y in zip(
            axes,
            ("Fidelity", "Diversity", "One against the other (numbers: scale)"),
            ("guidance scale", "guidance scale", "recall of the real test set"),
            ("share of samples", "recall of the real test set", "precision"),
            strict=True,
        ):
            axis.set(title=title, xlabel=x, ylabel=y)
            axis.legend(fontsize=8)
        for axis in axes[:2]:
            axis.set_ylim(0, 1.03)
        figure.savefig(path)
        plt.close(figure)


def calibration(path: Path, measured: dict[str, gj.Calibration]) -> None:
    """rho in both forms over the noise, with its standard error, and the scales that follow from the form for classes."""
    shades = (BLUE, ORANGE, GREEN, PURPLE, INK)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
        for (name, one), color in zip(measured.items(), shades, strict=False):
            for curve, style, form in ((one.for_classes, "-", "for classes"), (one.for_prompts, "--", "for prompts")):
                ratio, rho, error = map(np.asarray, curve)
                axes[0].plot(ratio, rho, style, color=color, label=f"{name}, {form}")
                axes[0].fill_between(ratio, rho - error, rho + error, color=color, alpha=0.2, lw=0)
        first = next(iter(measured.values()))
        for scale, color in zip((2.0, 4.0, 8.0, 16.0), shades, strict=False):
            rho = np.asarray(first.rho)
            axes[1].plot(first.ratio, scale / (rho + scale * (1 - rho)), color=color, label=f"w = {scale:g}")
        axes[0].set(title="Where guidance helps", ylabel="rho", xscale="log", xlabel="sigma / alpha", ylim=(0, 1.03))
        axes[1].set(title="The scale that follows", ylabel="scale at this level", xscale="log", xlabel="sigma / alpha")
        for axis in axes:
            axis.legend(fontsize=8)
        figure.savefig(path)
        plt.close(figure)
