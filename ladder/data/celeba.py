"""CelebA at 64 x 64: aligned faces, cut and made smaller, that have to be fetched by hand.

Reference:
    Deep Learning Face Attributes in the Wild (Liu, Luo, Wang, Tang, 2015),
    https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ladder.data import folders
from ladder.data.images import resize
from ladder.data.places import cache, home
from ladder.data.rows import Data
from ladder.errors import UserError

NAME = "celeba64"
SIDE = 64
HEIGHT, WIDTH = 218, 178  # of an aligned face
TOP, LEFT, CUT = 40, 15, 148  # the square of it that is kept

FACES, LIST = "celeba/img_align_celeba", "celeba/list_eval_partition.txt"
# Numbers of the list's parts; 2 is CelebA's own test part.
TRAIN, VALIDATION = "0", "1"


def load(root: str | None) -> tuple[Data, Data]:
    """Read the faces, in the order of CelebA's own list; all are decoded at every start.

    Args:
        root: Folder with `celeba/img_align_celeba` and `celeba/list_eval_partition.txt`, as
            torchvision lays them out; None takes $LADDER_DATA, then the user's cache folder.

    Returns:
        Training images, and those of CelebA's validation part to test on, which published results
        are of; each uint8 [N, 3, 64, 64], resized bilinearly with antialiasing.

    Raises:
        UserError: If a file is not there, cannot be read, or is none of an aligned face.
    """
    for folder in (home(root), cache()):
        if (folder / FACES).is_dir() and (folder / LIST).is_file():
            train, test = folders.read(_parts(folder), _face)
            return train, test
    raise UserError(
        f"data: '{NAME}' is not in {home(root)} and cannot be downloaded by a program; fetch "
        "img_align_celeba.zip and list_eval_partition.txt from "
        f"https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and put them there as {FACES}/*.jpg "
        f"and {LIST}"
    )


def _parts(folder: Path) -> list[list[Path]]:
    """The files to train on and to test on."""
    parts: dict[str, list[Path]] = {TRAIN: [], VALIDATION: [], "2": []}
    there = {path.name for path in (folder / FACES).iterdir()}
    lines = (folder / LIST).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if len(words) != 2 or words[1] not in parts:
            raise UserError(
                f"data: {folder / LIST}, line {number} is {line[:40]!r}; it should be a file and "
                "its part, such as '000001.jpg 0'"
            )
        parts[words[1]].append(folder / FACES / words[0])
    wanted = [parts[TRAIN], parts[VALIDATION]]
    absent = [path for part in wanted for path in part if path.name not in there]
    if absent or not all(wanted):
        what = f"{absent[0].name} and {len(absent) - 1} more" if absent else "parts 0 and 1"
        raise UserError(
            f"data: {folder / LIST} and {folder / FACES} do not go together, {what} is missing; "
            "fetch both again"
        )
    return wanted


def _face(path: Path) -> Tensor:
    """One face, uint8 [3, 64, 64]."""
    image = folders.decode(path, channels=3)
    if image.shape[1:] != (HEIGHT, WIDTH):
        raise UserError(
            f"data: {path} is {image.shape[1]} x {image.shape[2]} (height x width), but aligned "
            f"faces are {HEIGHT} x {WIDTH}; fetch img_align_celeba.zip"
        )
    square = image[:, TOP : TOP + CUT, LEFT : LEFT + CUT]
    return resize(square[None], (SIDE, SIDE))[0]
