"""An object store on the loopback interface, moto's, with faults on demand; and what tests of storages share."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from orchestrator.storage.backends.address import S3Address

SETTINGS = {
    "AWS_ACCESS_KEY_ID": "a-key-for-tests",
    "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


@dataclass
class Rule:
    """What happens to requests that match, instead of their effect."""

    pattern: str
    act: Callable[[], int | None]
    """Returns the status to answer with; None lets the request through."""


@dataclass
class StoreServer:
    """A WSGI application before moto's. Creation with If-None-Match is made indivisible, which moto's is not (it looks
    and then writes, in threads) and a real store's is."""

    app: Any
    url: str = ""
    requests: list[str] = field(default_factory=list)
    """"METHOD /bucket/key?query" of every request, in the order of their arrival."""
    rules: list[Rule] = field(default_factory=list)
    honours_conditions: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, environ: dict[str, Any], start_response: Callable) -> Any:
        line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        self.requests.append(line)
        for rule in list(self.rules):
            if re.search(rule.pattern, line) and (status := rule.act()) is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(f"{status} Refused", [("Content-Length", "0")])
                return [b""]
        if "HTTP_IF_NONE_MATCH" in environ and not self.honours_conditions:
            del environ["HTTP_IF_NONE_MATCH"]
        if environ["REQUEST_METHOD"] == "PUT":
            with self._lock:
                return list(self.app(environ, start_response))
        return self.app(environ, start_response)

    @contextmanager
    def refusing(self, pattern: str, status: int = 500) -> Iterator[None]:
        """Requests that match fail."""
        with self.acting(pattern, lambda: status):
            yield

    @contextmanager
    def acting(self, pattern: str, act: Callable[[], int | None]) -> Iterator[None]:
        """Requests that match have no effect but this."""
        rule = Rule(pattern, act)
        self.rules.append(rule)
        try:
            yield
        finally:
            self.rules.remove(rule)

    @contextmanager
    def holding(self, pattern: str) -> Iterator[threading.Event]:
        """Requests that match hang until the end of the block, and have no effect; the event says that one has come."""
        came, over = threading.Event(), threading.Event()

        def hang() -> int:
            came.set()
            over.wait(60)
            return 500

        try:
            with self.acting(pattern, hang):
                yield came
        finally:
            over.set()

    def new_bucket(self) -> str:
        """Its name."""
        import boto3

        name = f"bucket-{uuid4().hex[:12]}"
        boto3.client("s3").create_bucket(Bucket=name)
        return name

    def address(self) -> S3Address:
        """A prefix in a bucket of its own."""
        return S3Address(self.new_bucket(), "some/prefix")


@contextmanager
def store_server() -> Iterator[StoreServer]:
    """A server that processes started in the block find through their environment."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Silent(WSGIRequestHandler):
        def log_request(self, *args: Any) -> None:
            pass

    store = StoreServer(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=Silent)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    before = {name: os.environ.get(name) for name in (*SETTINGS, "AWS_ENDPOINT_URL", "AWS_PROFILE")}
    os.environ.pop("AWS_PROFILE", None)
    os.environ.update(SETTINGS | {"AWS_ENDPOINT_URL": store.url})
    try:
        yield store
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        server.shutdown()
        thread.join()
        server.server_close()
