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
from ladder.pretrained import from_pretrained, trained
from ladder.report import curves, pictures
from ladder.report.history import Record
from ladder.report.page import Picture, page
from ladder.report.sheet import drawable, sheet_png
from ladder.report.summary import environment_rows, summary
from ladder.report.units import active_png, has_units, units_png
from ladder.sampling import layer_names
from ladder.train.run import METRICS, UNITS, read_config, read_metrics

SAMPLES, PAGE = "samples", "report.html"
CAPTIONS = {
    "samples": "Draws from the prior, the standard deviation of every level multiplied by t: what "
    "is lost in variety going down is gained in plausibility.",
    "generation": "A column is one draw of all levels, the last row as it is. In the other rows "
    "the levels named on the left are replaced, at the means of their priors or drawn anew: what "
    "stays the same is what the levels above fix.",
    "temperatures": "A row is which levels are cooled, a group of columns how far: their priors' "
    "standard deviations are multiplied by the number above. A level whose row hardly changes "
    "adds little.",
    "vary_top": "A row is a point drawn from the top's prior and small steps away from it, all "
    "else at the mean of its prior.",
    "reconstructions": "Test images encoded and decoded from the levels named on the left, the "
    "levels not named at the means of their priors.",
    "swaps": "Down a column A turns into B: each row takes one part of its levels from the "
    "posterior of A and the rest from that of B. Rows that would repeat the row above are left "
    "out: where x depends on z1 alone, whoever gives z1 is seen.",
    "interpolation": "A row is a straight line between posterior means in the levels named on the "
    "left, the levels not named at the means of their priors. Where x depends on z1 alone, a walk "
    "in all levels is that in z1, and is not shown twice.",
    "neighbours": "A row is a level: the test images whose posterior means in it are nearest to "
    "that of the image on the left, nearest first; the row of pixels compares the images "
    "themselves.",
}


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
    checkpoint = trained(run)
    if checkpoint is None:
        raise UserError(f"{run}: has no checkpoint yet; go on with --resume {run}")
    data = load(config.data, config.model.shape, config.train.seed)
    records = read_metrics(run)
    # Building a model draws weights, and priors draw even at temperature 0: give the noise back.
    with seeded(seed):
        model = from_pretrained(checkpoint)
        drawn = [
            *_curves(records),
            *_units(read_metrics(run, UNITS), records),
            *_sheets(model, data, seed),
        ]
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


def _units(units: Sequence[Record], records: Sequence[Record]) -> Iterator[Picture]:
    if not (curves.has_curves(records) and has_units(units)):
        return
    yield Picture(
        "units.png",
        units_png(units),
        "The KL of each unit on held-out data at every evaluation, the units of a layer sorted by "
        "what they end at; a unit is one number of a dense latent, or one channel of a spatial "
        "one summed over space.",
    )
    yield Picture(
        "active_units.png",
        active_png(records),
        "Units whose posterior mean varies with the data, and units that tell something beyond "
        "the layers above; where inference goes down a unit can pass on what the draw above says, "
        "and so be of the first kind only.",
    )


def _sheets(model: HierarchicalVAE, data: Splits, seed: int) -> Iterator[Picture]:
    if not drawable(data.test.shape[1:]):
        return
    rows = torch.arange(min(len(data.test), pictures.SEARCHED))
    test = take(data.test, rows, next(model.parameters()).device)
    of_the_prior = [
        pictures.samples,
        pictures.generation,
        pictures.temperatures,
        pictures.vary_top,
    ]
    of_images = [
        pictures.reconstructions,
        *([pictures.swaps] if len(layer_names(model)) > 1 else []),
        pictures.interpolation,
        pictures.neighbours,
    ]
    sheets = {draw.__name__: draw(model, seed) for draw in of_the_prior}
    sheets |= {draw.__name__: draw(model, test, seed) for draw in of_images}
    for name, sheet in sheets.items():
        yield Picture(f"{name}.png", sheet_png(sheet), CAPTIONS[name])


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
