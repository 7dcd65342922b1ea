"""What an op computes in, whatever its tensors are in."""

import torch


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums over a vocabulary and over tokens are held in: float32, of float64 float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(dtype: torch.dtype) -> torch.dtype:
    """What recurrences and their sums are computed in: half precision in float32, others as is."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
