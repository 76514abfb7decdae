"""The command for accelerators: rows are kept at once, parts do not disturb each other, and exactness can fail."""

import json
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import contract
import jax
import jax.numpy as jnp
import pytest
import tyro

import guidance_jax as gj
from experiments.accelerator import __main__ as command
from experiments.accelerator import cases, exactness, scale, worlds
from experiments.accelerator.__main__ import SHARES, Config, main


def table(rows):
    return f"table of {[row['number'] for row in rows]}"


@pytest.fixture
def parts(monkeypatch):
    """Parts of a test: `parts[name] = function(smoke, minutes, out)`, which gives rows."""
    found = {}

    def module(part):
        return types.SimpleNamespace(measure=found[part], table=table)

    monkeypatch.setattr(command, "module", module)
    return found


def counting(count, end=None):
    def measure(smoke, minutes, out):
        for number in range(count):
            yield {"number": number, "minutes": minutes, "smoke": smoke}
        if end is not None:
            raise end

    return measure


def read(out, part):
    return json.loads((out / f"{part}.json").read_text())


def test_a_run_that_is_cut_leaves_the_rows_that_it_has(tmp_path, parts):
    parts["exactness"] = counting(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        main(Config(parts=("exactness",), out=tmp_path))
    found = read(tmp_path, "exactness")
    assert [row["number"] for row in found["rows"]] == [0, 1]
    assert set(found) == {"part", "device", "versions", "seconds", "smoke", "rows"}
    assert found["versions"]["jax"] == jax.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["exactness.json"]


def test_the_file_has_each_row_before_the_next_is_measured(tmp_path, parts):
    seen = []

    def measure(smoke, minutes, out):
        for number in range(3):
            seen.append(len(read(out, "scale")["rows"]))
            yield {"number": number}

    parts["scale"] = measure
    assert main(Config(parts=("scale",), out=tmp_path)) == 0
    assert seen == [0, 1, 2]


def test_a_part_that_raises_is_recorded_and_the_next_goes_on(tmp_path, parts, capsys):
    parts.update(exactness=counting(1, RuntimeError("no memory")), scale=counting(2))
    assert main(Config(parts=("scale", "exactness"), out=tmp_path)) == 1
    found = read(tmp_path, "exactness")
    assert found["error"] == "RuntimeError: no memory"
    assert "raise end" in found["traceback"]
    assert len(found["rows"]) == 1
    assert len(read(tmp_path, "scale")["rows"]) == 2
    assert "error" not in read(tmp_path, "scale")
    printed = capsys.readouterr()
    assert "It stopped with RuntimeError: no memory" in printed.out
    assert "table of [0, 1]" in printed.out
    assert "Traceback" in printed.err


def test_time_is_shared_and_what_is_left_goes_to_later_parts(tmp_path, parts):
    parts.update(dict.fromkeys(SHARES, counting(1)))
    assert main(Config(minutes=sum(SHARES.values()), out=tmp_path)) == 0
    shares = {part: read(tmp_path, part)["rows"][0]["minutes"] for part in SHARES}
    assert shares["exactness"] == pytest.approx(SHARES["exactness"], rel=0.01)
    assert shares["scale"] == pytest.approx(sum(SHARES.values()), rel=0.01)
    assert list(shares.values()) == sorted(shares.values())


def test_a_report_prints_the_tables_of_files_and_measures_nothing(tmp_path, parts, capsys):
    parts.update(overhead=counting(3), scale=counting(1))
    assert main(Config(parts=("overhead", "scale"), out=tmp_path, smoke=True)) == 0
    printed = capsys.readouterr().out
    parts.update({part: types.SimpleNamespace() for part in SHARES})
    assert main(Config(report=tmp_path / "smoke")) == 0
    reported = capsys.readouterr().out
    assert reported.strip() == printed[printed.index("A smoke run") :].strip()
    assert reported.count("these numbers mean nothing") == 2
    assert reported.index("table of [0, 1, 2]") < reported.index("table of [0]")
    with pytest.raises(FileNotFoundError, match=r"has none of exactness\.json"):
        main(Config(report=tmp_path))


def test_unknown_parts_are_refused():
    unknown: Any = "speed"
    for wrong in ((unknown,), ()):
        with pytest.raises(ValueError, match="parts must be some of exactness, overhead, pytorch, training, scale, got"):
            Config(parts=wrong)
    with pytest.raises(ValueError, match="minutes must be positive, got 0"):
        Config(minutes=0)
    with pytest.raises(SystemExit):
        tyro.cli(Config, args=["--parts", "speed"])
    assert tyro.cli(Config, args=["--parts", "scale", "overhead"]).parts == ("scale", "overhead")
    assert tyro.cli(Config, args=[]) == Config()


def test_every_method_and_sampler_has_a_row(lenient):
    given = worlds.data().cast("float32", jax.devices()[0])
    methods = {name.split(" ")[0].split("(")[0] for name in worlds.methods(worlds.exact(given), given)}
    reused = {
        name.split("(")[1].split(",")[0].rstrip(")") for name in worlds.methods(worlds.exact(given), given) if "(" in name
    }
    rows = methods | reused
    assert not set(contract.TABLE) - rows
    named = {name.split("(")[0] for name in worlds.samplers(given)}
    assert not {name.split("(")[0] for name in contract.SAMPLERS} - named
    assert set(worlds.targets(given)) == set(gj.targets.__all__) - {"LogReward", "Target", "drift"}


def finished(case):
    with ThreadPoolExecutor(1) as pool:
        return exactness.finish(exactness.begin(case, jax.devices()[0], pool))


def case(guidance, sampler=None):
    run = lambda world, given: cases.draw(world, given, guidance, sampler or gj.ddpm())
    return cases.Case("method", "of the test", "ddpm", run, True)


def coarse(bits):
    """CFG whose difference has a shorter mantissa in float32, as a product in the default precision of a device has."""

    def update(prediction, context):
        d = context["cond"] - context["uncond"]
        short = lambda leaf: jax.lax.reduce_precision(leaf, 8, bits) if leaf.dtype == jnp.float32 else leaf
        return prediction + jax.tree.map(short, d)

    return gj.stateless(update, needs=["cond", "uncond"])


def test_an_error_that_is_not_a_number_is_infinite():
    right = [jnp.ones(2), jnp.ones(2)]
    assert exactness.error(right, right) == 0
    assert exactness.error([right[0], jnp.array([1.0, jnp.nan])], right) == float("inf")


@pytest.mark.slow
def test_the_error_tells_float32_from_tf32_and_bfloat16(lenient):
    exact, tf32, bfloat16 = (finished(case(guidance)) for guidance in (gj.cfg(2.0), coarse(10), coarse(7)))
    assert exact["error"] < 2e-5
    assert exact["same_program"]
    assert exact["default_changes"] == 0
    assert 5e-5 < tf32["error"] < bfloat16["error"]
    assert tf32["error"] > 10 * exact["error"]


@pytest.mark.slow
def test_a_product_in_the_default_precision_is_noticed(lenient):
    control = cases.cases(smoke=True)[0]
    found = finished(control)
    assert control.kind == "control"
    assert not found["same_program"]


@pytest.mark.slow
def test_a_row_that_fails_leaves_the_others(lenient, monkeypatch, tmp_path):
    def broken(world, given):
        raise ValueError("wrong shape")

    first = cases.Case("method", "broken", "ddpm", broken, False)
    monkeypatch.setattr(exactness, "cases", lambda smoke: [first, case(gj.cfg(2.0))._replace(both=False)])
    rows = exactness.measure(True, 1.0, tmp_path)
    found = [next(rows) for _ in range(3)]
    assert found[1] == {"kind": "method", "name": "broken", "sampler": "ddpm", "reason": "ValueError: wrong shape"}
    assert found[2]["error"] < 2e-5
    with pytest.raises(RuntimeError, match="1 rows failed"):
        next(rows)
    assert "broken: ValueError: wrong shape" in exactness.table(found)


@pytest.mark.slow
def test_draws_of_float64_are_those_of_float32(lenient):
    with worlds.float32_draws():
        narrow = jax.random.normal(jax.random.key(0), (5,), jnp.float32)
        with jax.enable_x64(True):
            wide = jax.random.normal(jax.random.key(0), (5,), jnp.float64)
            assert wide.dtype == jnp.float64
            assert (wide == narrow.astype(wide.dtype)).all()


def test_the_log_normaliser_is_that_of_a_gaussian(lenient):
    """For a mixture of one class, every tilted density is the density itself."""
    one = gj.oracles.GaussianMixture(jnp.zeros((1, 2)), jnp.eye(2)[None], jnp.ones(1), jnp.zeros(1, int))
    assert abs(scale.integral(one, 3.0, gj.schedules.edm()(0.0))) < 1e-4
