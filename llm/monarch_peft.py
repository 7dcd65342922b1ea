"""Monarch adapters inside of peft: its training, switching, saving and merging.

    config = register_monarch(LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]), nblocks=4)
    model = get_peft_model(model, config)

peft lets a `LoraConfig` name the layer classes that it makes (`_register_custom_module`, "Custom
LoRA modules" in its developer guide on custom models, where it is called experimental). Ours is a
LoRA layer whose lora_A is the right factor and lora_B the left one; `r` is the rank of each slice,
and `lora_alpha`, `use_rslora`, `lora_dropout`, `rank_pattern`, `alpha_pattern`, `modules_to_save`
and `init_lora_weights` (True or False) mean what they mean to LoRA. So `get_peft_model`,
`set_adapter`, `disable_adapter`, `merge_and_unload`, `delete_adapter`, mixed batches
(`adapter_names`), `save_pretrained` and transformers' own `model.add_adapter` work as they do
there. Linear layers of every kind are adapted, quantised ones too, which only cannot be merged.

What is saved does not say that it is Monarch, so the registration has to be made again to load it:

    config = monarch_config(directory)         # registered, the numbers of blocks read off the file
    model = PeftModel.from_pretrained(model, directory, config=config)

    model.add_adapter("other", monarch_config(other))      # a second one: made first, then filled
    model.load_adapter(other, "other")

Without it peft makes a LoRA of the file and refuses its shapes.

What peft cannot do with them:

- `add_weighted_adapter` makes a configuration of its own, without the registration, and calculates
  with LoRA's two matrices. Several adapters are active together after
  `model.base_model.set_adapter([…])`, and merged together.
- DoRA and the other variants, and initialisations from the weight (PiSSA, OLoRA, LoftQ, …), which
  are about two dense matrices.
- A plain LoRA on a layer that has Monarch adapters is refused. A Monarch adapter on a layer that
  has a plain LoRA is not: peft does not ask the registration there, and makes a second LoRA.
- Torch's fast path of `nn.TransformerEncoderLayer` (eval mode, gradients not needed) reads the
  weights of its layers, where peft's adapters, LoRA's too, are not: merge them, or switch it off
  by `torch.backends.mha.set_fastpath_enabled(False)`. `MonarchAdapter` counts there.
- `use_qalora` and `ensure_weight_tying` are refused, too.
- `unmerge_adapter` subtracts what `merge_adapter` added, and in half precision comes back to the
  weight but for rounding; `ropewalk.blocks.monarch.adapter` comes back to its bits.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropewalk.blocks.monarch.shape import Blocks, block_counts

if TYPE_CHECKING:
    from peft import LoraConfig

_NEEDED = (0, 19)
_INSTALL = "pip install 'peft>=0.19'"
_FILE = "adapter_model.safetensors"


def register_monarch(config: "LoraConfig", *, nblocks: Blocks = 4) -> "LoraConfig":
    """Has a configuration make Monarch adapters instead of LoRA's.

    Args:
        config: with `r` as the rank of each slice, 1 or a few. With b blocks an adapter has
            r·b·(in + out) parameters.
        nblocks: (input blocks, output blocks), or a number for both.

    Returns:
        The same configuration, changed in place.

    Raises:
        ImportError: peft is missing or too old.
        TypeError: not a `LoraConfig`, or an argument of the wrong kind.
        ValueError: an option of LoRA that Monarch adapters do not have; fewer than one block.
    """
    peft = _peft()
    from ropewalk.llm import monarch_peft_layer as layer

    if not isinstance(config, peft.LoraConfig):
        raise TypeError(f"config: expected a peft.LoraConfig, got {type(config).__name__}")
    blocks = block_counts(nblocks)
    layer.check_config(config)
    layer.register(config, blocks)
    return config


def monarch_config(directory: str | Path) -> "LoraConfig":
    """The configuration of an adapter that was saved, registered for Monarch.

    Args:
        directory: what `save_pretrained` wrote: adapter_config.json and adapter_model.safetensors.

    Returns:
        For `PeftModel.from_pretrained(model, directory, config=…)`, or
        `model.add_adapter(name, …)` before `model.load_adapter(directory, name)`.

    Raises:
        ImportError: peft is missing or too old.
        ValueError: no such files, or an adapter that is not Monarch.
    """
    peft = _peft()
    directory = Path(directory)
    path = directory / _FILE
    if not path.is_file():
        raise ValueError(
            f"directory: expected one that save_pretrained wrote, with {_FILE}, got "
            f"{str(directory)!r}; download an adapter before, and save with safe_serialization"
        )
    config = peft.LoraConfig.from_pretrained(str(directory))
    return register_monarch(config, nblocks=_blocks_in(path))


def _blocks_in(path: Path) -> tuple[int, int]:
    """The numbers of blocks that saved factors have."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 the file is no mapping
    found: set[tuple[int, int]] = set()
    for key, shape in shapes.items():
        left = shapes.get(key.replace(".lora_A.", ".lora_B."))
        if ".lora_A." in key and len(shape) == 3 and left is not None:
            found.add((shape[0], left[0]))
    if len(found) != 1:
        got = "adapters of other kinds" if not found else f"several: {sorted(found)}"
        raise ValueError(
            f"directory: expected Monarch adapters of one number of blocks in {path.name}, got "
            f"{got}; load LoRA as peft does, and register other numbers with register_monarch"
        )
    return found.pop()


def _peft() -> Any:
    """The library, imported when it is needed."""
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            f"ropewalk.llm.monarch_peft: expected peft, which is not installed; {_INSTALL}"
        ) from error
    version = tuple(int(part) for part in peft.__version__.split(".")[:2])
    if version < _NEEDED:
        raise ImportError(
            f"ropewalk.llm.monarch_peft: expected peft ≥ {'.'.join(map(str, _NEEDED))}, whose "
            f"layers are made of configurations, got {peft.__version__}; {_INSTALL}"
        )
    return peft
