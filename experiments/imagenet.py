"""ImageNet by the released networks, as published: ADM with its noise-aware classifier, and DiT with classifier-free guidance.

`python -m experiments.imagenet --model adm-256 --weights models --scale 1.0 --samples 50000` reads `256x256_diffusion.pt` and
`256x256_classifier.pt` from `models`. It samples on all devices of all processes. It writes one `.npz` that OpenAI's evaluator
reads, and a picture. The same command continues a run that was killed. If a file of weights is missing, the error says where
to download it.

With the DDPM sampler, the mean of each reverse step of ADM moves by the learned variance times the classifier's gradient
(ADM-G). x0 is clipped before. With DDIM the gradient is added to the score. DiT guides three of the four channels of its
latents, and `--guided-channels 4` guides all of them.
"""

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.tools import devices as local
from experiments.tools.generate import Program, assembled, balanced, generate
from experiments.tools.shards import Shards
from guidance_jax import pretrained
from guidance_jax.noise import normal
from guidance_jax.pretrained import adm, autoencoder, dit
from guidance_jax.schedules.schedule import Schedule

OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
META = "https://dl.fbaipublicfiles.com/DiT/models/"
STABILITY = "https://huggingface.co/stabilityai/sd-vae-ft-ema/resolve/main/"
AUTOENCODER = "diffusion_pytorch_model.safetensors"
TRAINED = 1000
"""The number of noise levels that all networks were trained with."""


class ADM(NamedTuple):
    """A released U-Net and the classifier of its images.

    Args:
      network: The sizes of the U-Net.
      classifier: The sizes of the noise-aware classifier.
      files: The names of the files of weights, of the U-Net and of the classifier.
      scale: The published guidance scale for 250 steps of DDPM.
      schedule: The noise schedule of the training.
    """

    network: adm.ADMConfig
    classifier: adm.ADMConfig
    files: tuple[str, str]
    scale: float
    schedule: Callable[[], Schedule] = gj.schedules.ddpm_linear


class DiT(NamedTuple):
    """A released transformer, and the autoencoder of its latents.

    Args:
      network: The sizes of the transformer.
      autoencoder: The sizes of the autoencoder.
      files: The names of the files of weights, of the transformer and of the autoencoder.
      scale: The published guidance scale.
    """

    network: dit.DiTConfig
    autoencoder: autoencoder.AutoencoderConfig
    files: tuple[str, str]
    scale: float = 1.5


def released_adm(name: str, scale: float, **options: Any) -> ADM:
    config = adm.RELEASED[name]
    size = f"{config.image_size}x{config.image_size}"
    unconditional = "_uncond" if config.num_classes is None else ""
    files = f"{size}_diffusion{unconditional}.pt", f"{size}_classifier.pt"
    return ADM(config, adm.CLASSIFIERS[config.image_size], files, scale, **options)


MODELS: dict[str, ADM | DiT] = {
    "adm-64": released_adm("adm-64", 1.0, schedule=gj.schedules.ddpm_cosine),
    "adm-128": released_adm("adm-128", 0.5),
    "adm-256": released_adm("adm-256", 1.0),
    "adm-256-uncond": released_adm("adm-256-uncond", 10.0),
    "adm-512": released_adm("adm-512", 4.0),
} | {
    f"dit-{size}": DiT(
        dit.dit_config("DiT-XL/2", size), autoencoder.AutoencoderConfig(), (f"DiT-XL-2-{size}x{size}.pt", AUTOENCODER)
    )
    for size in (256, 512)
}


class Way(NamedTuple):
    """A sampler with the spacing and the number of steps of the released code.

    Args:
      sampler: The sampler.
      spacing: The spacing of its levels.
      steps: The number of steps.
    """

    sampler: gj.Sampler
    spacing: Any
    steps: int


