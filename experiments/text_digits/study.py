"""Text to image, trained end to end: captions of scenes with two digits, a small CLIP text encoder, and a denoiser.

`python -m experiments.text_digits` trains in minutes on a CPU. It writes `report.md`, pictures, `metrics.json` and checkpoints
to `out/text_digits`. A second run reads the checkpoints and only samples. The judge is a network that reads both cells of a
sample. It is trained on other digits, and no guidance method uses it. A prompt is followed if the digits that the judge reads
agree with the caption.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.text_digits import report, scenes
from experiments.text_digits.model import OUT, SIZE, TRAINING, Model, Painter, Size, trained, untrained
from experiments.tools import data
from experiments.tools.evaluator import Evaluator, Judge, jitter
from experiments.tools.fit import Training, fit
from experiments.tools.stages import Stages, Tell, tera

READ, HELD_OUT = "train[50%:]", "test"
"""The digits on which the judge is trained, which are in no scene, and those on which it is tested."""
WAYS: dict[str, Callable[[Any], gj.Guidance]] = {
    "CFG": gj.cfg,
    "CFG in an interval": lambda scale: gj.during(gj.cfg(scale), 0.3, 8.0),
    "APG": lambda scale: gj.apg(scale, max_norm=2.5),
    "CFG-Zero*": gj.cfg_zero_star,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Text to image on scenes of two digits.

    Args:
      out: The directory for pictures, metrics and checkpoints.
      seed: The seed of all random numbers.
      model: Training of the text encoder and of the denoiser, together.
      evaluator: Training of the judge.
      size: The sizes of the text encoder and of the denoiser.
      drop_rate: The probability of an empty text in training.
      scales: Guidance scales of CFG. 1 is the conditional model, and 0 is the model with the empty text.
      others: Guidance scales of the other methods.
      calibrated: Guidance scales of both forms of the calibrated scale, for prompts and for classes.
      scale: The guidance scale of negative prompts.
      prompts: Number of prompts per kind and scale.
      repeats: Number of samples per pair of digits, for negative prompts and for compositions.
      steps: Number of sampler steps.
      batch: Number of samples per batch.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = OUT
    seed: int = 0
    model: Training = TRAINING
    evaluator: Training = Training(steps=1500, batch=128, weight_decay=0.05)
    size: Size = SIZE
    drop_rate: float = 0.1
    scales: tuple[float, ...] = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
    others: tuple[float, ...] = (2.0, 4.0, 8.0)
    calibrated: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    scale: float = 5.0
    prompts: int = 64
    repeats: int = 6
    steps: int = 12
    batch: int = 128
    smoke: bool = False

    def __post_init__(self) -> None:
        if not {0.0, 1.0} <= set(self.scales):
            raise ValueError(f"scales must include 0 and 1, the unguided models, got {self.scales}.")
        if min(self.prompts, self.repeats, self.steps, self.batch) < 1 or not 0 <= self.drop_rate <= 1:
            raise ValueError(
                "prompts, repeats, steps and batch must be at least 1 and drop_rate in [0, 1], got "
                f"{self.prompts}, {self.repeats}, {self.steps}, {self.batch} and {self.drop_rate}."
            )


def with_blanks(digits: data.Data) -> data.Data:
    """Digits, and a tenth as many empty cells as another class."""
    blanks = np.full((len(digits) // 10, *digits.images.shape[1:]), -1, np.float32)
    labels = np.append(digits.labels, np.full(len(blanks), scenes.EMPTY, np.int32))
    return data.Data(np.concatenate([digits.images, blanks]), labels, (*digits.names, "empty"), digits.version)


def reader(config: Config, tell: Tell) -> Judge:
    """The judge, trained on digits that are in no scene and tested on held-out digits."""
    train_set, held_out = (data.load("digits", split, config.out / "data") for split in (READ, HELD_OUT))
    cells, training, kept = with_blanks(train_set), config.evaluator, config.out / "checkpoints"
    module = Evaluator(cells.images.shape[1:], cells.classes, 32, 2, rngs=nnx.Rngs(config.seed))
    apply, params = gj.networks.from_nnx(module)

    def loss(params: Any, key: Array, images: Array, labels: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, jitter(key, images)), labels).mean()

    identity = {"data": f"digits {cells.version} {READ} and blanks", "network": {"width": 32, "blocks": 2}}
    with contextlib.closing(data.batches(cells, training.batch, config.seed)) as batches:
        params = fit("evaluator", loss, params, batches, training, config.seed, kept, identity, tell=tell)
    return Judge(module, params, held_out)


class Reading(NamedTuple):
    """The judge's reading of samples.

    Args:
      scenes: The digits `[N, 2]`, left and right.
      features: The features of the cells, `[N, 2, F]`.
    """

    scenes: np.ndarray
    features: np.ndarray


def read(judge: Judge, images: np.ndarray) -> Reading:
    """The judge's reading of both cells of images `[N, 8, 16, 1]`."""
    cells = images.reshape(len(images), scenes.SIDE, 2, scenes.SIDE, 1).transpose(0, 2, 1, 3, 4).reshape(-1, 8, 8, 1)
    features, logits = map(np.asarray, judge.read(cells))
    return Reading(logits.argmax(1).reshape(-1, 2), features.reshape(len(images), 2, -1))


