"""Tests of the text-to-image study: its captions, the arithmetic of its judge, and a short run."""

import functools
import itertools
import json
from typing import Any

import awake
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.text_digits import scenes
from experiments.tools import data

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
E = scenes.EMPTY
EVERY = list(itertools.product(range(11), repeat=2))


def drawn(size, seed=0):
    """The model of `untrained`, whose parameters are drawn by NumPy. JAX would compile an initialiser for each shape."""
    from experiments.text_digits.model import Model, TextToScene
    from guidance_jax import networks, pretrained

    module = pretrained.abstract(functools.partial(TextToScene, size))
    (apply, params), (read, _), (contrast, _) = (networks.from_nnx(module, name) for name in ("__call__", "read", "contrast"))
    return Model(apply, read, contrast, awake.drawn(params, seed))


@functools.cache
def tiny():
    """A small model. Some parameters of `untrained` are zero where they would change the image."""
    from experiments.text_digits.model import Size

    return drawn(Size(width=16, blocks=1, heads=2, text_width=8, text_blocks=1, text_heads=2))


def digits(each=3):
    """Images of one grey level each. The levels of a class differ slightly and do not overlap with other classes."""
    labels = np.repeat(np.arange(10), each).astype(np.int32)
    grey = labels / 10 - 0.9 + np.tile(np.arange(each), 10) / 100
    order = np.random.default_rng(0).permutation(len(labels))
    images = np.broadcast_to(grey[:, None, None, None], (len(labels), 8, 8, 1)).astype(np.float32)
    return data.Data(images[order], labels[order], tuple(map(str, range(10))), "1")


def grey_to_class(images):
    """The class of each cell in pictures of `digits`."""
    means = images.reshape(len(images), 8, 2, 8).mean((1, 3))
    return np.where(means < -0.95, E, np.round((means + 0.9) * 10 - 0.1)).astype(int)


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("", set(EVERY)),
        ("a three to the left of a seven", {(3, 7)}),
        ("a three to the right of an eight", {(8, 3)}),
        ("an eight and a zero", {(8, 0), (0, 8)}),
        ("two fives", {(5, 5)}),
        ("two sixes", {(6, 6)}),
        ("a three alone", {(3, E), (E, 3)}),
        ("a one", {(1, other) for other in range(11)} | {(other, 1) for other in range(11)}),
        ("a nine on the left", {(9, other) for other in range(11)}),
        ("a nine on the right", {(other, 9) for other in range(11)}),
        ("a one or a two", {scene for scene in EVERY if 1 in scene or 2 in scene}),
        ("a five but no two", {scene for scene in EVERY if 5 in scene and 2 not in scene}),
        ("no four", {scene for scene in EVERY if 4 not in scene}),
        ("no digits", {(E, E)}),
        ("an empty scene", {(E, E)}),
    ],
)
def test_a_caption_is_true_of_the_scenes_that_it_describes(text, true):
    assert {scene for scene in EVERY if scenes.asked(text)[scene]} == true


def test_every_caption_parses_to_its_form_and_digits_and_all_captions_differ():
    made = [(form, a, b) for form in scenes.FORMS for a, b in scenes.arguments(form)]
    assert len(made) == 6 * 90 + 6 * 10 + 2 - 90  # Five forms with two digits, six with one, two with none.
    texts = [scenes.caption(*one) for one in made]
    assert len(set(texts)) == len(texts)
    assert [scenes.parse(text) for text in texts] == made


def test_mirrored_scenes_swap_left_and_right():
    for a, b in itertools.permutations(range(10), 2):
        left, right = (scenes.asked(scenes.caption(form, a, b)) for form in ("left of", "right of"))
        np.testing.assert_array_equal(left, right.T)
        np.testing.assert_array_equal(left | right, scenes.asked(scenes.caption("and", a, b)))


@pytest.mark.parametrize("text", ["a three to the left of", "A three", "a eight", "two three", "a three and a three", " "])
def test_a_text_that_is_no_caption_raises(text):
    with pytest.raises(ValueError, match="is no caption"):
        scenes.parse(text)


def test_tokens_are_the_words_between_the_start_and_end_tokens():
    texts = [scenes.caption(form, *names) for form in scenes.FORMS for names in scenes.arguments(form)]
    ids = scenes.tokenise(["", *texts])
    assert ids.shape == (len(texts) + 1, scenes.LENGTH)
    assert ids.max() == scenes.END  # CLIP takes the largest number as the end of a text.
    for text, row in zip(["", *texts], ids, strict=True):
        words = [scenes.VOCABULARY[number] for number in row if number]
        assert words == ["<start>", *text.split(), "<end>"]
        assert (row[len(words) :] == 0).all()
    assert len({tuple(row) for row in ids.tolist()}) == len(ids)


