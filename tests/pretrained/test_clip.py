"""CLIP's text encoders: which tokens a token sees, the position of the pooled state, and which settings are refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from awake import awake

from guidance_jax import pretrained
from guidance_jax.pretrained.clip import CLIPText, CLIPTextConfig, clip_text_config

SIZES: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 3}
SMALL = CLIPTextConfig(vocab_size=30, max_position_embeddings=7, **SIZES)


def test_published_encoders_have_the_published_number_of_parameters():
    """OpenAI's ViT-L/14 and XL's second encoder, OpenCLIP's ViT-bigG/14, with the settings of their files."""
    large = {"architectures": ["CLIPTextModel"], "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
    giant = {**sizes, "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "projection_dim": 1280}
    for published, count in ((large, 123_060_480), (giant, 694_659_840)):
        config = clip_text_config(published)
        assert pretrained.parameter_count(pretrained.abstract(functools.partial(CLIPText, config))) == count


@functools.cache
def encoder(dtype=jnp.float32, **changes):
    apply, params = awake(functools.partial(CLIPText, CLIPTextConfig(**{**vars(SMALL), **changes})), dtype=dtype)
    return lambda ids: jax.tree.map(np.asarray, apply(params, np.int32(ids)))


def test_no_token_sees_a_later_one():
    one, two = (encoder()([[28, 3, 4, token, 29, 0, 0]]) for token in (5, 9))
    for a, b in ((one.last, two.last), (one.penultimate, two.penultimate)):
        assert np.array_equal(a[:, :3], b[:, :3])
        assert (np.abs(a - b)[:, 3:].max(2) > 1e-3).all()
    np.testing.assert_allclose(one.pooled, one.last[:, 4], rtol=1e-6)


@pytest.mark.parametrize(("end", "places"), [(2, [2, 3]), (29, [2, 3]), (20, [0, 1])])
def test_the_end_is_the_largest_id_or_the_first_of_the_given_id(end, places):
    encoded = encoder(eos_token_id=end, num_hidden_layers=1)([[28, 3, 29, 29, 29], [28, 20, 27, 29, 5]])
    np.testing.assert_allclose(encoded.pooled, encoded.last[np.arange(2), places], rtol=1e-6)
    assert np.abs(np.diff(encoded.last, axis=1)).max(2).min() > 1e-3


def test_it_computes_in_the_dtype_of_its_parameters():
    ids = [[28, 3, 4, 29]]
    for exact, rounded in zip(*(encoder(dtype, projection_dim=5)(ids) for dtype in (jnp.float32, jnp.bfloat16)), strict=True):
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(rounded), exact, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ({"hidden_act": "relu"}, "hidden_act must be 'quick_gelu' or 'gelu', got 'relu'"),
        ({"num_attention_heads": 5}, "must divide into num_attention_heads, got .* and num_attention_heads 5"),
        ({"eos_token_id": [1, 2]}, "an integer"),
    ],
)
def test_the_error_of_an_unsupported_setting_names_it(change, message):
    with pytest.raises(ValueError, match=message):
        clip_text_config({**SIZES, **change})


def test_a_text_longer_than_the_window_raises():
    with pytest.raises(ValueError, match="8 tokens is longer than the encoder's window of 7"):
        encoder()(np.zeros((1, 8)))
