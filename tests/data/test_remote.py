"""Remote data sets: what a real server's files become, and what of a bad server is refused."""

import hashlib
import shutil
import signal
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from ktse_dist.config.data import Data
from ktse_dist.config_file import load_config
from ktse_dist.data.index import Index
from ktse_dist.data.reader import Reader
from ktse_dist.data.remote import Remote, reason
from ktse_dist.data.remote_set import RANGED_OF_SHARD, locate
from ktse_dist.errors import UserError


def members(index: Index) -> list[bytes]:
    reader = Reader(index)
    return [reader.read(row, name) for row in range(len(index)) for name in ("image", "json", "mask")]


@pytest.fixture
def copy(small_shards, tmp_path) -> Path:
    """The data set's files, to be damaged."""
    return shutil.copytree(small_shards, tmp_path / "copy")


def test_a_data_set_over_http_has_the_members_of_the_local_one(small_shards, serve, open_remote):
    local = Index.open(small_shards, "train")
    remote = open_remote(serve(small_shards).url)
    assert members(remote) == members(local)
    assert remote.sha256 == local.sha256


def test_a_data_set_on_s3_has_the_members_of_the_local_one(small_shards, bucket, open_remote):
    index = open_remote(bucket)
    index.remote.fetch(index.shards[-1])
    assert members(index) == members(Index.open(small_shards, "train"))


def test_a_data_set_that_is_not_on_s3_is_named(bucket, open_remote):
    with pytest.raises(UserError, match=r"s3://pictures/other/dataset\.json: not there"):
        open_remote("s3://pictures/other")
    with pytest.raises(UserError, match=r"s3://nobodys/set/dataset\.json: not there"):
        open_remote("s3://nobodys/set")


def test_a_shard_with_other_bytes_on_s3_is_refused_by_name(small_shards, bucket, open_remote):
    index = open_remote(bucket)
    lying = index.shards[0]._replace(sha256="0" * 64)
    with pytest.raises(UserError, match=r"s3://.*/train-00000\.tar: sha256"):
        index.remote.fetch(lying)


def test_who_made_the_pictures_is_known_of_a_remote_set_too(copy, serve, open_remote):
    text = "ram: Twemoji, CC-BY-4.0"
    (copy / "ATTRIBUTION.md").write_text(text)
    assert open_remote(serve(copy).url).attribution() == text


def test_who_made_the_pictures_is_known_of_a_set_on_s3_too(bucket, open_remote):
    assert open_remote(bucket).attribution().startswith("# Attribution")


def test_a_remote_set_need_not_say_who_made_the_pictures(copy, serve, open_remote):
    (copy / "ATTRIBUTION.md").unlink()
    assert open_remote(serve(copy).url).attribution() is None


def test_what_was_fetched_is_not_fetched_again(small_shards, serve, open_remote):
    server = serve(small_shards)
    index = open_remote(server.url)
    for shard in index.shards:
        index.remote.fetch(shard)
    fetched = server.requests("train-00000.tar")
    members(open_remote(server.url))
    assert server.requests("train-00000.tar") == fetched == 1
    assert server.requests("train.index") == 1


def test_a_pinned_data_set_in_the_cache_needs_no_server(small_shards, serve, open_remote):
    sha256 = hashlib.sha256((small_shards / "dataset.json").read_bytes()).hexdigest()
    server = serve(small_shards)
    before = members(open_remote(server.url, sha256=sha256))
    server.stop()
    assert members(open_remote(server.url, sha256=sha256)) == before


def test_another_dataset_json_than_the_pinned_one_is_refused(small_shards, serve, open_remote):
    with pytest.raises(UserError, match=r"dataset\.json: its sha256 is [0-9a-f]{64}, data\.sha256 allows 0{64} alone"):
        open_remote(serve(small_shards).url, sha256="0" * 64)


def test_a_pinned_data_set_never_hands_out_bytes_that_no_sha256_covers(small_shards, serve, open_remote):
    sha256 = hashlib.sha256((small_shards / "dataset.json").read_bytes()).hexdigest()
    server = serve(small_shards)
    index = open_remote(server.url, sha256=sha256)
    Reader(index).read(0, "image")
    assert (index.path / index.shards[0].name).exists()


def test_a_shard_with_other_bytes_is_refused_by_name(copy, serve, open_remote):
    shard = copy / "train-00001.tar"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    index = open_remote(serve(copy).url)
    with pytest.raises(UserError, match=r"/train-00001\.tar: sha256 .* dataset\.json names"):
        index.remote.fetch(index.shards[1])
    assert not list(index.path.glob("train-00001.tar*"))


def test_a_shard_without_a_byte_is_told_to_be_cut_short(copy, serve, open_remote):
    (copy / "train-00000.tar").write_bytes(b"")
    index = open_remote(serve(copy).url)
    with pytest.raises(UserError, match=r"/train-00000\.tar: [^\n]*; the copy there is cut short"):
        index.remote.fetch(index.shards[0])


@pytest.mark.parametrize("change", [lambda content: content[:-1000], lambda content: b"X" + content[1:]])
def test_an_index_with_other_bytes_is_refused_by_name(copy, serve, open_remote, change):
    file = copy / "train.index"
    content = change(file.read_bytes())
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"/train\.index: sha256 .* dataset\.json names"):
        open_remote(serve(copy).url)


def test_a_file_that_is_not_there_is_named(copy, serve, open_remote):
    server = serve(copy)
    (copy / "train.index").unlink()
    with pytest.raises(UserError, match=r"/train\.index: not there"):
        open_remote(server.url)
    with pytest.raises(UserError, match=r"/empty/dataset\.json: not there"):
        open_remote(f"{server.url}/empty")


