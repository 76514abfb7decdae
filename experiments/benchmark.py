"""What guidance costs beyond the network: a guided run against the bare network, in one run and process.

`python -m experiments.benchmark`. The bare network is called, jitted, at the batch that guidance gives it, as often as the
guided run evaluates it; both are timed in turn and the ratio is the median over the pairs. What an interval or a classifier
needs besides, the network at the batch without guidance or the classifier's gradient, counts as work of the bare side, in
running and in compiling.
"""

import dataclasses
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax import Array
from tqdm import tqdm

import guidance_jax as gj

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """What guidance costs beyond the network."""

    out: Path = Path("out/benchmark")
    """Where `benchmark.json` goes."""
    steps: int = 20
    """Sampler steps."""
    pairs: int = 15
    """Timed pairs of runs; the median ratio is reported."""
    smoke: bool = False
    """A run of seconds, that shows the way but no result."""

    def __post_init__(self) -> None:
        if self.steps < 4 or self.pairs < 1:
            raise ValueError(f"steps must be at least 4 and pairs at least 1, got {self.steps} and {self.pairs}.")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and the batch it is guided at."""

    shape: tuple[int, ...]
    batch: int
    network: Callable[[nnx.Rngs], nnx.Module]


CASES = {
    "MLP, toy": Case((2,), 1024, lambda rngs: gj.networks.MLP((2,), CLASSES, width=64, blocks=2, rngs=rngs)),
    "DiT": Case((16, 16, 3), 4, lambda rngs: gj.networks.DiT((16, 16, 3), CLASSES, rngs=rngs)),
    "U-Net": Case((32, 32, 3), 2, lambda rngs: gj.networks.UNet((32, 32, 3), CLASSES, rngs=rngs)),
}


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def memory(program: Any) -> int:
    """The bytes of a program's arguments, results and intermediate values at their peak."""
    used = program.memory_analysis()
    return used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], float]:
    """The compiled program, and the seconds of tracing and compiling it, the least of two."""

    def once() -> tuple[Callable[..., Any], float]:
        jax.clear_caches()
        start = time.perf_counter()
        return jax.jit(lambda *a: function(*a)).lower(*arguments).compile(), time.perf_counter() - start

    return min(once(), once(), key=lambda result: result[1])


def measure(case: Case, config: Config) -> list[dict[str, Any]]:
    """A row for each method."""
    apply, params = gj.networks.from_nnx(case.network(nnx.Rngs(0)))
    size = {"width": 32, "blocks": 1, "rngs": nnx.Rngs(1)}
    classify, weights = gj.networks.from_nnx(gj.networks.MLPClassifier(case.shape, CLASSES, **size))
    levels = gj.levels(gj.schedules.cosine(), config.steps, gj.spacings.karras())
    keys = jax.random.split(jax.random.key(0), case.batch)
    labels = jnp.arange(case.batch) % CLASSES
    inside = config.steps // 2
    low, high = levels.ratio[config.steps // 4 + inside], levels.ratio[config.steps // 4]

    def guided(method: str) -> Callable[..., Array]:
        def run(params: Any, weights: Any, keys: Array, labels: Array, scale: Array, low: Array, high: Array) -> Array:
            denoise = gj.denoiser(lambda x, t, cond: apply(params, x, t, cond), predicts="v")
            log_prob = gj.scores.class_log_prob(lambda x, t: classify(weights, x, t), labels, CLASSES)
            guidance = {
                "no guidance": gj.chain(),
                "CFG": gj.cfg(scale),
                "CFG in an interval": gj.during(gj.cfg(scale), low, high),
                "classifier": gj.classifier(log_prob, scale),
            }[method]
            branches = gj.branches(denoise, cond=labels, uncond=jnp.full_like(labels, CLASSES))
            return gj.sample(keys, branches, guidance, gj.ddim(), levels, case.shape)

        return run

    def network_at(batch: int) -> tuple[Callable[[], Any], float]:
        x, t = jnp.ones((batch, *case.shape)), jnp.full(batch, 0.5)
        cond = jnp.arange(batch) % CLASSES
        program, took = compiled(apply, params, x, t, cond)
        return lambda: program(params, x, t, cond), took

    def gradient() -> tuple[Callable[[], Any], float]:
        log_prob = gj.scores.class_log_prob(lambda x, t: classify(weights, x, t), labels, CLASSES)
        level, x = gj.schedules.cosine()(0.5), jnp.ones((case.batch, *case.shape))
        program, took = compiled(lambda x: gj.scores.classifier_score(log_prob, x, level), x)
        return lambda: program(x), took

    single, double, pull = network_at(case.batch), network_at(2 * case.batch), gradient()
    n = config.steps
    # Of each method: what the bare side calls, with its compile time and how often; and the evaluations per sample.
    bare = {
        "no guidance": ([(*single, n)], n),
        "CFG": ([(*double, n)], 2 * n),
        "CFG in an interval": ([(*double, inside), (*single, n - inside)], n + inside),
        "classifier": ([(*single, n), (*pull, n)], n),
    }
    arguments = params, weights, keys, labels, jnp.float32(2.0), low, high
    rows = []
    for method, (calls, evaluations) in tqdm(bare.items(), desc="methods", leave=False):
        program, compile_guided = compiled(guided(method), *arguments)

        def guided_run(program: Callable[..., Any] = program) -> Any:
            return program(*arguments)

        def bare_run(calls: list[tuple[Callable[[], Any], float, int]] = calls) -> None:
            for call, _, times in calls:
                for _ in range(times):
                    jax.block_until_ready(call())

        seconds(guided_run)
        seconds(bare_run)
        pairs = [(seconds(bare_run), seconds(guided_run)) for _ in range(config.pairs)]
        rows.append(
            {
                "method": method,
                "evaluations": evaluations,
                "network_ms": 1e3 * float(np.median([seconds(calls[0][0]) for _ in range(20)])),
                "bare_s": float(np.median([b for b, _ in pairs])),
                "guided_s": float(np.median([g for _, g in pairs])),
                "program_mb": memory(program) / 2**20,
                "ratio": float(np.median([g / b for b, g in pairs])),
                "compile_bare_s": sum(took for _, took, _ in calls),
                "compile_guided_s": compile_guided,
            }
        )
    return rows


def main(config: Config) -> dict[str, Any]:
    """Measure, print the table, write `benchmark.json`."""
    if config.smoke:
        config = dataclasses.replace(config, steps=4, pairs=2, out=config.out / "smoke")
    config.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"device": str(jax.devices()[0]), "steps": config.steps, "cases": {}}
    for name, case in tqdm(CASES.items(), desc="networks"):
        results["cases"][name] = measure(case, config)
    results["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{config.steps} DDIM steps on {results['device']}; ratio: guided run / bare network, median of {config.pairs} pairs"
    )
    print(
        "  network    method               evaluations  network ms  bare s  guided s   ratio  memory MB"
        "  compile: bare  guided  ratio"
    )
    for name, rows in results["cases"].items():
        for row in rows:
            times = row["compile_guided_s"] / row["compile_bare_s"]
            print(
                f"  {name:10} {row['method']:20} {row['evaluations']:11d} {row['network_ms']:11.2f} {row['bare_s']:8.3f}"
                f" {row['guided_s']:9.3f} {row['ratio']:7.3f} {row['program_mb']:10.1f} {row['compile_bare_s']:13.2f} s"
                f" {row['compile_guided_s']:6.2f} s {times:6.2f}"
            )
    print(f"Peak memory of the process: {results['peak_memory_mb']:.0f} MB.")
    (config.out / "benchmark.json").write_text(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
