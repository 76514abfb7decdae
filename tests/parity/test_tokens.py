"""Tokenisers' files in the layouts that exist, each read by transformers itself and by ours."""

import copy
import json

import numpy as np
import pytest
from pipelines import transformers
from published import MERGES, WORDS, vocabulary
from tokenizers import AddedToken

from guidance_jax.pretrained.tokens import open_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

WINDOW = 40
START, END = WORDS
PLAIN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
OLD = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
STRIPPING = {"lstrip": True, "normalized": False, "rstrip": True, "single_word": False}


def typed(content, **flags):
    return {"__type": "AddedToken", "content": content, **OLD, **flags}


# What CompVis/stable-diffusion-v1-4 has, the first that were published; 1.5 is alike.
FIRST_CONFIG = {
    "add_prefix_space": False,
    "bos_token": typed(START),
    "do_lower_case": True,
    "eos_token": typed(END),
    "errors": "replace",
    "model_max_length": WINDOW,
    "name_or_path": "openai/clip-vit-large-patch14",
    "pad_token": END,
    "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": typed(END),
}
FIRST_MAP = {
    "bos_token": {"content": START, **OLD},
    "eos_token": {"content": END, **OLD},
    "pad_token": END,
    "unk_token": {"content": END, **OLD},
}
# stabilityai/stable-diffusion-2, -2-base and -2-1: the two files do not agree.
SECOND_MAP = FIRST_MAP | {"pad_token": "!"}
# What transformers 4.34 and later wrote: all in one file.
LATER_DECODER = {
    "0": {"content": "!", **PLAIN, "special": True},
    "523": {"content": START, **OLD, "special": True},
    "524": {"content": END, **PLAIN, "special": True},
}
STRINGS = {"bos_token": START, "eos_token": END, "pad_token": "!", "unk_token": END}
LATER_CONFIG = FIRST_CONFIG | STRINGS | {"added_tokens_decoder": LATER_DECODER, "clean_up_tokenization_spaces": True}
INVERTED = {"525": {"content": "<dog>", **PLAIN, "special": False}, "526": {"content": "Red-Cat", **OLD, "special": False}}
FLAGGED = {
    "525": {"content": "<dog>", **STRIPPING, "special": False},
    "526": {"content": "mat", **OLD, "single_word": True, "special": False},
    "527": {"content": "Ünder", **OLD, "rstrip": True, "special": True},
    "524": {"content": END, **STRIPPING, "special": True},
}
LAYOUTS = {
    "no settings": {},
    "1.4": {"tokenizer_config": FIRST_CONFIG, "special_tokens_map": FIRST_MAP},
    "2.1": {"tokenizer_config": FIRST_CONFIG, "special_tokens_map": SECOND_MAP},
    "map alone": {"special_tokens_map": SECOND_MAP},
    "config alone": {"tokenizer_config": FIRST_CONFIG | {"pad_token": "!"}},
    "pad as a dictionary": {
        "tokenizer_config": FIRST_CONFIG,
        "special_tokens_map": FIRST_MAP | {"pad_token": {"content": "!", **OLD}},
    },
    "xl": {"tokenizer_config": LATER_CONFIG, "special_tokens_map": SECOND_MAP},
    "the config wins": {"tokenizer_config": LATER_CONFIG, "special_tokens_map": FIRST_MAP},
    "no longest": {"tokenizer_config": FIRST_CONFIG | {"model_max_length": 1000000000000000019884624838656}},
    "added tokens": {
        "tokenizer_config": FIRST_CONFIG,
        "special_tokens_map": FIRST_MAP,
        "added_tokens": {"<dog>": 525, "Red-Cat": 527, "Zed": 526, START: 523},
    },
    "added special tokens": {
        "tokenizer_config": FIRST_CONFIG,
        "special_tokens_map": SECOND_MAP | {"additional_special_tokens": ["<dog>", "Red-Cat"]},
        "added_tokens": {"<dog>": 525, "Zed": 526},
    },
    "special tokens in the config": {
        "tokenizer_config": FIRST_CONFIG | {"additional_special_tokens": ["<dog>", typed("the cat", rstrip=True)]},
        "special_tokens_map": SECOND_MAP | {"additional_special_tokens": ["Zed"]},
    },
    "decoder": {"tokenizer_config": LATER_CONFIG | {"added_tokens_decoder": LATER_DECODER | INVERTED}},
    "decoder with special tokens": {
        "tokenizer_config": LATER_CONFIG
        | {"added_tokens_decoder": LATER_DECODER | INVERTED, "additional_special_tokens": ["<dog>", "Red-Cat"]},
        "special_tokens_map": SECOND_MAP | {"additional_special_tokens": ["<dog>", "Red-Cat"]},
        "added_tokens": {"wow": 527},
    },
    "flags": {"tokenizer_config": LATER_CONFIG | {"added_tokens_decoder": LATER_DECODER | FLAGGED}},
    "of transformers 5": {"tokenizer_config": FIRST_CONFIG | STRINGS | {"extra_special_tokens": ["<dog>", "cat's"]}},
    "named": {
        "tokenizer_config": FIRST_CONFIG | {"mask_token": "<mask>", "image_token": "<image>", "cls_token": typed("<cls>")},
        "special_tokens_map": {"pad_token": "!", "sep_token": {"content": "Zed", **OLD}, "video_token": "wow"},
    },
    "on the left": {"tokenizer_config": FIRST_CONFIG | {"padding_side": "left", "truncation_side": "left"}},
    "split": {"tokenizer_config": LATER_CONFIG | {"split_special_tokens": True}},
}

