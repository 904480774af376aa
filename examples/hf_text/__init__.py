"""A small text classifier of Hugging Face's transformers, ablated by the orchestrator."""
