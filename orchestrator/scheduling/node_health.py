"""Which nodes of a cluster units are kept away from, and whose fault a failure was. No Ray."""

import logging
from collections import Counter
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

FAILURES_OF_A_BAD_NODE, UNITS_OF_A_BAD_NODE = 3, 2
"""A node is no longer used after so many failures, of so many different units, with no unit finished since."""


@dataclass
class Nodes:
    """What has happened on each node, by Ray's id of it, which is new after every start of the node."""

    avoided: dict[str, str] = field(default_factory=dict)
    """Nodes that get no more units, and why."""
    _failures: dict[str, Counter[str]] = field(default_factory=dict)
    """Failures of each unit since the last one that finished there."""

    def worked(self, node: str) -> None:
        """A unit has finished there."""
        self._failures.pop(node, None)

    def failed(self, node: str, key: str) -> bool:
        """A unit has failed there; whether the node looks bad by now. It is not avoided by this alone: the driver knows
        whether there is another."""
        failures = self._failures.setdefault(node, Counter())
        failures[key] += 1
        return failures.total() >= FAILURES_OF_A_BAD_NODE and len(failures) >= UNITS_OF_A_BAD_NODE

    def avoid(self, node: str, why: str) -> list[str]:
        """Use a node no more.

        Returns:
            Keys of the units that failed there since one last finished: those failures were the node's.
        """
        if node not in self.avoided:
            logger.warning("node %s gets no more units: %s", node[:8], why)
        self.avoided.setdefault(node, why)
        return list(self._failures.pop(node, ()))
