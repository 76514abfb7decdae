"""A guidance scale per noise level, learned by gradients through the sampler.

`python -m experiments.learn_schedule` uses classifier-free guidance on a mixture in the plane with exact scores, and a sampler
with few steps. The target is the tilted density p(x)^(1 - w) p(x | y)^w. CFG is often said to sample it. Neither a constant
scale nor an interval of noise levels (Kynkaanniemi et al. 2024, arXiv:2404.07724) samples it. The job learns the scale as a
function of the noise level. The function is piecewise linear in log(sigma / alpha). Adam moves its knots along the gradient of
the sliced Wasserstein distance between samples and exact samples. The gradient goes through every step
(`gj.sample(..., remat=True)`).

A grid search by the same criterion finds the best constant and the best interval. It tries every interval that makes a
difference for these steps. All methods are judged on new noise and new exact samples.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from jax import Array

import guidance_jax as gj
from experiments.tools import pictures
from experiments.tools.pictures import INK, METHODS
from experiments.tools.stages import Progress, each

COLORS = {
    "exact samples": METHODS["exact"],
    "best constant": METHODS["constant"],
    "best interval": METHODS["interval"],
    "learned": METHODS["learned"],
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A guidance scale per noise level, learned by gradients.

    Args:
      out: The directory for the picture and `metrics.json`.
      target: w of the tilted density that is the target, at least 1.
      steps: Number of sampler steps.
      knots: Number of knots of the learned scale. They are uniform in log(sigma / alpha) over the sampler's levels.
      iterations: Number of training iterations of Adam.
      rate: The initial learning rate. It falls to 0 along a cosine.
      roughness: Weight of the mean squared difference of neighbouring knots. It smooths the scale at levels where it has no
        effect.
      batch: Number of samples, and of exact samples, per training iteration and per evaluation of the search.
      repeats: Number of independent test sets of samples and exact samples. Their spread gives the error bars.
      judged: Number of samples, and of exact samples, per test set.
      seed: The seed of all random numbers.
      smoke: Check the job at toy size. The numbers of such a run mean nothing.
    """

    out: Path = Path("out/learn_schedule")
    target: float = 3.0
    steps: int = 10
    knots: int = 6
    iterations: int = 400
    rate: float = 0.1
    roughness: float = 2e-4
    batch: int = 1500
    repeats: int = 8
    judged: int = 8000
    seed: int = 0
    smoke: bool = False

    def __post_init__(self) -> None:
        if self.target < 1:
            raise ValueError(f"target must be at least 1, where rejection sampling is exact, got {self.target}.")
        if self.steps < 2 or self.knots < 2 or self.iterations < 1 or self.repeats < 2:
            raise ValueError(
                "steps, knots and repeats must be at least 2 and iterations at least 1, got "
                f"{self.steps}, {self.knots}, {self.repeats} and {self.iterations}."
            )


class World(NamedTuple):
    """The mixture, the sampler's noise levels, and the knots of the scale in log(sigma / alpha).

    Args:
      mixture: The exact mixture.
      levels: The sampler's noise levels.
      knots: The places where the scale may bend, in log(sigma / alpha).
    """

    mixture: gj.oracles.GaussianMixture
    levels: gj.NoiseLevel
    knots: Array


def grow(config: Config) -> World:
    """Two overlapping classes with two components each. Class 1 is much wider and more frequent."""

    @jax.jit
    def world() -> World:
        mixture = gj.oracles.GaussianMixture(
            jnp.array([[0.9, -0.4], [0.3, 0.5], [-0.5, 0.2], [-1.5, 1.0]]),
            jnp.array([0.5, 0.5, 2.5, 1.5])[:, None, None] * jnp.eye(2)[None],
            jnp.array([1.0, 1.0, 20.0, 10.0]),
            jnp.array([0, 0, 1, 1]),
        )
        levels = path(config.steps)
        low, high = jnp.log(levels.ratio[-2]), jnp.log(levels.ratio[0])
        return World(mixture, levels, jnp.linspace(low, high, config.knots))

    return world()


