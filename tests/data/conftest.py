"""Real servers on loopback and a packed data set of many small shards, for the tests of remote data."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktse_dist.config.data import Data
from ktse_dist.data.index import Index
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.remote_set import locate

SERVER = Path(__file__).with_name("range_server.py")


class Server:
    """The folder's files over HTTP, from a process that may be stopped and started again at the same port."""

    def __init__(self, folder: Path, log: Path, pause: float = 0):
        self.folder, self.log, self.pause, self.port = folder, log, pause, 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(SERVER), str(self.folder), str(self.port), str(self.pause)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, name: str) -> int:
        """How many requests for the file it answered."""
        return sum(line.startswith(f"/{name} ") for line in self.log.read_text().splitlines())


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory) -> Path:
    """26 training pictures in about ten shards."""
    path = tmp_path_factory.mktemp("data") / "set"
    pack_stickers(path, train=26, val=2, workers=1, shard_bytes=60_000)
    return path


@pytest.fixture(scope="session")
def bucket(small_shards, s3) -> str:
    """The address of that data set on the S3 server of this test session."""
    s3.client.create_bucket(Bucket="pictures")
    for file in small_shards.iterdir():
        s3.client.upload_file(str(file), "pictures", f"packed/set/{file.name}")
    return "s3://pictures/packed/set"


@pytest.fixture
def serve(tmp_path) -> Iterator[Callable[..., Server]]:
    """`serve(folder, pause=0)`: a server process; it ends with the test."""
    servers: list[Server] = []

    def start(folder: Path, pause: float = 0) -> Server:
        servers.append(Server(folder, tmp_path / f"requests{len(servers)}", pause))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def remote_data(tmp_path) -> Callable[..., Data]:
    """`remote_data(url, gigabytes=1, ...)`: section data of a config, with a cache of this test's own."""

    def make(url: str, gigabytes: float = 1, deadline: float = 20, **more) -> Data:
        cache = {"folder": tmp_path / "cache", "gigabytes": gigabytes, "deadline": deadline}
        return Data(path=url, cache=cache, **({"crop": 64, "long_side": (64, 96)} | more))

    return make


@pytest.fixture
def open_remote(remote_data) -> Callable[..., Index]:
    """`open_remote(url, ...)`: the training split at an address; more as `remote_data` takes it."""

    def open_split(url: str, **more) -> Index:
        data = remote_data(url, **more)
        return Index.open(locate(data.path, data), "train")

    return open_split
