"""The columns of the paper's ablation tables (Tables 7-9) and of its Tables 2 and 4."""

from search_spaces.study import Column

AR3D = Column("ar3d/top1", "Action recognition", "%", True)
MPJPE = Column("pe/mpjpe_mm", "Pose estimation, MPJPE", "mm", False)
P_MPJPE = Column("pe/p_mpjpe_mm", "Pose estimation, P-MPJPE", "mm", False)
FLOOR = Column("pe/floor_mm", "Quantisation floor", "mm", False)
EAP = tuple(
    Column(f"eap/top1@{share / 100:g}", f"Early prediction, {share} % seen", "%", True) for share in (20, 40, 60)
)
AR2D = (
    Column("ar2d/top1", "2D recognition, top-1", "%", True),
    Column("ar2d/top5", "2D recognition, top-5", "%", True),
)

ABLATION = (AR3D, MPJPE, *EAP)
"""As Tables 7, 8 and 9 have them."""
