"""Output heads that share the input embedding, start near ln V and hold no logits.

tied_embedding.py   TiedEmbedding: embed, logits, loss
output_forms.py     how the output matrix is made of the table
initialisation.py   the table's standard deviation, and the loss that a model starts at
statistics.py       what a head does to its vocabulary
sharding.py         values beside sharded parameters
validation.py       what is refused
tying/              tie and untie, for models of transformers
"""

from ropewalk.blocks.heads.initialisation import (
    INITIALISATIONS,
    Initialisation,
    expected_initial_loss,
    initial_std,
)
from ropewalk.blocks.heads.output_forms import OUTPUT_FORMS, OutputForm
from ropewalk.blocks.heads.statistics import HeadStatistics, head_statistics
from ropewalk.blocks.heads.tied_embedding import TiedEmbedding
from ropewalk.blocks.heads.tying import tie, untie

__all__ = [
    "INITIALISATIONS",
    "OUTPUT_FORMS",
    "HeadStatistics",
    "Initialisation",
    "OutputForm",
    "TiedEmbedding",
    "expected_initial_loss",
    "head_statistics",
    "initial_std",
    "tie",
    "untie",
]
