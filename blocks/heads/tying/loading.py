"""Loading a state dict that has one of the two keys of a shared table.

Files that may not hold a tensor twice (`safetensors.torch.save_model`) keep whichever key comes
first in the alphabet. In a stock model both modules hold one tensor: whichever key is there fills
it, and the other one is reported as missing, which such files' readers expect. The head of a tied
model holds nothing, so it is here that the keys become the stock ones.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ropewalk.blocks.heads.sharding import is_sharded
from ropewalk.blocks.heads.tying.tied_head import TiedHead


@dataclass(frozen=True)
class SharedTable:
    """A hook of the model, called before it loads.

    Attributes:
        embedding_key: of the table, in the model's state dict.
        head_key: of the head's weight.
    """

    embedding_key: str
    head_key: str

    def __call__(
        self,
        model: nn.Module,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Fills the table's key from the head's, in a dictionary that is `load_state_dict`'s own.

        The signature is that of torch's hooks.
        """
        asking: Any = model
        if not isinstance(asking.get_output_embeddings(), TiedHead):
            return  # an adapter has put something else there
        embedding_key, head_key = prefix + self.embedding_key, prefix + self.head_key
        if head_key not in state_dict:
            # Of sharded models torch hands over the parameters alone, of which this is none.
            if not is_sharded(asking.get_input_embeddings().weight):
                missing_keys.append(head_key)
        elif embedding_key not in state_dict:
            missing_keys.append(embedding_key)
            state_dict[embedding_key] = state_dict[head_key]
