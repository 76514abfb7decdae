"""Random chains of random guidances with valid parameters on an exact world, and the properties that each must satisfy.

`python -m tests.fuzz 1000` tries 1,000 chains and prints how many passed. It runs under `jax.disable_jit`, so no
chain is compiled.
"""

import os
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from multiprocessing import get_context
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tqdm import tqdm

import guidance_jax as gj

B, SHAPE = 3, (4, 2)
NAMES = ("cond", "uncond", "weak", "perturbed", "random", "retimed", "negative", "image")
SCHEDULES = {"cosine": gj.schedules.cosine(), "edm": gj.schedules.edm(), "flow": gj.schedules.flow()}
SAMPLERS = {
    "ddim": lambda s: gj.ddim(),
    "ddpm": lambda s: gj.ddpm(),
    "dpmpp_2m": lambda s: gj.dpmpp_2m(),
    "dpmpp_2s": lambda s: gj.dpmpp_2s(s, eta=0.5),
    "dpmpp_3m": lambda s: gj.dpmpp_3m(),
    "dpmpp_sde": lambda s: gj.dpmpp_sde(),
    "euler_ancestral": lambda s: gj.euler_ancestral(),
    "flow_heun": lambda s: gj.flow_heun(),
    "forget": lambda s: gj.forget(gj.dpmpp_2m(), 1.0),
    "heun": lambda s: gj.churn(gj.heun(), s, 0.2),
    "heun_sde": lambda s: gj.heun_sde(),
    "inpaint": lambda s: gj.inpaint(gj.ddpm(), 0.5, jnp.arange(SHAPE[0])[:, None] < 2),
    "predictor_corrector": lambda s: gj.predictor_corrector(gj.ddim()),
    "recur": lambda s: gj.recur(gj.ddim(), 2),
    "restart": lambda s: gj.restart(gj.dpmpp_2m(), s, 2, 2, 0.5, 2.0),
    "unipc": lambda s: gj.unipc(3),
}


class World:
    """An exact mixture of points that represent tiny images, with some rows of a batch of three."""

    def __init__(self, dtype: Any, rows: Any = slice(None), same: bool = False):
        rng = np.random.default_rng(0)
        size = SHAPE[0] * SHAPE[1]
        roots = rng.normal(size=(4, size, size)) / size**0.5
        covariances = np.einsum("kij,klj->kil", roots, roots) + 0.1 * np.eye(size)
        means, weights = rng.normal(size=(4, size)), np.arange(1.0, 5.0)
        given = [jnp.asarray(a, dtype) for a in (means, covariances, weights)]
        self.mixture = gj.oracles.GaussianMixture(given[0], given[1], given[2], jnp.arange(4))
        self.rows, self.dtype = rows, dtype
        self.keys = jax.random.split(jax.random.key(1), B)[rows]
        self.target = jnp.asarray(rng.normal(size=(B, *SHAPE)), dtype)[rows]
        self.x = jnp.asarray(rng.normal(size=(B, *SHAPE)), dtype)[rows]
        labels = [(np.arange(B) + (0 if same else i)) % 5 - 1 for i in range(len(NAMES))]
        conds: dict[str, Any] = {n: jnp.asarray(l, jnp.int32)[rows] for n, l in zip(NAMES, labels, strict=True)}
        self.branches = gj.Branches(self.denoise, conds)

    def denoise(self, x: jax.Array, level: gj.NoiseLevel, label: jax.Array) -> gj.Prediction:
        return jax.tree.map(lambda half: half.reshape(x.shape), self.mixture.denoise(x.reshape(len(x), -1), level, label))

    def log_prob(self, x0: jax.Array) -> jax.Array:
        return -((x0 - self.target) ** 2).mean((1, 2))

    def noisy(self, x: jax.Array, level: gj.NoiseLevel) -> jax.Array:
        return self.log_prob(x) / (1 + level.sigma**2)

    def number(self, value: Any) -> Any:
        """A random number: one for all samples, one per sample, or one that follows the level."""
        if isinstance(value, Follows):
            return lambda level: value.value * level.alpha
        return jnp.asarray(value, self.dtype)[self.rows] if isinstance(value, tuple) else value


