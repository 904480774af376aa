"""Joints that detectors write, and which of them are COCO's 17.

Halpe-26, Halpe-136 and COCO-WholeBody (133) begin with COCO's 17 in COCO's order. OpenPose's two layouts have all of
COCO's joints too, in orders of their own; the neck, the middle of the hips and the feet are dropped.
Sources: https://github.com/Fang-Haoshu/Halpe-FullBody, https://github.com/jin-s13/COCO-WholeBody, and OpenPose's
doc/02_output.md.
"""

from collections.abc import Mapping

from ups_model.data.readers.keypoints.tracks import JOINTS

COCO_FIRST: Mapping[int, tuple[int, ...]] = {count: tuple(range(JOINTS)) for count in (JOINTS, 26, 133, 136)}
"""Joints of a layout -> COCO's 17 among them, for layouts that begin with these."""
OPENPOSE: Mapping[int, tuple[int, ...]] = {
    25: (0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11),
    18: (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10),
}
"""The same for BODY_25 and COCO-18."""

COCO_RULE = "17 joints, those of COCO, or 26 (Halpe), 133 (WholeBody) or 136 (Halpe), whose first 17, COCO's, are kept"
OPENPOSE_RULE = "25 joints (BODY_25) or 18 (COCO), of which COCO's 17 are kept"
