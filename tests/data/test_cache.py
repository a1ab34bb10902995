"""The cache of a node: bounded, shared, and whole whatever happens to the processes that fill it."""

import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktse_dist.data.cache import PART, Cache
from ktse_dist.data.index import Index
from ktse_dist.errors import UserError

FETCH = "import pickle, sys; index = pickle.load(sys.stdin.buffer); [index.remote.fetch(s) for s in index.shards[:%d]]"
SET, OTHER = "5" * 64, "0" * 64  # folders of two data sets


def fetching(index: Index, shards: int) -> subprocess.Popen:
    """Another process, which fetches the first shards of a remote data set."""
    process = subprocess.Popen([sys.executable, "-c", FETCH % shards], stdin=subprocess.PIPE)
    process.stdin.write(pickle.dumps(index))
    process.stdin.close()
    return process


def put(cache: Cache, name: str, size: int) -> Path:
    file = cache.folder / SET / name
    cache.obtain(file, size, lambda stream: stream.write(bytes(size))).close()
    return file


def total(folder: Path) -> int:
    """Bytes of all files, while others come and go."""
    sizes = []
    for file in folder.rglob("*"):
        try:
            sizes.append(file.stat().st_size if file.is_file() else 0)
        except FileNotFoundError:
            continue
    return sum(sizes)


def same(index: Index, folder: Path, shards: int) -> bool:
    names = [shard.name for shard in index.shards[:shards]]
    return all((index.path / name).read_bytes() == (folder / name).read_bytes() for name in names)


def test_processes_that_want_the_same_shard_fetch_it_once(small_shards, serve, open_remote):
    server = serve(small_shards, pause=0.2)
    index = open_remote(server.url)
    processes = [fetching(index, 2) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert [server.requests(shard.name) for shard in index.shards[:2]] == [1, 1]
    assert same(index, small_shards, 2)


def test_a_process_killed_while_it_fetches_leaves_no_shard_and_no_lock(small_shards, serve, open_remote):
    server = serve(small_shards, pause=1)
    index = open_remote(server.url)
    process = fetching(index, 1)
    while not server.requests(index.shards[0].name):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (index.path / index.shards[0].name).exists()
    index.remote.fetch(index.shards[0])
    assert same(index, small_shards, 1)
    assert not list(index.path.glob(f"*{PART}"))


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    wanted=st.lists(st.integers(0, 11), min_size=1, max_size=40),
)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_cache_never_outgrows_its_bound_and_keeps_what_was_used_last(tmp_path_factory, sizes, wanted):
    cache = Cache(tmp_path_factory.mktemp("cache"), 1000, 1)
    recent: list[int] = []
    for number in (n % len(sizes) for n in wanted):
        put(cache, f"{number}.tar", sizes[number])
        assert total(cache.folder) <= 1000
        recent = [number, *(n for n in recent if n != number)]
        kept = {int(file.stem) for file in cache.folder.glob(f"{SET}/*.tar")}
        fitting = next((k for k in range(len(recent)) if sum(sizes[n] for n in recent[: k + 1]) > 1000), len(recent))
        assert kept >= set(recent[:fitting])


def test_the_bound_holds_while_processes_fetch_side_by_side(small_shards, serve, open_remote):
    limit = total(small_shards) // 3
    index = open_remote(serve(small_shards, pause=0.05).url, gigabytes=limit / 1e9)
    processes = [fetching(index, len(index.shards)) for _ in range(2)]
    largest = 0
    while any(process.poll() is None for process in processes):
        largest = max(largest, total(index.path.parent))
        time.sleep(0.005)
    assert [process.wait() for process in processes] == [0, 0]
    assert 0 < largest <= limit


def test_a_file_that_is_open_stays_readable_when_it_makes_room(tmp_path):
    cache = Cache(tmp_path, 1000, 1)
    file = put(cache, "old.tar", 600)
    with cache.find(file) as stream:
        put(cache, "new.tar", 600)
        assert not file.exists()
        assert len(stream.read()) == 600


def test_a_part_of_a_dead_process_makes_room_and_that_of_a_living_one_does_not(tmp_path):
    cache = Cache(tmp_path, 1000, 0.3)
    entered, leave = threading.Event(), threading.Event()

    def slowly(stream):
        entered.set()
        leave.wait()
        stream.write(bytes(600))

    living = threading.Thread(target=lambda: cache.obtain(tmp_path / SET / "living.tar", 600, slowly).close())
    living.start()
    entered.wait()
    with pytest.raises(UserError, match=r"data\.cache\.gigabytes: .* too few for other\.tar"):
        put(cache, "other.tar", 600)
    leave.set()
    living.join()
    (tmp_path / SET / "living.tar").rename(tmp_path / SET / f"dead.tar{PART}")
    put(cache, "other.tar", 600)
    assert not list(tmp_path.glob(f"{SET}/*{PART}"))


def test_a_shard_larger_than_the_bound_is_the_users_to_mend(tmp_path):
    with pytest.raises(UserError, match=r"data\.cache\.gigabytes: 1e-06, too few for large\.tar"):
        put(Cache(tmp_path, 1000, 1), "large.tar", 1001)


def test_an_index_in_use_stays_when_shards_need_room(tmp_path):
    cache = Cache(tmp_path, 1000, 0.3)
    index = put(cache, "train.index", 500)
    for number in range(4):
        put(cache, f"{number}.tar", 400)
    assert index.exists()


def test_what_others_keep_beside_the_cache_neither_counts_nor_makes_room(tmp_path):
    for name in ("train-00000.tar", "train.index", "dataset.json"):
        (tmp_path / "voc").mkdir(exist_ok=True)
        (tmp_path / "voc" / name).write_bytes(bytes(900))
    cache = Cache(tmp_path, 1000, 1)
    for number in range(3):
        put(cache, f"{number}.tar", 600)
    assert len(list((tmp_path / "voc").iterdir())) == 3
    assert [file.name for file in (tmp_path / SET).glob("*.tar")] == ["2.tar"]


def test_a_file_of_another_owner_is_read_all_the_same(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    cache = Cache(tmp_path, 1000, 1)
    put(cache, "0.tar", 600)
    monkeypatch.setattr("os.utime", forbidden)
    with cache.find(tmp_path / SET / "0.tar") as stream:
        assert len(stream.read()) == 600


def test_indexes_of_other_data_sets_make_room(tmp_path):
    cache = Cache(tmp_path, 1000, 1)
    index = put(cache, "train.index", 500)
    cache.obtain(tmp_path / OTHER / "0.tar", 600, lambda stream: stream.write(bytes(600))).close()
    assert not index.exists()


def test_a_cache_folder_that_is_a_file_is_the_users_to_mend(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache\.folder"):
        put(Cache(tmp_path / "file", 1000, 1), "0.tar", 10)