def path(steps: int) -> gj.NoiseLevel:
    return gj.levels(gj.schedules.edm(0.02, 40.0), steps, gj.spacings.karras())


def clean_log_prob(world: World, x: Array, label: int) -> Array:
    """The log-density of the data in class `label`. Label -1 means all classes."""
    clean = world.levels[-1]
    return world.mixture.log_prob(x, clean, jnp.full(len(x), label))


def exact(config: Config, world: World, key: Array, n: int) -> Array:
    """Exact samples of the target density, `[n, 2]`."""
    return jax.jit(lambda key: world.mixture.sample_tilted(key, n, 0, config.target))(key)


def run(world: World, guidance: gj.Guidance, key: Array, n: int) -> tuple[Any, ...]:
    """The arguments of `gj.sample` for n samples of class 0."""
    labels = jnp.zeros(n, int)
    branches = gj.branches(world.mixture.denoise, cond=labels, uncond=jnp.full(n, -1))
    return jax.random.split(key, n), branches, guidance, gj.dpmpp_2m(), world.levels, (2,)


def learned(world: World, values: Array) -> gj.Guidance:
    return gj.cfg(lambda level: jnp.interp(jnp.log(level.ratio), world.knots, values))


def criterion(world: World, guidance: gj.Guidance, target: Array, key: Array, remat: bool = False) -> Array:
    """The squared sliced Wasserstein distance between the target's samples and as many guided samples."""
    draw, lines = jax.random.split(key)
    x = gj.sample(*run(world, guidance, draw, len(target)), remat=remat)
    return gj.metrics.sliced_wasserstein(x, target, lines, projections=32) ** 2


class Found(NamedTuple):
    """An interval, its scale, and the value of the criterion. A constant scale has the interval (0, infinity].

    Args:
      low: The lower bound, in `sigma / alpha`.
      high: The upper bound, in `sigma / alpha`.
      scale: The guidance scale in the interval.
      criterion: The value of the criterion.
    """

    low: float
    high: float
    scale: float
    criterion: float


def search(config: Config, world: World, bank: Array, scales: np.ndarray) -> tuple[Found, Found]:
    """The best constant scale and the best interval.

    The first search tries all intervals with ends between the sampler's levels, at every scale. The second search uses four
    times as many samples and a grid ten times as fine, around the best scales of the best five intervals.
    """
    ratio = np.asarray(world.levels.ratio[:-1], np.float64)
    edges = [0.0, *np.sqrt(ratio[1:] * ratio[:-1])[::-1].tolist(), np.inf]  # of one type, for one program
    spacing = scales[1] - scales[0]

    @functools.partial(jax.jit, static_argnames="n")
    def at(bank: Array, low: float, high: float, scales: Array, n: int) -> Array:
        guided = lambda scale: criterion(world, gj.during(gj.cfg(scale), low, high), bank[:n], jax.random.key(config.seed + 1))
        return jax.lax.map(guided, scales)

    def one(pair: tuple[float, float], scales: np.ndarray, n: int) -> Found:
        tried = np.asarray(at(bank, *pair, jnp.asarray(scales, jnp.float32), n))
        return Found(*pair, float(scales[tried.argmin()]), float(tried.min()))

    def best(pairs: list[tuple[float, float]], name: str) -> Found:
        coarse = [one(pair, scales, config.batch) for pair in each(name, pairs, "pair")]
        top = sorted(coarse, key=lambda found: found.criterion)[:5]
        fine = spacing * np.linspace(-0.9, 0.9, 19)
        return min((one(found[:2], found.scale + fine, 4 * config.batch) for found in top), key=lambda found: found.criterion)

    return best([(0.0, np.inf)], "constants"), best(list(itertools.combinations(edges, 2)), "intervals")


