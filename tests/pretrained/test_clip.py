"""CLIP's text encoders: which tokens a token sees, the position of the pooled state, and which settings are refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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


def test_no_token_sees_a_later_one():
    encode = nnx.jit(CLIPText(SMALL, rngs=nnx.Rngs(0)))
    ids = jnp.array([[28, 3, 4, 5, 29, 0, 0]])
    other = ids.at[0, 3].set(9)
    one, two = encode(ids), encode(other)
    for a, b in ((one.last, two.last), (one.penultimate, two.penultimate)):
        assert np.array_equal(a[:, :3], b[:, :3])
        assert (jnp.abs(a - b)[:, 3:].max(2) > 1e-3).all()
    np.testing.assert_allclose(one.pooled, one.last[:, 4], rtol=1e-6)


def test_the_end_is_the_largest_id_or_the_first_of_the_given_id():
    ids = jnp.array([[28, 3, 29, 29, 29], [28, 20, 27, 29, 5]])
    for end, places in ((2, [2, 3]), (29, [2, 3]), (20, [0, 1])):
        encoded = CLIPText(CLIPTextConfig(**{**vars(SMALL), "eos_token_id": end}), rngs=nnx.Rngs(0))(ids)
        assert np.array_equal(encoded.pooled, encoded.last[jnp.arange(2), jnp.array(places)])


def test_it_computes_in_the_dtype_of_its_parameters():
    encode = CLIPText(CLIPTextConfig(**{**vars(SMALL), "projection_dim": 5}), rngs=nnx.Rngs(0))
    graph, state = nnx.split(encode)
    half = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    ids = jnp.array([[28, 3, 4, 29]])
    for exact, rounded in zip(encode(ids), half(ids), strict=True):
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(rounded.astype(jnp.float32), exact, atol=0.1)


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
        CLIPText(SMALL, rngs=nnx.Rngs(0))(jnp.zeros((1, 8), jnp.int32))