def test_the_first_members_come_by_themselves_before_their_shard(small_shards, serve, open_remote):
    index = open_remote(serve(small_shards).url)
    reader, local = Reader(index), Reader(Index.open(small_shards, "train"))
    assert reader.read(0, "image") == local.read(0, "image")
    assert not (index.path / index.shards[0].name).exists()
    for _ in range(RANGED_OF_SHARD):
        reader.read(0, "image")
    assert (index.path / index.shards[0].name).exists()


def test_a_member_damaged_on_the_way_is_read_from_its_whole_shard(small_shards, serve, open_remote):
    index = open_remote(serve(small_shards).url)
    shard, record = index.shards[0], index.samples["image"][0]
    offset, size, crc = (int(n) for n in record)
    assert index.remote.read(shard, offset, size, crc ^ 1) == Reader(index).read(0, "image")
    assert (index.path / shard.name).exists()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "https://127.0.0.1:1/", "ftp://127.0.0.1/"])
def test_a_redirect_to_another_scheme_is_refused(tmp_path, serve, open_remote, target):
    server = serve(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.json: "):
        open_remote(f"{server.url}/elsewhere/{quote(target, safe='')}")
    assert server.log.read_text().count("\n") == 1  # refused, not tried again


def test_a_redirect_within_the_scheme_is_followed(small_shards, serve):
    server = serve(small_shards)
    target = quote(f"{server.url}/train.index", safe="")
    found = Remote(f"{server.url}/elsewhere/{target}", 5).read("x", 0, 8)
    assert found == b"KTSEIDX1"


def test_a_server_that_sends_more_than_was_asked_for_is_refused(small_shards):
    import http.server
    from functools import partial

    class Plain(http.server.SimpleHTTPRequestHandler):  # knows no ranges: sends whole files
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Plain, directory=str(small_shards))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = Remote(f"http://127.0.0.1:{server.server_port}", 5)
        whole = (small_shards / "dataset.json").read_bytes()
        assert remote.read("dataset.json", 0, 1 << 20) == whole  # as long as a range that may be shorter
        with pytest.raises(UserError, match=r"ignores ranges.*serve it with one that knows them"):
            remote.read("dataset.json", 0, 10)
        with pytest.raises(UserError, match=r"ignores ranges.*serve it with one that knows them"):
            remote.read("dataset.json", 10, 1 << 20)
        server.shutdown()


def test_a_run_goes_on_after_the_server_was_away(small_shards, serve, open_remote):
    server = serve(small_shards)
    index = open_remote(server.url, deadline=60)
    server.stop()
    back = threading.Timer(2, server.start)
    back.start()
    index.remote.fetch(index.shards[0])
    back.join()
    assert (index.path / index.shards[0].name).read_bytes() == (small_shards / index.shards[0].name).read_bytes()


def test_a_server_killed_in_mid_shard_and_started_again_loses_nothing(small_shards, serve, open_remote):
    server = serve(small_shards, pause=1)  # each answer waits in its middle
    index = open_remote(server.url, deadline=60)
    fetching = threading.Thread(target=index.remote.fetch, args=[index.shards[0]])
    fetching.start()
    while not server.requests(index.shards[0].name):
        time.sleep(0.01)
    server.stop()
    server.start()
    fetching.join()
    assert (index.path / index.shards[0].name).read_bytes() == (small_shards / index.shards[0].name).read_bytes()


def test_a_server_that_stays_away_is_one_clear_error(small_shards, serve, open_remote):
    server = serve(small_shards)
    index = open_remote(server.url, deadline=1)
    server.stop()
    with pytest.raises(UserError, match=r"train-00000\.tar: no answer for 1 s .*data\.cache\.deadline"):
        index.remote.fetch(index.shards[0])


def test_a_server_that_hangs_is_one_clear_error(small_shards, serve, open_remote):
    server = serve(small_shards)
    index = open_remote(server.url, deadline=1)
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=r"train-00000\.tar: no answer for 1 s"):
        index.remote.fetch(index.shards[0])


def test_an_s3_server_that_stays_away_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(UserError, match=r"s3://bucket/set/dataset\.json: no answer for 0.5 s"):
        Remote("s3://bucket/set", 0.5).read("dataset.json", 0, 10)


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/set",
        "file:///etc",
        "simplecache::s3://bucket/set",
        "s3://bucket/set::file:///etc",
        "https://user:password@host/set",
        "https://host/set?token=1",
        "memory://set",
    ],
)
def test_other_addresses_are_refused_in_one_line(address):
    with pytest.raises(UserError, match=r"^data\.path is .*; allowed are a folder, and s3://") as refused:
        load_config(None, [f"data.path={address}"])
    assert "password@" not in str(refused.value) and "token" not in str(refused.value)


def test_a_folder_with_a_pin_is_told_how_folders_are_checked():
    with pytest.raises(UserError, match=r"^data\.sha256 pins a data set at an address.*ktse inspect --verify"):
        load_config(None, ["data.path=set", f"data.sha256={'a' * 64}"])


def test_what_an_error_says_of_an_address_holds_no_password_and_no_query():
    told = reason(OSError("403, url='https://me:hunter2@host/set/a.tar?X-Signature=abc' (see s3://bucket/x#y)"))
    assert told == "403, url='https://host/set/a.tar' (see s3://bucket/x"


def test_who_made_the_pictures_is_known_without_the_server_too(small_shards, serve, open_remote):
    server = serve(small_shards)
    index = open_remote(server.url)
    server.stop()
    assert index.attribution() is not None


def test_a_missing_package_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    data = Data(path="gs://bucket/set", cache={"folder": tmp_path})
    with pytest.raises(UserError, match=r"gs:// needs gcsfs.*pip install 'ktse_dist\[gs\]'"):
        locate(data.path, data)
