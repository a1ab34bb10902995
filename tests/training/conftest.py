"""Storage that fails: an S3 server on loopback that goes away and comes back, a disk that is full."""

import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Bucket:
    """`url`: a folder of this test's own on the server."""

    def __init__(self, s3) -> None:
        self.start, self.stop, self.client = s3.start, s3.stop, s3.client
        self.folder = uuid.uuid4().hex
        self.url = f"s3://runs/{self.folder}"
        self.client.create_bucket(Bucket="runs")

    @property
    def names(self) -> list[str]:
        """All files below `url`."""
        found = self.client.list_objects_v2(Bucket="runs", Prefix=f"{self.folder}/").get("Contents", [])
        return sorted(file["Key"].removeprefix(f"{self.folder}/") for file in found)


@pytest.fixture
def bucket(s3) -> Bucket:
    return Bucket(s3)


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
