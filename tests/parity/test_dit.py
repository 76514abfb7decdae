"""DiT against diffusers' transformer, with weights in a `.pt` under the released names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from reference import close, cumulative, diffusers, from_torch, levels_of, prepared, to_torch, torch, walk
from worlds import keys, step

import guidance_jax as gj
from guidance_jax import pretrained
from guidance_jax.pretrained.dit import DiT, DiTConfig, averaged, positions

CONFIGS = {
    "3 x 3": DiTConfig(input_size=6, hidden_size=24, depth=2, num_heads=3, num_classes=7),
    "2 x 2, patches of 4, no variance": DiTConfig(8, 4, 3, 16, 3, 2, num_classes=5, learn_sigma=False),
}
B, SCALE = 3, 4.0


def reference(config):
    """The transformer with random weights.

    As published, all its blocks share one embedding of time and label. Its frequencies have `downscale_freq_shift=0`, where
    diffusers has 1.
    """
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=config.in_channels,
        out_channels=config.in_channels * (1 + config.learn_sigma),
        num_layers=config.depth,
        sample_size=config.input_size,
        patch_size=config.patch_size,
        num_embeds_ada_norm=config.num_classes,
        norm_eps=1e-6,
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape))
    for block in model.transformer_blocks:
        block.norm1.emb = model.transformer_blocks[0].norm1.emb
    model.transformer_blocks[0].norm1.emb.time_proj.downscale_freq_shift = 0
    return model


RENAMED = {
    "pos_embed.proj": "x_embedder.proj",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "transformer_blocks.0.norm1.emb.class_embedder": "y_embedder",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
    "transformer_blocks": "blocks",
    ".norm1.linear": ".adaLN_modulation.1",
    ".attn1.to_out.0": ".attn.proj",
    ".ff.net.0.proj": ".mlp.fc1",
    ".ff.net.2": ".mlp.fc2",
}


def published(model):
    """Its state dict under the names of facebookresearch/DiT."""
    weights = {"pos_embed": model.pos_embed.pos_embed.clone()}
    for name, weight in model.named_parameters():
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        weights[name] = weight.detach()
    for block in range(len(model.transformer_blocks)):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{block}.attn1.to_{part}.{kind}") for part in "qkv"]
            weights[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    return weights


def inputs(config, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(B, config.input_size, config.input_size, config.in_channels)).astype(np.float32)
    return jnp.asarray(x), jnp.array([999.0, 3.0, 417.0]), jnp.array([0, config.num_classes, 4])


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tmp_path_factory):
    config = CONFIGS[request.param]
    model, path = reference(config), tmp_path_factory.mktemp("dit") / "DiT.pt"
    torch.save(published(model), path)
    return config, model, pretrained.load(lambda rngs: DiT(config, rngs=rngs), pretrained.open_weights(path))


def call(model, x, t, labels):
    """The reference's output for arrays of this library."""
    with torch.no_grad():
        out = model(to_torch(x), torch.from_numpy(np.array(t)), torch.from_numpy(np.array(labels)).long()).sample
    return from_torch(out)


def test_outputs_agree(both):
    config, model, ours = both
    x, t, labels = inputs(config)
    close(nnx.jit(ours)(x, t, labels), call(model, x, t, labels), 1e-5)


def test_computed_positions_are_the_published_ones(both):
    config, model, _ = both
    close(positions(config.grid, config.hidden_size), jnp.asarray(model.pos_embed.pos_embed.numpy()), 1e-6)


def test_a_file_with_both_sets_of_weights_gives_the_averaged_ones(both, tmp_path):
    config, model, ours = both
    weights = published(model)
    torch.save({"model": {name: 0 * weight for name, weight in weights.items()}, "ema": weights}, tmp_path / "DiT.pt")
    read = pretrained.load(lambda rngs: DiT(config, rngs=rngs), averaged(pretrained.open_weights(tmp_path / "DiT.pt")))
    assert all(map(np.array_equal, jax.tree.leaves(nnx.state(read)), jax.tree.leaves(nnx.state(ours))))


def with_cfg(model, x, t, labels, null, channels):
    """The reference guided as in the published `forward_with_cfg`: the first channels of the output are guided, the others are
    those of the conditional branch.
    """
    cond, uncond = (np.asarray(call(model, x, t, y)) for y in (labels, null))
    guided = uncond + SCALE * (cond - uncond)
    return np.concatenate([guided[..., :channels], cond[..., channels:]], axis=-1)


def guided(ours, config, channels):
    """This library's branches, and its guidance of `channels` channels."""
    apply, params = gj.networks.from_nnx(ours)
    kind = gj.denoisers.learned_variance if config.learn_sigma else gj.denoiser
    denoise = kind(lambda x, t, labels: apply(params, x, t, labels), predicts="eps")
    labels, null = inputs(config)[2], jnp.full(B, config.num_classes)
    guidance = gj.cfg(SCALE) if channels == config.in_channels else gj.on_channels(gj.cfg(SCALE), channels)
    return gj.branches(denoise, cond=labels, uncond=null), guidance, labels, null


@pytest.mark.parametrize("left", [1, 0], ids=["all but the last channel", "all channels"])
def test_guided_outputs_are_those_of_the_published_forward_with_cfg(both, left):
    config, model, ours = both
    channels = config.in_channels - left
    branches, guidance, labels, null = guided(ours, config, channels)
    x, level = inputs(config)[0], gj.schedules.ddpm_linear()(417)
    theirs = with_cfg(model, x, jnp.full(B, 417.0), labels, null, channels)
    state = gj.State(x, (), guidance.init(x), jnp.int32(0), x)
    prediction, _ = jax.jit(lambda state: gj.guide(branches, guidance, step(level, batch=B))(state, level))(state)
    close(prediction.eps, theirs[..., : config.in_channels], 1e-4)
    if config.learn_sigma:
        close(prediction.variance, (theirs[..., config.in_channels :] + 1) / 2, 1e-4)


def test_a_whole_guided_run_agrees(both):
    config, model, ours = both
    branches, guidance, labels, null = guided(ours, config, 3)
    x = inputs(config)[0]
    scheduler = prepared(diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False))

    def output(number, x, t):
        out = with_cfg(model, from_torch(x), jnp.full(B, float(t)), labels, null, 3)
        return to_torch(out[..., : config.in_channels])

    mine = gj.sample(keys(B), branches, guidance, gj.ddim(), levels_of(scheduler, cumulative), x)
    close(mine, from_torch(walk(scheduler, output, to_torch(x))), 1e-3)
