"""Discretised logistics: levels, the masses of their bins, and p(x|z) made of them.

Data x in [0, 1] are `levels` values, rescaled to y = 2x - 1 as in the papers; means and log-scales
are in units of y. P(level) is the mass of a logistic in a bin around the level's y.

References:
    PixelCNN++ (Salimans et al., 2017), https://arxiv.org/abs/1701.05517
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Rule(NamedTuple):
    """What differs between the bins of published systems.

    Attributes:
        floored: A level's y is that of its lowest 8-bit value, so the last one stays below 1;
            otherwise levels spread evenly over [-1, 1].
        open_above: Levels with a larger y take the whole upper tail; `None`: the last level.
        least: Masses stay above this, and below 1e-5 they are the density times the width;
            `None`: the exact mass, whatever its size.
    """

    floored: bool
    open_above: float | None
    least: float | None


RULES = {
    "exact": Rule(floored=False, open_above=None, least=None),
    # PixelCNN++ and BIVA: `exact` up to the arithmetic of small masses.
    "pixelcnn": Rule(floored=False, open_above=0.999, least=1e-12),
    # NVAE: at 8 bits the last two levels are both open, so the mass of 255 counts twice.
    "nvae": Rule(floored=False, open_above=0.99, least=1e-10),
    # VD-VAE: below 8 bits no level is open above, and bins overlap: at 5 bits the masses of a
    # smooth logistic between the ends sum to 1.0282.
    "vdvae": Rule(floored=True, open_above=0.999, least=1e-12),
}

DIRECT = 1e-5  # published: smaller masses are approximated by the density


class Bins(NamedTuple):
    """Bins of `bits`-bit levels. `exact` ones tile the line, so their masses sum to one.

    Attributes:
        bits: 1 to 8; a level is the integer part of (255 x, rounded) / 2**(8 - bits).
        rule: A key of `RULES`.
    """

    bits: int = 8
    rule: str = "exact"

    @property
    def last(self) -> int:
        """The highest level."""
        return (1 << self.bits) - 1

    @property
    def half(self) -> float:
        """Half of a bin's width in y."""
        return 1 / self.last

    @property
    def step(self) -> float:
        """Distance in y between two levels; twice `half`, unless bins overlap."""
        return 2 ** (9 - self.bits) / 255 if RULES[self.rule].floored else 2 / self.last

    @property
    def first_open(self) -> int:
        """The lowest level that takes the whole upper tail; `last + 1` if there is none."""
        above = RULES[self.rule].open_above
        if above is None:
            return self.last
        return min(int((above + 1) / self.step), self.last) + 1

    def level(self, x: Tensor) -> Tensor:
        """Levels of data in [0, 1], as whole floats."""
        return (255 * x).round().mul(1 / 2 ** (8 - self.bits)).floor()

    def rescaled(self, level: Tensor) -> Tensor:
        """Levels as y."""
        return self.step * level - 1

    def datum(self, level: Tensor) -> Tensor:
        """Levels as data in [0, 1], as `rescaled` but for the last digit."""
        if RULES[self.rule].floored:
            return level * (1 << (8 - self.bits)) / 255
        return level / self.last

    def nearest(self, y: Tensor) -> Tensor:
        """Level whose bin y falls into; beyond the ends, the first and the last."""
        return ((y + 1) / self.step).round().clamp(0, self.last)

    def log_mass(self, level: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
        """Log probability of levels under a logistic, in nats, elementwise (broadcasting)."""
        y, inverse = self.rescaled(level), (-log_scale).exp()
        up, down = inverse * (y - mean + self.half), inverse * (y - mean - self.half)
        below, above = F.logsigmoid(up), F.logsigmoid(-down)
        if RULES[self.rule].least is None:
            # s(up) - s(down) = s(up) s(-down) (1 - exp(down - up)), without cancellation.
            inside = below + above + (-torch.expm1(-2 * self.half * inverse)).log()
        else:
            inside = self._published(up, down, inverse * (y - mean), log_scale)
        inside = torch.where(level >= self.first_open, above, inside)
        return torch.where(level <= 0, below, inside)

    def _published(self, up: Tensor, down: Tensor, middle: Tensor, log_scale: Tensor) -> Tensor:
        mass = up.sigmoid() - down.sigmoid()
        density = F.logsigmoid(middle) + F.logsigmoid(-middle) - log_scale
        direct = mass.clamp(min=RULES[self.rule].least).log()
        return torch.where(mass > DIRECT, direct, density + math.log(2 * self.half))


def expected(mean: Tensor, log_scale: Tensor) -> Tensor:
    """Mean of a logistic clipped to [-1, 1]: within half a level of the mean of even levels."""
    # clip(m) + s (softplus(-|m + 1| / s) - softplus(-|m - 1| / s)), without cancellation.
    scale, centre = log_scale.exp(), mean.clamp(-1, 1)
    near = (mean.abs() - 1).abs() / scale
    gap = torch.log1p(torch.expm1(-2 * centre.abs() / scale) * torch.sigmoid(-near))
    return centre + scale * gap * centre.sign()


def draw(mean: Tensor, log_scale: Tensor) -> Tensor:
    """Draw from a logistic."""
    noise = torch.rand_like(mean)
    return mean + log_scale.exp() * (noise.log() - torch.log1p(-noise))


def draw_index(logits: Tensor, axis: int) -> Tensor:
    """Draw from the softmax over `axis`, which is kept with length 1 (Gumbel's maximum)."""
    gumbel = -(-torch.rand_like(logits).log()).log()
    return (logits + gumbel).argmax(axis, keepdim=True)


class DiscretizedLogistic(NamedTuple):
    """Independent discretised logistics.

    Attributes:
        location: Means in units of y, `[B, *shape]`.
        log_scale: Log-scales in units of y, `[B, *shape]`.
        bins: Levels and their bins.
    """

    location: Tensor
    log_scale: Tensor
    bins: Bins = Bins()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of the levels of `x`, elementwise; no gradient reaches `x`."""
        return self.bins.log_mass(self.bins.level(x), self.location, self.log_scale)

    @property
    def mean(self) -> Tensor:
        """Expected datum before it falls into a bin: right to half a level."""
        return (expected(self.location, self.log_scale) + 1) / 2

    def sample(self) -> Tensor:
        """Draw levels, as data in [0, 1]."""
        return self.bins.datum(self.bins.nearest(draw(self.location, self.log_scale)))


class LogisticMixture(NamedTuple):
    """Independent mixtures of K discretised logistics, one for each number of a datum.

    Attributes:
        logits: Weights before the softmax over axis 2, `[B, C, K, *space]`.
        location: Means in units of y, `[B, C, K, *space]`.
        log_scale: Log-scales in units of y, `[B, C, K, *space]`.
        bins: Levels and their bins.
    """

    logits: Tensor
    location: Tensor
    log_scale: Tensor
    bins: Bins = Bins()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of the levels of `x`, elementwise; no gradient reaches `x`."""
        level = self.bins.level(x).unsqueeze(2)
        mass = self.bins.log_mass(level, self.location, self.log_scale)
        return (mass + self.logits.log_softmax(2)).logsumexp(2)

    @property
    def mean(self) -> Tensor:
        """Expected datum before it falls into a bin: right to half a level."""
        y = expected(self.location, self.log_scale)
        return ((self.logits.softmax(2) * y).sum(2) + 1) / 2

    def sample(self) -> Tensor:
        """Draw a component for each number, then levels, as data in [0, 1]."""
        index = draw_index(self.logits, 2)
        mean = self.location.gather(2, index).squeeze(2)
        log_scale = self.log_scale.gather(2, index).squeeze(2)
        return DiscretizedLogistic(mean, log_scale, self.bins).sample()


class ColourMixture(NamedTuple):
    """Mixture of K discretised logistics of red, then green, then blue (PixelCNN++).

    The three colours of a pixel share the component. Within it the mean of green is shifted by
    c_0 y_red, that of blue by c_1 y_red + c_2 y_green, where y are the levels themselves.

    Attributes:
        logits: Weights before the softmax over axis 2, `[B, 1, K, *space]`.
        location: Means in units of y, unshifted, `[B, 3, K, *space]`.
        log_scale: Log-scales in units of y, `[B, 3, K, *space]`.
        coefficients: c_0, c_1, c_2 on axis 1, `[B, 3, K, *space]`.
        bins: Levels and their bins.
    """

    logits: Tensor
    location: Tensor
    log_scale: Tensor
    coefficients: Tensor
    bins: Bins = Bins()

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of the pixels of `x`, `[B, 1, *space]`; no gradient reaches `x`."""
        level = self.bins.level(x).unsqueeze(2)
        given = self.bins.rescaled(level).to(self.location.dtype).expand_as(self.location)
        location, _ = self._in_turn(lambda colour, mean, log_scale: given[:, colour])
        mass = self.bins.log_mass(level, location, self.log_scale).sum(1, keepdim=True)
        return (mass + self.logits.log_softmax(2)).logsumexp(2)

    @property
    def mean(self) -> Tensor:
        """Expected datum before it falls into a bin, with the expected colours as conditions."""
        _, y = self._in_turn(lambda colour, mean, log_scale: expected(mean, log_scale))
        return ((self.logits.softmax(2) * y).sum(2) + 1) / 2

    def sample(self) -> Tensor:
        """Draw a component for each pixel, then red, green and blue, as data in [0, 1]."""
        index = draw_index(self.logits, 2).expand_as(self.location[:, :, :1])
        chosen = self._replace(
            location=self.location.gather(2, index),
            log_scale=self.log_scale.gather(2, index),
            coefficients=self.coefficients.gather(2, index),
        )
        _, y = chosen._in_turn(self._draw)
        return self.bins.datum(self.bins.nearest(y.squeeze(2)))

    def _draw(self, colour: int, mean: Tensor, log_scale: Tensor) -> Tensor:
        return self.bins.rescaled(self.bins.nearest(draw(mean, log_scale)))

    def _in_turn(self, y_of: Callable[[int, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Shifted means, and the y that `y_of` gives for (colour, shifted mean, log-scale)."""
        red, green, blue = self.location.unbind(1)
        scales, (c0, c1, c2) = self.log_scale.unbind(1), self.coefficients.unbind(1)
        y_red = y_of(0, red, scales[0])
        green = green + c0 * y_red
        y_green = y_of(1, green, scales[1])
        blue = blue + c1 * y_red + c2 * y_green
        y_blue = y_of(2, blue, scales[2])
        return torch.stack((red, green, blue), 1), torch.stack((y_red, y_green, y_blue), 1)
