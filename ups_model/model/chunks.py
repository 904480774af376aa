"""Work on a batch piece by piece: what one operation writes is then still in the cache when the next one reads it."""

from torch import Tensor

CHUNK_ELEMENTS = 2**19
"""Elements of the widest tensor of a piece (2 MiB of float32)."""


def chunks(x: Tensor, per_item: int = 0) -> list[slice]:
    """Slices over the first axis of x, each as many items as fit a piece on the CPU; all of them on another device.

    Args:
        per_item: elements that the work makes of an item; 0 = those the item has.
    """
    items = len(x)
    if x.device.type != "cpu":
        return [slice(0, items)]
    pieces = -(-items * (per_item or x[0].numel()) // CHUNK_ELEMENTS)
    step = -(-items // min(pieces, items))
    return [slice(first, min(first + step, items)) for first in range(0, items, step)]
