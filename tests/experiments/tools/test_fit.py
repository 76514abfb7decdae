"""Tests of the trainer: its checkpoints, its errors, and its logs."""

import contextlib
import dataclasses
import errno
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.usefixtures("kept_programs"),
]


@pytest.fixture(autouse=True)
def standard():
    """optax does not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


class Batches:
    """Batches of 8 rows. The position of a batch is its seed."""

    def __init__(self, rows=8):
        self.rows, self.drawn, self.position = rows, 0, 0

    def __next__(self):
        rng = np.random.default_rng(self.position)
        self.drawn, self.position = self.drawn + 1, self.position + 1
        return rng.normal(size=(self.rows, 2)).astype(np.float32), np.zeros(self.rows, np.int32)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


class Job:
    """A linear model fitted to noise, with a directory for its runs."""

    def __init__(self, directory):
        self.directory, self.batches = directory, Batches()

    def training(self, **changes):
        from experiments.tools.fit import Training

        start = Training(steps=12, batch=8, learning_rate=0.1, ema=0.5, checkpoint_every=4, keep=3)
        return dataclasses.replace(start, **changes)

    def run(self, identity=None, **changes):
        from experiments.tools.fit import run_directory

        return run_directory("net", self.training(**changes), 0, self.directory, identity or {"data": 1})

    def fit(self, loss=None, params=None, identity=None, batches=None, count=1, **changes):
        """Trains on `count` devices. One device compiles faster than eight."""
        from experiments.tools import devices
        from experiments.tools.fit import fit

        def square(params, key, images, labels):
            return ((images @ params["w"] - 1 + 0.1 * jax.random.normal(key, (len(images),))) ** 2).mean()

        self.batches = batches or Batches()
        params = {"w": jnp.zeros(2)} if params is None else params
        kept, identity = self.training(**changes), identity or {"data": 1}
        mesh = devices.mesh(jax.devices()[:count])
        return fit("net", loss or square, params, self.batches, kept, 0, self.directory, identity, mesh=mesh)


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


@pytest.fixture(scope="module")
def done(tmp_path_factory, kept_programs):
    """A run of 12 steps with the checkpoints 4, 8 and 12. Tests copy it and damage the copy."""
    job = Job(tmp_path_factory.mktemp("done"))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return job, np.asarray(job.fit()["w"])


def copied(done, directory):
    job = Job(directory)
    shutil.copytree(done[0].run(), job.run())
    return job


def test_the_steps_equal_adamw_by_hand(done):
    from experiments.tools.progress import scalars

    w, m, v, average, losses, rate = np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2), [], 0.0
    batches, norms = Batches(), []
    for k in range(12):
        x = next(batches)[0].astype(np.float64)
        noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), k), (8,)), np.float64)
        residual = x @ w - 1 + 0.1 * noise
        losses.append((residual**2).mean())
        gradient = 2 * x.T @ residual / 8
        norms.append(np.linalg.norm(gradient))
        gradient = gradient / max(1, norms[-1])
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 0.0 if k == 0 else 0.1 * (1 + np.cos(np.pi * (k - 1) / 12)) / 2  # One step of warm-up.
        w = w - rate * (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        keep = min(0.5, (1 + k) / (10 + k))
        average = keep * average + (1 - keep) * w
    run = done[0].run()
    np.testing.assert_allclose(done[1], average, rtol=2e-5)
    np.testing.assert_allclose(list(scalars(run, "loss").values()), losses, rtol=2e-5)
    assert scalars(run, "gradient_norm")[11] == pytest.approx(norms[11], rel=2e-5)
    assert scalars(run, "learning_rate")[11] == pytest.approx(rate, rel=1e-5)


def test_a_training_is_compiled_once_whatever_the_types_of_its_parameters(tmp_path):
    """A Python number gives a weak type, which a step removes."""
    traces = []

    def loss(params, key, images, labels):
        traces.append(params)
        return ((images @ params["w"] - params["weak"]) ** 2).mean()

    params = {"w": jnp.zeros(2), "weak": jnp.array(1.0)}
    assert params["weak"].weak_type
    Job(tmp_path).fit(loss, params, steps=2, checkpoint_every=2)
    assert len(traces) == 1
    assert not params["weak"].is_deleted()


def test_a_checkpoint_is_used_for_its_own_config_only(done, tmp_path):
    job = copied(done, tmp_path)
    np.testing.assert_array_equal(job.fit()["w"], done[1])
    np.testing.assert_array_equal(job.fit(checkpoint_every=5, keep=1)["w"], done[1])
    assert job.batches.drawn == 0
    assert (job.fit(learning_rate=0.2)["w"] != done[1]).any()
    assert job.batches.drawn == 12
    job.fit(identity={"data": 2})
    assert job.batches.drawn == 12
    np.testing.assert_array_equal(job.fit()["w"], done[1])
    assert job.batches.drawn == 0


def test_training_continues_from_every_checkpoint_to_the_same_bits(done, tmp_path):
    for step in (8, 4):
        job = copied(done, tmp_path / str(step))
        for later in range(step + 4, 13, 4):
            shutil.rmtree(job.run() / str(later))
        np.testing.assert_array_equal(job.fit()["w"], done[1])
        assert job.batches.drawn == 12 - step


def test_eight_devices_give_the_result_of_one(done, job):
    eight = job.fit(count=8)
    np.testing.assert_allclose(eight["w"], done[1], rtol=1e-5)
    assert eight["w"].sharding.device_set == {jax.devices()[0]}


def test_snapshots_are_kept_beside_the_newest_checkpoints(job, monkeypatch):
    from experiments.tools.fit import restore

    last = job.fit(snapshots=(3, 5), keep=1)
    run, like = job.run(snapshots=(3, 5)), {"w": jnp.zeros(2)}
    assert sorted(int(path.name) for path in run.iterdir() if path.name.isdecimal()) == [3, 5, 12]
    np.testing.assert_array_equal(restore(run, like)["w"], last["w"])
    monkeypatch.chdir(run.parent)
    np.testing.assert_array_equal(restore(Path(run.name), like)["w"], last["w"])
    early = restore(run, jax.eval_shape(lambda: like), 3)["w"]
    assert (early != last["w"]).any()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4\. It has those of \[3, 5, 12\]"):
        restore(run, like, 4)


def test_a_damaged_or_missing_snapshot_leaves_the_other_checkpoints_usable(job):
    from experiments.tools.fit import restore

    last = job.fit(snapshots=(3, 5), keep=1)
    run, like = job.run(snapshots=(3, 5)), {"w": jnp.zeros(2)}
    early = restore(run, like, 5)["w"]
    for path in (run / "3" / "average" / "d").iterdir():
        hurt(path, "truncated")
    with pytest.raises(
        OSError, match=r"/3 is damaged: .*There are later ones \(\[5, 12\]\), and `fit` continues.*move .* away"
    ):
        restore(run, like, 3)
    np.testing.assert_array_equal(job.fit(snapshots=(3, 5), keep=1)["w"], last["w"])
    assert job.batches.drawn == 0
    shutil.rmtree(run / "3")
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint of step 3\. It has those of \[5, 12\]\. To get this one, bring a copy back"
    ):
        restore(run, like, 3)
    with pytest.warns(UserWarning, match=r"the snapshots \[3\] are missing .* continues from step 12 without them"):
        np.testing.assert_array_equal(job.fit(snapshots=(3, 5), keep=1)["w"], last["w"])
    # The newest checkpoint is damaged too. Training continues from the other snapshot and keeps it.
    shutil.rmtree(run / "12" / "average")
    with pytest.raises(OSError, match=r"/12 is damaged: .*Call `fit`: it moves this one aside"):
        restore(run, like)
    with pytest.warns(UserWarning, match=r"continues from step 5|snapshots \[3\] are missing"):
        np.testing.assert_array_equal(job.fit(snapshots=(3, 5), keep=1)["w"], last["w"])
    assert job.batches.drawn == 7
    np.testing.assert_array_equal(restore(run, like, 5)["w"], early)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint\. It is not a run's directory"):
        restore(run / "nowhere", like)


def test_damaged_checkpoints_that_were_moved_aside_are_never_overwritten(done, tmp_path):
    job = copied(done, tmp_path)
    for _ in range(2):
        shutil.rmtree(job.run() / "12" / "params")
        with pytest.warns(UserWarning, match="continues from step 8"):
            np.testing.assert_array_equal(job.fit()["w"], done[1])
    assert sorted(path.name for path in (job.run() / "damaged").iterdir()) == ["12", "12-2"]


def test_names_that_are_no_steps_are_ignored_and_checkpoints_of_other_runs_are_moved_aside(done, tmp_path):
    job = copied(done, tmp_path)
    run = job.run()
    for name in ("012", "١٢", "notes", "16.tmp"):
        (run / name).mkdir()
    (run / "16").write_text("no directory")
    job.fit(steps=20)
    shutil.copytree(job.run(steps=20) / "20", run / "20")
    with pytest.warns(UserWarning, match=r"/16 is damaged|/20 is one of another run, net-"):
        np.testing.assert_array_equal(job.fit()["w"], done[1])
    assert job.batches.drawn == 0
    assert {path.name for path in (run / "damaged").iterdir()} == {"16", "20"}
    assert {"012", "١٢", "notes", "16.tmp"} <= {path.name for path in run.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b'{"data": 1', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_identity_is_written_again_without_training(done, tmp_path, content):
    job = copied(done, tmp_path)
    path = job.run() / "identity.json"
    whole = path.read_text()
    path.write_bytes(content)
    (job.run() / "identity.tmp").write_text("of somebody else")
    (job.run() / "0123abcd.identity.json.tmp").write_text("ours, half")
    with pytest.warns(UserWarning, match=r"identity\.json is damaged .*written again"):
        np.testing.assert_array_equal(job.fit()["w"], done[1])
    assert job.batches.drawn == 0
    assert path.read_text() == whole
    assert [path.name for path in job.run().glob("*.tmp")] == ["identity.tmp"]


def test_parameters_without_elements_are_saved_and_restored(job):
    from experiments.tools.fit import restore

    params = {"w": jnp.zeros(2), "none": jnp.zeros((0, 3)), "half": jnp.zeros((2, 0), jnp.bfloat16)}
    last = job.fit(params=params)
    shutil.rmtree(job.run() / "12")
    again, read = job.fit(params=params), restore(job.run(), params)
    assert job.batches.drawn == 4
    for found in (again, read):
        assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(lambda a: (a.shape, a.dtype), params)
        np.testing.assert_array_equal(found["w"], last["w"])


def test_parameters_and_states_that_no_checkpoint_can_hold_raise_before_training(job):
    for params in ({}, {"w": jnp.zeros((0, 2))}):
        with pytest.raises(ValueError, match="params hold no numbers"):
            job.fit(params=params)
    with pytest.raises(ValueError, match="two leaves of the parameters have the same name"):
        job.fit(params={"a.b": jnp.zeros(2), "a": {"b": jnp.zeros(2)}})
    batches = Batches()
    batches.get_state = lambda: {"position": np.arange(2)}
    with pytest.raises(TypeError, match=r"get_state\(\) must be JSON-able, got dict"):
        job.fit(batches=batches)
    assert not list(job.directory.iterdir())


def test_a_directory_that_cannot_be_used_raises(job):
    (job.directory / "file").write_text("")
    with pytest.raises(OSError, match=r"the directory .*file/net-.* cannot be made: Not a directory"):
        Job(job.directory / "file").fit()
    (job.run() / "lock").mkdir(parents=True)
    with pytest.raises(OSError, match=r"net-.* cannot hold a training: Is a directory"):
        job.fit()


def test_only_the_error_of_a_full_disk_mentions_a_full_disk(job, monkeypatch):
    from experiments.tools import checkpoints

    def fails(error):
        def save(self, *arguments, **options):
            raise error

        return save

    for error, message in (
        (ValueError("zero size"), r"zero size\. Fix that and start again\. There is no checkpoint yet\."),
        (OSError(errno.ENOSPC, "No space left on device"), r"Is the disk full\? A checkpoint takes 40 bytes, and .* are free"),
        (RuntimeError("ts: Disk quota exceeded"), r"Is the disk full\? .* Make room and start again"),
    ):
        monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", fails(error))
        with pytest.raises(OSError, match=r"(?s)the checkpoint of step 4 could not be written to .*" + message) as caught:
            job.fit()
        assert ("disk full" in str(caught.value)) == ("disk full" in message)


def test_the_curve_is_complete_if_the_clock_is_set_back(done, job, monkeypatch):
    from experiments.tools import progress

    def stops(params, key, images, labels):
        return (params["w"] ** 2).sum() * jnp.where(jnp.abs(images - last).max() == 0, jnp.nan, 1.0)

    batches = Batches()
    last = [next(batches)[0] for _ in range(10)][9]
    with pytest.raises(FloatingPointError, match="at step 9"):
        job.fit(loss=stops)
    (first,) = job.run().glob("events*")
    monkeypatch.setattr(progress.time, "time", lambda: 1e9)  # The clock is set back.
    job.fit()
    names = sorted(path.name for path in job.run().glob("events*"))
    assert names[0] == first.name  # TensorBoard reads them in the order of their names.
    curve = progress.scalars(job.run(), "loss")
    assert list(curve) == list(range(12))
    expected = progress.scalars(done[0].run(), "loss")
    assert [curve[step] for step in range(8, 12)] != [expected[step] for step in range(8, 12)]
    # A name as an earlier version made it from the clock alone.
    (job.run() / names[1]).rename(job.run() / names[1].replace(names[1].split(".")[3], "1000000000"))
    assert progress.scalars(job.run(), "loss") == curve


def test_of_overlapping_logs_the_one_that_started_at_the_later_step_is_used(tmp_path, monkeypatch):
    from experiments.tools import progress

    for start, clock, steps in ((0, 2e9, range(10)), (4, 1e9, range(4, 7))):
        monkeypatch.setattr(progress.time, "time", lambda clock=clock: clock)
        with contextlib.closing(progress.Events(tmp_path, start)) as events:
            for step in steps:
                events.write(step, {"loss": start + step / 8})
    first, second = sorted(path.name for path in tmp_path.iterdir())
    assert "2000000000" in first
    expected = {step: 4 * (4 <= step < 7) + step / 8 for step in range(10)}
    assert progress.scalars(tmp_path, "loss") == expected
    (tmp_path / second).rename(tmp_path / second.replace("2000000001", "1000000000"))
    assert list(progress.scalars(tmp_path, "loss").items()) == list(expected.items())


@pytest.mark.parametrize("how", ["truncated", 0.2, 0.5, "emptied"])
def test_a_damaged_log_never_changes_a_curve(done, tmp_path, how):
    from experiments.tools.progress import scalars

    job = copied(done, tmp_path)
    whole = scalars(job.run(), "loss")
    (path,) = job.run().glob("events*")
    hurt(path, how)
    with contextlib.nullcontext() if isinstance(how, str) else pytest.warns(UserWarning, match="is damaged from byte"):
        found = scalars(job.run(), "loss")
    assert len(found) < 12
    assert found.items() <= whole.items()


def hurt(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "emptied":
        data = bytearray()
    else:
        data[int(how * len(data))] ^= 1 << int(8 * how)
    path.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncated", "emptied", 0.03, 0.62])
def test_damage_to_any_file_raises_or_changes_no_value(done, tmp_path, how):
    from experiments.tools.checkpoints import DamagedError, read

    like = {"average": {"w": jnp.zeros(2)}, "params": {"w": jnp.zeros(2)}}
    source = done[0].run() / "12"
    _, whole = read(source, like)
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file() and "optimiser" not in path.parts]
    assert len(files) > 10
    caught = []
    for file in files:
        if not (source / file).read_bytes():
            continue
        work = tmp_path / file.name / "12"
        shutil.copytree(source, work)
        hurt(work / file, how)
        try:
            _, found = read(work, like)
        except DamagedError:
            caught.append(file)
        else:  # The change does not affect the values.
            assert all(found[part]["w"].tobytes() == whole[part]["w"].tobytes() for part in like), file
        shutil.rmtree(work)
    assert any("d" in file.parts for file in caught)
    assert any("about" in file.parts for file in caught)


def test_a_changed_value_that_orbax_does_not_detect_warns(done, tmp_path):
    import orbax.checkpoint as ocp

    job = copied(done, tmp_path)
    part = job.run() / "12" / "average"
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = {name: np.asarray(leaf) for name, leaf in checkpointer.restore(part).items()}
        found["w"] = np.nextafter(found["w"], np.float32(9))
        checkpointer.save(part, found, force=True)
    with pytest.warns(UserWarning, match="average w has changed since it was written"):
        np.testing.assert_array_equal(job.fit()["w"], done[1])


def test_the_newest_good_checkpoint_is_used_with_a_warning_and_without_one_it_raises(done, tmp_path):
    job = copied(done, tmp_path)
    for step in (12, 8):
        for path in (job.run() / str(step) / "params" / "d").iterdir():
            hurt(path, "truncated")
    with pytest.warns(UserWarning, match=r"the checkpoint .*/(12|8) is damaged.*continues from step 4") as warned:
        np.testing.assert_array_equal(job.fit()["w"], done[1])
    assert sum("is damaged" in str(one.message) for one in warned) == 2
    assert job.batches.drawn == 8
    assert sorted(path.name for path in (job.run() / "damaged").iterdir()) == ["12", "8"]
    for step in (4, 8, 12):
        hurt(job.run() / str(step) / "about" / "metadata", "truncated")
    with pytest.raises(OSError, match=r"no checkpoint in .* is good: .*/12 is damaged.*/8 is damaged.*/4 is damaged"):
        job.fit()
    assert job.batches.drawn == 0
    assert all((job.run() / str(step)).exists() for step in (4, 8, 12))


def test_a_half_written_checkpoint_is_removed_with_a_warning(done, tmp_path):
    job = copied(done, tmp_path)
    (job.run() / "12").rename(job.run() / "12.orbax-checkpoint-tmp")
    with pytest.warns(UserWarning, match="the checkpoint of step 12 .* was half-written"):
        np.testing.assert_array_equal(job.fit()["w"], done[1])
    assert job.batches.drawn == 4
    assert not list(job.run().glob("*tmp*"))


def test_a_checkpoint_of_another_network_or_config_raises(done, tmp_path):
    from experiments.tools.fit import restore

    job = copied(done, tmp_path)
    for params, message in (
        ({"w": jnp.zeros(3)}, r"'w' of params is float32\[2\] in it and float32\[3\] in the network"),
        ({"w": jnp.zeros(2), "b": jnp.zeros(())}, "'b' of params is no such leaf in it"),
        ({"v": jnp.zeros(2)}, "'v' of params is no such leaf in it"),
    ):
        with pytest.raises(ValueError, match=message):
            job.fit(params=params)
    with pytest.raises(ValueError, match="'w' of average"):
        restore(job.run(), {"w": jnp.zeros(2, int)})
    path = job.run() / "identity.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"data": 7}))
    with pytest.raises(ValueError, match="contradicts its directory's name: data is 7 there and 1 here"):
        job.fit()
    with pytest.raises(ValueError, match="identity must not hold seed"):
        job.fit(identity={"seed": 3})


def test_a_loss_that_is_not_finite_raises_and_names_the_step_and_the_last_checkpoint(job):
    def burst(params, key, images, labels):
        return (params["w"] ** 2).sum() + jnp.where(jnp.abs(images - last).max() == 0, jnp.nan, 0.0)

    batches = Batches()
    last = [next(batches)[0] for _ in range(7)][6]
    with pytest.raises(FloatingPointError, match=r"loss of net is nan at step 6\. The last good checkpoint is of step 4\."):
        job.fit(loss=burst)
    with pytest.raises(FloatingPointError, match=r"loss of other is nan at step 0\. There is no checkpoint yet\."):
        fit_other(job)
    for run in job.directory.iterdir():
        steps = [path.name for path in run.iterdir() if path.name.isdecimal()]
        assert steps == (["4"] if run.name.startswith("net") else [])


def fit_other(job):
    from experiments.tools.fit import fit

    nan = lambda params, key, images, labels: (params["w"] * jnp.nan).sum()
    return fit("other", nan, {"w": jnp.zeros(2)}, Batches(), job.training(), 0, job.directory, {})


def test_a_parameter_that_is_not_finite_raises_and_is_never_saved(job):
    steep = lambda params, key, images, labels: (params["w"] * 1e-3).sum()
    with pytest.raises(FloatingPointError, match=r"average\.w of net is not finite after 3 steps\. There is no checkpoint"):
        job.fit(loss=steep, learning_rate=3e38, checkpoint_every=3)
    assert not [path for path in job.run(learning_rate=3e38, checkpoint_every=3).iterdir() if path.name.isdecimal()]


def test_batches_of_the_wrong_size_or_type_raise(job):
    with pytest.raises(ValueError, match=r"a batch of 8 is 8 rows in each of 1 processes, got \[16, 16\]"):
        job.fit(batches=Batches(16))
    with pytest.raises(ValueError, match="12 rows do not divide evenly among 8 devices"):
        job.fit(batches=Batches(12), batch=12, count=8)
    with pytest.raises(TypeError, match="get_state"):
        job.fit(batches=iter([]))


def test_a_second_training_of_the_same_run_raises(job):
    from experiments.tools.checkpoints import Checkpoints

    job.run().mkdir(parents=True)
    other = Checkpoints(job.run(), 1, ())
    with pytest.raises(RuntimeError, match="another process trains in"):
        job.fit()
    other.close()
    job.fit()


def test_the_fraction_of_waiting_time_is_measured(monkeypatch):
    from experiments.tools import progress

    now = iter([0.0, 1.0, 4.0, 10.0, 11.0, 12.0, 20.0, 20.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    waiting, batches = progress.Waiting(), iter("ab")
    assert waiting.next(batches) == "a"  # From 1 to 4.
    assert waiting.lap() == (0.1, 0.3)
    assert waiting.next(batches) == "b"  # From 11 to 12.
    assert waiting.lap() == (0.1, 0.1)
    assert waiting.share() == 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"snapshots": (13,)}, "snapshots must lie in 1..steps = 12"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1"),
    ],
)
def test_a_training_with_a_wrong_value_raises(job, changes, message):
    with pytest.raises(ValueError, match=message):
        job.training(**changes)


def test_the_averages_of_bfloat16_parameters_are_stored_in_float32_and_returned_in_bfloat16(job):
    """In bfloat16 with decay 0.999 the averages would never change."""
    from experiments.tools.checkpoints import read
    from experiments.tools.fit import restore

    params = {"w": jnp.zeros(2, jnp.bfloat16)}
    changes = {"ema": 0.999, "learning_rate": 0.1}
    square = lambda params, key, images, labels: ((images.astype(jnp.bfloat16) @ params["w"] - 1) ** 2).mean()
    found = job.fit(square, params, **changes)
    path = job.run(**changes)
    _, parts = read(path / "12", {"params": params, "average": {"w": jnp.zeros(2)}})
    kept, last = parts["average"]["w"], np.asarray(parts["params"]["w"], np.float32)
    assert kept.dtype == np.float32
    assert np.abs(kept / last).min() > 0.01
    assert found["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found["w"]), kept.astype(jnp.bfloat16))
    np.testing.assert_array_equal(restore(path, params)["w"], found["w"])
    np.testing.assert_array_equal(job.fit(square, params, **changes)["w"], found["w"])


def test_a_run_with_another_generator_has_another_directory(done, tmp_path):
    """A run whose identity has no generator uses threefry2x32."""
    job = copied(done, tmp_path)
    assert "generator" not in json.loads((job.run() / "identity.json").read_text())
    old = job.run()
    with jax.default_prng_impl("rbg"):
        assert job.run() != old
        shutil.copytree(old, job.run())
        with pytest.raises(ValueError, match="generator is None there and rbg here"):
            job.fit()
        shutil.rmtree(job.run())
        other = np.asarray(job.fit()["w"])
        assert job.batches.drawn == 12
        assert json.loads((job.run() / "identity.json").read_text())["generator"] == "rbg"
    assert (other != done[1]).any()
    np.testing.assert_array_equal(job.fit()["w"], done[1])
    assert job.batches.drawn == 0
