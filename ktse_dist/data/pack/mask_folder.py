"""Masks that lie in a folder of their own, each at its picture's path."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ktse_dist.data.pack.source import MaskFile
from ktse_dist.data.pack.tree import LINKED, check_file, entries_below, kind_of
from ktse_dist.errors import UserError


class MaskFolder:
    """PNG files below `root`, found by the paths of their pictures whatever the ending's case.

    The folder is read once. UserError for links that lead out of it or to folders, and for two masks of one name.
    """

    def __init__(self, root: Path):
        self.root = root
        self._files: dict[str, Path] = {}
        self._others: list[Path] = []
        for entry in entries_below(root):
            path, kind = Path(entry.path), kind_of(entry)
            if kind == LINKED:
                raise UserError(f"{path}: a link to a folder, which is not followed; put the folder itself there")
            if kind != ".png":
                self._others.append(path)
                continue
            check_file(entry, root)
            other = self._files.setdefault(_plain(path.relative_to(root).as_posix()), path)
            if other != path:
                raise UserError(f"{path}: has the name of {other}; remove one of the two masks")

    def count(self, pictures: Sequence[str]) -> int:
        """How many of the pictures have a mask."""
        return sum(_plain(name) in self._files for name in pictures)

    def of(self, picture: str) -> MaskFile | None:
        """The mask as it is now; None for a picture that had none when the folder was read."""
        path = self._files.get(_plain(picture))
        if path is None:
            return None
        try:
            return MaskFile.at(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); run the same command again") from None

    def check(self, pictures: Sequence[str], every: bool) -> None:
        """UserError where no picture has a mask, two share one, or, with `every`, a file is no picture's mask."""
        owners: dict[str, str] = {}
        for name in pictures:
            plain = _plain(name)
            other = owners.setdefault(plain, name)
            if other != name and plain in self._files:
                raise UserError(f"{self._files[plain]}: is the mask of both {other} and {name}; rename one of them")
        if not self.count(pictures):
            wanted = self.root / f"{_plain(pictures[0])}.png"
            raise UserError(f"--masks {self.root}: no mask of any picture; the first one's should be {wanted}")
        strays = [*self._others, *(path for plain, path in self._files.items() if plain not in owners)]
        if every and strays:
            raise UserError(
                f"{min(strays)}: a mask without a picture, or no PNG; give it the picture's path and name, or remove it"
            )


def _plain(name: str) -> str:
    """The path without its ending."""
    return PurePosixPath(name).with_suffix("").as_posix()
