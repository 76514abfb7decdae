"""The report of the text-to-image study: pictures, tables and text from the measurements."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

import guidance_jax as gj
from experiments.text_digits import scenes
from experiments.text_digits.model import Painter
from experiments.tools.pictures import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, STYLE, montage

Ways = dict[str, list[dict[str, Any]]]
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, INK, MUTED)
SHOWN = (
    "a three to the left of a seven",
    "a four to the left of a seven",
    "a seven to the right of a four",
    "a nine and a two",
    "two fives",
    "a four alone",
    "an eight on the right",
    "a five but no two",
    "a one or a six",
    "an empty scene",
)
"""Prompts of the picture. Four and seven are a pair that is never in training."""
UNSEEN = " *"
"""The mark of such a pair."""


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the maximum share of prompts followed."""
    return max(rows, key=lambda row: row["accuracy"])


def grid(path: Path, labels: Sequence[str], columns: dict[str, np.ndarray], title: str) -> None:
    """Draw columns of images `[rows, n, H, W, C]`, with one label per row."""
    rows, each = next(iter(columns.values())).shape[:2]
    with plt.rc_context(STYLE):
        size = (1.8 + 0.62 * each * len(columns), 0.8 + 0.37 * rows)
        figure, axes = plt.subplots(1, len(columns), figsize=size, squeeze=False, layout="constrained")
        for axis, (name, images) in zip(axes[0], columns.items(), strict=True):
            axis.imshow(montage(images)[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_title(name, fontsize=9, color=INK)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        bottom = axes[0][0].get_ylim()[0]
        axes[0][0].set_yticks((np.arange(rows) + 0.5) * bottom / rows, labels, fontsize=9, color=INK)
        axes[0][0].tick_params(length=0)
        figure.suptitle(title, color=INK, fontsize=11)
        figure.savefig(path)
        plt.close(figure)


def by_prompt(images: np.ndarray, rows: int) -> np.ndarray:
    """Group images by prompt. Each prompt occurs several times in a row."""
    return images.reshape(rows, -1, *images.shape[1:])


def accuracy(path: Path, metrics: dict[str, Any]) -> None:
    """Plot the share of prompts followed over the scale, by kind, by pairs seen and never seen, and by method."""
    ways, cfg, real = metrics["ways"], metrics["ways"]["CFG"], metrics["real"]
    scales = [row["scale"] for row in cfg]
    seen = [name for name in cfg[0]["kinds"] if not name.endswith("held out")]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
        for i, name in enumerate(seen):
            colour = plt.colormaps["tab20"](i)
            axes[0].plot(scales, [row["kinds"][name] for row in cfg], "-", lw=1, color=colour, label=name)
        axes[0].plot(scales, [row["accuracy"] for row in cfg], "-o", ms=4, lw=2.5, color=INK, label="all kinds")
        axes[0].legend(fontsize=7, ncols=2, loc="lower right")
        for key, name, colour in (("accuracy", "all kinds", BLUE), ("held_out", "pairs never seen in training", ORANGE)):
            axes[1].plot(scales, [row[key] for row in cfg], "-o", ms=4, color=colour, label=name)
            axes[1].axhline(real[key], color=colour, lw=0.8, ls=":")
        axes[1].plot([], [], color=MUTED, lw=0.8, ls=":", label="real scenes of held-out digits")
        for colour, (way, rows) in zip(COLOURS, ways.items(), strict=True):
            rows = [row for row in rows if row["scale"] > 0]
            xs, ys = ([row[key] for row in rows] for key in ("recall", "accuracy"))
            axes[2].plot(xs, ys, "-o", ms=4, color=colour, label=way)
            for row in rows:
                axes[2].annotate(
                    f"{row['scale']:g}",
                    (row["recall"], row["accuracy"]),
                    xytext=(4, -9),
                    textcoords="offset points",
                    fontsize=7,
                    color=colour,
                )
        for axis, title, x in zip(
            axes,
            ("By kind of prompt", "Composition", "Methods (numbers: scale)"),
            ("guidance scale", "guidance scale", "recall of the held-out digits"),
            strict=True,
        ):
            axis.set(title=title, xlabel=x, ylabel="prompts met", ylim=(0, 1.03))
            if axis is not axes[0]:
                axis.legend(fontsize=8, loc="lower left" if axis is axes[2] else "lower right")
        guided = [row["accuracy"] for rows in ways.values() for row in rows if row["scale"] > 0]
        axes[2].set_ylim(min(guided) - 0.05, 1.01)
        figure.savefig(path)
        plt.close(figure)


def prompts_picture(path: Path, painter: Painter, scales: Sequence[float], each: int = 3) -> None:
    """Draw prompts in rows and scales in columns, with the same noise everywhere."""
    texts = [text for text in SHOWN for _ in range(each)]
    columns = {
        {0.0: "scale 0, no text", 1.0: "scale 1, no guidance"}.get(scale, f"scale {scale:g}"): by_prompt(
            painter(gj.cfg, scale, 7, cond=texts), len(SHOWN)
        )
        for scale in scales
    }
    labels = [
        text + UNSEEN * bool(scenes.parse(text)[0] in scenes.PAIRED and scenes.held_out(*scenes.parse(text)[1:]))
        for text in SHOWN
    ]
    grid(
        path, labels, columns, "What is drawn for a prompt at each guidance scale (* a pair of digits that training never has)"
    )


def negatives_picture(path: Path, painter: Painter, scale: float, each: int = 6) -> None:
    """Draw samples without and with a negative prompt, from the same noise."""
    pairs = ((3, 7), (8, 1), (5, 2), (0, 6), (4, 9))
    labels = [f"{scenes.caption('or', *pair)}\nnot: {scenes.caption('one', pair[1])}" for pair in pairs]
    texts = [scenes.caption("or", *pair) for pair in pairs for _ in range(each)]
    unwanted = [scenes.caption("one", b) for _, b in pairs for _ in range(each)]
    columns = {
        "without the negative prompt": by_prompt(painter(gj.cfg, scale, 8, cond=texts), len(pairs)),
        "with it, the same noise": by_prompt(painter(gj.cfg, scale, 8, cond=texts, uncond=unwanted), len(pairs)),
    }
    grid(path, labels, columns, f"Negative prompts, scale {scale:g}")


def compositions_picture(path: Path, painter: Painter, both: Callable[[Any], gj.Guidance], scale: float, each: int = 4) -> None:
    """Draw samples of two single prompts, and of both prompts together."""
    pairs = ((3, 7), (1, 8), (0, 3), (2, 6), (5, 9))
    forms = ("on the left", "on the right")
    first, second = ([scenes.caption(form, pair[i]) for pair in pairs for _ in range(each)] for i, form in enumerate(forms))
    columns = {
        "the first": by_prompt(painter(gj.cfg, scale, 9, cond=first), len(pairs)),
        "the second": by_prompt(painter(gj.cfg, scale, 9, cond=second), len(pairs)),
        "both": by_prompt(painter(both, scale, 9, first=first, second=second), len(pairs)),
    }
    said = [" AND\n".join(scenes.caption(form, digit) for form, digit in zip(forms, pair, strict=True)) for pair in pairs]
    labels = [text + UNSEEN * bool(scenes.held_out(*pair)) for text, pair in zip(said, pairs, strict=True)]
    grid(path, labels, columns, f"Two prompts composed, scale {scale:g} each (* a pair that training never has)")


def findings(metrics: dict[str, Any]) -> Iterator[str]:
    """Sentences that describe the numbers. They are true for any outcome."""
    cfg, real = metrics["ways"]["CFG"], metrics["real"]
    at = {row["scale"]: row for row in cfg}
    top, worst = best(cfg), min((name for name in best(cfg)["kinds"]), key=best(cfg)["kinds"].__getitem__)
    yield (
        f"The judge reads {metrics['evaluator_accuracy']:.1%} of the held-out digits. By its reading, "
        f"{real['accuracy']:.1%} of real scenes agree with their captions."
    )
    yield (
        f"The share of prompts followed is {at[0.0]['accuracy']:.3f} at scale 0 (no text), {at[1.0]['accuracy']:.3f} at scale "
        f"1 (no guidance), and {top['accuracy']:.3f} at scale {top['scale']:g}. The worst kind there is {worst!r} with "
        f"{top['kinds'][worst]:.3f}. For pairs never seen in training it is {at[1.0]['held_out']:.3f} at scale 1 and "
        f"{top['held_out']:.3f} at scale {top['scale']:g}."
    )
    for text, row in metrics["negatives"].items():
        yield (
            f"The prompt {text!r} has the negative prompt 'a seven', and likewise for all pairs of digits. Without it, "
            f"{row['named_before']:.1%} of the scenes have the digit of the negative prompt. With it, {row['named_after']:.1%} "
            f"do. The negative prompt removes this digit from {row['removed']:.1%} of the scenes that had it. Drawing again "
            f"without a negative prompt removes it from {row['removed_by_chance']:.1%}. With the negative prompt, "
            f"{row['wanted_after']:.1%} of all scenes have the first digit of the prompt."
        )
    rows = metrics["compositions"]
    for way, pair in (("placed", "'a three on the left' AND 'a seven on the right'"), ("anywhere", "'a three' AND 'a seven'")):
        row = max(rows, key=lambda row: row[way])
        yield (
            f"The sum of the scores of {pair} gives both digits in {row[way]:.3f} of the scenes at scale {row['scale']:g}, "
            f"and in {row[f'{way}_held_out']:.3f} for pairs never seen. One caption, 'a three and a seven', with CFG at that "
            f"scale gives them in {row['caption']:.3f} and {row['caption_held_out']:.3f}."
        )


def kinds(cfg: list[dict[str, Any]], real: dict[str, Any]) -> Iterator[str]:
    """The table of prompts followed by kind and scale, in Markdown."""
    heads = " | ".join(f"scale {row['scale']:g}" for row in cfg)
    yield f"| prompts followed | {heads} | real scenes |"
    yield "|---|" + "---:|" * (len(cfg) + 1)
    for name in cfg[0]["kinds"]:
        form, *_ = name.split(",")
        label = scenes.caption(form, 3, 7) if name == form else f"{scenes.caption(form, 4, 7)}, pair never seen"
        cells = " | ".join(f"{row['kinds'][name]:.2f}" for row in (*cfg, real))
        yield f"| {label} | {cells} |"
    for key, label in (("accuracy", "**all kinds**"), ("held_out", "**pairs never seen**")):
        yield f"| {label} | {' | '.join(f'{row[key]:.3f}' for row in (*cfg, real))} |"


def methods(ways: Ways) -> Iterator[str]:
    """The table of every method at its scales, in Markdown."""
    yield "| method | scale | prompts followed | pairs never seen | precision | recall |"
    yield "|---|---:|---:|---:|---:|---:|"
    for way, rows in ways.items():
        for row in rows:
            cells = (f"{row[key]:.3f}" for key in ("accuracy", "held_out", "precision", "recall"))
            yield f"| {way} | {row['scale']:g} | {' | '.join(cells)} |"


def rest(metrics: dict[str, Any]) -> Iterator[str]:
    """The tables of negative prompts and compositions, in Markdown."""
    removed = "removed | removed by drawing again"
    yield f"| prompt (negative prompt 'a seven') | seven in scene, without | seven in scene, with | {removed} | three, with |"
    yield "|---|---:|---:|---:|---:|---:|"
    for text, row in metrics["negatives"].items():
        keys = ("named_before", "named_after", "removed", "removed_by_chance", "wanted_after")
        yield f"| {text} | {' | '.join(f'{row[key]:.3f}' for key in keys)} |"
    yield ""
    heads = ("a three on the left AND a seven on the right", "a three AND a seven", "the caption a three and a seven")
    yield f"| scale | {' | '.join(f'{head} | never seen' for head in heads)} |"
    yield "|---:|" + "---:|" * 6
    for row in metrics["compositions"]:
        cells = (f"{row[key]:.3f}" for way in ("placed", "anywhere", "caption") for key in (way, f"{way}_held_out"))
        yield f"| {row['scale']:g} | {' | '.join(cells)} |"


def text(metrics: dict[str, Any]) -> Iterator[str]:
    """The report in Markdown."""
    seconds = metrics["seconds"]
    yield from ("# Text to image on scenes of two digits", "")
    yield f"This run took {seconds['all'] / 60:.1f} minutes, {seconds['training'] / 60:.1f} of them for training."
    yield from ("", "![Samples of prompts at each scale](prompts.png)", "")
    for sentence in findings(metrics):
        yield from (sentence, "")
    yield from ("## Prompts followed by scale", "", "![](accuracy.png)", "")
    yield from (*kinds(metrics["ways"]["CFG"], metrics["real"]), "")
    yield from ("## Methods", "", *methods(metrics["ways"]), "")
    yield from ("## Negative prompts and compositions", "", "![](negatives.png)", "", "![](compositions.png)", "")
    yield from rest(metrics)


def write(out: Path, metrics: dict[str, Any], painter: Painter, scale: float, both: Callable[[Any], gj.Guidance]) -> None:
    """Write `report.md` and its pictures."""
    scales = [row["scale"] for row in metrics["ways"]["CFG"]]
    prompts_picture(out / "prompts.png", painter, [s for s in (0.0, 1.0, 2.0, 4.0, 8.0) if s in scales] or scales)
    accuracy(out / "accuracy.png", metrics)
    negatives_picture(out / "negatives.png", painter, scale)
    compositions_picture(out / "compositions.png", painter, both, scale)
    (out / "report.md").write_text("\n".join(text(metrics)) + "\n")
    print("", *kinds(metrics["ways"]["CFG"], metrics["real"]), "", *methods(metrics["ways"]), "", *rest(metrics), "", sep="\n")
    print("\n".join(findings(metrics)))
    print(f"\n{out / 'report.md'} has all tables and pictures.")
