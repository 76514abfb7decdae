"""The files beside a model's weights: its tokeniser's and its scheduler's, what they give and what of them is refused."""

import sys

import pytest
from published import SCHEDULER, WORDS, vocabulary, write_tokenizer

from guidance_jax.pretrained.schedulers import scheduling
from guidance_jax.pretrained.tokens import open_tokenizer


@pytest.mark.parametrize("pad", [WORDS[1], "!"])
def test_a_long_text_is_cut_with_a_warning_or_refused(tmp_path, pad):
    write_tokenizer(tmp_path, pad)
    tokenize, ids = open_tokenizer(tmp_path), vocabulary()
    start, end, dog = ids[WORDS[0]], ids[WORDS[1]], ids["dog</w>"]
    assert tokenize(["Dog  dog", ""]).tolist() == [[start, dog, dog, end, *[ids[pad]] * 9], [start, end, *[ids[pad]] * 11]]
    assert tokenize(["dog " * 11]).tolist() == [[start, *[dog] * 11, end]]
    with pytest.warns(UserWarning, match="longer than the window of 13 tokens; cut off: 'the red Mat'"):
        assert tokenize(["dog " * 11 + "the red Mat"]).tolist() == [[start, *[dog] * 11, end]]
    with pytest.raises(ValueError, match="too long by 'the red Mat'"):
        tokenize(["dog " * 11 + "the red Mat"], whole=True)
    with pytest.raises(TypeError, match="list of strings"):
        tokenize("dog")


def test_a_tokeniser_of_another_kind_is_refused(tmp_path):
    write_tokenizer(tmp_path, tokenizer_class="T5Tokenizer")
    with pytest.raises(ValueError, match="T5Tokenizer"):
        open_tokenizer(tmp_path)
    write_tokenizer(tmp_path, pad="<pad>")
    with pytest.raises(ValueError, match=r"has not all of .*<pad>"):
        open_tokenizer(tmp_path)


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"guidance_jax\[pretrained\]"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler is not known"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"prediction_type": "flow_prediction"}, "prediction_type='flow_prediction'"),
        ({"_class_name": "DDIMScheduler", "clip_sample": True}, "clip_sample=True"),
        ({"thresholding": True}, "thresholding=True"),
        ({"timestep_spacing": "cubic"}, "timestep_spacing='cubic'"),
        ({"new": 1, "newer": 2}, "new, newer of a PNDMScheduler are not known"),
    ],
)
def test_what_a_scheduler_has_that_is_not_supported_is_named(change, told):
    with pytest.raises(ValueError, match=told):
        scheduling(SCHEDULER | change)


def test_settings_that_a_scheduler_does_not_heed_have_no_effect():
    path = scheduling(SCHEDULER | {"clip_sample": True, "use_karras_sigmas": True, "final_sigmas_type": "zero"}).levels(4)
    assert path.t.tolist() == [751, 501, 251, 1, 0]
    assert path.sigma[-1] > 0
    assert scheduling(SCHEDULER | {"set_alpha_to_one": True}).levels(4).sigma[-1] == 0
