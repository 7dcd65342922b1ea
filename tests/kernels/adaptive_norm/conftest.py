"""The oracle: sample by sample in float64, by torch's own norms."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ropewalk.kernels.adaptive_norm import adaptive_norm, gated_adaptive_norm, gated_residual


@dataclass(frozen=True)
class Case:
    """The tensors of the chain; what is none is left out."""

    x: Tensor
    branch: Tensor | None = None
    gate: Tensor | None = None
    shift: Tensor | None = None
    scale: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    cu_seqlens: Tensor | None = None
    norm: str | None = "layer"
    eps: float = 1e-6

    @property
    def names(self) -> list[str]:
        """Of the tensors that have gradients."""
        return [field.name for field in fields(self)[:7] if getattr(self, field.name) is not None]

    @property
    def leaves(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.names]

    def to(
        self,
        dtype: torch.dtype | None = None,
        device: object = None,
        rows: torch.dtype | None = None,
    ) -> "Case":
        """Fresh leaves that want gradients; `rows` is the dtype of all but the streams."""
        streams = ("x", "branch")
        changed = {
            name: getattr(self, name)
            .detach()
            .to(device, dtype if name in streams or rows is None else rows)
            .clone()
            .requires_grad_()
            for name in self.names
        }
        cu = None if self.cu_seqlens is None else self.cu_seqlens.to(device)
        return replace(self, cu_seqlens=cu, **changed)

    def run(self, backend: str = "auto") -> list[Tensor]:
        """What the public function gives."""
        if self.norm is None:
            assert self.branch is not None
            found = gated_residual(
                self.x, self.branch, self.gate, cu_seqlens=self.cu_seqlens, backend=backend
            )
            return [found]
        options = {
            name: getattr(self, name) for name in ("norm", "weight", "bias", "eps", "cu_seqlens")
        }
        rows = (self.shift, self.scale)
        if self.branch is None:
            return [adaptive_norm(self.x, *rows, **options, backend=backend)]
        return list(
            gated_adaptive_norm(self.x, self.branch, self.gate, *rows, **options, backend=backend)
        )


@dataclass(frozen=True)
class Sizes:
    """Of a batch, or of packed samples: `lengths` are theirs, and the batch is 1."""

    batch: int
    tokens: int
    dim: int
    lengths: tuple[int, ...] | None = None

    @property
    def samples(self) -> int:
        return self.batch if self.lengths is None else len(self.lengths)


# Nothing a power of two, one of everything, no tokens, no samples, packed with empty ones.
SIZES = {
    "3x5x7": Sizes(3, 5, 7),
    "1x1x1": Sizes(1, 1, 1),
    "1x9x12": Sizes(1, 9, 12),
    "2x1x33": Sizes(2, 1, 33),
    "2x0x6": Sizes(2, 0, 6),
    "1x0x6": Sizes(1, 0, 6),
    "0x3x6": Sizes(0, 3, 6),
    "packed": Sizes(1, 13, 9, (4, 0, 1, 8, 0)),
    "packed alone": Sizes(1, 6, 8, (6,)),
    "packed empty": Sizes(1, 0, 5, (0, 0)),
}


def draw(
    sizes: Sizes,
    *,
    norm: str | None = "layer",
    branch: bool = True,
    modulation: str = "gate shift scale",
    affine: str = "",
    shared: bool = False,
    seed: int = 0,
) -> Case:
    """A float64 case; gates, shifts and scales are chunks of one tensor."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q = sizes
    stream = (q.batch, q.tokens, q.dim)
    x, added = normal(*stream), normal(*stream)
    samples = 1 if shared else q.samples
    chunks = dict(
        zip(("shift", "scale", "gate"), normal(samples, 3 * q.dim).chunk(3, dim=1), strict=True)
    )
    wanted = modulation.split()
    if norm is None:
        wanted = [name for name in wanted if name == "gate"]
    if not branch:
        wanted = [name for name in wanted if name != "gate"]
    own = {name: 1 + 0.5 * normal(q.dim) for name in affine.split()}
    cu = None
    if q.lengths is not None:
        cu = torch.tensor([0, *q.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    rows = {name: chunks[name] for name in wanted}
    return Case(x, added if branch else None, **rows, **own, cu_seqlens=cu, norm=norm)


def chain(case: Case) -> list[Tensor]:
    """Residual and y in float64, sample by sample; differentiable."""
    c = case
    cu = None if c.cu_seqlens is None else c.cu_seqlens.tolist()
    samples = len(c.x) if cu is None else len(cu) - 1

    def row(x: Tensor | None, sample: int, otherwise: float) -> Tensor:
        if x is None:
            return torch.full(c.x.shape[2:], otherwise, dtype=torch.float64)
        return x.double().expand(samples, -1)[sample]

    places = [(i, slice(None)) for i in range(samples)]
    if cu is not None:
        places = [(0, slice(a, b)) for a, b in pairwise(cu)]
    residuals, ys = [], []
    for sample, (batch, tokens) in enumerate(places):
        residual = c.x[batch, tokens].double()
        if c.branch is not None:
            residual = residual + row(c.gate, sample, 1.0) * c.branch[batch, tokens].double()
        residuals.append(residual)
        if c.norm is None:
            ys.append(residual)
            continue
        shape = c.x.shape[2:]
        weight = None if c.weight is None else c.weight.double()
        if c.norm == "layer":
            bias = None if c.bias is None else c.bias.double()
            normed = functional.layer_norm(residual, shape, weight, bias, c.eps)
        else:
            normed = functional.rms_norm(residual, shape, weight, c.eps)
            normed = normed if c.bias is None else normed + c.bias.double()
        ys.append(normed * (1 + row(c.scale, sample, 0.0)) + row(c.shift, sample, 0.0))
    join = torch.stack if cu is None else lambda parts: torch.cat(parts)[None]
    # Without samples there are no numbers, but all that they would depend on.
    nothing = c.x.double() + sum(leaf.double().sum() for leaf in c.leaves)
    whole = [join(parts) if samples else nothing for parts in (residuals, ys)]
    return whole[0 if c.branch is not None else 1 : 1 if c.norm is None else 2]


@pytest.fixture(params=SIZES)
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return SIZES[request.param]


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """`make_case(sizes, …)`, or `make_case((batch, tokens, dim), …)`."""

    def make(sizes: Sizes | tuple[int, int, int], lengths=None, **options) -> Case:
        sizes = sizes if isinstance(sizes, Sizes) else Sizes(*sizes, lengths)
        return draw(sizes, **options)

    return make


@pytest.fixture(scope="session")
def chain_oracle() -> Callable[[Case], list[Tensor]]:
    return chain


@pytest.fixture(scope="session")
def with_gradients() -> Callable[..., dict[str, Tensor]]:
    """`with_gradients(function, case)`: results and gradients of all leaves, by name."""

    def found(function: Callable[[Case], list[Tensor]], case: Case) -> dict[str, Tensor]:
        results = function(case)
        generator = torch.Generator().manual_seed(1)
        along = [
            torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in results
        ]
        gradients = torch.autograd.grad(results, case.leaves, along)
        of = dict(zip(("first", "second"), results, strict=False))
        return of | {
            f"gradient of {name}": grad for name, grad in zip(case.names, gradients, strict=True)
        }

    return found
