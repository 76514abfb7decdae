"""The cost of guidance beyond the network: the time of a guided run relative to the bare network.

`python -m experiments.benchmarks.overhead` prints three tables. In the first, the bare network is jitted and called as often as
in the guided run, at the same batch size. Both are timed in turn, and the ratio is the median over the pairs. For an interval,
the bare side also calls the network at the batch size without guidance. For a classifier, it also calls the classifier's
gradient. Compilation is compared in the same way. The second table has one row per method, on the DiT. The third table is for
`sample` outside of `jit`. It counts how often the network is traced, for guidances in different intervals.
"""

import dataclasses
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax import Array

import guidance_jax as gj
from experiments.tools.stages import each

CLASSES = 10


class Traces:
    """The list of the network's traces. It is in a class because `sample` would compare a list when it looks up a program."""

    seen: ClassVar[list[tuple[int, ...]]] = []


@dataclasses.dataclass(frozen=True)
class Config:
    """The cost of guidance beyond the network.

    Args:
      out: The directory for `overhead.json`.
      steps: Number of sampler steps.
      pairs: Number of timed pairs of runs. The table has the median ratio.
      networks: Time every network without guidance, with CFG, with CFG in an interval and with a classifier.
      methods: Time every method on the DiT, with half the number of steps.
      programs: Count the traces of `sample` outside of `jit`, on the toy network.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = Path("out/overhead")
    steps: int = 20
    pairs: int = 15
    networks: bool = True
    methods: bool = True
    programs: bool = True
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.steps < 4 or self.pairs < 1:
            raise ValueError(f"steps must be at least 4 and pairs at least 1, got {self.steps} and {self.pairs}.")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with its classifier, the shape of a sample and the batch size.

    Args:
      shape: The shape of a sample.
      batch: The batch size.
      network: Makes the network from random numbers.
      classifier: Makes the classifier from random numbers.
    """

    shape: tuple[int, ...]
    batch: int
    network: Callable[[nnx.Rngs], nnx.Module]
    classifier: Callable[[nnx.Rngs], nnx.Module]


DIT = gj.networks.DiTConfig((16, 16, 3), CLASSES, width=192, blocks=6, heads=3, patch=2)
UNET = gj.networks.UNetConfig((32, 32, 3), CLASSES, widths=(32, 64, 128), blocks=1)
SMALL = {"width": 32, "blocks": 1}


def cases(dit: gj.networks.DiTConfig, unet: gj.networks.UNetConfig) -> dict[str, Case]:
    """The networks by name."""
    return {
        "MLP, toy": Case(
            (2,),
            1024,
            lambda rngs: gj.networks.MLP((2,), CLASSES, width=64, blocks=2, rngs=rngs),
            lambda rngs: gj.networks.MLPClassifier((2,), CLASSES, **SMALL, rngs=rngs),
        ),
        "DiT": Case(
            tuple(dit.shape),
            4,
            lambda rngs: gj.networks.DiT(dit, rngs=rngs),
            lambda rngs: gj.networks.MLPClassifier(dit.shape, CLASSES, **SMALL, rngs=rngs),
        ),
        "U-Net": Case(
            tuple(unet.shape),
            2,
            lambda rngs: gj.networks.UNet(unet, rngs=rngs),
            lambda rngs: gj.networks.UNetClassifier(unet, rngs=rngs),
        ),
    }


CASES = cases(DIT, UNET)
SMOKE = cases(
    dataclasses.replace(DIT, shape=(8, 8, 3), width=12, blocks=1), dataclasses.replace(UNET, shape=(8, 8, 3), widths=(8,))
)


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def memory(program: Any) -> int:
    """The peak memory of a program in bytes, with its arguments and results."""
    used = program.memory_analysis()
    return used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], float]:
    """The compiled program, and the seconds for tracing and compiling it, as the minimum of two trials."""

    def once() -> tuple[Callable[..., Any], float]:
        jax.clear_caches()
        start = time.perf_counter()
        return jax.jit(lambda *a: function(*a)).lower(*arguments).compile(), time.perf_counter() - start

    return min(once(), once(), key=lambda result: result[1])


