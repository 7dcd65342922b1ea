"""The layer that peft makes of a configuration which `monarch_peft.register_monarch` has changed.

peft's own `lora.Linear` calls lora_B(lora_A(dropout(x))) · scaling, finds what learns by the names
of these two, and merges `get_delta_weight`. So lora_A is the product with the right factor and
lora_B the one with the left. Each reads its own weight only, because peft's policy for FSDP wraps
both by themselves, and whoever is not called at that moment has none. The price is that the two are
ordinary batched products here, not the one operator `monarch_matmul`.
"""

import functools
import math
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional

from ropewalk.blocks.monarch.adapter.base_layer import features_of
from ropewalk.blocks.monarch.adapter.merging import unmergeable
from ropewalk.blocks.monarch.conversion.dense import is_transposed
from ropewalk.blocks.monarch.linear import MonarchLinear
from ropewalk.blocks.monarch.shape import MonarchShape
from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.monarch import monarch_to_dense

_BLOCKS = "_ropewalk_monarch_nblocks"


class RightFactor(nn.Module):
    """R, and its product with rows.

    Attributes:
        weight: R, (k, l·r, p).
    """

    def __init__(self, weight: nn.Parameter, shape: MonarchShape) -> None:
        super().__init__()
        self.weight = weight
        self.shape = shape

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch width"]:
        """h[(k l r)], for rows that are filled up with zeros."""
        shape = self.shape
        if shape.padded_in > shape.in_features:
            x = functional.pad(x, (0, shape.padded_in - shape.in_features))
        x = x.unflatten(-1, (shape.input_blocks, shape.input_size))
        return torch.einsum("...kp,kwp->...kw", x, self.weight).flatten(-2)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.shape.in_features}, nblocks={self.shape.nblocks}, rank={self.shape.rank}"


class LeftFactor(nn.Module):
    """L, and its product with what R has made of rows.

    Attributes:
        weight: L, (l, s, k·r).
    """

    def __init__(self, weight: nn.Parameter, shape: MonarchShape) -> None:
        super().__init__()
        self.weight = weight
        self.shape = shape

    @property
    def bias(self) -> None:
        """None: peft looks for one."""
        return None

    def forward(
        self, hidden: Float[Tensor, "*batch width"]
    ) -> Float[Tensor, "*batch out_features"]:
        """y[(l s)], without what is over the edge."""
        shape = self.shape
        hidden = hidden.unflatten(-1, (shape.input_blocks, shape.output_blocks, shape.rank))
        left = self.weight.unflatten(-1, (shape.input_blocks, shape.rank))
        y = torch.einsum("...klr,lskr->...ls", hidden, left).flatten(-2)
        over = shape.padded_out > shape.out_features
        return y[..., : shape.out_features].contiguous() if over else y

    def extra_repr(self) -> str:
        """Sizes."""
        shape = self.shape
        return f"{shape.out_features}, nblocks={shape.nblocks}, rank={shape.rank}"


class MonarchLoraLinear(LoraLinear):
    """peft's linear layer with Monarch matrices for its adapters. Made by peft.

    Raises:
        TypeError: the layer is not linear.
        ValueError: sizes that the blocks do not fit; options that Monarch adapters do not have.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LoraConfig,
        r: int = 0,
        lora_alpha: int = 1,
        **kwargs: Any,
    ) -> None:
        bare: Any = base_layer
        if isinstance(base_layer, BaseTunerLayer):
            bare = base_layer.get_base_layer()
        name = kwargs.get("target_name", "target_modules")
        try:
            self._features = features_of(bare)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        if kwargs.get("parameter_name") is not None or kwargs.get("tied_adapter"):
            raise ValueError(
                f"{name}: expected a linear layer of its own, got target_parameters or a tied "
                "embedding, which Monarch adapters do not reach; leave it out of the targets"
            )
        super().__init__(base_layer, adapter_name, config, r, lora_alpha, **kwargs)
        self.fan_in_fan_out = is_transposed(bare)
        self.is_target_conv_1d_layer = self.fan_in_fan_out

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return features_of(module)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """None of LoRA's variants."""
        return {(): None}

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any
    ) -> None:
        """Makes an adapter of this layer."""
        check_config(config)
        name = kwargs.get("target_name", "") or "target_modules"
        blocks = getattr(config, _BLOCKS, None)
        if blocks is None:
            raise ValueError(
                f"{name}: expected a configuration registered for Monarch, as this layer's "
                f"adapters are, got a plain one for adapter {adapter_name!r}; call "
                "register_monarch(config), or monarch_config(directory) for a saved one"
            )
        try:
            made = MonarchLinear(*self._features, nblocks=blocks, rank=r, bias=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
        if config.init_lora_weights:
            nn.init.zeros_(made.left)
        self.r[adapter_name], self.lora_alpha[adapter_name] = r, lora_alpha
        scale = math.sqrt(r) if config.use_rslora else r
        self.scaling[adapter_name] = lora_alpha / scale
        self.use_rslora[adapter_name] = config.use_rslora
        self.use_dora[adapter_name], self.lora_bias[adapter_name] = False, False
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        self.lora_dropout[adapter_name] = dropout
        self.lora_A[adapter_name] = RightFactor(made.right, made.shape)
        self.lora_B[adapter_name] = LeftFactor(made.left, made.shape)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """peft's, where there is a weight that can be added to.

        Raises:
            ValueError: a quantised weight; or, with `safe_merge`, a sum that is not finite.
        """
        reason = unmergeable(self.get_base_layer())
        if reason is not None:
            raise ValueError(
                f"merge: expected a layer with a plain weight, but {reason}; merge into the model "
                "before it is quantised, or keep the adapter"
            )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)

    @torch.no_grad()
    def get_delta_weight(self, adapter: str) -> Tensor:
        """What an adapter adds to the weight, in float32 (float64 of float64)."""
        factors: Any = self.lora_A[adapter], self.lora_B[adapter]
        right, left = (factor.weight for factor in factors)
        wide, (inputs, outputs) = statistics_dtype(right.dtype), self._features
        dense = monarch_to_dense(right.to(wide), left.to(wide))
        delta = dense[:outputs, :inputs] * self.scaling[adapter]
        return delta.mT if self.fan_in_fan_out else delta


def register(config: LoraConfig, blocks: tuple[int, int]) -> None:
    """Has every target be a Monarch layer or an error; nothing becomes a LoRA unnoticed."""
    setattr(config, _BLOCKS, blocks)
    config._register_custom_module({nn.Module: MonarchLoraLinear})


def check_config(config: LoraConfig) -> None:
    """Raises if a configuration asks for what only LoRA's matrices can do.

    Raises:
        ValueError: it does; says what.
    """
    for option in _foreign(config):
        raise ValueError(
            f"config: expected a LoraConfig without {option}, which only LoRA's two matrices do, "
            f"got {getattr(config, option)!r}; leave it out for Monarch adapters"
        )
    if not isinstance(config.init_lora_weights, bool):
        raise ValueError(
            "config.init_lora_weights: expected True (no effect at first) or False (random), got "
            f"{config.init_lora_weights!r}, which decomposes the weight for LoRA"
        )


@functools.cache
def _options() -> tuple[str, ...]:
    return tuple(
        name
        for name, field in LoraConfig.__dataclass_fields__.items()
        if field.metadata.get("is_lora_variant")
    )


def _foreign(config: LoraConfig) -> list[str]:
    more = ("use_dora", "use_qalora", "lora_bias", "target_parameters", "ensure_weight_tying")
    names = (*_options(), *more)
    return [name for name in dict.fromkeys(names) if getattr(config, name, None)]
