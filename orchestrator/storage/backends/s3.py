"""A bucket of an S3-compatible object store. The only file that uses boto3.

Credentials and the endpoint come from boto3's own chain (environment, ~/.aws, the machine's role; AWS_ENDPOINT_URL). A
request that fails is repeated by boto3; what fails for good is an OSError. Correctness rests on two things alone, which
`check` proves: a content that was written is read by its name at once, and of two requests that create a name with
`If-None-Match: *` one is refused.

Why not obstore: leases compare times by the store's clock (header Date), and `leftovers` lists unfinished uploads in
parts; obstore 0.12 returns neither.
"""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import copy
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from urllib3.exceptions import HTTPError  # botocore lets one through where an answer breaks off in the middle.

from orchestrator.storage.backends.address import S3Address
from orchestrator.storage.backends.base import Claim, Entry, Removal, Storage, Workspace
from orchestrator.storage.backends.lease import LeaseTimes, is_leased, lease, owner_of
from orchestrator.storage.backends.workspace import RemoteWorkspace, delete_checkpoint, download_all, scratch

logger = logging.getLogger(__name__)

PARALLEL = 32
TRIES = 5
ABSENT = ("404", "NoSuchKey", "NotFound")
TAKEN, CONFLICT = ("412", "PreconditionFailed"), ("409", "ConditionalRequestConflict")
TRANSFER = TransferConfig(multipart_threshold=64 * 2**20, multipart_chunksize=32 * 2**20, max_concurrency=4)