class Follows(NamedTuple):
    """A number times alpha."""

    value: float


class Recipe(NamedTuple):
    """A guidance as data, so that a failure can be read and reduced."""

    name: str
    values: tuple[Any, ...] = ()
    parts: tuple["Recipe", ...] = ()

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(repr, (*self.parts, *self.values)))})"

    def names(self) -> set[str]:
        return {self.name}.union(*(part.names() for part in self.parts))


def known(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda value: round(value, 3))


def number(low: float, high: float) -> st.SearchStrategy[Any]:
    return known(low, high) | st.tuples(*[known(low, high)] * B) | known(low, high).map(Follows)


SCALE, SHARE, RATE, SPACE = number(-2.0, 8.0), number(0.0, 1.0), number(-0.2, 0.5), st.sampled_from(("eps", "x0", "v", "score"))
METHODS: dict[str, tuple[Any, list[st.SearchStrategy[Any]]]] = {
    "cfg": (lambda w, v: gj.cfg(v), [SCALE]),
    "autoguidance": (lambda w, v: gj.autoguidance(v), [SCALE]),
    "compose": (lambda w, a, b: gj.compose({"cond": a, "negative": b}), [SCALE, SCALE]),
    "dual_cfg": (lambda w, a, b: gj.dual_cfg(a, b), [SCALE, SCALE]),
    "perturbed": (lambda w, v: gj.perturbed(v), [SCALE]),
    "icg": (lambda w, v: gj.icg(v), [SCALE]),
    "tsg": (lambda w, v: gj.tsg(v), [SCALE]),
    "perp_neg": (lambda w, a, b: gj.perp_neg(a, {"negative": b}), [SCALE, SHARE]),
    "tcfg": (lambda w, v: gj.tcfg(v), [SCALE]),
    "mambo_g": (lambda w, a, b: gj.mambo_g(a, b), [SCALE, number(0.0, 8.0)]),
    "power_law": (lambda w, a, b: gj.power_law(a, b), [SCALE, number(-0.5, 0.5)]),
    "beta_cfg": (lambda w, a, b: gj.beta_cfg(a, b), [SCALE, SHARE]),
    "recfg": (lambda w, a, b: gj.recfg(a, b), [SCALE, number(0.5, 1.5)]),
    "fdg": (lambda w, a, b: gj.fdg((a, b)), [SCALE, SCALE]),
    "fresca": (lambda w, a, b, c: gj.fresca(a, b, c), [SCALE, SHARE, number(0.5, 2.0)]),
    "apg": (lambda w, a, b, c, e: gj.apg(a, beta=b, max_norm=c, eta=e), [SCALE, number(-0.8, 0.8), number(0.0, 5.0), SHARE]),
    "source": (lambda w, v: gj.source(lambda c, n, k: n + k * (c - n), "cond", "negative", k=v), [SCALE]),
    "direction": (lambda w, v: gj.direction(lambda c, p, k: k * jnp.tanh(c.x0 - p.x0), "cond", "perturbed", k=v), [SCALE]),
    "linear_reuse": (lambda w, v: gj.linear_reuse(v, jnp.array([1.0, -0.9, 0.8])), [SCALE]),
    "rescale": (lambda w, v: gj.rescale(v), [SHARE]),
    "momentum": (lambda w, v: gj.momentum(v), [number(-0.8, 0.8)]),
    "clip_norm": (lambda w, v: gj.clip_norm(v), [number(0.0, 5.0)]),
    "project": (lambda w, v: gj.project(v), [number(-1.0, 2.0)]),
    "amplify": (lambda w, v: gj.amplify(v), [number(-2.0, 3.0)]),
    "dynamic_threshold": (lambda w, a, b: gj.dynamic_threshold(a, b), [number(2.0, 100.0), known(0.25, 4.0)]),
}
"""Guidances that work in any space."""
OWN: dict[str, tuple[Any, list[st.SearchStrategy[Any]]]] = {
    "cfg_zero_star": (lambda w, a, n, p: gj.cfg_zero_star(a, n, predicts=p), [SCALE, st.integers(0, 2), SPACE]),
    "cfg_pp": (lambda w, v: gj.cfg_pp(v), [SHARE]),
    "feedback": (lambda w, p, t, o: gj.feedback(p, temperature=t, offset=o), [known(0.25, 1.0), SHARE, RATE]),
    "classifier": (lambda w, v: gj.classifier(w.noisy, v), [RATE]),
    "mean_shift": (lambda w, v, m: gj.mean_shift(w.noisy, v, at_mean=m), [RATE, st.booleans()]),
    "universal": (lambda w, a, n, r: gj.universal(w.log_prob, a, inner_steps=n, rate=r), [RATE, st.integers(0, 2), RATE]),
    "dps": (lambda w, v: gj.dps(lambda x0: x0[:, :2], w.target[:, :2], v), [RATE]),
    "freedom": (lambda w, v: gj.freedom(w.log_prob, v), [RATE]),
    "mpgd": (lambda w, v: gj.mpgd(w.log_prob, v), [RATE]),
    "pigdm": (
        lambda w, v: gj.pigdm(lambda x: x[..., :1], lambda y: jnp.concatenate([y, 0 * y], 2), w.target[..., :1], v),
        [RATE],
    ),
    "lgd": (lambda w, v, n: gj.lgd(w.log_prob, v, draws=n), [RATE, st.integers(1, 3)]),
    "tfg": (lambda w, a, b, s: gj.tfg(w.log_prob, a, b, inner_steps=2, smoothing=s), [RATE, RATE, SHARE]),
}
"""Guidances that `in_space` does not accept."""
AROUND: dict[str, tuple[Any, list[st.SearchStrategy[Any]]]] = {
    "chain": (lambda w, *parts: gj.chain(*parts), []),
    "add": (lambda w, *parts: gj.add(*parts), []),
    "during": (lambda w, g, low, width: gj.during(g, low, low + width), [known(0.0, 3.0), known(0.1, 100.0)]),
    "unless_one": (lambda w, g, v: gj.unless_one(g, v), [st.sampled_from([1.0, 2.0])]),
    "in_space": (lambda w, g, p: gj.in_space(p, g), [SPACE]),
    "relative_to": (lambda w, g, n: gj.relative_to(n, g), [st.sampled_from(NAMES)]),
    "reuse": (lambda w, g, k: gj.reuse(g, k), [st.integers(1, 3)]),
    "adaptive": (lambda w, g, t: gj.adaptive(g, t), [known(0.5, 1.0)]),
    "on_channels": (lambda w, g, n: gj.on_channels(g, n), [st.integers(1, SHAPE[1])]),
    "masked": (lambda w, g, v: gj.masked(g, jnp.linspace(0.0, v, SHAPE[0], dtype=w.dtype)[:, None]), [known(0.0, 1.0)]),
    "reg": (lambda w, g: gj.reg(g), []),
}
EVERY = METHODS | OWN | AROUND