def measure(case: Case, config: Config) -> list[dict[str, Any]]:
    """One row per method."""
    apply, params = gj.networks.from_nnx(case.network(nnx.Rngs(0)))
    classify, weights = gj.networks.from_nnx(case.classifier(nnx.Rngs(1)))
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
    # For each method: the bare side's programs, with their compile times and numbers of calls, and the evaluations per sample.
    bare = {
        "no guidance": ([(*single, n)], n),
        "CFG": ([(*double, n)], 2 * n),
        "CFG in an interval": ([(*double, inside), (*single, n - inside)], n + inside),
        "classifier": ([(*single, n), (*pull, n)], n),
    }
    arguments = params, weights, keys, labels, jnp.float32(2.0), low, high
    rows = []
    for method, (calls, evaluations) in each("methods", bare.items(), "method"):
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


def every_method(scale: Array, labels: Array, shape: tuple[int, ...], log_prob: Any) -> dict[str, gj.Guidance]:
    """Every method with usual parameters, for images `[B, H, W, C]`."""
    target = jnp.zeros((len(labels), *shape))
    near = lambda x0: -((x0 - target) ** 2).mean((1, 2, 3))
    left = lambda x0: x0[:, :, : shape[1] // 2]
    widen = lambda y: jnp.concatenate([y, 0 * y], axis=2)
    return {
        "cfg": gj.cfg(scale),
        "autoguidance": gj.autoguidance(scale),
        "compose (3 conditions)": gj.compose({"cond": scale, "image": scale, "negative": -scale}),
        "dual_cfg": gj.dual_cfg(scale, scale),
        "perturbed": gj.perturbed(scale),
        "perturbed and cfg": gj.chain(gj.cfg(scale), gj.perturbed(scale)),
        "icg": gj.icg(scale),
        "perp_neg": gj.perp_neg(scale, {"negative": 1.0}),
        "tcfg": gj.tcfg(scale),
        "mambo_g": gj.mambo_g(scale),
        "power_law": gj.power_law(scale),
        "beta_cfg": gj.in_space("eps", gj.beta_cfg(scale)),
        "recfg": gj.in_space("eps", gj.recfg(scale, 0.9)),
        "fdg": gj.fdg((2 * scale, scale)),
        "fresca": gj.fresca(scale),
        "apg": gj.apg(scale),
        "cfg_zero_star": gj.cfg_zero_star(scale),
        "cfg_pp": gj.cfg_pp(scale / 10),
        "feedback": gj.feedback(0.9),
        "reg": gj.reg(gj.cfg(scale)),
        "rescale after cfg": gj.chain(gj.cfg(scale), gj.in_space("v", gj.rescale(0.7))),
        "dynamic_threshold after cfg": gj.chain(gj.cfg(scale), gj.dynamic_threshold()),
        "reuse(cfg, 2)": gj.reuse(gj.cfg(scale), 2),
        "linear_reuse": gj.linear_reuse(scale, jnp.array([1.0, -1.0, 1.0])),
        "adaptive(cfg)": gj.adaptive(gj.cfg(scale)),
        "classifier": gj.classifier(log_prob, scale),
        "mean_shift": gj.mean_shift(log_prob, scale),
        "universal": gj.universal(near, scale),
        "dps": gj.dps(left, left(target), scale),
        "pigdm": gj.pigdm(left, widen, left(target)),
        "lgd": gj.lgd(near, scale),
        "mpgd": gj.mpgd(near, scale),
        "freedom": gj.freedom(near, scale),
        "tfg": gj.tfg(near, scale, scale),
    }


def measure_methods(case: Case, config: Config) -> list[dict[str, Any]]:
    """One row per method: its evaluations, and the time of a run relative to the same calls of the bare network."""
    apply, params = gj.networks.from_nnx(case.network(nnx.Rngs(0)))
    classify, weights = gj.networks.from_nnx(case.classifier(nnx.Rngs(1)))
    steps, b = max(config.steps // 2, 2), case.batch
    levels = gj.levels(gj.schedules.cosine(), steps, gj.spacings.karras())
    keys, labels = jax.random.split(jax.random.key(0), b), jnp.arange(b) % CLASSES
    given = {name: (labels + i) % CLASSES for i, name in enumerate(("cond", "weak", "perturbed", "negative", "image"))}
    conds: Any = given | {"uncond": jnp.full_like(labels, CLASSES), "random": gj.conditions.random_labels(CLASSES)}

    def log_prob(weights: Any) -> Callable[..., Array]:
        return gj.scores.class_log_prob(lambda x, t: classify(weights, x, t), labels, CLASSES)

    def arguments(params: Any, weights: Any, scale: Array, method: str) -> Any:
        denoise = gj.denoiser(lambda x, t, cond: apply(params, x, t, cond), predicts="v")
        guidance = every_method(scale, labels, case.shape, log_prob(weights))[method]
        return keys, gj.branches(denoise, **conds), guidance, gj.ddim(), levels, case.shape

    def call(function: Callable[..., Any], *given: Any) -> Callable[[], Any]:
        program = jax.jit(function)
        return lambda: jax.block_until_ready(program(*given))

    def network(n: int) -> Callable[[], Any]:
        return call(apply, params, jnp.ones((n * b, *case.shape)), jnp.full(n * b, 0.5), jnp.arange(n * b) % CLASSES)

    def both_ways(params: Any, x: Array, t: Array, cond: Array) -> Any:
        out, pull = jax.vjp(lambda x: apply(params, x, t, cond), x)
        return out, pull(out)

    at = jnp.ones((b, *case.shape)), jnp.full(b, 0.5), labels
    schedule_at = lambda t: gj.schedules.cosine()(0.5).replace(t=t[0])
    pull = call(jax.grad(lambda x, weights, t: log_prob(weights)(x, schedule_at(t)).sum()), at[0], weights, at[1])
    forward = {n: network(n) for n in range(1, 5)}
    forward_backward = call(both_ways, params, *at)
    scale, rows = jnp.float32(2.0), []
    names = list(every_method(scale, labels, case.shape, log_prob(weights)))
    for method in each("methods", names[::8] if config.smoke else names, "method"):
        guided = jax.jit(lambda params, weights, scale, m=method: gj.sample(*arguments(params, weights, scale, m)))
        guidance = arguments(params, weights, scale, method)[2]
        evaluations = int(gj.evaluations(*arguments(params, weights, scale, method)))
        n = len(guidance.needs | {"cond"})
        # The number of steps that evaluate all branches. The other steps evaluate only the base.
        full = (evaluations - steps) // (n - 1) if n > 1 else 0
        calls = [(forward[n], full), (forward[1], steps - full)]
        if guidance.derivatives:
            calls = [(forward_backward, steps), (forward[max(n - 1, 1)], full)]
        if method in ("classifier", "mean_shift"):
            calls.append((pull, steps))

        def bare(calls: list[tuple[Callable[[], Any], int]] = calls) -> None:
            for one, times in calls:
                for _ in range(times):
                    one()

        def run(guided: Callable[..., Any] = guided) -> Any:
            return guided(params, weights, scale)

        seconds(run)
        seconds(bare)
        pairs = [(seconds(bare), seconds(run)) for _ in range(config.pairs)]
        rows.append(
            {
                "method": method,
                "evaluations": evaluations,
                "backward": steps if guidance.derivatives else 0,
                "bare_s": float(np.median([one for one, _ in pairs])),
                "guided_s": float(np.median([two for _, two in pairs])),
                "ratio": float(np.median([two / one for one, two in pairs])),
            }
        )
    return rows


def measure_programs(case: Case, config: Config, gates: int = 7) -> list[dict[str, Any]]:
    """The seconds and the traces of the network for successive calls of `sample` outside of `jit`."""
    apply, params = gj.networks.from_nnx(case.network(nnx.Rngs(0)))
    levels = gj.levels(gj.schedules.cosine(), config.steps, gj.spacings.karras())
    labels, rows = jnp.arange(case.batch) % CLASSES, []
    null = jnp.full_like(labels, CLASSES)

    def network(params: Any, x: Array, t: Array, cond: Array) -> Array:
        Traces.seen.append(x.shape)
        return apply(params, x, t, cond)

    def run(call: str, guidance: gj.Guidance, params: Any = params, seed: int = 0, weak: int = 1) -> None:
        denoise = gj.denoiser(jax.tree_util.Partial(network, params), predicts="v")
        nulls: dict[str, Any] = {f"uncond{i}": null for i in range(weak)}
        branches = gj.branches(denoise, cond=labels, **nulls)
        keys = jax.random.split(jax.random.key(seed), case.batch)
        Traces.seen.clear()
        took = seconds(lambda: gj.sample(keys, branches, guidance, gj.ddim(), levels, case.shape))
        rows.append({"call": call, "seconds": took, "traces": len(Traces.seen)})

    def gated(scale: float, count: int = 1, high: float = 5.0) -> gj.Guidance:
        parts = (gj.during(gj.cfg(scale, uncond=f"uncond{i}"), 0.1 * (i + 1), high + i) for i in range(count))
        return gj.chain(*parts)

    run("first", gated(2.0))
    run("second", gated(2.0))
    run("another scale", gated(3.0))
    run("another interval", gated(3.0, high=4.0))
    run("other parameters", gated(3.0), jax.tree.map(lambda leaf: 0.9 * leaf, params))
    run("another key", gated(3.0), seed=1)
    for count in range(1, (2 if config.smoke else gates) + 1):
        run(f"first of {count} intervals", gj.chain(gated(2.0, count), gj.chain()), weak=count)
    return rows


def main(config: Config) -> dict[str, Any]:
    """Measure, print the tables and write `overhead.json`."""
    if config.smoke:
        config = dataclasses.replace(config, steps=4, pairs=2, out=config.out / "smoke")
    config.out.mkdir(parents=True, exist_ok=True)
    cases = SMOKE if config.smoke else CASES
    results: dict[str, Any] = {"device": str(jax.devices()[0]), "steps": config.steps, "cases": {}}
    for name, case in each("networks", cases.items(), "network"):
        if config.networks:
            results["cases"][name] = measure(case, config)
    if config.methods:
        results["methods"] = measure_methods(cases["DiT"], config)
    if config.programs:
        results["programs"] = measure_programs(cases["MLP, toy"], config)
    results["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"\n{config.steps} DDIM steps on {results['device']}. The ratio is the time of the guided run over that of the bare "
        f"network, as the median of {config.pairs} pairs."
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
    if config.methods:
        print(f"\nEvery method on the DiT at batch {CASES['DiT'].batch}, {max(config.steps // 2, 2)} DDIM steps")
        print("  method                        evaluations  backward  bare s  guided s   ratio")
        for row in results["methods"]:
            print(
                f"  {row['method']:28} {row['evaluations']:12d} {row['backward']:9d} {row['bare_s']:7.3f}"
                f" {row['guided_s']:9.3f} {row['ratio']:7.3f}"
            )
    if config.programs:
        print("\n`sample` outside of `jit`, on the toy network, and how often the network is traced")
        print("  call                           seconds  traces")
        for row in results["programs"]:
            print(f"  {row['call']:28} {row['seconds']:9.4f} {row['traces']:7d}")
    print(f"The peak memory of the process is {results['peak_memory_mb']:.0f} MB.")
    (config.out / "overhead.json").write_text(json.dumps(results, indent=1))
    return results


if __name__ == "__main__":
    main(tyro.cli(Config))
