"""Where records, checkpoints and studies are kept: a folder, a shared mount or an S3-compatible object store."""

from pathlib import Path

from orchestrator.storage.backends.address import S3Address, parse_address
from orchestrator.storage.backends.base import Claim, ClaimLost, Entry, Storage, Workspace
from orchestrator.storage.backends.local import FolderStorage

__all__ = ["Claim", "ClaimLost", "Entry", "S3Address", "Storage", "Workspace", "parse_address", "storage_at"]


def storage_at(storage: str) -> Storage:
    """The storage at an address; asks nobody yet. ValueError as of `parse_address`, and without boto3 for s3://."""
    place = parse_address(storage)
    if isinstance(place, Path):
        return FolderStorage(place)
    try:
        from orchestrator.storage.backends.s3 import S3Storage
    except ImportError as error:
        raise ValueError(
            f"--storage {place}: needs boto3, which is not installed ({error}); pip install 'ups-ablate[aws]'"
        ) from error
    return S3Storage(place)