def single(table: dict[str, Any], name: str) -> st.SearchStrategy[Recipe]:
    return st.tuples(*table[name][1]).map(lambda values: Recipe(name, values))


def around(inner: st.SearchStrategy[Recipe]) -> st.SearchStrategy[Recipe]:
    def wrap(name: str) -> st.SearchStrategy[Recipe]:
        parts = st.lists(inner, max_size=3) if name in ("chain", "add") else st.lists(inner, min_size=1, max_size=1)
        if name == "in_space":
            homeless = {*OWN, "in_space", "reg"}
            parts = parts.filter(lambda parts: not homeless & parts[0].names())
        return st.tuples(st.tuples(*AROUND[name][1]), parts).map(lambda made: Recipe(name, made[0], tuple(made[1])))

    return st.sampled_from(sorted(AROUND)).flatmap(wrap)


SINGLE = st.sampled_from(sorted(METHODS | OWN)).flatmap(lambda name: single(METHODS | OWN, name))
RECIPES = st.recursive(SINGLE, around, max_leaves=4)


def built(recipe: Recipe, world: World) -> gj.Guidance:
    make, _ = EVERY[recipe.name]
    return make(world, *(built(part, world) for part in recipe.parts), *map(world.number, recipe.values))


def step_is_finite(recipe: Recipe, schedule: gj.Schedule, world: World, place: int) -> None:
    """One step in float32: from pure noise, between two noise levels, or to clean data."""
    path = gj.levels(schedule, 4, gj.spacings.uniform())
    level, after = path[place], path[place + 1]
    guidance = built(recipe, world)
    x = level.alpha * world.target + level.sigma * world.x

    @jax.jit
    def twice() -> tuple[list[gj.Prediction], list[Any]]:
        state = gj.State(x, (), guidance.init(x), jnp.int32(0), jnp.zeros_like(x))
        denoise = gj.guide(world.branches, guidance, gj.Step(jnp.int32(place), level, after, world.keys))
        first, once = denoise(state, level)
        second, again = denoise(once, level)
        return [first, second], [once.guidance, again.guidance]

    predictions, memories = twice()
    for prediction in predictions:
        assert np.isfinite(prediction.x0).all(), "x0 is not finite"
        assert np.isfinite(prediction.eps).all(), "eps is not finite"
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(memories) if leaf.dtype == x.dtype), "the state"


