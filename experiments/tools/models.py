"""The trained networks of a run, and the ways to guide with them.

A run is a directory with `models.json`. That file describes each network and names its checkpoint.
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.tools.checkpoints import restore
from experiments.tools.disk import DamagedError, read_json, replacing
from guidance_jax.base import Denoiser

SCHEDULE = gj.schedules.cosine()
SIGMA_DATA = 0.5
INTERVAL = (0.0, 3.0)
"""The guidance interval `(low, high]`, in sigma / alpha."""
MODULES: dict[str, tuple[Any, Any]] = {
    "UNet": (gj.networks.UNet, gj.networks.UNetConfig),
    "DiT": (gj.networks.DiT, gj.networks.DiTConfig),
    "UNetClassifier": (gj.networks.UNetClassifier, gj.networks.UNetConfig),
}


class Trained(NamedTuple):
    """A network as a pure function, with its parameters.

    Args:
      apply: `(params, x, t, labels) -> prediction`, or `(params, x, t) -> logits` for a classifier.
      params: The parameters, a pytree of arrays.
      predicts: What a denoising network predicts; "edm" with EDM's preconditioning; None for a classifier.
    """

    apply: Callable[..., Array]
    params: Any
    predicts: str | None = None

    def bind(self, params: Any) -> Any:
        """The denoiser, or the classifier `(x, t) -> logits`, with the given parameters."""
        network = functools.partial(self.apply, params)
        if self.predicts == "edm":
            return gj.denoisers.edm(network, SIGMA_DATA)
        return network if self.predicts is None else gj.denoiser(network, self.predicts)


class Run(NamedTuple):
    """The networks that a study trained on one data set.

    Args:
      shape: `(H, W, C)` of one image.
      names: The class names; empty without labels. The null label is `len(names)`.
      networks: The networks by name: "denoiser", "early", "weak", "classifier", "clean".
      curve: The measured curve of the calibrated scale; None until `calibrated` has measured it.
    """

    shape: tuple[int, int, int]
    names: tuple[str, ...]
    networks: dict[str, Trained]
    curve: gj.Curve | None = None


def describe(kind: str, config: Any, predicts: str | None = None) -> dict[str, Any]:
    """A JSON-able description of a network, for `build`."""
    content = {"kind": kind, "config": json.loads(json.dumps(dataclasses.asdict(config)))}
    return content if predicts is None else content | {"predicts": predicts}


def build(described: Mapping[str, Any], seed: int = 0) -> Trained:
    """The network of a description by `describe`, with initial parameters.

    Raises:
      ValueError: If there is no network of that kind.
    """
    if described["kind"] not in MODULES:
        raise ValueError(f"there is no network {described['kind']!r}, only {', '.join(MODULES)}.")
    module, config = MODULES[described["kind"]]
    apply, params = gj.networks.from_nnx(module(config(**described["config"]), rngs=nnx.Rngs(seed)))
    return Trained(apply, params, described.get("predicts"))


def save(run: Path, shape: tuple[int, ...], names: tuple[str, ...], networks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `models.json`.

    Args:
      run: The run's directory.
      shape: `(H, W, C)` of one image.
      names: The class names; empty without labels.
      networks: Each network's description by `describe`, its `checkpoint` inside the run, and `step` unless it is the last.
    """
    text = json.dumps({"shape": shape, "names": names, "networks": networks}, indent=1)
    with replacing(run / "models.json") as file:
        file.write(text.encode())


def load(run: Path) -> Run:
    """The networks of a run, read from their checkpoints.

    Raises:
      FileNotFoundError: If the directory is not a run, or a checkpoint is missing.
      OSError: If a checkpoint is damaged.
      ValueError: If `models.json` is damaged, or a checkpoint does not match its description.
    """
    content = _entries(run)

    def trained(name: str, entry: dict[str, Any]) -> Trained:
        try:
            network = build(entry)
            network.bind(network.params)
        except Exception as error:
            raise _damaged(run, f"its {name} cannot be built: {error}") from error
        return network._replace(params=restore(run / entry["checkpoint"], network.params, entry.get("step")))

    networks = {name: trained(name, entry) for name, entry in content["networks"].items()}
    return Run(tuple(content["shape"]), tuple(content["names"]), networks)


