"""From texts to the ids of CLIP's tokens, by the files that a model was published with."""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Tokenize", "open_tokenizer"]

SPECIAL = {
    "unk_token": "<|endoftext|>",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
"""The tokens that stand for no text, and what they are where the files do not say."""
FLAGS = ("lstrip", "rstrip", "normalized", "single_word")
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What is encoded by itself: words, single digits, runs of other signs."""


Tokenize = Callable[..., np.ndarray]
"""`(texts, *, whole=False) -> ids [B, window]`, int32: what starts a text, its tokens, what ends it, padding. Where `whole`, a
text longer than the window is refused; otherwise its end is cut off, and a warning says what."""


def open_tokenizer(directory: str | Path) -> Tokenize:
    """The tokeniser of a model, from its `tokenizer.json`, or its `vocab.json` and `merges.txt`.

    Byte pairs of the lower-case text. `tokenizer_config.json` and `special_tokens_map.json` beside them say what a text is
    padded with ("!" in Stable Diffusion 2 and for XL's second encoder) and how long the window is, 77 where they do not.

    Args:
      directory: with these files.

    Raises:
      FileNotFoundError: if they are not there.
      ValueError: if they cannot be read, or are of another kind of tokeniser.
      ImportError: if the package tokenizers is not installed.
      TypeError: when the tokeniser is called, if texts are no list of strings.

    Reference: Radford et al. 2021, arXiv:2103.00020; transformers' models/clip/tokenization_clip.py.
    """
    try:
        from tokenizers import AddedToken
    except ImportError as error:
        raise ImportError("tokenising needs the package tokenizers: pip install guidance_jax[pretrained].") from error
    directory = Path(directory)
    config = _json(directory / "tokenizer_config.json")
    special = SPECIAL | _json(directory / "special_tokens_map.json") | config
    kind = config.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise ValueError(f"{directory} is of a {kind}, and only CLIPTokenizer is known.")
    contents = {name: _content(special[name]) for name in SPECIAL}
    tokenizer = _opened(directory, contents["unk_token"])
    ids = {name: tokenizer.token_to_id(content) for name, content in contents.items()}
    if None in ids.values():
        raise ValueError(f"the vocabulary in {directory} has not all of {sorted(set(contents.values()))}.")
    known = {token["content"]: token for token in config.get("added_tokens_decoder", {}).values()}
    there = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    added = {content: _flags(known.get(content, special[name])) for name, content in contents.items() if content not in there}
    tokenizer.add_special_tokens([AddedToken(content, special=True, **flags) for content, flags in added.items()])
    window = config.get("model_max_length", 77)
    if not isinstance(window, int) or not 2 < window < 100_000:
        raise ValueError(f"{directory / 'tokenizer_config.json'} has model_max_length={window!r}, which is no window.")

    def tokenize(texts: Sequence[str], *, whole: bool = False) -> np.ndarray:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts must be a list of strings, got {texts!r}.")
        out = np.full((len(texts), window), ids["pad_token"], np.int32)
        for row, text in zip(out, texts, strict=True):
            encoding = tokenizer.encode(text, add_special_tokens=False)
            kept = encoding.ids[: window - 2]
            if len(kept) < len(encoding.ids):
                _tell(text, text[encoding.offsets[window - 2][0] :], window, whole)
            row[: len(kept) + 2] = [ids["bos_token"], *kept, ids["eos_token"]]
        return out

    return tokenize


def _tell(text: str, cut: str, window: int, whole: bool) -> None:
    told = f"{text[:40]!r}... is longer than the window of {window} tokens"
    if whole:
        raise ValueError(f"{told}; too long by {cut!r}.")
    warnings.warn(f"{told}; cut off: {cut!r}.", stacklevel=3)


def _opened(directory: Path, unknown: str) -> Any:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    whole, vocabulary, merges = (directory / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.is_file() and not (vocabulary.is_file() and merges.is_file()):
        raise FileNotFoundError(f"there is neither {whole} nor both {vocabulary.name} and {merges.name} beside it.")
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return tokenizer
        model = models.BPE.from_file(str(vocabulary), str(merges), unk_token=unknown, end_of_word_suffix="</w>")
    except Exception as error:  # The package raises nothing narrower.
        raise ValueError(f"the tokeniser's files in {directory} are damaged: {error}. Download them again.") from error
    tokenizer = Tokenizer(model)
    clean = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(clean)
    pieces = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Download it again.") from error


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _flags(token: str | dict[str, Any]) -> dict[str, bool]:
    return {"normalized": False} if isinstance(token, str) else {flag: token.get(flag, False) for flag in FLAGS}