def train(config: Config, world: World, bank: Array, start: float) -> tuple[Array, np.ndarray]:
    """The learned values at the knots, and the criterion per iteration."""
    optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, config.iterations), b2=0.99)

    @jax.jit
    def step(bank: Array, values: Array, state: Any, key: Array) -> tuple[Array, Any, Array]:
        choose, draw = jax.random.split(key)

        def loss(values: Array) -> tuple[Array, Array]:
            target = bank[jax.random.randint(choose, (config.batch,), 0, len(bank))]
            value = criterion(world, learned(world, values), target, draw, remat=True)
            return value + config.roughness * (jnp.diff(values) ** 2).mean(), value

        (_, value), gradient = jax.value_and_grad(loss, has_aux=True)(values)
        change, state = optimizer.update(gradient, state)
        return values + change, state, value  # pyright: ignore[reportOperatorIssue]

    values, keys = jnp.full(config.knots, start), jax.random.split(jax.random.key(config.seed + 2), config.iterations)
    state, history = optimizer.init(values), []
    with Progress("training", len(keys), "step") as bar:
        for key in keys:
            values, state, value = step(bank, values, state, key)
            history.append(float(value))
            bar.update()
            bar.note(f"distance={np.sqrt(history[-1]):.4f}")
    return values, np.array(history)


def references(config: Config, world: World, bank: Array, guidances: dict[str, gj.Guidance]) -> dict[str, float]:
    """The criterion of guidances and of exact samples, as the mean over sixteen sets of the size of a training batch."""
    keys = jax.random.split(jax.random.key(config.seed + 6), 16)

    def mean(guidance: gj.Guidance | None) -> float:
        def one(bank: Array, key: Array) -> Array:
            choose, draw = jax.random.split(key)
            x, target = bank[jax.random.randint(choose, (2, config.batch), 0, len(bank))]
            if guidance is None:
                return gj.metrics.sliced_wasserstein(x, target, draw, projections=32) ** 2
            return criterion(world, guidance, target, draw)

        return float(jax.jit(lambda bank, keys: jax.lax.map(functools.partial(one, bank), keys).mean())(bank, keys))

    return {name: mean(guidances.get(name)) for name in ("best constant", "best interval", "exact samples")}


def mean_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def memory(config: Config, world: World, steps: int, remat: bool) -> int:
    """The bytes of temporary memory of the gradient's program."""
    world = world._replace(levels=jax.jit(path, static_argnums=0)(steps))
    target, values = np.zeros((config.batch, 2), np.float32), np.ones(config.knots, np.float32)
    loss = lambda values: criterion(world, learned(world, values), jnp.asarray(target), jax.random.key(0), remat)
    compiled = jax.jit(jax.grad(loss)).lower(values).compile()
    return compiled.memory_analysis().temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]


def judge(config: Config, world: World, guidances: dict[str, gj.Guidance]) -> dict[str, dict[str, Any]]:
    """Both distances to exact samples, `[repeats]`, on new noise and new exact samples; and the network calls."""
    n, repeats = config.judged, config.repeats
    fresh = exact(config, world, jax.random.key(config.seed + 3), 2 * n * repeats).reshape(2, repeats, n, 2)

    lines = jax.random.key(config.seed + 4)
    sliced = jax.jit(lambda x, target: gj.metrics.sliced_wasserstein(x, target, lines, projections=64))
    energy = jax.jit(lambda x, target: gj.metrics.energy_distance(x[:2000], target[:2000]))
    draw = jax.jit(lambda guidance, key: gj.run(*run(world, guidance, key, n))[0])  # one program for all constant scales
    rows = {}
    for name in each("judging", ["exact samples", *guidances], "method"):
        calls, x = 0, fresh[1]
        if name in guidances:
            states = [draw(guidances[name], key) for key in jax.random.split(jax.random.key(config.seed + 5), repeats)]
            calls, x = int(states[0].evaluations), jnp.stack([state.x for state in states])
        pairs = list(zip(x, fresh[0], strict=True))
        row: dict[str, Any] = {"calls": calls, "x": np.asarray(x).reshape(-1, 2)}
        for metric, distance in {"sliced": sliced, "energy": energy}.items():
            row[metric] = np.array([float(distance(*pair)) for pair in pairs])
        rows[name] = row
    return rows


