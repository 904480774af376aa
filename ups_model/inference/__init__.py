"""Stored weights, and pictures of what they predict."""