TEXTS = [
    "",
    "a dog! wow",
    "the cat's on THE mat, it'll do 123!!! ... I'M we've they'RE don't",
    " \t two  spaces\nand\u00a0lines \r\n\u2003 ",
    "Ünïcôde ﬁ ½ Straße 日本語 😀👩‍👩‍👧 e\u0301 İstanbul ΣΑΣ",
    f"a {END} dog{START} {END}{END}x",
    "a <|ENDOFTEXT|> !dog! <|startoftext|",
    "\x00\x07\x7f ­ zero\u200bwidth \ufeff\u202e",
    "&amp; &lt;b&gt; &#39; <b>",
    "a <dog> and<dog>s <DOG>, red-cat Red-Cat RED-CATS unzed Zed zeds",
    "mat mats matmat the mat. Under Ünder ünders the   cat the cats cat's",
    "<mask> <image><cls> wow! wowed",
    "supercalifragilisticexpialidocious" * 3,
    "dog " * 100 + "cat",
    "cat <dog> " * 30,
    "!" * 60,
    "the red cat " * 12 + END,
]


def write(directory, layout, model=None):
    directory.mkdir()
    if model is None:
        (directory / "vocab.json").write_text(json.dumps(vocabulary()))
        (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    else:
        (directory / "tokenizer.json").write_text(model)
    for name, content in layout.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def texts():
    rng = np.random.default_rng(0)
    signs = [
        *"dogcatmenZ \n\t'!?.,019-<|>ÀéßΩЖ語😀",
        "the ",
        "cat",
        END,
        "n't ",
        "<dog>",
        "mat",
        "Ünder",
        "Zed",
        "Red-Cat",
        " wow",
    ]
    return [*TEXTS, *("".join(rng.choice(signs, 14)) for _ in range(150))]


def agree(directory, theirs=None):
    theirs = theirs or transformers.CLIPTokenizer.from_pretrained(directory)
    given = texts()
    window = theirs.model_max_length if theirs.model_max_length < 1000 else 77
    expected = theirs(given, padding="max_length", max_length=window, truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(open_tokenizer(directory)(given), expected)
    return expected


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_read_as_by_transformers(tmp_path, layout):
    directory = write(tmp_path / "published", layout)
    agree(directory)
    # Saved again, by today's transformers: one file of the whole tokeniser, and settings.
    theirs = transformers.CLIPTokenizer.from_pretrained(directory)
    theirs.save_pretrained(tmp_path / "saved")
    agree(tmp_path / "saved")
    # As 4.x wrote it: the older files, and the whole one beside them.
    agree(write(tmp_path / "both", layout, theirs.backend_tokenizer.to_str()))


def test_the_map_says_how_stable_diffusion_2_pads(tmp_path):
    """`a dog! wow` is padded by the first sign of the vocabulary, not by what ends a text."""
    ids = vocabulary()
    row = agree(write(tmp_path / "second", LAYOUTS["2.1"]))[1]
    word = [ids["a</w>"], ids["dog</w>"], ids["!</w>"], ids["w"], ids["o"], ids["w</w>"]]
    assert row.tolist() == [ids[START], *[ids["a</w>"], ids["dog</w>"], ids["!"]], *word[3:], ids[END], *[0] * (WINDOW - 8)]


def test_tokens_that_are_added_to_a_tokeniser_are_found_again(tmp_path):
    theirs = transformers.CLIPTokenizer.from_pretrained(write(tmp_path / "first", LAYOUTS["1.4"]))
    theirs.add_tokens(["<dog>", AddedToken("mat", single_word=True), AddedToken("Red-Cat", lstrip=True, normalized=False)])
    theirs.add_special_tokens({"additional_special_tokens": ["Zed"]})
    theirs.add_tokens("Ünder")
    theirs.save_pretrained(tmp_path / "saved")
    expected = agree(tmp_path / "saved", theirs)
    assert (expected >= len(vocabulary())).any(1).sum() > 50


def test_a_token_of_several_vectors_is_written_out(tmp_path):
    """As diffusers' pipelines do it before they tokenise."""
    loaders = pytest.importorskip("diffusers.loaders")
    layout = copy.deepcopy(LAYOUTS["1.4"]) | {"added_tokens": {"<dog>": 525, "<dog>_1": 526, "<dog>_2": 527, "Zed": 528}}
    directory = write(tmp_path / "several", layout)
    theirs = transformers.CLIPTokenizer.from_pretrained(directory)
    prompts = ["a <dog> on Zed", "<dog><dog>", "no dog", "the <dog>_2 mat", "<DOG>"]
    written = loaders.TextualInversionLoaderMixin().maybe_convert_prompt(prompts, theirs)
    assert written[0] == "a <dog> <dog>_1 <dog>_2 on Zed"
    expected = theirs(written, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(open_tokenizer(directory)(prompts), expected)
