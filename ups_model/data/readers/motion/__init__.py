"""3D motion of the user's own."""
