"""The parts of `gpu.py`: each measures one thing in a process of its own and emits rows as it goes."""
