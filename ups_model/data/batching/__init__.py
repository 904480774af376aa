"""From a clip set to batches on the device."""