def entries(run: Path) -> dict[str, dict[str, Any]]:
    """The entry of each network in `models.json`. Raises as `load` does."""
    return _entries(run)["networks"]


def _entries(run: Path) -> dict[str, Any]:
    path = run / "models.json"
    if not path.exists():
        raise FileNotFoundError(f"{run} has no models.json. Use the output directory of a finished experiments.fashion_mnist.")
    try:
        content = read_json(path)
    except DamagedError as error:
        raise _damaged(run, str(error)) from error
    shape, names, networks = (content.get(key) for key in ("shape", "names", "networks"))
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
        raise _damaged(run, f"its shape is {shape}, not that of an image")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _damaged(run, "its names are not a list of class names")
    if not isinstance(networks, dict) or not all(isinstance(entry, dict) for entry in networks.values()):
        raise _damaged(run, "its networks are not dictionaries")
    for name, entry in networks.items():
        fields = {"kind": str, "config": dict, "checkpoint": str}
        wrong = [field for field, kind in fields.items() if not isinstance(entry.get(field), kind)]
        if wrong or type(entry.get("step", 0)) is not int:
            raise _damaged(run, f"its {name} has no {wrong[0] if wrong else 'step'} that can be read")
    return content


def _damaged(run: Path, why: str) -> DamagedError:
    return DamagedError(
        f"{run / 'models.json'} is damaged or of another version: {why}. Run the training's own command again. It finds the"
        " checkpoints and writes the file again."
    )


class Way(NamedTuple):
    """A way to sample: which networks it needs, and how it guides with them.

    Args:
      title: Its name in tables and figures.
      networks: The names of the networks it needs.
      guide: `(*networks, labels, null, scale) -> branches, guidance`, with networks as `Trained.bind` returns them.
      calibrated: Whether the scale follows the run's curve.
      labelled: Whether the way needs class labels.
    """

    title: str
    networks: tuple[str, ...]
    guide: Callable[..., tuple[Any, gj.Guidance]]
    calibrated: bool = False
    labelled: bool = True


Guided = tuple[Any, gj.Guidance]
Classify = Callable[[Array, Array], Array]


def _contrast(method: Callable[[Array], gj.Guidance]) -> Callable[..., Guided]:
    """A method that contrasts the conditional and the unconditional prediction of one network."""
    return lambda denoise, labels, null, scale: (gj.branches(denoise, cond=labels, uncond=null), method(scale))


def _conditional(denoise: Denoiser, labels: Array, null: Array, scale: Array) -> Guided:
    return gj.branches(denoise, cond=labels), gj.chain()


def _unconditional(denoise: Denoiser, labels: Array, null: Array, scale: Array) -> Guided:
    return gj.branches(denoise, uncond=null), gj.chain()


def _weaker(denoise: Denoiser, weak: Denoiser, labels: Array, null: Array, scale: Array) -> Guided:
    """Autoguidance: a network guided by a weaker one."""
    return (gj.branches(denoise, cond=labels), gj.branches(weak, weak=labels)), gj.autoguidance(scale)


def _classifier(denoise: Denoiser, classify: Classify, labels: Array, null: Array, scale: Array) -> Guided:
    """The unconditional prediction, guided by a classifier."""
    return gj.branches(denoise, uncond=null), gj.classifier(gj.scores.class_log_prob(classify, labels), scale)


def _clean(denoise: Denoiser, classify: Classify, labels: Array, null: Array, scale: Array) -> Guided:
    """The same with a classifier of clean images, which is always called with t = 0."""
    return _classifier(denoise, lambda x, t: classify(x, jnp.zeros_like(t)), labels, null, scale)


