"""What a conversion did: one row for each layer that was meant, and the sums."""

from dataclasses import asdict, dataclass
from typing import Any

from ropewalk.blocks.monarch.conversion import tables


@dataclass(frozen=True)
class LayerReport:
    """One layer. Parameters and operations are those of its matrix; the bias stays what it is.

    Attributes:
        name: its name in the model.
        kind: class of the layer that was there.
        in_features: of a row; None where the layer does not say.
        out_features: of the result; None likewise.
        nblocks: (input blocks, output blocks); None if it was skipped.
        rank: of the slices; None if it was skipped.
        parameters_before: of the matrix.
        parameters_after: of the matrix or factors that are there now.
        flops_before: floating-point operations for one row.
        flops_after: the same now.
        relative_error: ‖W − M‖ / ‖W‖, in half precision of the factors as they are rounded; None
            if it was skipped or merged.
        output_error: (E‖(W − M) x‖² / E‖W x‖²)^½ on the calibration's inputs, or, where they are
            few, of a fit to one half of them on the other; None without.
        calibration_rows: inputs that were seen; None without calibration.
        skipped: why it stayed as it was; None if it did not.
        note: what else there is to say.
    """

    name: str
    kind: str
    in_features: int | None
    out_features: int | None
    nblocks: tuple[int, int] | None
    rank: int | None
    parameters_before: int
    parameters_after: int
    flops_before: int
    flops_after: int
    relative_error: float | None = None
    output_error: float | None = None
    calibration_rows: int | None = None
    skipped: str | None = None
    note: str | None = None


@dataclass(frozen=True, repr=False)
class MonarchReport:
    """What `monarchize` or `merge` did. Prints as a table, in a notebook too.

    Attributes:
        layers: one row for each layer that was meant, in the order of the model.
        model_parameters_before: of the whole model, each counted once.
        model_parameters_after: the same now.
    """

    layers: tuple[LayerReport, ...]
    model_parameters_before: int
    model_parameters_after: int

    @property
    def converted(self) -> tuple[LayerReport, ...]:
        """The layers that were replaced."""
        return tuple(layer for layer in self.layers if layer.skipped is None)

    @property
    def skipped(self) -> tuple[LayerReport, ...]:
        """The layers that stayed as they were."""
        return tuple(layer for layer in self.layers if layer.skipped is not None)

    @property
    def parameters_before(self) -> int:
        """Of the matrices that were replaced."""
        return sum(layer.parameters_before for layer in self.converted)

    @property
    def parameters_after(self) -> int:
        """Of what is there in their place."""
        return sum(layer.parameters_after for layer in self.converted)

    @property
    def flops_before(self) -> int:
        """For one row through each layer that was replaced."""
        return sum(layer.flops_before for layer in self.converted)

    @property
    def flops_after(self) -> int:
        """For one row through each layer that is there now."""
        return sum(layer.flops_after for layer in self.converted)

    @property
    def compression(self) -> float:
        """Parameters before over those after, of the layers that were replaced; 1 if none were."""
        return self.parameters_before / self.parameters_after if self.converted else 1.0

    @property
    def summary(self) -> str:
        """One line."""
        line = f"{len(self.converted)} of {len(self.layers)} layers converted"
        if self.converted:
            line += (
                f": {self.parameters_before:,} → {self.parameters_after:,} parameters "
                f"({_change(self.compression)}), {self.flops_before:,} → "
                f"{self.flops_after:,} operations a row"
            )
        whole = f"{self.model_parameters_before:,} → {self.model_parameters_after:,}"
        return f"{line}; the whole model {whole} parameters"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "flops_before": self.flops_before,
            "flops_after": self.flops_after,
            "compression": self.compression,
            "model_parameters_before": self.model_parameters_before,
            "model_parameters_after": self.model_parameters_after,
        }

    @property
    def footnote(self) -> str | None:
        """Which of two errors counts, where there are two."""
        return _FOOTNOTE if any(x.output_error is not None for x in self.layers) else None

    def to_markdown(self) -> str:
        """The table, its footnote and the summary as Markdown."""
        return "\n\n".join([tables.markdown(*self._cells()), *self._below()])

    def _below(self) -> list[str]:
        return [line for line in (self.footnote, self.summary) if line is not None]

    def __str__(self) -> str:
        return "\n".join([tables.text(*self._cells()), *self._below()])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return tables.html(*self._cells(), caption=" ".join(self._below()))

    def _cells(self) -> tuple[list[tables.Column], list[list[str]]]:
        columns = [
            column for column in _COLUMNS if column.always or any(map(column.cell, self.layers))
        ]
        rows = [[column.cell(layer) for column in columns] for layer in self.layers]
        return [column.column for column in columns], rows


_FOOTNOTE = (
    "With calibration the output error is what counts: it was made small, and max_relative_error "
    "bounds it. The weight error is the larger for it."
)


@dataclass(frozen=True)
class _ReportColumn:
    column: tables.Column
    write: Any
    always: bool = True

    def cell(self, layer: LayerReport) -> str:
        value = self.write(layer)
        return "" if value is None else str(value)


def _error(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _change(times: float) -> str:
    """In words: merged layers have more parameters and not "0.5 times fewer"."""
    return f"{times:.2f} times fewer" if times >= 1 else f"{1 / times:.2f} times more"


def _fewer(layer: LayerReport) -> str | None:
    times = layer.parameters_before / max(1, layer.parameters_after)
    return f"{times:.2f}×" if layer.skipped is None and times >= 1 else None


def _more(layer: LayerReport) -> str | None:
    times = layer.parameters_after / max(1, layer.parameters_before)
    return f"{times:.2f}×" if layer.skipped is None and times > 1 else None


def _note(layer: LayerReport) -> str | None:
    return f"skipped: {layer.skipped}" if layer.skipped is not None else layer.note


_COLUMNS = [
    _ReportColumn(tables.Column("layer"), lambda x: x.name),
    _ReportColumn(tables.Column("kind"), lambda x: x.kind),
    _ReportColumn(tables.Column("in", right=True), lambda x: x.in_features),
    _ReportColumn(tables.Column("out", right=True), lambda x: x.out_features),
    _ReportColumn(
        tables.Column("blocks", right=True), lambda x: x.nblocks and "{}, {}".format(*x.nblocks)
    ),
    _ReportColumn(tables.Column("rank", right=True), lambda x: x.rank),
    _ReportColumn(tables.Column("parameters", right=True), lambda x: f"{x.parameters_before:,}"),
    _ReportColumn(
        tables.Column("now", right=True),
        lambda x: f"{x.parameters_after:,}" if x.skipped is None else None,
    ),
    _ReportColumn(tables.Column("fewer", right=True), _fewer, always=False),
    _ReportColumn(tables.Column("more", right=True), _more, always=False),
    _ReportColumn(tables.Column("flops", right=True), lambda x: f"{x.flops_before:,}"),
    _ReportColumn(
        tables.Column("now", right=True),
        lambda x: f"{x.flops_after:,}" if x.skipped is None else None,
    ),
    _ReportColumn(
        tables.Column("output error", right=True), lambda x: _error(x.output_error), always=False
    ),
    _ReportColumn(
        tables.Column("weight error", right=True), lambda x: _error(x.relative_error), always=False
    ),
    _ReportColumn(tables.Column("remark"), _note, always=False),
]
