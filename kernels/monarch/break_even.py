"""Below which sizes one product with the merged matrix is faster than two with the factors."""


def merged_is_faster(
    *, tokens: int, in_features: int, out_features: int, parameters: int, rank: int, device: str
) -> bool:
    """Placeholder rule until measured: operations only."""
    merging = rank * in_features * out_features
    return tokens * in_features * out_features + merging <= tokens * parameters