class S3Storage(Storage):
    """See `Storage`, whose methods these are. Contents are objects; units are trained in a scratch folder of the
    machine and claimed by leases."""

    parallel = PARALLEL

    def __init__(self, address: S3Address, times: LeaseTimes | None = None) -> None:
        self.address = str(address)
        self.bucket, self._prefix = address.bucket, f"{address.prefix}/" if address.prefix else ""
        self.times = times or LeaseTimes()
        self._client = _client(read_timeout=60, tries=TRIES)

    def key(self, name: str) -> str:
        """The object's key of a name."""
        return self._prefix + name

    def check(self, create: bool) -> None:
        try:
            if not create:
                self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.key("units/"), MaxKeys=1)
                return
            self._probe()
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise ValueError(
                f"--storage {self.address}: no credentials ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "or AWS_PROFILE, or give the machine a role"
            ) from error
        except ClientError as error:
            raise ValueError(f"--storage {self.address}: {_refusal(error, self.bucket)}") from error
        except (BotoCoreError, HTTPError, OSError) as error:
            raise ValueError(
                f"--storage {self.address}: can't be reached ({error}); see AWS_ENDPOINT_URL and AWS_REGION"
            ) from error

    def _probe(self) -> None:
        """Create, create again, read, delete. Raises what boto3 raises, or ValueError."""
        where = {"Bucket": self.bucket, "Key": self.key(f"units/.probe-{uuid.uuid4().hex}")}
        self._client.put_object(**where, Body=b"probe", IfNoneMatch="*")
        try:
            try:
                self._client.put_object(**where, Body=b"again", IfNoneMatch="*")
            except ClientError as error:
                if _code(error) not in TAKEN:
                    raise
            else:
                raise ValueError(
                    f"--storage {self.address}: this store does not honour If-None-Match, so that two processes could "
                    "train one unit; give a store that does (AWS S3, MinIO, Ceph, R2), a folder or a shared mount"
                )
            if self._client.get_object(**where)["Body"].read() != b"probe":
                raise ValueError(f"--storage {self.address}: gives back something else than what was written")
            self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.key("units/"), MaxKeys=1)
        finally:
            self._client.delete_object(**where)
        # Without the permission to list, a name that isn't there is "forbidden" and not "absent".
        if self.look(where["Key"].removeprefix(self._prefix)) is not None:
            raise ValueError(f"--storage {self.address}: still shows an object that was deleted; give another store")

    def read(self, name: str) -> bytes:
        return self.read_with_age(name)[0]

    def read_with_age(self, name: str) -> tuple[bytes, float]:
        """A content, and the seconds since it was written, by the store's clock."""
        with self._translated(name):
            answer = self._client.get_object(Bucket=self.bucket, Key=self.key(name))
            return answer["Body"].read(), _age(answer, answer["LastModified"])

    def write(self, name: str, content: bytes) -> None:
        """With the short timeout: a write must not land after the lease has run out."""
        with self._translated(name):
            self._quick._client.put_object(Bucket=self.bucket, Key=self.key(name), Body=content)

    def create(self, name: str, content: bytes) -> bool:
        """Write a content if there is none; False if there is. The content must be unique to this writer."""
        for _ in range(TRIES):
            try:
                with self._translated(name):
                    self._client.put_object(Bucket=self.bucket, Key=self.key(name), Body=content, IfNoneMatch="*")
                return True
            except _Refused as error:
                if error.code in CONFLICT:
                    continue
                # The response to a first request may have been lost and boto3 has retried: then the object is ours.
                with suppress(FileNotFoundError):
                    return self.read(name) == content
        raise OSError(f"{self.where(name)}: other processes keep writing it")

    def delete(self, name: str) -> None:
        with self._translated(name):
            self._client.delete_object(Bucket=self.bucket, Key=self.key(name))

    def remove(self, place: str) -> None:
        delete_checkpoint(self, place)

    def look(self, name: str) -> Entry | None:
        with suppress(FileNotFoundError), self._translated(name):
            answer = self._client.head_object(Bucket=self.bucket, Key=self.key(name))
            return Entry(name, answer["ContentLength"], _age(answer, answer["LastModified"]), answer["ETag"])
        return None

    def entries(self, place: str) -> Iterator[Entry]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._translated(place):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._below(place)):
                for item in page.get("Contents", ()):
                    name = item["Key"].removeprefix(self._prefix)
                    yield Entry(name, item["Size"], _age(page, item["LastModified"]), item["ETag"])

    def children(self, place: str) -> list[str]:
        below, pages, names = self._below(place), self._client.get_paginator("list_objects_v2"), []
        with self._translated(place):
            for page in pages.paginate(Bucket=self.bucket, Prefix=below, Delimiter="/"):
                names += [one["Prefix"].removeprefix(below).rstrip("/") for one in page.get("CommonPrefixes", ())]
        return sorted(names)

    def _below(self, place: str) -> str:
        return self.key(f"{place}/") if place else self._prefix

    def fetch(self, name: str, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._translated(name):
            # Under a temporary name until it is whole, as boto3 does it.
            self._client.download_file(self.bucket, self.key(name), str(file), Config=TRANSFER)

    def upload(self, file: Path, name: str, going_on: Callable[[], None] = lambda: None) -> None:
        with self._translated(name):
            self._client.upload_file(
                str(file), self.bucket, self.key(name), Config=TRANSFER, Callback=lambda sent: going_on()
            )

    def claim(self, place: str) -> AbstractContextManager[Claim]:
        return lease(self._quick, place, self.times)

    def claimed(self, place: str) -> bool:
        return is_leased(self, place, self.times)

    def owner(self, place: str) -> dict[str, Any]:
        try:
            return owner_of(self, place)
        except OSError:
            return {}

    def workspace(self, place: str, claim: Claim) -> AbstractContextManager[Workspace]:
        return RemoteWorkspace.opened(self, place, claim)

    @contextmanager
    def local(self, place: str) -> Iterator[Path]:
        with scratch(self.address) as folder:
            download_all(self, place, [entry.name for entry in self.entries(place)], folder / place)
            yield folder / place

    def leftovers(self, place: str) -> Iterator[Removal]:
        """Uploads in parts that never ended are stored, and paid for, without being listed."""
        pages = self._client.get_paginator("list_multipart_uploads")
        with self._translated(place):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._below(place)):
                for upload in page.get("Uploads", ()):
                    where = {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    parts = self._client.get_paginator("list_parts").paginate(**where)
                    size = sum(part["Size"] for some in parts for part in some.get("Parts", ()))
                    name = upload["Key"].removeprefix(self._prefix)
                    age = _age(page, upload["Initiated"])
                    yield Removal(name, size, age, partial(self._abort, where))
        for entry in self.entries(place):
            if entry.name.rsplit("/", 1)[-1].startswith(".probe-"):
                yield Removal(entry.name, entry.size, entry.age, partial(self.delete, entry.name))

    def _abort(self, where: dict[str, str]) -> None:
        with self._translated(where["Key"]), suppress(FileNotFoundError):
            self._client.abort_multipart_upload(**where)

    @cached_property
    def _quick(self) -> "S3Storage":
        """The same with short timeouts, for writes: with all tries one has to end before its lease may."""
        quick = copy(self)
        quick._client = _client(read_timeout=max(3, round(self.times.beat / 3)), tries=3)
        quick._quick = quick
        return quick

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Raise errors of boto3 as OSErrors."""
        try:
            yield
        except ClientError as error:
            code = _code(error)
            if code in ABSENT:
                raise FileNotFoundError(f"{self.where(name)}: there is no such object") from error
            if code in TAKEN or code in CONFLICT:
                raise _Refused(f"{self.where(name)}: {code}", code) from error
            raise OSError(f"{self.where(name)}: {_refusal(error, self.bucket)}") from error
        except (BotoCoreError, Boto3Error, HTTPError) as error:
            raise OSError(f"{self.where(name)}: {error}") from error


class _Refused(OSError):
    """A condition of a request did not hold."""

    def __init__(self, text: str, code: str) -> None:
        super().__init__(text)
        self.code = code


def _client(read_timeout: float, tries: int) -> Any:
    """A client with a session of its own: threads may share a client, not a session."""
    for library in ("boto3", "botocore", "s3transfer"):  # At INFO they log where each client has its keys from.
        if logging.getLogger(library).level == logging.NOTSET:
            logging.getLogger(library).setLevel(logging.WARNING)
    session = boto3.session.Session()
    settings: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": tries},
        "connect_timeout": min(5, read_timeout),
        "read_timeout": read_timeout,
        "max_pool_connections": PARALLEL + TRANSFER.max_concurrency,
    }
    made = session.client("s3", config=Config(**settings))
    if not (urlsplit(made.meta.endpoint_url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn")):
        # Other stores seldom serve BUCKET.HOST, and some reject checksum trailers.
        settings["s3"] = {"addressing_style": "path"}
        if "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ:
            settings["request_checksum_calculation"] = "when_required"
        made = session.client("s3", config=Config(**settings))
    return made


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _refusal(error: ClientError, bucket: str) -> str:
    """The store's error, with the way out."""
    code, text = _code(error), error.response.get("Error", {}).get("Message", "")
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket}; make it first, e.g. aws s3 mb s3://{bucket}"
    if code in ("AccessDenied", "403", "AllAccessDisabled"):
        return (
            f"no permission ({text or code} at {error.operation_name}); s3:GetObject, s3:PutObject, s3:DeleteObject, "
            "s3:ListBucket, s3:AbortMultipartUpload and s3:ListBucketMultipartUploads are needed"
        )
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return f"the credentials are not accepted ({code}); see AWS_ACCESS_KEY_ID, AWS_PROFILE or ~/.aws"
    if code in ("NotImplemented", "501"):
        return f"this store does not honour If-None-Match ({code}); give one that does, a folder or a shared mount"
    return f"{code}: {text} (at {error.operation_name})"


def _age(answer: dict[str, Any], written: datetime) -> float:
    """By the store's own clock: this machine's may be wrong by any amount."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if date is None:
        raise OSError("the store sends no header Date, without which the age of a lease is unknown")
    return max(0.0, (parsedate_to_datetime(date) - written).total_seconds())
