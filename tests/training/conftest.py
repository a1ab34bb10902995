"""Storage that fails: an S3 server on loopback that goes away and comes back, a disk that is full."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest


class Bucket:
    """`url`: a folder of this test's own in it."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)  # its content is this process's
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def client(self):
        return boto3.client("s3")

    @property
    def names(self) -> list[str]:
        """All files below `url`."""
        found = self.client.list_objects_v2(Bucket="runs", Prefix=f"{self.folder}/").get("Contents", [])
        return sorted(file["Key"].removeprefix(f"{self.folder}/") for file in found)

    def new_folder(self) -> None:
        self.folder = uuid.uuid4().hex
        self.url = f"s3://runs/{self.folder}"


@pytest.fixture(scope="session")
def server() -> Iterator[Bucket]:
    bucket = Bucket()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket.port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket.client.create_bucket(Bucket="runs")
        yield bucket
    bucket.stop()


@pytest.fixture
def bucket(server) -> Bucket:
    server.new_folder()
    return server


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """`disk("45m")`: a file system of that size; called again it has another one."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size},remount" if place.is_mount() else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting needs root")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)
