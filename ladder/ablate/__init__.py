"""Ablations: the same budget for every cell of a grid, then one table and one figure."""

from ladder.ablate.run import ablate as ablate
from ladder.ablate.table import Row as Row
from ladder.ablate.table import Spread as Spread
from ladder.ablate.table import Table as Table
