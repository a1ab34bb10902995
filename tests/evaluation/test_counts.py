"""Files of counts, which scores are read from."""

import pytest

from ktse_dist.errors import UserError
from ktse_dist.evaluation.counts import read_counts


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" * 20])
def test_damaged_counts_are_one_line_that_tells_the_mend(tmp_path, content):
    (tmp_path / "val-00000.seeds.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"val-00000\.seeds\.npz: damaged .*the same ktse command again"):
        read_counts(tmp_path / "val-00000.seeds.npz")
