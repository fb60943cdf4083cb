"""Training in plain functions: step, evaluate, checkpoint, resume."""

from ladder.train.loop import Summary as Summary
from ladder.train.loop import fit as fit
