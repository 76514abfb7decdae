"""Tiny random text-to-image pipelines of diffusers and transformers. Modules that import this one are skipped without them."""

import numpy as np
import pytest
from published import vocabulary, write_tokenizer
from reference import diffusers, torch

transformers = pytest.importorskip("transformers", reason='the reference is not installed: pip install -e ".[parity]"')

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM = {**STABLE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def publish_tokenizer(directory, pad="<|endoftext|>", window=13, **more):
    write_tokenizer(directory, pad, window, **more)
    return transformers.CLIPTokenizer.from_pretrained(directory)


def randomised(module):
    """Draws every weight at random, also those of norms, with scales that keep the size of the signals."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 25
            parameter.normal_(0, fan**-0.5)
            if parameter.dim() == 1 and "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return module.eval()


def encoder(width, projection=None, **options):
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=13,
        eos_token_id=2,
        projection_dim=projection or width,
        **options,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return randomised(kind(config))


def unet(text, channels=4, **options):
    return randomised(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=channels,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=text,
            norm_num_groups=4,
            **options,
        )
    )


def vae(**options):
    return randomised(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 12),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            **options,
        )
    )


def first(directory, scheduler, kind="StableDiffusionPipeline", channels=4):
    """Like Stable Diffusion 1."""
    parts = {"vae": vae(), "text_encoder": encoder(24), "unet": unet(24, channels, attention_head_dim=2)}
    return made(kind, directory, scheduler, parts, publish_tokenizer(directory / "source"))


def second(directory, scheduler):
    """Like Stable Diffusion 2."""
    parts = {"vae": vae(), "text_encoder": encoder(24, hidden_act="gelu")}
    parts["unet"] = unet(24, attention_head_dim=(2, 4), use_linear_projection=True)
    return made("StableDiffusionPipeline", directory, scheduler, parts, publish_tokenizer(directory / "source", "!"))


def made(kind, directory, scheduler, parts, tokenizer):
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return saved(getattr(diffusers, kind)(**parts, tokenizer=tokenizer, scheduler=scheduler, **none), directory)


def xl(directory, scheduler):
    """Like Stable Diffusion XL."""
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13),
        text_encoder=encoder(24),
        text_encoder_2=encoder(20, 16, hidden_act="gelu"),
        tokenizer=publish_tokenizer(directory / "source"),
        tokenizer_2=publish_tokenizer(directory / "source_2", "!"),
        unet=unet(
            44,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        scheduler=scheduler,
        add_watermarker=False,
    )
    return saved(pipeline, directory)


def refiner(directory, scheduler):
    """Like the refiner of Stable Diffusion XL: one encoder, and runs that start from images."""
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=vae(scaling_factor=0.13),
        text_encoder=None,
        text_encoder_2=encoder(20, 16, hidden_act="gelu"),
        tokenizer=None,
        tokenizer_2=publish_tokenizer(directory / "source_2", "!"),
        unet=unet(
            20,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 5 * 8,
        ),
        scheduler=scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    return saved(pipeline, directory)


def saved(pipeline, directory):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(directory)
    return pipeline


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
