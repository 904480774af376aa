"""Spot machines first, on-demand ones when spot has none: how Ray's autoscaler scores the node types of `v100.yaml`.

Ray's own score knows resources alone. Of two types with equal resources it takes the one whose name sorts last, again
and again, even while EC2 answers InsufficientInstanceCapacity. Ray does remember such answers for 30 minutes
(AUTOSCALER_NODE_AVAILABILITY_MAX_STALENESS_S) and hands them to the scorer named by RAY_AUTOSCALER_UTILIZATION_SCORER.
"""

from numbers import Real
from typing import Any

# Private, but the variable above asks for a function with exactly these arguments, and Ray offers no public base for
# it. Only the autoscaler imports this module; a test runs it inside Ray's own scheduler.
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer


def score(
    node_resources: dict[str, Real],
    resources: list[dict[str, Real]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """Ray's score of starting a node, behind whether the type was to be had when last asked for.

    Args:
        node_resources: what a node of the type has, such as {"CPU": 64, "GPU": 8}.
        resources: what waits for room, one entry a unit.
        node_type: name in `available_node_types`.
        node_availability_summary: Ray's memory of the last attempt to start each type.

    Returns:
        A tuple, larger is better; None where nothing that waits fits. Types that tie go by name, the last one first:
        hence `workers_spot` before `workers_on_demand`. Where no type is to be had they tie again: spot is tried again.
    """
    base = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if base is None:
        return None
    last = node_availability_summary.node_availabilities.get(node_type)
    return (last is None or last.is_available, *base)
