"""Several persons in a clip, for networks that see one at a time.

Shape suffixes: B clips, P persons, D channels.
"""

from torch import Tensor


def mean_over_persons(x_BPD: Tensor, person_mask_BP: Tensor | None) -> Tensor:
    """[B, D] mean over the persons that are there; None = all are."""
    if person_mask_BP is None:
        return x_BPD.mean(dim=1)
    there_BP1 = person_mask_BP[..., None].to(x_BPD.dtype)
    return (x_BPD * there_BP1).sum(dim=1) / there_BP1.sum(dim=1).clamp(min=1)
