"""The sweeps of the study: every guidance method at its scales, judged, and the rows of the main table."""

import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import guidance_jax as gj
from experiments.tools import models
from experiments.tools.evaluator import Judge
from experiments.tools.generate import generate

CONTRASTS = (1.5, 2.0, 3.0, 5.0, 8.0)
SCALES = {
    **dict.fromkeys(("cfg", "interval", "rescale", "apg", "cfg_zero_star", "early_cfg"), CONTRASTS),
    **dict.fromkeys(("autoguidance", "early_autoguidance"), (1.5, 2.0, 3.0, 4.0)),
    **dict.fromkeys(("classifier", "clean_classifier"), (1.0, 2.0, 4.0, 8.0, 16.0)),
    "calibrated": (2.0, 3.0, 5.0, 8.0, 12.0),
}
ACCURATE = 0.98


class Sweep:
    """Samples of any method at any scale, stored in shards, and the judge's measures of them."""

    def __init__(self, run: models.Run, judge: Judge, directory: Path, digest: str, *, steps: int, batch: int, seed: int):
        self.run, self.judge, self.directory, self.digest, self.batch, self.seed = run, judge, directory, digest, batch, seed
        self.levels = gj.levels(models.SCHEDULE, steps, gj.spacings.karras(sigma_min=0.02, sigma_max=60.0))
        self.programs: dict[str, Any] = {}
        self.costs: dict[str, dict[str, float]] = {}

    def row(self, way: str, scale: float, count: int) -> dict[str, Any]:
        """A row of the table: the method and scale, the measures and the cost."""
        images, labels = self.images(way, scale, count)
        row = {"way": way, "scale": scale} | self.judge(images, labels) | self.cost(way)
        names = {"accuracy": "accuracy", "fd": "FD", "precision": "precision", "recall": "recall", "coverage": "coverage"}
        measures = ", ".join(f"{name} {row[key]:.3f}" for key, name in names.items())
        print(f"{models.WAYS[way].title}, scale {shown(row):g}, {count} samples: {measures}", flush=True)
        return row

    def images(self, way: str, scale: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `count` samples in bytes, and their labels."""
        program, params = self.program(way)
        labels = np.arange(count, dtype=np.int32) % len(self.run.names)
        directory = self.directory / self.digest / f"{way}_{scale:g}"
        identity = {
            "way": way,
            "scale": scale,
            "networks": self.digest,
            "levels": [round(float(ratio), 4) for ratio in self.levels.ratio],
            "interval": models.INTERVAL,
        }
        inputs, batch = (params, jnp.float32(scale)), self.batch
        return generate(program, inputs, labels, self.seed, directory, identity, batch=batch, shard=batch).samples()

    def program(self, way: str) -> tuple[Any, Any]:
        if way not in self.programs:
            generate, params = models.program(self.run, models.WAYS[way], gj.dpmpp_2m(), self.levels)
            self.programs[way] = jax.jit(generate), params
        return self.programs[way]

    def cost(self, way: str) -> dict[str, float]:
        """Network evaluations per sample, without those of classifiers, and seconds per sample in one batch."""
        if way not in self.costs:
            program, params = self.program(way)
            count, _ = models.program(self.run, models.WAYS[way], gj.dpmpp_2m(), self.levels, gj.evaluations)
            keys = jax.random.split(jax.random.key(0), self.batch)
            arguments = (params, jnp.float32(2)), keys, jnp.zeros(len(keys), jnp.int32)
            evaluations = int(jax.jit(count)(*arguments))
            jax.block_until_ready(program(*arguments))
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            self.costs[way] = {"evaluations": evaluations, "seconds": (time.perf_counter() - start) / len(keys)}
        return self.costs[way]


def shown(row: dict[str, Any]) -> float:
    """The scale of a row as tables show it. The unconditional model is CFG, or a classifier, at scale 0."""
    return 0.0 if row["way"] == "unconditional" else row["scale"]


def scale_at(rows: list[dict[str, Any]], value: float, measure: str = "accuracy") -> float | None:
    """The smallest scale at which a sweep reaches a value, by linear interpolation, or None if it never does.

    Accuracy must rise to the value. Other measures must fall to it.
    """
    for low, high in itertools.pairwise(rows):
        first, last = low[measure], high[measure]
        if (first <= value <= last) if measure == "accuracy" else (first >= value >= last):
            share = (value - first) / (last - first) if last != first else 0.0
            return round(low["scale"] + share * (high["scale"] - low["scale"]), 2)
    return None


def headlines(curves: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[str, float]]:
    """`{row: (method, scale)}` of the main table. The sweeps determine the scales."""
    best = lambda way: min(curves[way], key=lambda row: row["fd"])
    reach = lambda *ways: min(max(row["accuracy"] for row in curves[way]) for way in ways)
    rows: dict[str, tuple[str, float | None]] = {
        "unconditional": ("unconditional", 1.0),
        "conditional": ("conditional", 1.0),
        "CFG, lowest FD": ("cfg", best("cfg")["scale"]),
    }
    level = min(ACCURATE, reach("cfg", "interval"))
    for way in ("cfg", "interval", "apg", "calibrated"):
        rows[f"{models.WAYS[way].title}, at accuracy {level:.3f} in the sweep"] = way, scale_at(curves[way], level)
    rows["CFG, calibrated, lowest FD"] = "calibrated", best("calibrated")["scale"]
    if (scale := scale_at(curves["cfg"], level)) is not None:
        column = lambda name: [row[name] for row in curves["cfg"]]
        precise = float(np.interp(scale, column("scale"), column("precision")))
        for way in ("interval", "calibrated"):
            rows[f"{models.WAYS[way].title}, at precision {precise:.3f} in the sweep"] = (
                way,
                scale_at(curves[way], precise, "precision"),
            )
    rows["under-trained, conditional"] = "early", 1.0
    guided = best("early_autoguidance")
    rows["under-trained, autoguidance, lowest FD"] = "early_autoguidance", guided["scale"]
    rows["under-trained, CFG, at its accuracy"] = "early_cfg", scale_at(curves["early_cfg"], guided["accuracy"])
    strongest = max(curves["classifier"][1:], key=lambda row: row["accuracy"])["scale"]
    for way in ("classifier", "clean_classifier"):
        rows[f"{models.WAYS[way].title}, scale {strongest:g}"] = way, strongest
    return {name: (way, scale) for name, (way, scale) in rows.items() if scale is not None}
