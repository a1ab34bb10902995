"""The JSON stream: what the standard library reads at once, wherever the buffer happens to end."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.data.pack import json_stream
from ktse_dist.data.pack.json_stream import elements
from ktse_dist.errors import UserError

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("json") / "a.json"


def rebuilt(file) -> dict:
    found: dict = {}
    for element in elements(file, lambda characters: None):
        assert json.loads(element.text) == element.value
        if element.whole:
            found[element.key] = element.value
        else:
            found.setdefault(element.key, []).append(element.value)
    return found


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.sampled_from([None, 1]), st.integers(1, 40))
def test_elements_are_those_of_the_whole_file(file, value, indent, read):
    file.write_text(json.dumps(value, indent=indent, ensure_ascii=False), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "READ", read)
        assert rebuilt(file) == {key: each for key, each in value.items() if each != []}


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"a": [1, 2', '{"a": [1 2]}', '{"a" 1}', "{1: 2}", '{"a": [}', '{"a": tru}', "{" * 9]
)
def test_what_is_no_json_object_is_refused(file, text):
    file.write_text(text)
    with pytest.raises(UserError, match=r"a\.json: "):
        list(elements(file, lambda characters: None))


def test_a_single_value_without_an_end_is_not_read_into_memory(file, monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_ELEMENT", 1000)
    monkeypatch.setattr(json_stream, "READ", 100)
    file.write_text('{"annotations": [["' + "x" * 100_000)
    read = []
    with pytest.raises(UserError, match="at most 1,000 characters"):
        list(elements(file, read.append))
    assert sum(read) < 5000
