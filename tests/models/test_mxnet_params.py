"""The reader of mxnet's files, against files that the real mxnet wrote (fixtures/README.md) and damaged ones."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.errors import UserError
from ktse_dist.models.mxnet_params import read_params

FIXTURES = Path(__file__).parent / "fixtures"
LAYOUTS = ("legacy", "v1", "v2", "v3")
GOOD = {layout: (FIXTURES / f"{layout}.params").read_bytes() for layout in LAYOUTS}
ARRAYS = {
    "arg:conv1a_weight": ((4, 3, 3, 3), "float32"),
    "arg:res2a_branch2a_weight": ((2, 4, 3, 3), "float16"),
    "arg:bn7_gamma": ((8,), "float32"),
    "arg:bn7_beta": ((8,), "float64"),
    "aux:bn7_moving_mean": ((8,), "float32"),
    "aux:bn7_moving_var": ((8,), "float32"),
    "arg:linear1000_bias": ((5,), "int32"),
    "labels": ((5,), "uint8"),
}
NEWER = {"steps": ((3,), "int64"), "shift": ((3,), "int8")}
MORE = {"v2": NEWER, "v3": NEWER | {"scalar": ((), "float32")}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_real_mxnet_wrote_is_read(layout):
    expected = ARRAYS | MORE.get(layout, {})
    found = read_params(FIXTURES / f"{layout}.params")
    assert {name: (array.shape, array.dtype.name) for name, array in found.items()} == expected
    for name, array in found.items():
        numbers = [1.25] if name == "scalar" else np.arange(array.size) % 64 / 4
        np.testing.assert_array_equal(array.ravel(), np.asarray(numbers, array.dtype))


@pytest.mark.parametrize(("name", "reason"), [("sparse", "row_sparse"), ("unnamed", "1 arrays and 0 names")])
def test_what_no_weight_file_holds_is_refused(name, reason):
    with pytest.raises(UserError, match=reason):
        read_params(FIXTURES / f"{name}.params")


def numbers_of(found: dict[str, np.ndarray]) -> list[bytes]:
    return [array.tobytes() for array in found.values()]


def outcome(folder: Path, content: bytes) -> list[bytes] | None:
    """The arrays' bytes, None for a refusal in one line; and no more memory than a few times the file."""
    path = folder / "damaged.params"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        return numbers_of(read_params(path))
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200_000  # the files have 1,500 bytes; a file object's buffer is most of it


@given(layout=st.sampled_from(LAYOUTS), data=st.data())
def test_a_file_cut_short_is_refused(tmp_path_factory, layout, data):
    cut = data.draw(st.integers(0, len(GOOD[layout]) - 1))
    assert outcome(tmp_path_factory.getbasetemp(), GOOD[layout][:cut]) is None


@given(layout=st.sampled_from(LAYOUTS), place=st.integers(0, 1 << 20), flip=st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_changes_no_number_but_its_own(tmp_path_factory, layout, place, flip):
    """There is no checksum, so a flipped byte among the numbers is one wrong number, and everything else as it was."""
    content = bytearray(GOOD[layout])
    content[place % len(content)] ^= flip
    found = outcome(tmp_path_factory.getbasetemp(), bytes(content))
    if found is not None:
        good = numbers_of(read_params(FIXTURES / f"{layout}.params"))
        wrong = sum(a != b for x, y in zip(found, good, strict=True) for a, b in zip(x, y, strict=True))
        assert wrong <= 1


@given(content=st.binary(max_size=300), layout=st.sampled_from(LAYOUTS), place=st.integers(0, 1 << 20))
def test_anything_spliced_into_a_file_ends_in_arrays_or_one_line(tmp_path_factory, content, layout, place):
    at = place % len(GOOD[layout])
    outcome(tmp_path_factory.getbasetemp(), GOOD[layout][:at] + content + GOOD[layout][at + len(content) :])


def file_of(count=1, array=b"", names=1, name=b"a", length=None, magic=0x112, rest=b""):
    length = len(name) if length is None else length
    return struct.pack("<QQQ", magic, 0, count) + array + struct.pack("<QQ", names, length) + name + rest


def array_of(shape=(2,), dimensions=None, device=1, kind=0, storage=0, numbers=b"\0" * 8, magic=0xF993FAC9):
    dimensions = len(shape) if dimensions is None else dimensions
    head = struct.pack(f"<IiI{len(shape)}q", magic, storage, dimensions, *shape)
    return head + struct.pack("<iii", device, 0, kind) + numbers


ANOTHER = struct.pack("<Q", 1)  # the length of a second name
LIES = {
    "another magic": (file_of(magic=0x113, array=array_of()), "magic number"),
    "2**60 arrays": (file_of(count=1 << 60, array=array_of()), "claims 1,152,921,504,606,846,976 arrays"),
    "2**60 elements": (file_of(array=array_of(shape=(1 << 30, 1 << 30))), "would take 4,611,686,018,427,387,904 bytes"),
    "dimensions beyond 64 bits": (file_of(array=array_of(shape=(1 << 62,) * 8)), "would take"),
    "a negative dimension": (file_of(array=array_of(shape=(-2,))), r"shape \[-2\]; dimensions are at least 1"),
    "no element beside 2**62": (file_of(array=array_of(shape=(0, 1 << 62))), "dimensions are at least 1"),
    "2**31 dimensions": (file_of(array=array_of(dimensions=1 << 31)), "2,147,483,648 dimensions"),
    "no value": (file_of(array=array_of(shape=(), numbers=b"")), "0 dimensions"),
    "an unknown layout": (file_of(array=array_of(magic=0xF993FACB)), "unknown layout"),
    "sparse rows": (file_of(array=array_of(storage=1)), "row_sparse"),
    "an unknown storage": (file_of(array=array_of(storage=9)), r"unknown \(9\)"),
    "an unknown device": (file_of(array=array_of(device=7)), "device type 7"),
    "an unknown type": (file_of(array=array_of(kind=12)), "type number 12"),
    "fewer numbers than its shape": (file_of(array=array_of(shape=(200,))), "would take 800 bytes"),
    "more names than arrays": (file_of(array=array_of(), names=2, rest=ANOTHER + b"b"), "1 arrays and 2 names"),
    "2**60 names": (file_of(array=array_of(), names=1 << 60), "claims 1,152,921,504,606,846,976 names"),
    "a name of 2**60 bytes": (file_of(array=array_of(), length=1 << 60), "a name claims"),
    "a name longer than the file": (file_of(array=array_of(), length=100), "a name would take 100 bytes"),
    "a name that is no text": (file_of(array=array_of(), name=b"\xff"), "not UTF-8"),
    "something after its end": (file_of(array=array_of(), rest=b"\0"), "1 bytes follow"),
    "one name twice": (
        file_of(count=2, array=array_of() * 2, names=2, rest=ANOTHER + b"a"),
        "two arrays have the same name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_with_what_was_found(tmp_path, lie):
    content, reason = LIES[lie]
    path = tmp_path / "lie.params"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_params(path)


def test_the_lies_differ_from_a_good_file_by_the_lie_alone(tmp_path):
    (tmp_path / "good.params").write_bytes(file_of(array=array_of()))
    assert read_params(tmp_path / "good.params")["a"].tolist() == [0, 0]
