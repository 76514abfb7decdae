"""The report of the text-to-image study: pictures, tables and text from the measurements."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

import guidance_jax as gj
from experiments.text_digits import scenes
from experiments.text_digits.model import Painter
from experiments.tools.pictures import METHODS, STYLE, grids, label_points, legend_below, save

Ways = dict[str, list[dict[str, Any]]]
COLOURED = {
    "CFG": "cfg",
    "CFG in an interval": "interval",
    "APG": "apg",
    "CFG-Zero*": "cfg_zero_star",
    "CFG, calibrated for prompts": "calibrated_prompts",
    "CFG, calibrated for classes": "calibrated",
}
"""The method whose colour each way has."""
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


def by_prompt(images: np.ndarray, rows: int) -> np.ndarray:
    """Group images by prompt. Each prompt occurs several times in a row."""
    return images.reshape(rows, -1, *images.shape[1:])


def accuracy(path: Path, metrics: dict[str, Any]) -> None:
    """Prompts followed over the scale: by kind, by pairs that training has and has not, and of each method against recall."""
    ways, cfg, real = metrics["ways"], metrics["ways"]["CFG"], metrics["real"]
    scales = [row["scale"] for row in cfg]
    seen = [name for name in cfg[0]["kinds"] if not name.endswith("held out")]
    worst = min(seen, key=best(cfg)["kinds"].__getitem__)
    with plt.style.context(STYLE):
        figure, axes = plt.subplot_mosaic("AB;CC", figsize=(10, 10.4), height_ratios=(1, 1.15))
        kinds, pairs, methods = axes.values()
        for name in seen:
            kinds.plot(scales, [row["kinds"][name] for row in cfg], lw=1, color="#aaaaaa")
        kinds.lines[0].set_label("each other kind")
        line: Any = {"color": METHODS["learned"], "label": f"weakest: {scenes.caption(worst, 3, 7)!r}"}
        kinds.plot(scales, [row["kinds"][worst] for row in cfg], "-o", **line)
        kinds.plot(scales, [row["accuracy"] for row in cfg], "-o", color=METHODS["cfg"], label="mean of all kinds")
        for key, name, dash in (("accuracy", "all kinds", "-o"), ("held_out", "pairs never seen in training", "--s")):
            pairs.plot(scales, [row[key] for row in cfg], dash, color=METHODS["cfg"], label=name)
            pairs.axhline(real[key], color=METHODS["real"], lw=1.2, ls=":" if key == "accuracy" else "-.")
        pairs.plot([], [], color=METHODS["real"], lw=1.2, ls=":", label="real scenes, all kinds")
        pairs.plot([], [], color=METHODS["real"], lw=1.2, ls="-.", label="real scenes, pairs never seen")
        labelled = []
        for way, rows in ways.items():
            rows = [row for row in rows if row["scale"] > 0]
            xs, ys = ([row[key] for row in rows] for key in ("recall", "accuracy"))
            methods.plot(xs, ys, "-o", color=METHODS[COLOURED[way]], label=way)
            some = (1, 3, 6, 16) if way == "CFG" else (rows[0]["scale"], rows[-1]["scale"])
            labelled += [(x, y, row, way) for x, y, row in zip(xs, ys, rows, strict=True) if row["scale"] in some]
        kinds.set(title="CFG, by kind of prompt", xlabel="guidance scale")
        pairs.set(title="CFG, by pair of digits", xlabel="guidance scale")
        methods.set(title="Each method, against recall (labels: guidance scale)", xlabel="recall of the held-out digits")
        figure.suptitle("Share of prompts followed")
        for axis in axes.values():
            axis.xaxis.set_major_locator(MaxNLocator(8 if axis is methods else 4, steps=[1, 2, 4, 5, 10]))
            axis.set(ylabel="prompts followed", ylim=(0, 1.04))
            legend_below(axis, 3 if axis is methods else 1, down=0.17 if axis is methods else 0.2)
        guided = [row["accuracy"] for rows in ways.values() for row in rows if row["scale"] > 0]
        methods.set_ylim(min(guided) - 0.01, min(1.01, max(guided) + 0.01))
        points = [(x, y, f"{row['scale']:g}", METHODS[COLOURED[way]]) for x, y, row, way in labelled]
        label_points(methods, points)
        save(figure, path)


def prompts_picture(path: Path, painter: Painter, scales: Sequence[float], each: int = 2) -> None:
    """One row per prompt, one column per scale, the same noise in all columns."""
    texts = [text for text in SHOWN for _ in range(each)]
    columns = {
        {0.0: "scale 0\n(no text)", 1.0: "scale 1\n(no guidance)"}.get(scale, f"scale {scale:g}"): by_prompt(
            painter(gj.cfg, scale, 7, cond=texts), len(SHOWN)
        )
        for scale in scales
    }
    labels = [
        text + UNSEEN * bool(scenes.parse(text)[0] in scenes.PAIRED and scenes.held_out(*scenes.parse(text)[1:]))
        for text in SHOWN
    ]
    title = "Samples for each prompt and guidance scale\n(*: a pair of digits that is not in the training set)"
    grids(path, columns, labels, title, labels=2.9)


def negatives_picture(path: Path, painter: Painter, scale: float, each: int = 5) -> None:
    """The same noise without a negative prompt and with it."""
    pairs = ((3, 7), (8, 1), (5, 2), (0, 6), (4, 9))
    labels = [f"{scenes.caption('or', *pair)}\nnot: {scenes.caption('one', pair[1])}" for pair in pairs]
    texts = [scenes.caption("or", *pair) for pair in pairs for _ in range(each)]
    unwanted = [scenes.caption("one", b) for _, b in pairs for _ in range(each)]
    columns = {
        "without the negative prompt": by_prompt(painter(gj.cfg, scale, 8, cond=texts), len(pairs)),
        "with it, same noise": by_prompt(painter(gj.cfg, scale, 8, cond=texts, uncond=unwanted), len(pairs)),
    }
    grids(path, columns, labels, f"Samples with and without a negative prompt, scale {scale:g}", labels=2.3)


def compositions_picture(path: Path, painter: Painter, both: Callable[[Any], gj.Guidance], scale: float, each: int = 3) -> None:
    """Two prompts, each by itself and both composed."""
    pairs = ((3, 7), (1, 8), (0, 3), (2, 6), (5, 9))
    forms = ("on the left", "on the right")
    first, second = ([scenes.caption(form, pair[i]) for pair in pairs for _ in range(each)] for i, form in enumerate(forms))
    columns = {
        "first prompt": by_prompt(painter(gj.cfg, scale, 9, cond=first), len(pairs)),
        "second prompt": by_prompt(painter(gj.cfg, scale, 9, cond=second), len(pairs)),
        "both, composed": by_prompt(painter(both, scale, 9, first=first, second=second), len(pairs)),
    }
    said = [" AND\n".join(scenes.caption(form, digit) for form, digit in zip(forms, pair, strict=True)) for pair in pairs]
    labels = [text + UNSEEN * bool(scenes.held_out(*pair)) for text, pair in zip(said, pairs, strict=True)]
    title = f"Two prompts and their composition, scale {scale:g} each\n(*: a pair of digits that is not in the training set)"
    grids(path, columns, labels, title, labels=2.2)


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


def tell(out: Path, metrics: dict[str, Any]) -> None:
    """Print the tables and the findings, and which files to open first."""
    print("", *kinds(metrics["ways"]["CFG"], metrics["real"]), "", *methods(metrics["ways"]), "", *rest(metrics), "", sep="\n")
    print("\n".join(findings(metrics)))
    print(
        f"\nOpen {out / 'report.md'} first. It has all tables and pictures. {out / 'prompts.png'} has samples over the scale."
    )
