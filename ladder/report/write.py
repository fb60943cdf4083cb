"""From a run directory to its pictures and its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from ladder.config import Config, ModelConfig
from ladder.data import Splits, load, take
from ladder.errors import UserError
from ladder.files import write_atomic
from ladder.model import HierarchicalVAE
from ladder.noise import seeded
from ladder.parse import to_yaml
from ladder.pretrained import from_pretrained, pointed
from ladder.report import curves, pictures
from ladder.report.history import Record
from ladder.report.page import Picture, page
from ladder.report.sheet import drawable, sheet_png
from ladder.report.summary import environment_rows, summary
from ladder.train.run import METRICS, read_config, read_metrics

SAMPLES, PAGE = "samples", "report.html"


def write_report(run: Path, seed: int = 0) -> list[Path]:
    """Draw the pictures of a run's last checkpoint and write its page.

    Args:
        run: A run directory.
        seed: Seed of all draws.

    Returns:
        The PNGs under `samples/`, then `report.html`.

    Raises:
        UserError: If there is no run, no checkpoint or no data, or the folder is not writable.
    """
    run = Path(run)
    config = read_config(run)
    checkpoint = pointed(run / "checkpoints", "last")
    if checkpoint is None:
        raise UserError(f"{run}: has no checkpoint yet; go on with --resume {run}")
    data = load(config.data, config.model.shape, config.train.seed)
    records = read_metrics(run)
    # Building a model draws weights, and priors draw even at temperature 0: give the noise back.
    with seeded(seed):
        model = from_pretrained(checkpoint)
        drawn = [*_curves(records), *_sheets(model, data, seed)]
    rows = summary(config, model, checkpoint.name, data, records) | environment_rows(run)
    title = run.resolve().name
    html = page(title, rows, to_yaml(config), drawn, _notes(config, records))
    return _write(run, drawn, html)


def _curves(records: Sequence[Record]) -> Iterator[Picture]:
    if not curves.has_curves(records):
        return
    yield Picture(
        "curves.png",
        curves.objective_png(records),
        "What is optimised and its reconstruction term, as means over the training data of an "
        "epoch or a window, and the same on held-out data.",
    )
    yield Picture(
        "kl.png",
        curves.kl_png(records),
        "What each layer tells about x beyond the layers above it; a layer at 0 is collapsed.",
    )


def _sheets(model: HierarchicalVAE, data: Splits, seed: int) -> Iterator[Picture]:
    if not drawable(data.test.shape[1:]):
        return
    rows = torch.arange(min(len(data.test), pictures.COLUMNS))
    test = take(data.test, rows, next(model.parameters()).device)
    yield Picture(
        "generation.png",
        sheet_png(pictures.generation(model, seed)),
        "Down a column the top latent stays the same: the first row is what it fixes, the others "
        "what the levels below add.",
    )
    yield Picture(
        "vary_top.png",
        sheet_png(pictures.vary_top(model, seed)),
        "Small steps of the top latent away from the point on the left, all else at the mean of "
        "its prior.",
    )
    yield Picture(
        "interpolation.png",
        sheet_png(pictures.interpolation(model, test, seed)),
        "Straight lines between posterior means in the levels named on the left, the levels not "
        "named at the means of their priors.",
    )
    yield Picture(
        "reconstructions.png",
        sheet_png(pictures.reconstructions(model, test, seed)),
        "Test images encoded and decoded from the levels named on the left, the levels not named "
        "at the means of their priors.",
    )


def _notes(config: Config[ModelConfig], records: Sequence[Record]) -> list[str]:
    notes = []
    if not curves.has_curves(records):
        notes.append(f"There are no curves: {METRICS} holds no training metrics.")
    if not drawable(config.model.shape):
        notes.append(f"There are no pictures: data of shape {config.model.shape} are not images.")
    return notes


def _write(run: Path, drawn: Sequence[Picture], html: str) -> list[Path]:
    paths = [run / SAMPLES / picture.name for picture in drawn] + [run / PAGE]
    try:
        (run / SAMPLES).mkdir(exist_ok=True)
        for path, picture in zip(paths, drawn, strict=False):
            write_atomic(path, picture.png)
        write_atomic(run / PAGE, html)
    except OSError as error:
        raise UserError(f"{run}: cannot be written: {error.strerror}") from None
    return paths