@pytest.mark.parametrize(("text", "message"), [("a dog", "'dog' in 'a dog'"), ("a " * 9, "has 9 words"), ("<pad>", "<pad>")])
def test_a_text_without_tokens_raises(text, message):
    with pytest.raises(ValueError, match=message):
        scenes.tokenise([text])


def test_training_has_every_scene_except_the_held_out_pairs():
    prior = scenes.prior()
    np.testing.assert_allclose(prior.sum(), 1)
    np.testing.assert_array_equal(prior, prior.T)
    apart = {(a, b) for a, b in itertools.permutations(range(10), 2) if scenes.held_out(a, b)}
    assert {scene for scene in EVERY if prior[scene] == 0} == apart
    assert len(apart) == 20
    assert all(sum(digit in pair for pair in apart) == 4 for digit in range(10))
    np.testing.assert_allclose([prior[E, E], prior[:10, E].sum() * 2, np.diag(prior)[:10].sum()], [0.06, 0.2, 0.1])


def test_the_description_of_a_scene_is_any_of_its_true_captions():
    rng = np.random.default_rng(0)
    for scene in ((3, 7), (4, 4), (E, 2), (E, E)):
        true = scenes.captions(*scene)
        every = {scenes.caption(form, *names) for form in scenes.FORMS for names in scenes.arguments(form)}
        assert {text for texts in true.values() for text in texts} == {text for text in every if scenes.asked(text)[scene]}
        drawn = [scenes.describe(rng, *scene) for _ in range(3000)]
        assert all(scenes.asked(text)[scene] for text in drawn)
        kinds = [scenes.parse(text)[0] for text in drawn]
        weights = np.array([scenes.FORMS[kind].weight for kind in true])
        shares = np.array([kinds.count(kind) for kind in true]) / len(kinds)
        np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.04)


