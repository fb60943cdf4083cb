"""Unfamiliar data told from a run's own: one table of every score for every set, and a figure."""

from ladder.detect.run import Found as Found
from ladder.detect.run import detect as detect
from ladder.detect.write import write_found as write_found
