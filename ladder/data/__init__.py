"""Data as tensors: sets by name, folders and arrays, and batches made where the data live."""

from __future__ import annotations

from ladder.data.batches import binarize, flipped, permutation, place, take
from ladder.data.rows import Data, Rows
from ladder.data.sets import Splits, load

__all__ = ["Data", "Rows", "Splits", "binarize", "flipped", "load", "permutation", "place", "take"]
