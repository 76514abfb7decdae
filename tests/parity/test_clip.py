"""CLIP's text encoders against those of transformers, on weights that transformers saved."""

import json

import jax
import numpy as np
import pytest

from guidance_jax import networks, pretrained
from guidance_jax.pretrained.clip import IGNORED, CLIPText, clip_text_config, published_name

torch = pytest.importorskip("torch", reason='the reference is not installed: pip install -e ".[parity]"')
transformers = pytest.importorskip("transformers", reason='the reference is not installed: pip install -e ".[parity]"')

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 11,
    "bos_token_id": 48,
}
IDS = np.array([[48, 3, 17, 49, 0, 0, 0, 0, 0], [48, 7, 7, 1, 30, 5, 8, 12, 49], [48, 49, 49, 49, 49, 49, 49, 49, 49]])
VARIANTS = {
    "first": {"hidden_act": "quick_gelu", "eos_token_id": 2},
    "second": {"hidden_act": "gelu", "eos_token_id": 2, "layer_norm_eps": 1e-3},
    "later": {"hidden_act": "gelu", "eos_token_id": 49},
    "projecting": {"hidden_act": "gelu", "eos_token_id": 2, "projection_dim": 20},
    "projecting_later": {"hidden_act": "quick_gelu", "eos_token_id": 49, "projection_dim": 20},
}


def saved(directory, options):
    """A directory with an encoder of transformers with random weights."""
    config = transformers.CLIPTextConfig(**SIZES, **options)
    kind = transformers.CLIPTextModelWithProjection if "projection_dim" in options else transformers.CLIPTextModel
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_all_states_agree(tmp_path, options):
    model = saved(tmp_path, options)
    with torch.no_grad():
        theirs = model(torch.from_numpy(IDS), output_hidden_states=True)
    config = clip_text_config(json.loads((tmp_path / "config.json").read_text()))
    tensors = pretrained.open_weights(tmp_path / "model.safetensors")
    options = {"rename": published_name, "ignored": IGNORED}
    apply, params = networks.from_nnx(pretrained.load(lambda rngs: CLIPText(config, rngs=rngs), tensors, **options))
    ours = jax.jit(apply)(params, IDS)
    pooled = theirs.text_embeds if "text_embeds" in theirs else theirs.pooler_output
    for mine, reference in ((ours.last, theirs.last_hidden_state), (ours.penultimate, theirs.hidden_states[-2])):
        np.testing.assert_allclose(mine, reference.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ours.pooled, pooled.numpy(), rtol=1e-4, atol=1e-4)
