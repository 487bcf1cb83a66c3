"""S3 for tests: moto's server on loopback, in a thread of the test's process."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyarrow import fs


class Buckets:
    """A server that can go away and come back with what it held."""

    def __init__(self) -> None:
        self._server = self._begin(port=0)
        self.host, self._port = self._server.get_host_and_port()

    def _begin(self, *, port: int) -> Any:
        from moto.server import ThreadedMotoServer  # half a second that other tests need not spend

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of each request
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        return server

    def url(self, path: str) -> str:
        """The URL of something in a bucket of this server."""
        return f"s3://{path}?endpoint_override={self.host}:{self._port}&scheme=http"

    def new(self) -> str:
        """The URL of a store in a new bucket."""
        bucket = f"bucket-{secrets.token_hex(4)}"
        filesystem, path = fs.FileSystem.from_uri(self.url(bucket) + "&allow_bucket_creation=true")
        filesystem.create_dir(path)
        return self.url(f"{bucket}/studies/store")

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nothing answers as long as the context lasts."""
        self._server.stop()
        try:
            yield
        finally:
            self._server = self._begin(port=self._port)

    @contextmanager
    def refusing_large_uploads(self) -> Iterator[None]:
        """As long as the context lasts, no upload of several parts may begin."""
        serving = self._server._server  # moto has no other way to it
        app = serving.app

        def refuse(environ: dict[str, Any], start_response: Any) -> Any:
            if environ["REQUEST_METHOD"] == "POST" and environ["QUERY_STRING"].startswith("uploads"):
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>told to refuse</Message></Error>"]
            return app(environ, start_response)

        serving.app = refuse
        try:
            yield
        finally:
            serving.app = app

    def stop(self) -> None:
        """End the server."""
        self._server.stop()


@pytest.fixture(scope="session")
def buckets() -> Iterator[Buckets]:
    """S3, the same server for all tests."""
    buckets = Buckets()
    yield buckets
    buckets.stop()
