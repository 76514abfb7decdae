"""Tokenisers' files in all layouts in use, each read by transformers and by this library."""

import copy

import numpy as np
import pytest
from layouts import LAYOUTS, WINDOW, write
from pipelines import transformers
from published import WORDS, vocabulary
from tokenizers import AddedToken

from guidance_jax.pretrained.tokens import open_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

START, END = WORDS
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
    # Saved again by the current transformers: one file of the whole tokeniser, and settings.
    theirs = transformers.CLIPTokenizer.from_pretrained(directory)
    theirs.save_pretrained(tmp_path / "saved")
    agree(tmp_path / "saved")
    # Saved by 4.x: the older files beside the whole one.
    agree(write(tmp_path / "both", layout, theirs.backend_tokenizer.to_str()))


def test_the_map_defines_the_padding_of_stable_diffusion_2(tmp_path):
    """`a dog! wow` is padded by the first symbol of the vocabulary and not by the end token."""
    ids = vocabulary()
    row = agree(write(tmp_path / "second", LAYOUTS["2.1"]))[1]
    word = [ids["a</w>"], ids["dog</w>"], ids["!</w>"], ids["w"], ids["o"], ids["w</w>"]]
    assert row.tolist() == [ids[START], *[ids["a</w>"], ids["dog</w>"], ids["!"]], *word[3:], ids[END], *[0] * (WINDOW - 8)]


def test_tokens_that_are_added_to_a_tokeniser_are_found(tmp_path):
    theirs = transformers.CLIPTokenizer.from_pretrained(write(tmp_path / "first", LAYOUTS["1.4"]))
    theirs.add_tokens(["<dog>", AddedToken("mat", single_word=True), AddedToken("Red-Cat", lstrip=True, normalized=False)])
    theirs.add_special_tokens({"additional_special_tokens": ["Zed"]})
    theirs.add_tokens("Ünder")
    theirs.save_pretrained(tmp_path / "saved")
    expected = agree(tmp_path / "saved", theirs)
    assert (expected >= len(vocabulary())).any(1).sum() > 50


def test_a_token_of_several_vectors_is_expanded(tmp_path):
    """diffusers' pipelines do so before they tokenise."""
    loaders = pytest.importorskip("diffusers.loaders")
    layout = copy.deepcopy(LAYOUTS["1.4"]) | {"added_tokens": {"<dog>": 525, "<dog>_1": 526, "<dog>_2": 527, "Zed": 528}}
    directory = write(tmp_path / "several", layout)
    theirs = transformers.CLIPTokenizer.from_pretrained(directory)
    prompts = ["a <dog> on Zed", "<dog><dog>", "no dog", "the <dog>_2 mat", "<DOG>"]
    written = loaders.TextualInversionLoaderMixin().maybe_convert_prompt(prompts, theirs)
    assert written[0] == "a <dog> <dog>_1 <dog>_2 on Zed"
    expected = theirs(written, padding="max_length", max_length=WINDOW, truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(open_tokenizer(directory)(prompts), expected)
