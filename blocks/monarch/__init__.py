"""Monarch matrices: linear layers of two block-diagonal factors.

shape.py          MonarchShape: the sizes, and which of them make sense
projection.py     monarch_project: the nearest to a dense matrix
linear.py         MonarchLinear
inverse.py        transpose, inverse, solve, log|det|
product.py        products of more than two factors
constructions.py  Fourier and Hadamard matrices, exactly
convolutions.py   circulant and Toeplitz matrices, exactly
conversion/       monarchize and merge, for whole models
adapter/          MonarchAdapter, for fine-tuning
"""

from ropewalk.blocks.monarch.adapter import (
    MonarchAdapter,
    activate_adapters,
    adapter_state_dict,
    add_adapters,
    attach_adapter,
    load_adapter_state_dict,
    mark_only_adapters_trainable,
    merge_adapters,
    remove_adapters,
)
from ropewalk.blocks.monarch.constructions import Construction, dft, hadamard
from ropewalk.blocks.monarch.conversion import (
    MonarchReport,
    load_monarch_state_dict,
    merge,
    monarch_project_weighted,
    monarchize,
)
from ropewalk.blocks.monarch.convolutions import ConstructionProduct, circulant, toeplitz
from ropewalk.blocks.monarch.inverse import (
    log_abs_det,
    monarch_inverse,
    monarch_solve,
    monarch_transpose,
)
from ropewalk.blocks.monarch.linear import MonarchLinear
from ropewalk.blocks.monarch.product import (
    MonarchProduct,
    monarch_product,
    product_sizes,
    product_to_dense,
)
from ropewalk.blocks.monarch.projection import Projection, monarch_project
from ropewalk.blocks.monarch.shape import MonarchShape
from ropewalk.kernels.monarch import monarch_matmul, monarch_to_dense

__all__ = [
    "Construction",
    "ConstructionProduct",
    "MonarchAdapter",
    "MonarchLinear",
    "MonarchProduct",
    "MonarchReport",
    "MonarchShape",
    "Projection",
    "activate_adapters",
    "adapter_state_dict",
    "add_adapters",
    "attach_adapter",
    "circulant",
    "dft",
    "hadamard",
    "load_adapter_state_dict",
    "load_monarch_state_dict",
    "log_abs_det",
    "mark_only_adapters_trainable",
    "merge",
    "merge_adapters",
    "monarch_inverse",
    "monarch_matmul",
    "monarch_product",
    "monarch_project",
    "monarch_project_weighted",
    "monarch_solve",
    "monarch_to_dense",
    "monarch_transpose",
    "monarchize",
    "product_sizes",
    "product_to_dense",
    "remove_adapters",
    "toeplitz",
]
