"""Where the joints of a BVH file are in each of its frames.

A node's place is its parent's place plus its offset turned by the parent's rotation. Its rotation is the parent's times
those of its channels, in their order: channels Zrotation Xrotation Yrotation turn by Rz Rx Ry. Position channels stand
in place of the offset along their axis, as exporters write them.

Shape suffixes: N frames, C channels, V nodes, W chosen nodes.
"""

from collections.abc import Sequence

import numpy as np

from ups_model.data.readers.bvh.parser import Node
from ups_model.data.readers.rotation import about_axis


def world_positions(nodes: Sequence[Node], values_NC: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Places of the nodes at `indices`: [N, W, 3] float64, in the file's units and axes. Values are units and
    degrees; parents come before their children."""
    needed = {above for index in indices for above in ancestors(nodes, index)}
    turns = {nodes[index].parent for index in needed}  # Other nodes' rotations are not needed.
    place_N3: dict[int, np.ndarray] = {}
    rotation_N33: dict[int, np.ndarray] = {}
    for index in sorted(needed):
        node = nodes[index]
        local_N3 = local_offsets(node, values_NC)
        if node.parent < 0:
            place_N3[index] = local_N3
        else:
            turned_N31 = rotation_N33[node.parent] @ local_N3[:, :, None]
            place_N3[index] = place_N3[node.parent] + turned_N31[:, :, 0]
        if index in turns:
            own_N33 = local_rotations(node, values_NC)
            rotation_N33[index] = own_N33 if node.parent < 0 else rotation_N33[node.parent] @ own_N33
    return np.stack([place_N3[index] for index in indices], axis=1)


def local_offsets(node: Node, values_NC: np.ndarray) -> np.ndarray:
    """[N, 3]: a node's place from its parent's, in the parent's axes."""
    local_N3 = np.tile(np.array(node.offset, dtype=np.float64), (len(values_NC), 1))
    for column, (kind, axis) in enumerate(node.channels, start=node.first_channel):
        if kind == "position":
            local_N3[:, axis] = values_NC[:, column]
    return local_N3


def local_rotations(node: Node, values_NC: np.ndarray) -> np.ndarray:
    """[N, 3, 3]: from a node's axes to its parent's."""
    rotation_N33 = np.tile(np.eye(3), (len(values_NC), 1, 1))
    for column, (kind, axis) in enumerate(node.channels, start=node.first_channel):
        if kind == "rotation":
            rotation_N33 = rotation_N33 @ about_axis(axis, np.radians(values_NC[:, column]))
    return rotation_N33


def bone_lengths(nodes: Sequence[Node], values_NC: np.ndarray) -> np.ndarray:
    """[V]: distance of each node from its parent in the first frame; 0 for the root."""
    return np.array(
        [0.0 if node.parent < 0 else float(np.linalg.norm(local_offsets(node, values_NC[:1]))) for node in nodes]
    )


def ancestors(nodes: Sequence[Node], index: int) -> list[int]:
    """A node and those above it, up to the root."""
    line = []
    while index >= 0:
        line.append(index)
        index = nodes[index].parent
    return line


def path_between(nodes: Sequence[Node], start: int, end: int) -> tuple[list[int], int]:
    """The nodes from `start` to `end` through the tree, both included, and the one where the way turns downward."""
    up, down = ancestors(nodes, start), ancestors(nodes, end)
    top = next(index for index in up if index in set(down))
    return up[: up.index(top) + 1] + down[: down.index(top)][::-1], top


def path_length(nodes: Sequence[Node], lengths_V: np.ndarray, start: int, end: int) -> float:
    """Length of the bones from `start` to `end` through the tree."""
    path, top = path_between(nodes, start, end)
    return float(sum(lengths_V[index] for index in path if index != top))
