"""Files of counts, which scores are read from."""

import pytest

from ktse_dist.errors import UserError
from ktse_dist.evaluation.counts import read_counts, write_counts


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" * 20])
def test_damaged_counts_are_one_line_that_tells_the_mend(tmp_path, content):
    (tmp_path / "val-00000.seeds.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"val-00000\.seeds\.npz: damaged; delete it"):
        read_counts(tmp_path / "val-00000.seeds.npz", "delete it")


def test_counts_without_an_array_or_that_are_gone_are_one_line(tmp_path):
    file = tmp_path / "val-00000.seeds.npz"
    with pytest.raises(UserError, match=r"seeds\.npz: not there; make them"):
        read_counts(file, "make them")
    write_counts(file, rows=[1])
    assert read_counts(file, "", ["rows"])["rows"].tolist() == [1]
    with pytest.raises(UserError, match=r"seeds\.npz: damaged, its scores are missing; make them"):
        read_counts(file, "make them", ["rows", "scores"])
