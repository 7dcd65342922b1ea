"""Arithmetic of tiles, shared by the host code of the kernels."""


def ceil_divide(count: int, size: int) -> int:
    """Blocks of `size` that hold `count`."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`, and 1 for none."""
    return 1 << max(count - 1, 0).bit_length()
