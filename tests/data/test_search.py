"""Files, folders and patterns become pictures with names of their own."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktse_dist.data.index import KEY
from ktse_dist.data.search import Found, _named, find_pictures
from ktse_dist.errors import UserError


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    for name in ("b.jpg", "a.png", "notes.txt", ".hidden.jpg", "sub/a.png", "sub/deep/c.JPG", ".git/d.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(found: list[Found]) -> list[str]:
    return [picture.name for picture in found]


def test_a_folder_means_its_own_pictures_by_name(tree):
    assert names(find_pictures(["photos"], recursive=False)) == ["a", "b"]


def test_recursive_means_those_below_too_named_by_their_folders(tree):
    assert names(find_pictures(["photos"], recursive=True)) == ["a", "b", "sub/a", "sub/deep/c"]


def test_a_quoted_pattern_means_what_the_shell_would_have_made_of_it(tree):
    assert names(find_pictures(["photos/*.jpg"], recursive=False)) == ["b"]
    assert len(find_pictures(["photos/**/*.png"], recursive=False)) == 2


def test_a_file_counts_whatever_its_ending_and_each_picture_once(tree):
    assert names(find_pictures(["photos/notes.txt", "photos/b.jpg", "photos"], recursive=False)) == ["a", "b", "notes"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree):
    for name in ("[x].jpg", "x.jpg"):
        (tree / name).touch()
    (found,) = find_pictures(["[x].jpg"], recursive=False)
    assert found.path.name == "[x].jpg"


def test_a_link_to_nothing_is_a_picture_that_cannot_be_read_later(tree):
    (tree / "link.jpg").symlink_to(tree / "gone.jpg")
    assert names(find_pictures(["*.jpg"], recursive=False)) == ["link"]


def test_a_pipe_which_would_be_waited_for_is_no_picture(tree):
    os.mkfifo(tree / "photos" / "pipe.jpg")
    assert names(find_pictures(["photos"], recursive=False)) == ["a", "b"]
    with pytest.raises(UserError, match=r"pipe\.jpg: a pipe or a device"):
        find_pictures(["photos/pipe.jpg"], recursive=False)


def test_an_argument_that_means_nothing_is_refused(tree):
    with pytest.raises(UserError, match=r"gone\.jpg: no such file"):
        find_pictures(["photos", "gone.jpg"], recursive=False)


@given(st.lists(st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=250), unique=True, max_size=12))
def test_names_are_keys_that_no_two_pictures_share(files):
    found = list(_named((Path("/photos", str(n), file), file) for n, file in enumerate(files)))
    assert all(KEY.fullmatch(picture.name) and len(picture.name) <= 210 for picture in found)
    assert len({picture.name.casefold() for picture in found}) == len(files)
