"""Miniature Human3.6M in VideoPose3D's files, written without anything of the reader's.

People stand about the middle of the room and wander; detections run on for some frames, as in the published files.
"""

import numpy as np

# The joints of the 3D file that VideoPose3D's 2D files have, by the names of Human3.6M's 32-joint skeleton.
_NAMES_32 = """
Hip RHip RKnee RFoot RToeBase RToeSite LHip LKnee LFoot LToeBase LToeSite Spine0 Spine Thorax Neck Head
LShoulder0 LShoulder LElbow LWrist LThumb LSite0 LWristEnd LSite1
RShoulder0 RShoulder RElbow RWrist RThumb RSite0 RWristEnd RSite1
"""
_NAMES_17 = """
Hip RHip RKnee RFoot LHip LKnee LFoot Spine Thorax Neck Head LShoulder LElbow LWrist RShoulder RElbow RWrist
"""
CHOSEN = [_NAMES_32.split().index(name) for name in _NAMES_17.split()]
SYMMETRY = ((4, 5, 6, 11, 12, 13), (1, 2, 3, 14, 15, 16))

_CAMERAS = (  # focal lengths and principal point, pixels
    ([1145.0494384765625, 1143.7811279296875], [512.54150390625, 515.4514770507812]),
    ([1149.6756591796875, 1147.5916748046875], [508.8486328125, 508.0649108886719]),
    ([1149.1407470703125, 1148.7989501953125], [519.8158569335938, 501.40264892578125]),
    ([1145.5113525390625, 1144.77392578125], [514.9682006835938, 501.88201904296875]),
)
_VIEWS = {  # orientation of each camera, w first, camera to world; place, millimetres
    "S1": (
        (
            [0.1407056450843811, -0.1500701755285263, -0.755240797996521, 0.6223280429840088],
            [1841.1070556640625, 4955.28466796875, 1563.4454345703125],
        ),
        (
            [0.6157187819480896, -0.764836311340332, -0.14833825826644897, 0.11794740706682205],
            [1761.278564453125, -5078.0068359375, 1606.2650146484375],
        ),
        (
            [0.14651472866535187, -0.14647851884365082, 0.7653023600578308, -0.6094175577163696],
            [-1846.7777099609375, 5215.04638671875, 1491.972412109375],
        ),
        (
            [0.5834008455276489, -0.7853162288665771, 0.14548823237419128, -0.14749594032764435],
            [-1794.7896728515625, -3722.698974609375, 1574.8927001953125],
        ),
    ),
    "S9": (
        (
            [0.15540587902069092, -0.15548215806484222, -0.7532095313072205, 0.6199594736099243],
            [2044.45849609375, 4935.1171875, 1481.2275390625],
        ),
        (
            [0.618784487247467, -0.7634735107421875, -0.14132238924503326, 0.11933968216180801],
            [1990.959716796875, -5123.810546875, 1568.8048095703125],
        ),
        (
            [0.13357827067375183, -0.1367100477218628, 0.7689454555511475, -0.6100738644599915],
            [-1670.9921875, 5211.98583984375, 1528.387939453125],
        ),
        (
            [0.5879399180412292, -0.7823407053947449, 0.1427614390850067, -0.14794869720935822],
            [-1696.04345703125, -3827.099853515625, 1591.4127197265625],
        ),
    ),
    "S11": (
        (
            [0.15232472121715546, -0.15442320704460144, -0.7547563314437866, 0.6191070079803467],
            [2098.440185546875, 4926.5546875, 1500.278564453125],
        ),
        (
            [0.6189449429512024, -0.7600917220115662, -0.15300633013248444, 0.1255258321762085],
            [2083.182373046875, -4912.1728515625, 1561.07861328125],
        ),
        (
            [0.14943228662014008, -0.15650227665901184, 0.7681233882904053, -0.6026304364204407],
            [-1609.8153076171875, 5177.3359375, 1537.896728515625],
        ),
        (
            [0.5894251465797424, -0.7818877100944519, 0.13991211354732513, -0.14715361595153809],
            [-1590.738037109375, -3854.1689453125, 1578.017578125],
        ),
    ),
}
CALIBRATION = {
    "cameras": [{"focal_length": f, "center": c} for f, c in _CAMERAS],
    "extrinsics": {
        subject: [{"orientation": turn, "translation": place} for turn, place in views]
        for subject, views in _VIEWS.items()
    },
}
"""As published with VideoPose3D, for three of the subjects."""


def poses(frames, seed, place=(0.3, 0.5)):
    """float32 [frames, 32, 3], metres: a cloud of joints as large as a person."""
    rng = np.random.default_rng(seed)
    body = rng.uniform((-0.3, -0.3, 0.1), (0.3, 0.3, 1.7), (32, 3))
    wander = np.cumsum(rng.normal(0, 0.01, (frames, 1, 3)), axis=0) * (1, 1, 0)
    return (body + wander + (*place, 0)).astype(np.float32)


def rotate_back(quaternion, vectors):
    """The inverse rotation of a quaternion (w, x, y, z), by v + 2 u x (u x v + w v) with u = -(x, y, z)."""
    w, u = quaternion[0], -np.asarray(quaternion[1:], dtype=np.float64)
    return vectors + 2 * np.cross(u, np.cross(u, vectors) + w * vectors)


def project(world, subject, place):
    """Pixels [frames, 17, 2] of [frames, 32, 3] in a camera of the published calibration; no distortion."""
    inner, outer = CALIBRATION["cameras"][place], CALIBRATION["extrinsics"][subject][place]
    moved = world[:, CHOSEN].astype(np.float64) - np.array(outer["translation"]) / 1000
    seen = rotate_back(outer["orientation"], moved)
    return seen[..., :2] / seen[..., 2:] * inner["focal_length"] + inner["center"]


def detections(world, subject, extra=3, noise=2.0, seed=0):
    """Four arrays float32 [frames + extra, 17, 2], as the list of a recording in the 2D file."""
    rng = np.random.default_rng(seed)
    views = []
    for place in range(4):
        view = project(world, subject, place)
        view = np.concatenate([view, np.repeat(view[-1:], extra, axis=0)])
        views.append((view + rng.normal(0, noise, view.shape)).astype(np.float32))
    return views


def metadata(layout="h36m"):
    content = {"num_joints": 17, "keypoints_symmetry": [list(side) for side in SYMMETRY]}
    return content | ({"layout_name": layout} if layout else {})


def write(folder, positions_3d, positions_2d, name="data_2d_h36m_cpn_ft_h36m_dbb.npz", meta=None):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "data_3d_h36m.npz", positions_3d=np.array(positions_3d, dtype=object))
    np.savez_compressed(
        folder / name,
        metadata=np.array(metadata() if meta is None else meta, dtype=object),
        positions_2d=np.array(positions_2d, dtype=object),
    )
