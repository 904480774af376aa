"""From source files to clip sets, in processes; resumable."""
