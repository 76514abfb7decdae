"""ADM in PyTorch, with the published names of its weights: a rewrite of guided_diffusion/unet.py.

Channels first, attention by explicit sums, every option of the released code; and the released sampler, step by step.
"""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='the PyTorch reference is not installed: pip install -e ".[parity]"')
torch.set_num_threads(1)
nn, functional = torch.nn, torch.nn.functional


def norm(channels):
    return nn.GroupNorm(32, channels)


class Residual(nn.Module):
    def __init__(self, channels, embed_channels, out, scale_shift, change=None):
        super().__init__()
        self.scale_shift, self.change = scale_shift, change
        self.in_layers = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_channels, 2 * out if scale_shift else out))
        self.out_layers = nn.Sequential(norm(out), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x, embedded):
        h = self.in_layers[:2](x)
        if self.change == "up":
            h, x = (functional.interpolate(a, scale_factor=2, mode="nearest") for a in (h, x))
        elif self.change == "down":
            h, x = (functional.avg_pool2d(a, 2) for a in (h, x))
        h = self.in_layers[2](h)
        embedded = self.emb_layers(embedded)[..., None, None]
        if self.scale_shift:
            scale, shift = embedded.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
        else:
            h = self.out_layers[0](h + embedded)
        return self.skip_connection(x) + self.out_layers[1:](h)


def attend(qkv, heads, new_order):
    """`[N, 3 C, T] -> [N, C, T]`. The rows of qkv are (head, part, channel), or (part, head, channel) in the new order."""
    batch, rows, length = qkv.shape
    each = rows // (3 * heads)
    if new_order:
        q, k, v = qkv.reshape(batch, 3, heads, each, length).unbind(1)
    else:
        q, k, v = qkv.reshape(batch, heads, 3, each, length).unbind(2)
    weight = (torch.einsum("nhct,nhcs->nhts", q, k) / math.sqrt(each)).softmax(dim=-1)
    return torch.einsum("nhts,nhcs->nhct", weight, v).reshape(batch, heads * each, length)


class Attention(nn.Module):
    def __init__(self, channels, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        flat = x.flatten(2)
        h = self.proj_out(attend(self.qkv(self.norm(flat)), self.heads, self.new_order))
        return (flat + h).reshape(x.shape)


class Pool(nn.Module):
    def __init__(self, side, channels, out, heads):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(channels, side**2 + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out, 1)

    def forward(self, x):
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], dim=2) + self.positional_embedding
        return self.c_proj(attend(self.qkv_proj(x), self.heads, True))[:, :, 0]


class Halve(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


class Double(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


class Conditioned(nn.Sequential):
    def forward(self, x, embedded):
        for layer in self:
            x = layer(x, embedded) if isinstance(layer, Residual) else layer(x)
        return x


def sinusoids(t, width):
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Encoder(nn.Module):
    """The shared part of the U-Net and the classifier."""

    def __init__(
        self,
        *,
        image_size,
        model_channels,
        channel_mult,
        num_res_blocks,
        attention_resolutions,
        num_heads=1,
        num_head_channels=-1,
        use_scale_shift_norm=False,
        resblock_updown=False,
        use_new_attention_order=False,
    ):
        super().__init__()
        self.model_channels, self.embed_channels = model_channels, 4 * model_channels
        self.scale_shift, self.updown, self.new_order = use_scale_shift_norm, resblock_updown, use_new_attention_order
        self.heads = lambda channels: num_heads if num_head_channels == -1 else channels // num_head_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, self.embed_channels), nn.SiLU(), nn.Linear(self.embed_channels, self.embed_channels)
        )
        self.attended = {image_size // side for side in attention_resolutions}
        channels = int(channel_mult[0] * model_channels)
        self.input_blocks = nn.ModuleList([Conditioned(nn.Conv2d(3, channels, 3, padding=1))])
        self.kept, factor = [channels], 1
        for level, mult in enumerate(channel_mult):
            out = int(mult * model_channels)
            for _ in range(num_res_blocks):
                self.input_blocks.append(Conditioned(*self.layers(channels, out, factor)))
                channels = out
                self.kept.append(channels)
            if level < len(channel_mult) - 1:
                self.input_blocks.append(Conditioned(self.changing(channels, "down")))
                self.kept.append(channels)
                factor *= 2
        self.middle_block = Conditioned(
            self.residual(channels, channels),
            Attention(channels, self.heads(channels), self.new_order),
            self.residual(channels, channels),
        )
        self.channels, self.factor = channels, factor

    def residual(self, channels, out, change=None):
        return Residual(channels, self.embed_channels, out, self.scale_shift, change)

    def changing(self, channels, change):
        if self.updown:
            return self.residual(channels, channels, change)
        return Halve(channels) if change == "down" else Double(channels)

    def layers(self, channels, out, factor):
        attention = [Attention(out, self.heads(out), self.new_order)] if factor in self.attended else []
        return [self.residual(channels, out), *attention]

    def encode(self, x, embedded):
        given = []
        for block in self.input_blocks:
            x = block(x, embedded)
            given.append(x)
        return self.middle_block(x, embedded), given


class UNet(Encoder):
    def __init__(self, *, num_classes, learn_sigma, **sizes):
        super().__init__(**sizes)
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, self.embed_channels)
        channels, factor, kept, mults = self.channels, self.factor, list(self.kept), sizes["channel_mult"]
        self.output_blocks = nn.ModuleList()
        for level in range(len(mults) - 1, -1, -1):
            out = int(self.model_channels * mults[level])
            for i in range(sizes["num_res_blocks"] + 1):
                layers = self.layers(channels + kept.pop(), out, factor)
                channels = out
                if level > 0 and i == sizes["num_res_blocks"]:
                    layers.append(self.changing(channels, "up"))
                    factor //= 2
                self.output_blocks.append(Conditioned(*layers))
        self.out = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, 6 if learn_sigma else 3, 3, padding=1))

    def forward(self, x, t, y=None):
        embedded = self.time_embed(sinusoids(t, self.model_channels))
        if y is not None:
            embedded = embedded + self.label_emb(y)
        h, given = self.encode(x, embedded)
        for block in self.output_blocks:
            h = block(torch.cat([h, given.pop()], dim=1), embedded)
        return self.out(h)


