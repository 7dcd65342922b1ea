"""`monarchize` and `merge`: whole models, from dense layers to Monarch and back.

convert.py      monarchize
merge.py        merge
matching.py     which layers a pattern means
obstacles.py    why a layer stays as it is
dense.py        the dense layers there are: nn.Linear and GPT-2's transposed Conv1D
sizes.py        blocks and rank for a goal
fitting.py      the nearest factors, by weight or by output
weighted.py     monarch_project_weighted: the nearest by output
calibration.py  the moment of a layer's inputs, from running the model
moments.py      that moment, and how far so many rows are believed
masks.py        which positions of a batch are padding
replacement.py  putting layers in, all or none, with what hangs on them
loading.py      a state dict of a converted model, into one that is not
report.py       what was done, as a table
tables.py       its text, Markdown and HTML
progress.py     a bar for what takes long

Nothing here imports transformers or peft: layers are known by what they hold.
"""

from ropewalk.blocks.monarch.conversion.convert import monarchize
from ropewalk.blocks.monarch.conversion.loading import load_monarch_state_dict
from ropewalk.blocks.monarch.conversion.merge import merge
from ropewalk.blocks.monarch.conversion.report import LayerReport, MonarchReport
from ropewalk.blocks.monarch.conversion.weighted import (
    WeightedProjection,
    monarch_project_weighted,
)

__all__ = [
    "LayerReport",
    "MonarchReport",
    "WeightedProjection",
    "load_monarch_state_dict",
    "merge",
    "monarch_project_weighted",
    "monarchize",
]
