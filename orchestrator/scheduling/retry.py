"""What a failed try means for its unit: a pure function of the failure and of what went wrong before. No Ray."""

from dataclasses import dataclass, replace
from typing import Literal, Self

RETRIES = 3
"""How often a unit is tried again, from its newest checkpoint, after it failed by its own doing or for no known reason.
What the machine did, a lost node or a notice to leave it, is not counted."""
MAX_UNSTARTED = 20
"""Ends of a process before it began its unit, which are the machine's fault up to this number."""


@dataclass(frozen=True)
class Failure:
    """Why a try failed."""

    kind: Literal["counted", "certain", "uncertain", "refused", "out_of_memory", "unstarted", "lost"]
    """counted: by the unit's own doing, or for no known reason. certain, uncertain: the unit said so itself; any other
    node would, or might not, say the same. refused: the node can't run units. unstarted: its process ended before it
    began. lost: its machine, the way to it or the storage was gone, or a disk was full."""
    error: str
    node: str = ""
    """Ray's id of it; empty where it isn't known."""
    gpus: float = 0.0
    """GPUs, or the share of one, that it had."""
    can_shrink: bool = False
    """Of "out_of_memory": the next try can compute smaller parts of its batches."""
    has_other_node: bool = True
    """There is, or may come to be, a node that it hasn't failed on and that is in use."""


@dataclass(frozen=True)
class History:
    """What went wrong with a unit in this call."""

    failed_on: tuple[str, ...] = ()
    """The node of each failure that counts."""
    too_small: tuple[float, ...] = ()
    """GPUs, or shares of one, in which it ran out of memory."""
    unstarted: int = 0

    @property
    def failed_nodes(self) -> set[str]:
        """Nodes that the next try had better not take."""
        return set(self.failed_on) - {""}

    def without(self, node: str) -> Self:
        """As if it had never run on a node that was at fault."""
        return replace(self, failed_on=tuple(one for one in self.failed_on if one != node))


def decide(failure: Failure, history: History) -> tuple[History, str]:
    """The history with this failure, and the error of a unit that has failed for good; empty: it is tried again."""
    match failure.kind:
        case "lost":
            return history, ""
        case "refused":
            return history, "" if failure.has_other_node else failure.error
        case "unstarted" if history.unstarted < MAX_UNSTARTED:
            return replace(history, unstarted=history.unstarted + 1), ""
        case "out_of_memory" if failure.gpus < 1 or (failure.can_shrink and len(history.too_small) < RETRIES):
            return replace(history, too_small=(*history.too_small, failure.gpus)), ""
        case "out_of_memory":
            return history, f"{failure.error}; it had a whole GPU: give --micro-batch auto, or take larger GPUs"
        case "certain":
            return history, failure.error
        case "uncertain" if history.failed_nodes or not failure.has_other_node:
            return history, failure.error  # Otherwise a second node has to say the same.
    failed_on = (*history.failed_on, failure.node)
    return replace(history, failed_on=failed_on), failure.error if len(failed_on) > RETRIES else ""
