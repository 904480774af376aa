"""Human3.6M as VideoPose3D packs it."""
