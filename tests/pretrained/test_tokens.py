"""The tokeniser's and scheduler's files of a model: the values read from them, and the errors of unsupported ones."""

import itertools
import json
import sys
from typing import Any

import pytest
from published import SCHEDULER, WORDS, vocabulary, write_tokenizer

from guidance_jax.pretrained.clip import CLIPTextConfig
from guidance_jax.pretrained.schedulers import scheduling
from guidance_jax.pretrained.tokens import open_tokenizer


@pytest.mark.parametrize("pad", [WORDS[1], "!"])
def test_a_long_text_is_cut_with_a_warning_or_raises(tmp_path, pad):
    write_tokenizer(tmp_path, pad)
    tokenize, ids = open_tokenizer(tmp_path), vocabulary()
    start, end, dog = ids[WORDS[0]], ids[WORDS[1]], ids["dog</w>"]
    assert tokenize(["Dog  dog", ""]).tolist() == [[start, dog, dog, end, *[ids[pad]] * 9], [start, end, *[ids[pad]] * 11]]
    assert tokenize(["dog " * 11]).tolist() == [[start, *[dog] * 11, end]]
    with pytest.warns(UserWarning, match="longer than the window of 13 tokens; cut off: 'the red Mat'"):
        assert tokenize(["dog " * 11 + "the red Mat"]).tolist() == [[start, *[dog] * 11, end]]
    with pytest.raises(ValueError, match="too long by 'the red Mat'"):
        tokenize(["dog " * 11 + "the red Mat"], whole=True)
    with pytest.raises(TypeError, match="list of prompts, got the str 'dog'"):
        tokenize("dog")


def test_a_tokeniser_of_another_kind_raises(tmp_path):
    write_tokenizer(tmp_path, tokenizer_class="T5Tokenizer")
    with pytest.raises(ValueError, match="T5Tokenizer"):
        open_tokenizer(tmp_path)


def test_tokens_without_a_row_or_a_position_in_the_encoder_raise(tmp_path):
    """Without the error, indexing would silently clamp them."""
    encoder = CLIPTextConfig(vocab_size=len(vocabulary()), max_position_embeddings=13)
    write_tokenizer(tmp_path, pad="<pad>")
    with pytest.raises(ValueError, match=r"has no '<pad>', or the encoder has no row"):
        open_tokenizer(tmp_path, encoder)
    write_tokenizer(tmp_path, window=14)
    with pytest.raises(ValueError, match=r"model_max_length=14, which is not a window of an encoder of 13"):
        open_tokenizer(tmp_path, encoder)
    wrongs: list[Any] = [True, 2, -5, "77", 13.0]
    for wrong in wrongs:
        write_tokenizer(tmp_path, window=wrong)
        with pytest.raises(ValueError, match=f"model_max_length={wrong!r}, which is not a window"):
            open_tokenizer(tmp_path)
    write_tokenizer(tmp_path, additional_special_tokens=["<dog>"])
    (tmp_path / "added_tokens.json").write_text(json.dumps({"Cat": 526}))
    tokenize = open_tokenizer(tmp_path, encoder)
    assert tokenize(["a dog", "the <mat>"]).max() < len(vocabulary())
    with pytest.raises(ValueError, match=r"'a <dog>' has the token '<dog>', for which the encoder has no row"):
        tokenize(["a <dog>"])
    assert open_tokenizer(tmp_path)(["Cat <dog>"])[0, 1:3].tolist() == [525, 526]


@pytest.mark.parametrize(("length", "window"), [(None, 13), (10**30, 13), (1e30, 13), (9, 9)])
def test_the_window_is_the_encoders_if_the_files_have_none(tmp_path, length, window):
    write_tokenizer(tmp_path, window=length)
    encoder = CLIPTextConfig(vocab_size=len(vocabulary()), max_position_embeddings=13)
    assert open_tokenizer(tmp_path, encoder)(["a dog"]).shape == (1, window)
    assert open_tokenizer(tmp_path)(["a dog"]).shape == (1, 77 if window == 13 else 9)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["dog " * 250_000, "\x00" * 10**5])
def test_the_warning_of_a_cut_text_shows_an_excerpt(tmp_path, text):
    write_tokenizer(tmp_path)
    tokenize = open_tokenizer(tmp_path)
    with pytest.warns(UserWarning, match=r"cut off: .*\.\.\. of [\d,]+ characters") as warned:
        tokenize([text])
    with pytest.raises(ValueError, match="too long by") as refused:
        tokenize([text], whole=True)
    assert max(len(str(warned[0].message)), len(str(refused.value))) < 1_500


DAMAGED = {
    "tokenizer_config": (
        "bos_token",
        "unk_token",
        "padding_side",
        "added_tokens_decoder",
        "extra_special_tokens",
        "image_token",
    ),
    "special_tokens_map": ("eos_token", "additional_special_tokens", "extra_special_tokens"),
    "added_tokens": ("x",),
    "tokenizer": ("model", "added_tokens", "padding"),
}
VALUES = [None, 5, -1, "x", [], [1], {}, {"a": 1}, {"content": 3}, [{"content": []}], True, 1e300, {"content": "x"}, [None]]


@pytest.mark.parametrize("file", DAMAGED)
def test_the_error_of_a_damaged_file_names_its_directory(tmp_path, file):
    """Each setting of each file gets many wrong values. The result is a correct tokeniser, or an error that names the
    directory.
    """
    refused = []
    for number, (name, value) in enumerate(itertools.product(DAMAGED[file], VALUES)):
        directory = tmp_path / str(number)
        write_tokenizer(directory)
        path = directory / f"{file}.json"
        held = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(held | {name: value}))
        try:
            assert open_tokenizer(directory)(["a dog"]).shape == (1, 13)
        except ValueError as error:
            refused.append(str(directory) in str(error))
    assert all(refused)
    assert len(refused) >= len(VALUES) // 3


def test_the_error_of_a_missing_package_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"guidance_jax\[pretrained\]"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler is unknown"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample=True"),
        ({"thresholding": True}, "thresholding=True"),
        ({"timestep_spacing": "cubic"}, "timestep_spacing='cubic'"),
        ({"new": 1, "newer": 2}, "new, newer of a PNDMScheduler are unknown"),
    ],
)
def test_the_error_of_an_unsupported_scheduler_setting_names_it(change, message):
    with pytest.raises(ValueError, match=message):
        scheduling(SCHEDULER | change)


def test_settings_that_a_scheduler_ignores_have_no_effect():
    path = scheduling(SCHEDULER | {"clip_sample": True, "use_karras_sigmas": True, "final_sigmas_type": "zero"}).levels(4)
    assert path.t.tolist() == [751, 501, 251, 1, 0]
    assert path.sigma[-1] > 0
    assert scheduling(SCHEDULER | {"set_alpha_to_one": True}).levels(4).sigma[-1] == 0
