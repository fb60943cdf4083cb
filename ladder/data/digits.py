"""The bundled set: 1797 handwritten digits that need no download.

`digits.npz` was written once from scikit-learn's copy of the test file of "Optical Recognition of
Handwritten Digits" (Alpaydin and Kaynak 1998, CC BY 4.0, see `digits.LICENSE.txt`):

    digits = sklearn.datasets.load_digits()
    numpy.savez_compressed(
        "digits.npz",
        images=digits.images.astype("uint8"),  # [1797, 8, 8], values 0 to 16
        labels=digits.target.astype("uint8"),  # [1797], values 0 to 9
    )

References:
    Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998),
    https://doi.org/10.24432/C50P49
"""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

TRAIN = 1497
BRIGHTEST = 16


def load() -> tuple[Tensor, Tensor]:
    """Read the digits.

    Returns:
        The first 1497 for training and the last 300 for testing, each uint8 [N, 1, 8, 8] with
        the values 0 to 16 stretched to 0 to 255.
    """
    with files(__package__).joinpath("digits.npz").open("rb") as file:
        counts = torch.from_numpy(np.load(file, allow_pickle=False)["images"])
    grey = (counts * (255 / BRIGHTEST)).round().to(torch.uint8).unsqueeze(1)
    return grey[:TRAIN], grey[TRAIN:]