def test_batches_show_the_scene_of_their_caption_and_continue_from_a_saved_state():
    cells = scenes.Cells(digits())
    batches = scenes.Scenes(cells, 200, seed=5)
    images, ids = next(batches)
    state = batches.get_state()
    seen = grey_to_class(images)
    texts = [" ".join(scenes.VOCABULARY[number] for number in row if 0 < number < scenes.START) for row in ids]
    assert scenes.met(texts, seen).all()
    assert not any(scenes.held_out(left, right) for left, right in seen if E not in (left, right))
    assert len({tuple(scene) for scene in seen}) > 60
    second = next(batches)
    again = scenes.Scenes(cells, 200, seed=5)
    again.set_state(json.loads(json.dumps(state)))
    for one, other in zip(second, next(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(second[0], images)


def test_each_cell_of_a_picture_has_a_random_digit_of_its_class():
    source = digits()
    wanted = np.array(EVERY * 20)
    pictures = scenes.Cells(source).picture(np.random.default_rng(0), wanted)
    assert pictures.shape == (len(wanted), *scenes.SHAPE)
    np.testing.assert_array_equal(grey_to_class(pictures), wanted)
    threes = pictures[wanted[:, 0] == 3][:, 0, 0, 0]
    assert set(threes) == set(source.images[source.labels == 3][:, 0, 0, 0])


class Grey:
    """A judge that reads the cells of `digits` without errors. Its feature is the class."""

    def read(self, cells):
        kinds = np.where(cells.mean((1, 2, 3)) < -0.95, E, np.round((cells.mean((1, 2, 3)) + 0.9) * 10 - 0.1)).astype(int)
        return kinds[:, None].astype(np.float32), np.eye(11)[kinds]


GREY: Any = Grey()


def test_an_image_is_read_from_left_to_right():
    from experiments.text_digits.study import read

    images = scenes.Cells(digits()).picture(np.random.default_rng(0), np.array(EVERY))
    seen = read(GREY, images)
    np.testing.assert_array_equal(seen.scenes, EVERY)
    np.testing.assert_array_equal(seen.features[..., 0], EVERY)


def test_prompts_are_balanced_and_separate_the_held_out_pairs():
    from experiments.text_digits.study import prompts

    groups = prompts(70, seed=0)
    assert set(groups) == {*scenes.FORMS, *(f"{form}, held out" for form in scenes.PAIRED)}
    for name, texts in groups.items():
        assert len(texts) == 70
        form = name.split(",")[0]
        assert {scenes.parse(text)[0] for text in texts} == {form}
        counts = [texts.count(text) for text in set(texts)]
        assert max(counts) - min(counts) <= 1
        if form in scenes.PAIRED:
            assert {bool(scenes.held_out(*scenes.parse(text)[1:])) for text in texts} == {name != form}


class Painter:
    """A painter with known behaviour.

    It draws the first digit `a` of a text on the left. On the right it draws `a + 1` for seed 2 and `a + 2` for other seeds.
    If it obeys, it does not draw the digit of the negative prompt on the right. For two prompts it draws both digits, the
    second only if it is odd.
    """

    def __init__(self, obeys=True):
        self.obeys, self.cells = obeys, scenes.Cells(digits())

    def __call__(self, guide, scale, seed, **texts):
        branches = {name: [scenes.parse(text)[1] for text in some] for name, some in texts.items()}
        if "first" in branches:
            drawn = [(a, b if b % 2 else E) for a, b in zip(branches["first"], branches["second"], strict=True)]
        else:
            drawn = [(a, (a + (1 if seed == 2 else 2)) % 10) for a in branches["cond"]]
        if "uncond" in branches and self.obeys:
            drawn = [(a, E if b == unwanted else b) for (a, b), unwanted in zip(drawn, branches["uncond"], strict=True)]
        return self.cells.picture(np.random.default_rng(seed), np.array(drawn))


@pytest.mark.parametrize(("obeys", "removed"), [(True, 1.0), (False, 0.0)])
def test_removal_by_a_negative_prompt_is_counted_among_the_scenes_that_had_the_digit(obeys, removed):
    from experiments.text_digits.study import Config, negatives

    painter: Any = Painter(obeys)
    rows = negatives(Config(repeats=2), painter, GREY)
    assert list(rows) == ["a three or a seven", "a three on the left"]
    for row in rows.values():
        assert row["samples"] == 180
        np.testing.assert_allclose(row["named_before"], 1 / 9)
        np.testing.assert_allclose(row["named_after"], (1 - removed) / 9)
        assert (row["removed"], row["removed_by_chance"], row["wanted_after"]) == (removed, 1.0, 1.0)


def test_compositions_count_the_scenes_with_both_digits_separately_for_held_out_pairs():
    from experiments.text_digits.study import Config, compositions

    painter: Any = Painter()
    _, row = compositions(Config(repeats=1, others=(2.0,)), painter, GREY)
    for name, apart in (("", False), ("_held_out", True)):
        some = [pair for pair in itertools.permutations(range(10), 2) if bool(scenes.held_out(*pair)) == apart]
        odd = np.mean([b % 2 for _, b in some])
        np.testing.assert_allclose([row[f"anywhere{name}"], row[f"placed{name}"]], odd)
        # For one caption this painter draws a and a + 2, which is not a held-out pair.
        np.testing.assert_allclose(row[f"caption{name}"], np.mean([b == (a + 2) % 10 for a, b in some]))


def test_accuracy_is_reported_separately_for_held_out_pairs():
    from experiments.text_digits.study import judged, read

    groups = {"one": ["a three"] * 4, "and": ["a three and a five"] * 4, "and, held out": ["a three and a six"] * 4}
    drawn = [(3, 1), (3, E), (1, 3), (1, 1), (3, 5), (5, 3), (5, 5), (5, 3), (3, 6), (6, 6), (6, E), (E, E)]
    judge: Any = Grey()
    judge.real = np.arange(10, dtype=np.float32)[:, None]
    seen = read(judge, scenes.Cells(digits()).picture(np.random.default_rng(0), np.array(drawn)))
    row = judged(groups, seen, judge)
    assert row["kinds"] == {"one": 0.75, "and": 0.75, "and, held out": 0.25}
    assert (row["accuracy"], row["held_out"]) == (0.75, 0.25)


@pytest.mark.slow
def test_a_painter_draws_the_same_sample_of_a_prompt_in_any_batch():
    """A text in the unconditional branch is a negative prompt."""
    import guidance_jax as gj
    from experiments.text_digits.model import Painter

    model, texts = tiny(), ["a three", "two fives", "a one and a two"]
    paint = Painter(model, steps=3, batch=2)
    images = paint(gj.cfg, 2.0, 0, cond=texts)
    assert images.shape == (3, *scenes.SHAPE)
    other = Painter(model, steps=3, batch=3)
    np.testing.assert_allclose(images, other(gj.cfg, 2.0, 0, cond=texts), atol=1e-4)
    assert not np.allclose(images, other(gj.cfg, 2.0, 1, cond=texts), atol=1e-2)
    # With equal positive and negative prompts every scale gives the result of scale 1.
    same = other(gj.cfg, 5.0, 0, cond=texts, uncond=texts)
    np.testing.assert_allclose(same, other(gj.cfg, 1.0, 0, cond=texts), atol=1e-3)
    # At scale 0 only the negative prompt is used.
    np.testing.assert_allclose(
        other(gj.cfg, 0.0, 0, cond=texts, uncond=texts[::-1]), other(gj.cfg, 1.0, 0, cond=texts[::-1]), atol=1e-3
    )
    assert not np.allclose(other(gj.cfg, 0.0, 0, cond=texts), other(gj.cfg, 1.0, 0, cond=texts), atol=1e-2)


def test_the_contrastive_loss_is_the_mean_cross_entropy_in_both_directions():
    from experiments.text_digits.model import contrast

    rng = np.random.default_rng(0)
    texts, images = rng.normal(size=(2, 5, 3)).astype(np.float32)
    cosines = [[t @ i / np.sqrt((t @ t) * (i @ i)) for i in images] for t in texts]
    odds = np.exp(np.exp(1.5) * np.array(cosines))
    to_image, to_text = (np.diag(odds / odds.sum(axis, keepdims=True)) for axis in (1, 0))
    expected = -(np.log(to_image).mean() + np.log(to_text).mean()) / 2
    np.testing.assert_allclose(contrast(texts, images, jnp.float32(1.5)), expected, rtol=1e-5)


def test_padding_does_not_change_the_output_of_the_denoiser():
    model, rng = tiny(), np.random.default_rng(0)
    x, t = jnp.asarray(rng.normal(size=(2, *scenes.SHAPE)), jnp.float32), jnp.array([0.3, 0.7])
    read = jax.jit(lambda texts: model.read(model.params, texts)[0])
    apply = jax.jit(lambda text: model.apply(model.params, x, t, text))
    text, other = (read(scenes.tokenise(["a three", second])) for second in ("two fives", "two sixes"))
    np.testing.assert_array_equal(text.mask, np.tile(np.arange(scenes.LENGTH) < 4, (2, 1)))
    loud = text._replace(tokens=np.where(np.asarray(text.mask)[..., None], text.tokens, np.float32(1e3)))
    before, padded, after = (np.asarray(apply(each)) for each in (text, loud, other))
    np.testing.assert_array_equal(padded, before)
    moved = np.abs(after - before).max((1, 2, 3))
    assert moved[0] == 0
    assert moved[1] > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [({"scales": (1.0, 2.0)}, "must include 0 and 1"), ({"prompts": 0}, "at least 1"), ({"drop_rate": 2}, "drop")],
)
def test_a_config_with_a_wrong_value_raises(change, message):
    from experiments.text_digits.study import Config

    with pytest.raises(ValueError, match=message):
        Config(**change)


@pytest.mark.smoke
@pytest.mark.slow
def test_a_smoke_run_writes_a_report_and_its_checkpoint_is_used_again(lenient, tmp_path, capsys, monkeypatch):
    from experiments.text_digits import model, study
    from experiments.tools import devices

    whole = devices.mesh
    monkeypatch.setattr(devices, "mesh", lambda: whole(jax.devices()[:1]))  # The digits job trains on all devices.
    for module in (model, study):
        monkeypatch.setattr(module, "untrained", drawn)
    painters, write = [], study.report.write
    monkeypatch.setattr(study.report, "write", lambda *given: (painters.append(given[2]), write(*given)))
    metrics = study.main(study.Config(out=tmp_path, smoke=True))
    out = tmp_path / "smoke"
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert [row["scale"] for row in metrics["ways"]["CFG"]] == [0, 1, 3]
    assert set(metrics["ways"]["CFG"][0]["kinds"]) == {
        *scenes.FORMS,
        *(f"{form}, held out" for form in ("left of", "right of", "and")),
    }
    report = (out / "report.md").read_text()
    for picture in ("prompts", "accuracy", "negatives", "compositions"):
        assert f"({picture}.png)" in report
        assert (out / f"{picture}.png").stat().st_size > 10_000
    capsys.readouterr()
    config = study.small(study.Config(out=tmp_path))
    kept = model.trained(config.out, size=config.size, training=config.model)
    assert "text_to_scene: from the checkpoint" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, kept.params, painters[0].model.params)
