"""The sizes of a Monarch matrix, and which of them make sense.

A weight (out, in) is cut into l × k slices of s × p, with p = ⌈in / k⌉ and s = ⌈out / l⌉; each
slice has rank r at most. What goes over the edge is zero. It has r·(l·k·p + k·l·s) parameters where
a dense matrix has in · out.
"""

from dataclasses import dataclass, replace

from ropewalk.blocks.checks import mend, require_integer

Blocks = int | tuple[int, int]


@dataclass(frozen=True)
class MonarchShape:
    """Sizes of a Monarch matrix.

    Attributes:
        in_features: of a row that it is applied to.
        out_features: of the result.
        input_blocks: k.
        output_blocks: l.
        rank: of a slice, r.
    """

    in_features: int
    out_features: int
    input_blocks: int
    output_blocks: int
    rank: int

    @classmethod
    def of(
        cls, in_features: int, out_features: int, *, nblocks: Blocks, rank: int | None = None
    ) -> "MonarchShape":
        """The shape that a number of blocks and a rank give.

        Args:
            in_features: at least 1.
            out_features: at least 1.
            nblocks: (k, l), or a number for both.
            rank: of a slice; None for the one whose hidden width k·l·r is that of the smaller side:
                on a square matrix all blocks are square, and 2 / nblocks of the parameters are
                left.

        Raises:
            ValueError: a number out of its range; more slices than features, which would leave
                slices empty or the hidden layer wider than the matrix; a rank that no slice has.
            TypeError: an argument of the wrong kind.
        """
        require_integer("Monarch", 1, in_features=in_features, out_features=out_features)
        k, outputs = block_counts(nblocks)
        if k > in_features or outputs > out_features:
            raise ValueError(
                f"nblocks: expected at most {in_features} input blocks and {out_features} output "
                f"blocks, one for each feature, got ({k}, {outputs}); take nblocks="
                f"({min(k, in_features)}, {min(outputs, out_features)}) or fewer"
            )
        smaller, larger = sorted((in_features, out_features))
        limit = smaller if rank is None else larger
        if k * outputs > limit:
            most = int(limit**0.5)
            mending = f"take nblocks ≤ {most}"
            if rank is None and k * outputs <= larger:
                mending += ", or say rank=1, for a hidden layer wider than the smaller side"
            raise ValueError(
                f"nblocks: expected k·l ≤ {limit} slices for {in_features} to {out_features} "
                f"features{' at the default rank' if rank is None else ''}, got {k}·{outputs} = "
                f"{k * outputs}, "
                f"which would leave slices empty; {mending}"
            )
        for name, features, blocks in (
            ("input", in_features, k),
            ("output", out_features, outputs),
        ):
            size = -(-features // blocks)
            if (blocks - 1) * size >= features:
                raise ValueError(
                    f"nblocks: expected {name} blocks that all have features, got {blocks} blocks "
                    f"of {size} for {features} features; take {-(-features // size)}"
                )
        shape = cls(in_features, out_features, k, outputs, 1)
        if rank is None:
            rank = smaller // (k * outputs)  # never more than a slice has
        require_integer("Monarch", 1, rank=rank)
        if rank > shape.full_rank:
            raise ValueError(
                f"rank: expected at most {shape.full_rank}, the smaller side of a slice of "
                f"{shape.output_size} × {shape.input_size} (nblocks=({k}, {outputs})), got {rank}; "
                "more would be parameters for nothing"
            )
        return replace(shape, rank=rank)

    @property
    def nblocks(self) -> tuple[int, int]:
        """The numbers (k, l)."""
        return self.input_blocks, self.output_blocks

    @property
    def input_size(self) -> int:
        """Features of an input block, p; the last block may have fewer."""
        return -(-self.in_features // self.input_blocks)

    @property
    def output_size(self) -> int:
        """Features of an output block, s; the last block may have fewer."""
        return -(-self.out_features // self.output_blocks)

    @property
    def padded_in(self) -> int:
        """Input features with those that are zero, k·p."""
        return self.input_blocks * self.input_size

    @property
    def padded_out(self) -> int:
        """Output features with those that are left out, l·s."""
        return self.output_blocks * self.output_size

    @property
    def full_rank(self) -> int:
        """The greatest rank that a slice can have."""
        return min(self.input_size, self.output_size)

    @property
    def width(self) -> int:
        """Hidden values of a row, k·l·r."""
        return self.input_blocks * self.output_blocks * self.rank

    @property
    def right_shape(self) -> tuple[int, int, int]:
        """Of the right factor: (k, l·r, p)."""
        return self.input_blocks, self.output_blocks * self.rank, self.input_size

    @property
    def left_shape(self) -> tuple[int, int, int]:
        """Of the left factor: (l, s, k·r)."""
        return self.output_blocks, self.output_size, self.input_blocks * self.rank

    @property
    def parameters(self) -> int:
        """Numbers in both factors; the bias is not counted."""
        return self.width * (self.input_size + self.output_size)

    @property
    def dense_parameters(self) -> int:
        """Numbers in the matrix itself."""
        return self.in_features * self.out_features

    @property
    def flops(self) -> int:
        """Floating-point operations of one row: a multiplication and an addition a parameter."""
        return 2 * self.parameters

    @property
    def dense_flops(self) -> int:
        """The same of the dense matrix."""
        return 2 * self.dense_parameters

    @property
    def mirrored(self) -> "MonarchShape":
        """The shape of the transposed matrix."""
        return MonarchShape(
            self.out_features, self.in_features, self.output_blocks, self.input_blocks, self.rank
        )


def block_counts(nblocks: Blocks) -> tuple[int, int]:
    """The numbers (k, l) of input and output blocks.

    Raises:
        ValueError: fewer than one.
        TypeError: neither an integer nor a pair of them.
    """
    if isinstance(nblocks, tuple | list):
        if len(nblocks) != 2:
            raise ValueError(
                f"nblocks: expected a number or (input blocks, output blocks), got {nblocks!r}"
            )
        counts = (nblocks[0], nblocks[1])
    else:
        counts = (nblocks, nblocks)
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(
                f"nblocks: expected an integer or two, got {nblocks!r}{mend(count, 'int')}"
            )
        if count < 1:
            raise ValueError(f"nblocks: expected at least 1, got {nblocks!r}")
    return counts