WAYS = {
    "ddpm": Way(gj.ddpm("learned"), gj.spacings.uniform(), 250),
    "ddim": Way(gj.ddim(), gj.spacings.leading(), 25),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Images of ImageNet's classes by a released network.

    Args:
      model: adm-64, adm-128, adm-256, adm-256-uncond, adm-512, dit-256 or dit-512.
      weights: The directory with the released files under their original names.
      out: The directory of this set of samples. The default is named by model, sampler and scale, in out/imagenet.
      scale: The guidance scale. The default is the published one. At scale 0 ADM's classifier is neither read nor evaluated.
      samples: Number of samples. A later run with a larger number extends the set.
      labels: The classes to sample in turn. The default is all classes.
      sampler: ddpm, with the learned variance, or ddim.
      steps: Number of sampler steps. The default is 250 for ddpm and 25 for ddim. For ddim it must divide 1,000.
      guided_channels: Number of guided channels of DiT's four latent channels: 3 as published, or 4.
      dtype: The data type of the weights and of the networks' arithmetic. Samplers always use float32.
      seed: The seed. Sample i depends on the seed and on i only.
      batch: Number of samples per batch on all devices of a process.
      shard: Samples per file, a multiple of the batch. A killed run loses at most one unfinished file.
      coordinator: For several processes: host:port of process 0, or "auto" on a cluster that JAX detects.
      processes: The number of processes.
      process: The number of this process, from 0.
    """

    model: str = "adm-256"
    weights: Path = Path("models")
    out: Path | None = None
    scale: float | None = None
    samples: int = 50_000
    labels: tuple[int, ...] = ()
    sampler: str = "ddpm"
    steps: int | None = None
    guided_channels: int = 3
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    batch: int = 32
    shard: int = 512
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        for name, names in (("model", MODELS), ("sampler", WAYS)):
            if getattr(self, name) not in names:
                raise ValueError(f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}.")
        if self.samples < 1 or (self.steps is not None and not 1 <= self.steps <= TRAINED):
            raise ValueError(f"samples must be at least 1 and steps from 1 to {TRAINED}, got {self.samples} and {self.steps}.")
        if self.sampler == "ddim" and TRAINED % (self.steps or WAYS["ddim"].steps):
            raise ValueError(f"steps of ddim must divide {TRAINED}, got {self.steps}.")
        if self.guided_channels not in (3, 4):
            raise ValueError(f"guided_channels must be 3 or 4, got {self.guided_channels}.")


class Reader:
    """Reads networks from a directory of released files, and puts their weights on every device of this process."""

    def __init__(self, config: Config):
        self.directory, self.dtype = config.weights, jnp.dtype(config.dtype)
        several = jax.local_device_count() > 1
        self.place = local.replicated(local.mesh(jax.local_devices())) if several else None
        self.digests: dict[str, str] = {}
        """SHA-256 of each file that was read."""

    def __call__(
        self, build: Callable[..., nnx.Module], file: str, source: str, method: str = "__call__", **options: Any
    ) -> tuple[Callable[..., Any], Any]:
        """The network as a pure function, and its weights.

        Raises:
          FileNotFoundError: if the file is missing. The message says where to download it.
          ValueError: if the file is damaged or belongs to another network.
        """
        path = self.directory / file
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: download {source}{file} into {self.directory}.")
        start = time.perf_counter()
        tensors = dit.averaged(pretrained.open_weights(path))
        try:
            module = pretrained.load(build, tensors, dtype=self.dtype, sharding=self.place, **options)
        except ValueError as error:
            raise ValueError(f"{path} is no {source}{file}: {error}") from error
        with path.open("rb") as opened:
            self.digests[file] = hashlib.file_digest(opened, "sha256").hexdigest()
        if jax.process_index() == 0:
            count, seconds = pretrained.parameter_count(module), time.perf_counter() - start
            print(f"{path}: {count:,} parameters in {self.dtype}, read in {seconds:.1f} s", flush=True)
        return gj.networks.from_nnx(module, method)


def start(keys: Array, shape: tuple[int, ...]) -> Array:
    """Noise of unit variance. The released samplers start from it at every initial noise level."""
    folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0)
    return normal(folded, jax.ShapeDtypeStruct((len(keys), *shape), jnp.float32))


def by_adm(model: ADM, read: Reader, way: Way, steps: int, guided: bool) -> tuple[Program, Any]:
    """`program((params, scale), keys, labels) -> images` and its params, by a U-Net and, if `guided`, a classifier.

    The images are rounded down to whole bytes, as in the released script.
    """
    denoise, of_network = read(lambda rngs: adm.ADM(model.network, rngs=rngs), model.files[0], OPENAI)
    classify, of_classifier = None, None
    if guided:
        build = lambda rngs: adm.ADMClassifier(model.classifier, rngs=rngs)
        classify, of_classifier = read(build, model.files[1], OPENAI)
    levels = gj.levels(model.schedule(), steps, way.spacing)
    size = model.network.image_size

    def program(inputs: Any, keys: Array, labels: Array) -> Array:
        (of_network, of_classifier), scale = inputs
        network = gj.denoisers.learned_variance(functools.partial(denoise, of_network), "eps")
        known = labels if model.network.num_classes is not None else None
        branches = gj.branches(gj.denoisers.clip(network), cond=known)
        guidance = gj.chain()
        if classify is not None:
            log_prob = gj.scores.class_log_prob(functools.partial(classify, of_classifier), labels)
            mean_shift = way is WAYS["ddpm"]
            guidance = gj.mean_shift(log_prob, scale, variance="learned") if mean_shift else gj.classifier(log_prob, scale)
        x = gj.sample(keys, branches, guidance, way.sampler, levels, start(keys, (size, size, model.network.in_channels)))
        return jnp.floor((jnp.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1

    return program, (of_network, of_classifier)


def by_dit(model: DiT, read: Reader, way: Way, steps: int, channels: int) -> tuple[Program, Any]:
    """`program((params, scale), keys, labels) -> images` and its params, by a transformer guided on the first channels."""
    denoise, of_network = read(lambda rngs: dit.DiT(model.network, rngs=rngs), model.files[0], META)
    sizes = model.autoencoder
    build = lambda rngs: autoencoder.AutoencoderKL(sizes, rngs=rngs)
    decode, of_decoder = read(build, model.files[1], STABILITY, "decode", rename=autoencoder.current_name)
    levels = gj.levels(gj.schedules.ddpm_linear(), steps, way.spacing)
    shape = (model.network.input_size, model.network.input_size, model.network.in_channels)

    def program(inputs: Any, keys: Array, labels: Array) -> Array:
        (of_network, of_decoder), scale = inputs
        network = gj.denoisers.learned_variance(functools.partial(denoise, of_network), "eps")
        null = jnp.full_like(labels, model.network.num_classes)
        branches = gj.branches(network, cond=labels, uncond=null)
        guidance = gj.on_channels(gj.cfg(scale), channels)
        z = gj.sample(keys, branches, guidance, way.sampler, levels, start(keys, shape))
        return decode(of_decoder, z / sizes.scaling_factor + sizes.shift_factor).astype(jnp.float32)

    return program, (of_network, of_decoder)


def main(config: Config) -> Shards:
    """Sample the set. Process 0 assembles it and draws a grid."""
    local.start(config.coordinator, config.processes, config.process)
    model, way, read = MODELS[config.model], WAYS[config.sampler], Reader(config)
    scale = model.scale if config.scale is None else config.scale
    steps = way.steps if config.steps is None else config.steps
    classes = (model.classifier if isinstance(model, ADM) else model.network).num_classes or 0
    if not set(config.labels) <= set(range(classes)):
        raise ValueError(f"labels must be from 0 to {classes - 1}, got {config.labels}.")
    identity = {"model": config.model, "sampler": config.sampler, "steps": steps, "scale": scale, "dtype": config.dtype}
    if isinstance(model, ADM):
        program, params = by_adm(model, read, way, steps, guided=scale != 0)
    else:
        program, params = by_dit(model, read, way, steps, config.guided_channels)
        identity["guided_channels"] = config.guided_channels
    return generate(
        program,
        (params, jnp.float32(scale)),
        balanced(config.samples, config.labels or range(classes)),
        config.seed,
        config.out or Path("out/imagenet") / f"{config.model}_{config.sampler}{steps}_{scale:g}",
        identity | {"weights": read.digests},
        batch=config.batch,
        shard=config.shard,
        finish=assembled(names=() if classes else None),
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