WAYS = {
    "unconditional": Way("unconditional", ("denoiser",), _unconditional, labelled=False),
    "conditional": Way("conditional", ("denoiser",), _conditional),
    "cfg": Way("CFG", ("denoiser",), _contrast(gj.cfg)),
    "interval": Way("CFG in an interval", ("denoiser",), _contrast(lambda w: gj.during(gj.cfg(w), *INTERVAL))),
    "rescale": Way("CFG, rescaled", ("denoiser",), _contrast(lambda w: gj.chain(gj.cfg(w), gj.rescale(0.7)))),
    "apg": Way("APG", ("denoiser",), _contrast(lambda w: gj.apg(w, max_norm=2.5))),
    "cfg_zero_star": Way("CFG-Zero*", ("denoiser",), _contrast(gj.cfg_zero_star)),
    "autoguidance": Way("autoguidance", ("denoiser", "early"), _weaker, labelled=False),
    "early": Way("under-trained", ("early",), _conditional),
    "early_cfg": Way("under-trained, CFG", ("early",), _contrast(gj.cfg)),
    "early_autoguidance": Way("under-trained, autoguidance", ("early", "weak"), _weaker),
    "classifier": Way("noise-aware classifier", ("denoiser", "classifier"), _classifier),
    "clean_classifier": Way("clean-trained classifier", ("denoiser", "clean"), _clean),
    "calibrated": Way("CFG, calibrated", ("denoiser",), _contrast(gj.cfg), calibrated=True),
}
"""The ways by name. They share one scale: 1 is the conditional model, or Bayes' rule for a classifier."""


def calibrated(run: Run, count: int = 1000, batch: int = 250, seed: int = 100) -> Run:
    """The run with its curve, measured on unguided samples of its denoiser, equally many per class.

    Args:
      run: A run with labels.
      count: The number of samples.
      batch: Samples at a time.
      seed: Seed of the samples.
    """
    apply = run.networks["denoiser"].bind
    spacing = gj.spacings.karras(sigma_min=0.02, sigma_max=60.0)
    drawn, measured = gj.levels(SCHEDULE, 18, spacing), gj.levels(SCHEDULE, 40, spacing)

    @jax.jit
    def part(params: Any, keys: Array, labels: Array) -> gj.Calibration:
        two = gj.branches(apply(params), cond=labels, uncond=jnp.full_like(labels, len(run.names)))
        x0 = gj.sample(keys, two, gj.chain(), gj.dpmpp_2m(), drawn, run.shape)
        return gj.calibrate(keys, two, x0, measured)

    keys, labels = jax.random.split(jax.random.key(seed), count), jnp.arange(count) % len(run.names)
    rows = [slice(i, i + batch) for i in range(0, count, batch)]
    parts = [part(run.networks["denoiser"].params, keys[some], labels[some]) for some in rows]
    return run._replace(curve=functools.reduce(operator.add, parts).for_classes)


def check(run: Run, way: Way) -> None:
    """Raises ValueError if the run lacks the labels or the networks that a way needs."""
    if way.labelled and not run.names:
        free = ", ".join(name for name, other in WAYS.items() if not other.labelled)
        raise ValueError(
            f"{way.title} needs class labels, but the run was trained on images without labels. Use one of: {free}."
        )
    if missing := [name for name in way.networks if name not in run.networks]:
        raise ValueError(f"{way.title} needs the networks {', '.join(missing)}; the run has {', '.join(run.networks)}.")


def program(
    run: Run, way: Way, sampler: gj.Sampler, levels: gj.NoiseLevel, loop: Callable[..., Array] = gj.sample
) -> tuple[Callable[[Any, Array, Array], Array], dict[str, Any]]:
    """The function `generate((params, scale), keys [B], labels [B]) -> images [B, H, W, C]`, and its params.

    Args:
      run: The trained networks.
      way: How to guide with them.
      sampler: The sampler.
      levels: `[steps + 1]` noise levels.
      loop: `gj.sample`; or `gj.evaluations`, for the number of network evaluations per sample in place of images.

    Raises:
      ValueError: If the run lacks labels, networks or the curve that the way needs.
    """
    check(run, way)
    if way.calibrated and run.curve is None:
        raise ValueError(f"{way.title} needs a run with its curve. Use models.calibrated(run).")
    curve = {"curve": run.curve} if way.calibrated else {}

    def generate(arguments: tuple[dict[str, Any], Array], keys: Array, labels: Array) -> Array:
        params, scale = arguments
        scale = gj.scales.calibrated(params["curve"], scale) if way.calibrated else scale
        bound = [run.networks[name].bind(params[name]) for name in way.networks]
        branches, guidance = way.guide(*bound, labels, jnp.full_like(labels, len(run.names)), scale)
        return loop(keys, branches, guidance, sampler, levels, run.shape)

    return generate, curve | {name: run.networks[name].params for name in way.networks}