def picture(
    config: Config,
    world: World,
    rows: dict[str, dict[str, Any]],
    lines: dict[str, Callable[[Any], Any]],
    history: np.ndarray,
    levels: dict[str, float],
) -> None:
    """Draw the scales over the noise level, the training, the distances, and the errors of the sampled density."""
    cells, sub, limits = 36, 4, ((-1.3, 2.7), (-2.2, 1.8))
    edges = [np.linspace(*limit, cells + 1) for limit in limits]
    centres = [(fine := np.linspace(*limit, cells * sub + 1))[:-1] + (fine[1] - fine[0]) / 2 for limit in limits]
    grid = jnp.asarray(np.stack(np.meshgrid(*centres), axis=-1).reshape(-1, 2), jnp.float32)
    log_prob = jax.jit(clean_log_prob)
    log_p, log_q = (np.asarray(log_prob(world, grid, y)).reshape(cells * sub, -1) for y in (0, -1))
    tilted = np.exp(config.target * log_p + (1 - config.target) * log_q)
    coarse = tilted.reshape(cells, sub, cells, sub).mean((1, 3)) / tilted.mean((0, 1))
    ratio = np.asarray(world.levels.ratio[:-1])
    with plt.style.context(pictures.STYLE):
        figure, axes = plt.subplots(2, 3, figsize=(11, 8), height_ratios=(1.15, 1))
        scale, training, bars = axes[0]
        r = np.geomspace(ratio[-1], ratio[0], 600)
        for name, line in lines.items():
            scale.plot(r, line(r), color=COLORS[name], label=name)
            scale.plot(ratio, line(ratio), "o", color=COLORS[name])
        scale.set(xscale="log", xlabel="noise level sigma / alpha", ylabel="guidance scale")
        scale.set_title("Guidance scale\n(dots: the sampler's levels)")
        window = max(1, len(history) // 20)
        smooth = np.sqrt(np.convolve(history, np.ones(window) / window, mode="valid"))
        training.plot(np.sqrt(history), color=COLORS["learned"], lw=0.5, alpha=0.35)
        training.plot(np.arange(len(smooth)) + window / 2, smooth, color=COLORS["learned"])
        for name, value in levels.items():
            training.axhline(np.sqrt(value), color=COLORS[name], ls="--", lw=1.5)
        training.set(xlabel="iteration", ylabel="sliced Wasserstein distance", ylim=(0, None))
        training.set_title(f"Training\n(batches of {config.batch})")
        names = ["exact samples", "best constant", "best interval", "learned"]
        means, errors = zip(*(mean_error(rows[name]["sliced"]) for name in names), strict=True)
        bars.bar(names, means, yerr=2 * np.array(errors), color=[COLORS[name] for name in names], width=0.65, label=names)
        for i, (mean, error) in enumerate(zip(means, errors, strict=True)):
            bars.text(i, mean + 2 * error + 0.02 * max(means), f"{mean:.3f}", ha="center", fontsize=12)
        bars.set(ylabel="sliced Wasserstein distance", ylim=(0, 1.2 * max(means)), xticks=[])
        bars.set_title(f"Held-out sets of {config.judged}\n(2 standard errors)")
        figure.legend(*bars.get_legend_handles_labels(), loc="outside upper center", ncols=4)
        for axis, name in zip(axes[1], ("best constant", "best interval", "learned"), strict=True):
            x, y = rows[name]["x"].T
            found = np.histogram2d(y, x, bins=edges[::-1])[0] / len(x) * cells**2
            mesh = axis.pcolormesh(*edges, (found - coarse) / coarse.max(), cmap="PuOr_r", vmin=-0.2, vmax=0.2, rasterized=True)
            axis.contour(*centres, tilted, levels=np.array([0.05, 0.2, 0.5, 0.8]) * tilted.max(), colors=INK, linewidths=0.8)
            axis.set(title=f"{name}:\nsamples minus target", aspect="equal", xticks=[], yticks=[])
            axis.grid(visible=False)
        bar = figure.colorbar(mesh, ax=axes[1], location="bottom", shrink=0.6, aspect=40)  # pyright: ignore
        bar.set_label("density of the samples minus target density, divided by its maximum (contours: target density)")
        pictures.save(figure, config.out / "learn_schedule.png")


def main(config: Config) -> dict[str, dict[str, Any]]:
    """Search, train and judge. Print the table and draw the picture. Returns the table with one row per method."""
    scales = np.arange(0.5, 8.01, 0.5)
    if config.smoke:
        small = {"steps": 4, "iterations": 60, "batch": 200, "judged": 1000, "repeats": 2, "out": config.out / "smoke"}
        config, scales = dataclasses.replace(config, **small), scales[:3]
    config.out.mkdir(parents=True, exist_ok=True)
    world = grow(config)
    bank = exact(config, world, jax.random.key(config.seed), 20 * config.batch)
    constant, interval = search(config, world, bank, scales)
    values, history = train(config, world, bank, constant.scale)
    guidances = {
        "no guidance": gj.cfg(1.0),
        f"constant {config.target:g}": gj.cfg(config.target),
        "best constant": gj.cfg(constant.scale),
        "best interval": gj.during(gj.cfg(interval.scale), interval.low, interval.high),
        "learned": learned(world, values),
    }
    rows = judge(config, world, guidances)
    lines = {
        "best constant": lambda r: np.full_like(r, constant.scale),
        "best interval": lambda r: np.where((r > interval.low) & (r <= interval.high), interval.scale, 1.0),
        "learned": lambda r: np.interp(np.log(r), np.asarray(world.knots), np.asarray(values)),
    }
    print(f"Target p(x)^{1 - config.target:g} p(x | y)^{config.target:g}, by CFG with {config.steps} steps of DPM-Solver++ 2M")
    print("                   network calls   sliced Wasserstein   energy distance")
    for name, row in rows.items():
        sliced, energy = ("{:8.4f} ± {:.4f}".format(*mean_error(row[key])) for key in ("sliced", "energy"))
        print(f"  {name:15s}  {row['calls']:13d}   {sliced}   {energy}")
    gain = mean_error(rows["best interval"]["sliced"] - rows["learned"]["sliced"])
    difference = "sliced Wasserstein distance of the best interval minus that of the learned scale"
    print("The {}, on the same sets, is {:.4f} ± {:.4f}.".format(difference, *gain))
    print(
        f"The best constant is {constant.scale:.2f}. The best interval is ({interval.low:.3g}, {interval.high:.3g}] with scale "
        f"{interval.scale:.2f}."
    )
    knots = ", ".join(f"{v:.2f} at {r:.3g}" for v, r in zip(values, np.exp(world.knots), strict=True))
    print(f"The learned scale is {knots}, and linear in log(sigma / alpha) between these levels.")
    sizes = {
        f"{n} steps": [memory(config, world, n, remat) for remat in (False, True)] for n in (config.steps, 4 * config.steps)
    }
    for name, (plain, remat) in sizes.items():
        print(f"The gradient through {name} takes {plain / 2**20:.1f} MiB, and {remat / 2**20:.1f} MiB with remat=True.")
    picture(config, world, rows, lines, history, references(config, world, bank, guidances))
    numbers = {
        name: {key: np.asarray(value).tolist() for key, value in row.items() if key != "x"} for name, row in rows.items()
    }
    found = {"constant": constant, "interval": interval, "values": values.tolist(), "knots": world.knots.tolist()}
    (config.out / "metrics.json").write_text(json.dumps({**numbers, **found, "bytes": sizes}, indent=1))
    print(f"The picture and metrics are in {config.out}.")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Config))
