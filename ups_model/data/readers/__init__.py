"""One folder a file format."""
