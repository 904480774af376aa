"""The project that trains UPS, on `ups_model`."""
