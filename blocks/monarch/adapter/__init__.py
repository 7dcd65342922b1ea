"""Fine-tuning by Monarch matrices beside frozen linear layers.

layer.py       MonarchAdapter: one layer and its adapters
wrapped.py     the frozen layer inside, and its weight while adapters are merged
branch.py      one adapter: a Monarch matrix that starts at zero
merging.py     adding adapters to a weight
names.py       what adapters may be called
base_layer.py  what can be wrapped
model.py       add, activate, remove and merge, for whole models
insertion.py   putting adapters around layers, all or none
freezing.py    what learns beside adapters, and what did before
lookup.py      which layers have adapters
state.py       saving and loading an adapter alone
"""

from ropewalk.blocks.monarch.adapter.freezing import mark_only_adapters_trainable
from ropewalk.blocks.monarch.adapter.layer import MonarchAdapter
from ropewalk.blocks.monarch.adapter.lookup import adapters_of
from ropewalk.blocks.monarch.adapter.model import (
    activate_adapters,
    add_adapters,
    merge_adapters,
    remove_adapters,
)
from ropewalk.blocks.monarch.adapter.state import (
    LoadedAdapter,
    adapter_state_dict,
    attach_adapter,
    load_adapter_state_dict,
)

__all__ = [
    "LoadedAdapter",
    "MonarchAdapter",
    "activate_adapters",
    "adapter_state_dict",
    "adapters_of",
    "add_adapters",
    "attach_adapter",
    "load_adapter_state_dict",
    "mark_only_adapters_trainable",
    "merge_adapters",
    "remove_adapters",
]