def mates_do_nothing(recipe: Recipe, schedule: gj.Schedule, sampler: str, one: int, same: bool, copies: int = B) -> None:
    """A whole run is finite. A run of one sample alone, or of copies of it, gives that sample again, up to rounding."""

    @jax.jit
    def run(rows: jax.Array) -> jax.Array:
        world = World(jnp.float64, rows, same)
        path = gj.levels(schedule, 3, gj.spacings.uniform())
        return gj.sample(world.keys, world.branches, built(recipe, world), SAMPLERS[sampler](schedule), path, SHAPE)

    everyone, alone = (np.asarray(run(jnp.asarray(rows))) for rows in (np.arange(B), np.full(copies, one)))
    assert np.isfinite(everyone).all(), "a sample is not finite"
    np.testing.assert_allclose(alone[0], everyone[one], rtol=1e-6, atol=1e-6 * (1 + np.abs(everyone).max()))


def tried(count: int, seen: Counter[str], compiled: bool = False, **more: Any) -> Any:
    """The property, tested on `count` chains. A few chains are faster compiled, many are faster operation by operation."""

    everything: Any = list(HealthCheck)

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=everything, **more)
    @given(
        RECIPES,
        st.sampled_from(sorted(SCHEDULES)),
        st.sampled_from(sorted(SAMPLERS)),
        st.integers(0, 3),
        st.integers(0, B - 1),
        st.booleans(),
    )
    def every_chain_is_finite_and_couples_no_samples(
        recipe: Recipe, schedule: str, sampler: str, place: int, one: int, same: bool
    ) -> None:
        with nullcontext() if compiled else jax.disable_jit(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # They warn of leading shapers and of intervals without a level.
            step_is_finite(recipe, SCHEDULES[schedule], World(jnp.float32, same=same), place)
            with jax.enable_x64(True):
                mates_do_nothing(recipe, SCHEDULES[schedule], sampler, one, same, B if compiled else 1)
        seen.update(recipe.names() | {sampler})
        seen["chains"] += 1

    return every_chain_is_finite_and_couples_no_samples


def part(number: int, count: int) -> Counter[str]:
    """Statistics of `count` chains, drawn from a seed."""
    met = Counter[str]()
    seed(number)(tried(count, met))()
    return met


def main(count: int, most: int = 50) -> None:
    """Try `count` chains, split over one process per core."""
    began, met = time.perf_counter(), Counter[str]()
    sizes = [min(most, count - start) for start in range(0, count, most)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes, tqdm(total=count, unit="chain") as bar:
        for done in as_completed([processes.submit(part, number, size) for number, size in enumerate(sizes)]):
            met += done.result()
            bar.update(met["chains"] - bar.n)
    missed = ", ".join(sorted((EVERY.keys() | SAMPLERS.keys()) - met.keys())) or "nothing"
    seconds = time.perf_counter() - began
    print(f"{met['chains']} random chains, all finite, none coupled, in {seconds:.0f} s; {missed} was not met")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(int(sys.argv[1]) if sys.argv[1:] else 1000)
