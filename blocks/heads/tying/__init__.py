"""`tie` and `untie`: models of transformers whose embedding and head share one table.

    tie.py          the two functions
    parts.py        where the embedding and the head are, and what is refused
    probe.py        what a model does to its logits, found out by running it
    tied_head.py    the modules that are put there
    copying.py      deep copies of the model, and of its ends alone
    loading.py      state dicts that have one of the two keys
    replacement.py  putting them there, and taking it back
    fused_loss.py   the model's own loss, without logits

Nothing here imports transformers: a model is whatever answers `get_input_embeddings` and
`get_output_embeddings`.
"""

from ropewalk.blocks.heads.tying.tie import tie, untie

__all__ = ["tie", "untie"]
