"""Motion capture in BVH files."""
