"""Where records, checkpoints and studies are kept: a folder, a shared mount or an S3-compatible object store."""

from orchestrator.storage.backends.address import S3Address, parse_address
from orchestrator.storage.backends.base import Claim, ClaimLost, Entry, Storage, Workspace
from orchestrator.storage.backends.open import storage_at

__all__ = ["Claim", "ClaimLost", "Entry", "S3Address", "Storage", "Workspace", "parse_address", "storage_at"]