def prompts(each: int, seed: int) -> dict[str, list[str]]:
    """Captions per kind, as evenly over digits as possible. Pairs that are held out are kinds of their own."""
    rng, groups = np.random.default_rng(seed), {}
    for form in scenes.FORMS:
        digits = list(scenes.arguments(form))
        apart = [pair for pair in digits if form in scenes.PAIRED and scenes.held_out(*pair)]
        for name, some in ((form, [pair for pair in digits if pair not in apart]), (f"{form}, held out", apart)):
            if some:
                order = np.concatenate([rng.permutation(len(some)) for _ in range(-(-each // len(some)))])
                groups[name] = [scenes.caption(form, *some[i]) for i in order[:each]]
    return groups


def judged(groups: dict[str, list[str]], seen: Reading, judge: Judge) -> dict[str, Any]:
    """The share of prompts followed, over all and by kind, and precision and recall of the digits."""
    kinds = np.repeat(list(groups), [len(texts) for texts in groups.values()])
    met = scenes.met([text for texts in groups.values() for text in texts], seen.scenes)
    apart = np.char.endswith(kinds, "held out")
    cells = seen.features[seen.scenes != scenes.EMPTY][: min(1000, len(met))]
    precision, recall = gj.metrics.precision_recall(judge.real, jnp.asarray(cells))
    return {
        "accuracy": float(met[~apart].mean()),
        "held_out": float(met[apart].mean()),
        "kinds": {name: float(met[kinds == name].mean()) for name in groups},
        "precision": float(precision),
        "recall": float(recall),
    }


def calibrated(config: Config, painter: Painter) -> dict[str, Callable[[Any], gj.Guidance]]:
    """CFG with a scale that is calibrated on the model's own samples of other prompts than those of the table."""
    texts = [text for some in prompts(-(-config.prompts // 2), config.seed + 5).values() for text in some]
    curve = painter.calibrate(texts, config.seed + 6)
    return {
        "CFG, calibrated for prompts": lambda scale: gj.cfg(gj.scales.calibrated(curve.for_prompts, scale)),
        "CFG, calibrated for classes": lambda scale: gj.cfg(gj.scales.calibrated(curve.for_classes, scale)),
    }


def sweep(config: Config, painter: Painter, judge: Judge) -> dict[str, list[dict[str, Any]]]:
    """Every method at its scales, on the same prompts and noise."""
    groups = prompts(config.prompts, config.seed)
    texts = [text for some in groups.values() for text in some]
    scales = {way: (config.scales if way == "CFG" else config.others) for way in WAYS}
    measured = calibrated(config, painter)
    rows: dict[str, list[dict[str, Any]]] = {}
    for way, guide in (WAYS | measured).items():
        for scale in scales.get(way, config.calibrated):
            row = judged(groups, read(judge, painter(guide, scale, config.seed + 1, cond=texts)), judge)
            rows.setdefault(way, []).append({"scale": scale} | row)
            names = {
                "accuracy": "prompts followed",
                "held_out": "pairs never seen",
                "precision": "precision",
                "recall": "recall",
            }
            measures = ", ".join(f"{name} {row[key]:.3f}" for key, name in names.items())
            print(f"{way}, scale {scale:g}, {len(texts)} prompts: {measures}", flush=True)
    return rows


def real(config: Config, judge: Judge) -> dict[str, Any]:
    """The judge's measures of scenes that agree with their captions, made of held-out digits."""
    groups, rng = prompts(config.prompts, config.seed), np.random.default_rng(config.seed)
    cells = scenes.Cells(data.load("digits", HELD_OUT, config.out / "data"))
    allowed = [np.argwhere(scenes.asked(text)) for texts in groups.values() for text in texts]
    picture = cells.picture(rng, np.stack([table[rng.integers(len(table))] for table in allowed]))
    return judged(groups, read(judge, picture), judge)


def _holds(seen: np.ndarray, digits: np.ndarray) -> np.ndarray:
    return (seen == digits[:, None]).any(1)


def negatives(config: Config, painter: Painter, judge: Judge) -> dict[str, dict[str, float]]:
    """The effect of a negative prompt, "a seven", on samples of "a three or a seven" and of "a three on the left".

    Scenes with and without the negative prompt use the same noise. `removed` is the share of scenes that lose the seven, among
    those that have it without the negative prompt. `removed_by_chance` is the same for other noise without a negative prompt.
    All other pairs of digits are treated alike.
    """
    pairs = [pair for pair in np.ndindex(10, 10) if pair[0] != pair[1]] * config.repeats
    named, wanted = np.array([b for _, b in pairs]), np.array([a for a, _ in pairs])
    rows = {}
    for form in ("or", "on the left"):
        texts = [scenes.caption(form, *pair) for pair in pairs]
        unwanted = [scenes.caption("one", b) for _, b in pairs]
        paint = functools.partial(painter, gj.cfg, config.scale, cond=texts)
        before, after, anew = (
            read(judge, images).scenes
            for images in (paint(config.seed + 2), paint(config.seed + 2, uncond=unwanted), paint(config.seed + 3))
        )
        held = _holds(before, named)
        left = {"removed": _holds(after, named)[held], "removed_by_chance": _holds(anew, named)[held]}
        rows[scenes.caption(form, 3, 7)] = {
            "samples": len(pairs),
            "named_before": float(held.mean()),
            "named_after": float(_holds(after, named).mean()),
            "wanted_after": float(_holds(after, wanted).mean()),
            **{what: 1 - float(still.sum()) / max(1, len(still)) for what, still in left.items()},
        }
    return rows


def both(scale: Any) -> gj.Guidance:
    """The sum of the guidance by two prompts."""
    return gj.compose({"first": scale, "second": scale})


def compositions(config: Config, painter: Painter, judge: Judge) -> list[dict[str, float]]:
    """The share of scenes that follow two prompts together, for every pair of digits.

    Two pairs of prompts are composed by the sum of their scores: "a three" AND "a seven", and "a three on the left" AND "a
    seven on the right". They are compared with CFG by one caption, "a three and a seven".
    """
    pairs = [pair for pair in np.ndindex(10, 10) if pair[0] != pair[1]] * config.repeats
    apart = np.array([scenes.held_out(*pair) for pair in pairs])
    say = lambda form, i=0: [scenes.caption(form, pair[i], pair[-1]) for pair in pairs]
    rows = []
    for scale in (1.0, *config.others):
        paint = lambda guide, scale=scale, **texts: read(judge, painter(guide, scale, config.seed + 4, **texts)).scenes
        met = {
            "anywhere": scenes.met(say("and"), paint(both, first=say("one"), second=say("one", 1))),
            "placed": scenes.met(say("left of"), paint(both, first=say("on the left"), second=say("on the right", 1))),
            "caption": scenes.met(say("and"), paint(gj.cfg, cond=say("and"))),
        }
        seen = {way: float(hit[~apart].mean()) for way, hit in met.items()}
        unseen = {f"{way}_held_out": float(hit[apart].mean()) for way, hit in met.items()}
        rows.append({"scale": scale} | seen | unseen)
    return rows


def plan(config: Config, model: Model) -> Stages:
    """Print the stages of the run, and its number of operations as counted by the compiler."""
    x, ids = jnp.zeros((1, *scenes.SHAPE)), jnp.zeros((1, scenes.LENGTH), jnp.int32)

    def network(params: Any, x: Array, ids: Array) -> Array:
        return model.apply(params, x, jnp.zeros(1), model.read(params, ids)[0])

    counted: Any = jax.jit(network).lower(model.params, x, ids).cost_analysis()
    training = 3 * counted["flops"] * config.model.steps * config.model.batch
    count = sum(len(texts) for texts in prompts(config.prompts, config.seed).values())
    points = len(config.scales) + len(config.others) * (len(WAYS) - 1) + 2 * len(config.calibrated)
    passes = 2 * points * count + 90 * config.repeats * (12 + 8 * (1 + len(config.others)))
    sampling = counted["flops"] * config.steps * passes
    known = {
        "judge": f"{config.evaluator.steps:,} steps",
        "text-to-image model": f"{config.model.steps:,} steps",
        "sweeps": f"{points} rows of {count:,} prompts",
        "negative prompts": "",
        "compositions": "",
        "report": "",
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    work = f"training takes {tera(training)} TFLOP and sampling {tera(sampling)} TFLOP, besides compilation"
    usual = dataclasses.replace(config, out=Config.out, seed=Config.seed) == Config()
    about = ", 5 to 20 minutes on 2 CPU cores" if usual else ""
    return Stages(f"Text to image with {size:,} parameters{about}: {work}", known)


def small(config: Config) -> Config:
    """The config of a check in seconds."""
    return dataclasses.replace(
        config,
        out=config.out / "smoke",
        model=dataclasses.replace(config.model, steps=4, batch=16),
        evaluator=dataclasses.replace(config.evaluator, steps=4, batch=32),
        size=Size(width=16, blocks=1, heads=2, text_width=8, text_blocks=1, text_heads=2),
        scales=(0.0, 1.0, 3.0),
        others=(3.0,),
        calibrated=(3.0,),
        prompts=4,
        repeats=1,
        steps=3,
        batch=64,
    )


def main(config: Config) -> dict[str, Any]:
    """Run the study. Returns the contents of `metrics.json`."""
    start = time.perf_counter()
    config = small(config) if config.smoke else config
    config.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str((config.out / "compilation_cache").absolute()))
    stages = plan(config, untrained(config.size))
    with stages("judge") as tell:
        judge = reader(config, tell)
    options: Any = {"size": config.size, "training": config.model, "drop_rate": config.drop_rate, "seed": config.seed}
    with stages("text-to-image model") as tell:
        model = trained(config.out, **options, tell=tell)
    ready = time.perf_counter()
    painter = Painter(model, config.steps, config.batch)
    metrics = {"evaluator_accuracy": judge.accuracy, "real": real(config, judge)}
    with stages("sweeps"):
        metrics["ways"] = sweep(config, painter, judge)
    with stages("negative prompts"):
        metrics["negatives"] = negatives(config, painter, judge)
    with stages("compositions"):
        metrics["compositions"] = compositions(config, painter, judge)
    metrics["seconds"] = {"training": ready - start, "all": time.perf_counter() - start}
    (config.out / "metrics.json").write_text(json.dumps(metrics, indent=1))
    with stages("report"):
        report.write(config.out, metrics, painter, config.scale, both)
    report.tell(config.out, metrics)
    return metrics
