"""Small models with random weights, and the published DiT written out once more."""

import math

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.denoiser import DiffusionTransformer


def randomised(model: nn.Module, std: float = 0.1) -> nn.Module:
    """No weight is zero, so that everything that is computed shows in the output."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model


@pytest.fixture
def make_denoiser():
    def make(input_size=8, patch_size=2, channels=1, dim=32, depth=3, heads=4, **options):
        options = {"num_classes": 10} | options
        return randomised(
            DiffusionTransformer(input_size, patch_size, channels, dim, depth, heads, **options)
        )

    return make


class PublishedDiT(nn.Module):
    """The DiT of arXiv 2212.09748 with the names of its checkpoints, in plain torch."""

    def __init__(self, size, patch, channels, dim, depth, heads, classes) -> None:
        super().__init__()
        self.patch, self.heads, self.channels = patch, heads, channels
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, dim, patch, patch)
        self.pos_embed = nn.Parameter(table(dim, size // patch)[None], requires_grad=False)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.y_embedder = nn.Module()
        self.y_embedder.embedding_table = nn.Embedding(classes + 1, dim)
        self.blocks = nn.ModuleList(self._block(dim) for _ in range(depth))
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(dim, patch * patch * 2 * channels)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    @staticmethod
    def _block(dim: int) -> nn.Module:
        block = nn.Module()
        block.attn, block.mlp = nn.Module(), nn.Module()
        block.attn.qkv, block.attn.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        block.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        return block

    def forward(self, x: Tensor, step: Tensor, y: Tensor) -> Tensor:
        tokens = rearrange(self.x_embedder.proj(x), "b d h w -> b (h w) d") + self.pos_embed
        frequencies = [math.exp(-math.log(10000) * i / 128) for i in range(128)]
        angles = step[:, None] * torch.tensor(frequencies, dtype=torch.float64)
        times = torch.cat([angles.cos(), angles.sin()], dim=1).to(x.dtype)
        c = self.t_embedder.mlp(times) + self.y_embedder.embedding_table(y)
        for block in self.blocks:
            parts = block.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
            h = norm(tokens) * (1 + parts[1]) + parts[0]
            tokens = tokens + parts[2] * self._attention(block.attn, h)
            h = norm(tokens) * (1 + parts[4]) + parts[3]
            hidden = functional.gelu(block.mlp.fc1(h), approximate="tanh")
            tokens = tokens + parts[5] * block.mlp.fc2(hidden)
        shift, scale = self.final_layer.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        patches = self.final_layer.linear(norm(tokens) * (1 + scale) + shift)
        side = x.shape[-1] // self.patch
        return rearrange(
            patches, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=self.patch, q=self.patch
        )

    def _attention(self, layer: nn.Module, h: Tensor) -> Tensor:
        q, k, v = rearrange(layer.qkv(h), "b n (s h d) -> s b h n d", s=3, h=self.heads)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return layer.proj(rearrange(weights @ v, "b h n d -> b n (h d)"))


def norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def table(dim: int, side: int) -> Tensor:
    """Columns in the first half of the width, rows in the second; sines before cosines."""
    quarter = dim // 4
    rows = []
    for row in range(side):
        for column in range(side):
            entry = []
            for place in (column, row):
                angles = [place / 10000 ** (i / quarter) for i in range(quarter)]
                entry += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(entry)
    return torch.tensor(rows, dtype=torch.float64).float()


@pytest.fixture
def published():
    return randomised(PublishedDiT(8, 2, 3, 48, 3, 4, 7), std=0.1)