class Classifier(Encoder):
    def __init__(self, *, classes, **sizes):
        super().__init__(**sizes)
        side = sizes["image_size"] // self.factor
        pool = Pool(side, self.channels, classes, self.heads(self.channels))
        self.out = nn.Sequential(norm(self.channels), nn.SiLU(), pool)

    def forward(self, x, t):
        return self.out(self.encode(x, self.time_embed(sinusoids(t, self.model_channels)))[0])


def randomised(network, seed):
    """Draws every weight at random, also those that training initialises to 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1 and "positional" not in name:
                weight.copy_(drawn / math.sqrt(weight[0].numel()))
            else:
                weight.copy_(float(name.endswith("weight")) + 0.3 * drawn)
    return network.eval()


class Spaced:
    """The released sampler on a subset of the training steps, `t`, increasing. Its tables follow the papers' equations."""

    def __init__(self, betas, t):
        cumulative = np.cumprod(1 - betas)[t]
        before = np.append(1.0, cumulative[:-1])
        self.t, self.cumulative, self.before = t, cumulative, before
        self.betas = 1 - cumulative / before
        self.small = self.betas * (1 - before) / (1 - cumulative)
        self.small_logs = np.log(np.append(self.small[1], self.small[1:]))

    def predicted(self, network, x, i, y):
        """The clipped x0 and the log variance of step i. `network(x, t, y)` has v in the second half of its channels."""
        out, v = network(x, torch.full((len(x),), float(self.t[i])), y).chunk(2, dim=1)
        a = self.cumulative[i]
        x0 = (x / math.sqrt(a) - math.sqrt(1 / a - 1) * out).clamp(-1, 1)
        share = (v + 1) / 2
        return x0, share * math.log(self.betas[i]) + (1 - share) * self.small_logs[i]

    def ancestral(self, network, gradient, x, i, y, noise):
        """A step of p_sample with condition_mean."""
        a, b = self.cumulative[i], self.before[i]
        x0, log_variance = self.predicted(network, x, i, y)
        mean = (self.betas[i] * math.sqrt(b) * x0 + (1 - b) * math.sqrt(a / b) * x) / (1 - a)
        mean = mean + log_variance.exp() * gradient(x, float(self.t[i]), y)
        return mean + (i > 0) * (0.5 * log_variance).exp() * noise

    def ddim(self, network, gradient, x, i, y):
        """A step of ddim_sample with condition_score, eta 0."""
        a, b = self.cumulative[i], self.before[i]
        x0, _ = self.predicted(network, x, i, y)
        eps = (x / math.sqrt(a) - x0) / math.sqrt(1 / a - 1)
        eps = eps - math.sqrt(1 - a) * gradient(x, float(self.t[i]), y)
        x0 = x / math.sqrt(a) - math.sqrt(1 / a - 1) * eps
        return math.sqrt(b) * x0 + math.sqrt(1 - b) * eps


def gradient_of(classifier, scale):
    """`scale grad log p(y | x)` of a classifier, as the released script computes it."""

    def gradient(x, t, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logs = classifier(x, torch.full((len(x),), t)).log_softmax(dim=-1)
            return torch.autograd.grad(logs[torch.arange(len(x)), y].sum(), x)[0] * scale

    return gradient
