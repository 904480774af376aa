"""2D keypoints of the user's own."""
