"""What `--storage` may name: a folder, a shared mount, or a bucket of an S3-compatible object store."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class S3Address:
    """A bucket and what all names in it begin with."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_address(storage: str) -> Path | S3Address:
    """The folder or bucket that an address names. Looks at no disk and asks nobody.

    Raises:
        ValueError: another kind of address, or one with a key in it; a key is never repeated.
    """
    if "://" not in storage:
        return Path(storage).expanduser().absolute()
    scheme, rest = storage.split("://", 1)
    if scheme == "file":
        return Path(unquote(urlsplit(storage).path))
    if scheme != "s3":
        raise ValueError(
            f"--storage {scheme}://...: {scheme}:// is not supported; give a folder, a shared mount, or "
            "s3://BUCKET/PREFIX for AWS and all stores that speak its language (set AWS_ENDPOINT_URL)"
        )
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ValueError(
            "--storage s3://...: keys don't belong in an address, which logs and other users see; give "
            "s3://BUCKET/PREFIX, and the keys as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in ~/.aws, or by the "
            "machine's role"
        )
    if not BUCKET.fullmatch(bucket):
        raise ValueError(f"--storage {storage}: {bucket!r} is no name of a bucket; give s3://BUCKET/PREFIX")
    parts = [part for part in prefix.split("/") if part]
    if any(part in (".", "..") for part in parts) or re.search(r"[?#\s]", prefix):
        raise ValueError(f"--storage {storage}: a prefix has plain names between slashes; give s3://BUCKET/PREFIX")
    return S3Address(bucket, "/".join(parts))
