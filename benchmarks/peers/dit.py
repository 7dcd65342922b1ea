"""DiT as its authors published it, in ordinary torch: the form that everybody trains.

    c = MLP(sinusoid(step)) + E[class]
    shift, scale, gate, shift', scale', gate' = SiLU(c) W + b                (adaLN, each block)
    x += gate · attention(LN(x) (1 + scale) + shift);  x += gate' · MLP(LN(x) (1 + scale') + shift')
    y = (LN(x) (1 + scale) + shift) W + b                                    (the end)

LayerNorm without weights, each modulation as a step of its own, torch's fused attention on one
projection of queries, keys and values, and GELU in tanh's form. The names of the parameters are
those of the published checkpoints. Written from arXiv 2212.09748 §3; the positions are the sines
and cosines of arXiv 2111.06377, half of them of the column and half of the row.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FREQUENCIES = 256
"""Of the sinusoid of a step."""
EPS = 1e-6


class DiT(nn.Module):
    """The denoiser: the output of x (batch, channels, side, side), steps and classes.

    Args:
        side: of the square latent image.
        patch: of a patch.
        channels: of the image; the output has twice as many.
        dim: width.
        depth: blocks.
        heads: of attention.
        classes: one more stands for none.
    """

    pos_embed: Tensor

    def __init__(
        self, side: int, patch: int, channels: int, dim: int, depth: int, heads: int, classes: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.x_embedder = _Patches(channels, dim, patch)
        self.t_embedder = _Step(dim)
        self.y_embedder = _Classes(classes + 1, dim)
        self.register_buffer("pos_embed", positions(side // patch, dim)[None])
        self.blocks = nn.ModuleList(_Block(dim, heads) for _ in range(depth))
        self.final_layer = _End(dim, patch * patch * 2 * channels)

    def forward(self, x: Tensor, steps: Tensor, classes: Tensor) -> Tensor:
        """The output, (batch, 2 · channels, side, side)."""
        side = x.shape[-1] // self.patch
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(steps) + self.y_embedder(classes)
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c)
        x = x.view(len(x), side, side, self.patch, self.patch, -1)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def positions(side: int, dim: int) -> Tensor:
    """(side², dim): sine and cosine of the column, then of the row."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4).double() / (dim // 4))
    places = torch.arange(side).double()[:, None] * frequencies
    table = torch.cat((places.sin(), places.cos()), 1).float()
    columns = table[None].expand(side, -1, -1)
    rows = table[:, None].expand(-1, side, -1)
    return torch.cat((columns, rows), -1).flatten(0, 1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Every token of an image scaled and shifted alike."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class _Patches(nn.Module):
    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _Step(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, steps: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        index = torch.arange(half, dtype=torch.float32, device=steps.device)
        angles = steps[:, None].float() * torch.exp(-math.log(10000) * index / half)
        sinusoid = torch.cat((angles.cos(), angles.sin()), -1)
        return self.mlp(sinusoid.to(next(self.mlp.parameters()).dtype))


class _Classes(nn.Module):
    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, dim)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding_table(classes)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, dim))


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.attn = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.mlp = _FeedForward(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, next_shift, next_scale, next_gate = self.adaLN_modulation(c).chunk(6, 1)
        x = x + gate.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift, scale))
        h = modulate(self.norm2(x), next_shift, next_scale)
        return x + next_gate.unsqueeze(1) * self.mlp(h)


class _End(nn.Module):
    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, EPS, elementwise_affine=False)
        self.linear = nn.Linear(dim, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        return self.linear(modulate(self.norm_final(x), shift, scale))
