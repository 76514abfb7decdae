"""Tests of the order of batches: once per epoch for each record, the same for any number of processes and after a restart."""

import json
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def numbered(records=23):
    """A data set whose images hold their own number on the left and a constant on the right."""
    from experiments.tools import data

    images = np.full((records, 2, 2, 1), -1, np.float32)
    images[:, :, 0] = np.arange(records)[:, None, None]
    return data.Data(images, np.arange(records, dtype=np.int32), tuple(map(str, range(records))), "")


def drawn(batches, count):
    """The labels `[count, B]` of `count` batches, and their images."""
    images, labels = zip(*(next(batches) for _ in range(count)), strict=True)
    return np.stack(labels), np.stack(images)


def test_each_epoch_has_each_record_once_in_its_own_order():
    from experiments.tools import data

    labels, images = drawn(data.batches(numbered(), 8, seed=0), 23 * 3)
    np.testing.assert_array_equal(images[..., 0, 0, 0], labels)
    epochs = labels.reshape(24, 23)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(23), (24, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 24
    # Every record is equally likely at every position. The statistic has 22 * 22 degrees of freedom.
    many = drawn(data.batches(numbered(), 23, seed=1), 400)[0]
    counts = np.stack([np.bincount(column, minlength=23) for column in many.T])
    assert abs(((counts - 400 / 23) ** 2 / (400 / 23)).sum() * 22 / 23 - 484) < 5 * np.sqrt(2 * 484)
    again, other = (drawn(data.batches(numbered(), 8, seed=seed), 23 * 3)[0] for seed in (0, 1))
    np.testing.assert_array_equal(again, labels)
    assert (other != labels).any()
    # A batch may be larger than the data set.
    np.testing.assert_array_equal(np.sort(drawn(data.batches(numbered(3), 6, seed=0), 2)[0].reshape(4, 3)), [[0, 1, 2]] * 4)


def test_processes_read_their_rows_of_the_global_batch():
    from experiments.tools import data

    whole = drawn(data.batches(numbered(), 12, seed=2, flip=True), 9)
    for processes in (1, 2, 3, 4):
        parts = [drawn(data.batches(numbered(), 12, 2, process=p, processes=processes, flip=True), 9) for p in range(processes)]
        for part, all_rows in zip(zip(*parts, strict=True), whole, strict=True):
            np.testing.assert_array_equal(np.concatenate(part, axis=1), all_rows)
    for size, process, processes in ((12, 0, 5), (0, 0, 1), (12, 2, 2), (12, -1, 2)):
        with pytest.raises(ValueError, match=f"size must be a multiple of processes, got size {size}"):
            data.batches(numbered(), size, 2, process=process, processes=processes)
    with pytest.raises(ValueError, match="the source is empty"):
        data.batches(numbered(0), 12, 2)


def test_flips_mirror_half_of_the_images_and_are_drawn_again_in_each_epoch():
    from experiments.tools import data

    plain, flipped = (drawn(data.batches(numbered(), 20, seed=0, flip=flip), 100) for flip in (False, True))
    np.testing.assert_array_equal(plain[0], flipped[0])
    mirrored = (flipped[1] == plain[1][..., ::-1, :]).all((2, 3, 4))
    np.testing.assert_array_equal(np.where(mirrored[..., None, None, None], plain[1][..., ::-1, :], plain[1]), flipped[1])
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / np.sqrt(mirrored.size)
    assert 0 < mirrored[plain[0] == 7].mean() < 1


@pytest.mark.parametrize("ahead", [0, 1, 7])
def test_a_restored_state_continues_as_the_uninterrupted_stream(ahead):
    import grain

    from experiments.tools import data

    read = grain.ReadOptions(num_threads=min(ahead, 3), prefetch_buffer_size=ahead)
    make = lambda: data.batches(numbered(), 6, seed=0, flip=True, read=read)
    whole, first = drawn(make(), 20), make()
    for at in (0, 1, 3, 4, 11):  # 23 = 3 * 6 + 5: before, within and after the batch with records of two epochs.
        first.set_state({"next_index": 0})
        for _ in range(at):
            next(first)
        state = json.dumps(first.get_state())
        resumed = make()
        resumed.set_state(json.loads(state))
        used = make()
        drawn(used, 2)
        used.set_state(json.loads(state))
        for batches in (first, resumed, used):
            for rest, all_of_it in zip(drawn(batches, 8), whole, strict=True):
                np.testing.assert_array_equal(rest, all_of_it[at : at + 8])
    with pytest.raises(ValueError, match="got -1"):
        first.set_state({"next_index": -1})
    first.close()
    with pytest.raises(ValueError, match="closed"):
        next(first)


def test_orbax_saves_and_restores_the_iterator(tmp_path):
    import grain.checkpoint
    import orbax.checkpoint as ocp

    from experiments.tools import data

    batches = data.batches(numbered(), 6, seed=0)
    drawn(batches, 5)
    handler: Any = grain.checkpoint.CheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "batches", args=grain.checkpoint.CheckpointSave(batches))
        after = drawn(batches, 5)[0]
        resumed = data.batches(numbered(), 6, seed=0)
        checkpointer.restore(tmp_path / "batches", args=grain.checkpoint.CheckpointRestore(resumed))
    np.testing.assert_array_equal(drawn(resumed, 5)[0], after)


@pytest.mark.slow
def test_workers_draw_the_same_batches_and_a_state_restores_for_any_number_of_workers(tmp_path):
    from experiments.tools import data

    data.load("digits", "test", tmp_path)
    source = data.records("digits", "test", tmp_path)
    undisturbed, workers = data.batches(source, 10, seed=0), data.batches(source, 10, seed=0, workers=2)
    drawn(undisturbed, 3)
    workers.set_state(undisturbed.get_state())
    for theirs, ours in zip(drawn(workers, 5), drawn(undisturbed, 5), strict=True):
        np.testing.assert_array_equal(theirs, ours)
    assert workers.get_state() == undisturbed.get_state() == {"next_index": 8}
    undisturbed.set_state({"next_index": 0})
    drawn(undisturbed, 8)
    state = workers.get_state()
    workers.close()
    resumed = data.batches(source, 10, seed=0)
    resumed.set_state(state)
    np.testing.assert_array_equal(drawn(resumed, 3)[0], drawn(undisturbed, 3)[0])
