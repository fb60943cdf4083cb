"""What an NVAE says."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ladder.config import Count, ModelConfig
from ladder.likelihoods import Kinds, LikelihoodSettings, LogisticMixtureSpec, kind_of

Natural = Annotated[int, Field(ge=0)]


class SoftNormalSpec(LikelihoodSettings):
    """Independent Gaussian pixels with clamped parameters: a density of 2x - 1, as published."""

    kind: Literal["soft_normal"] = "soft_normal"


Likelihood = Annotated[
    Kinds | Annotated[SoftNormalSpec, Tag("soft_normal")], Discriminator(kind_of)
]

CellNames = Literal[
    "res_mbconv",
    "res_elu",
    "res_bnelu",
    "res_bnswish",
    "mbconv_sep",
    "mbconv_sep11",
    "res53_mbconv",
    "res35_mbconv",
    "res55_mbconv",
    "mbconv_res",
    "mbconv_den",
]


class Config(ModelConfig):
    """An NVAE of images; the defaults are those of all published models."""

    system: Literal["nvae"] = "nvae"
    """Vahdat and Kautz's NVAE."""
    groups: Annotated[list[Count], Field(min_length=1)]
    """Stochastic layers at each latent scale, from the data up; a scale has half the resolution
    and twice the channels of the one below."""
    blocks: Natural = 1
    """Halvings between the data and the lowest latent scale."""
    channels: Annotated[int, Field(ge=2)] = 32
    """Channels at the resolution of the data; every halving doubles them."""
    decoder_channels: Count | None = None
    """The same of the downward pass; null takes those of the upward one."""
    zdim: Count = 20
    """Latent channels at each position."""
    pad: Natural = 0
    """Zeros around the data on each side; p(x | z) is of what is inside."""
    preprocess_cells: Count = 2
    """Cells before each of the halvings named by `blocks`, that which halves included."""
    postprocess_cells: Count = 2
    """Cells after each of the doublings on the way back, that which doubles included."""
    encoder_cells: Natural = 2
    """Cells of the upward pass for each layer; a model of one layer has none, as published."""
    decoder_cells: Natural = 2
    """Cells of the downward pass before each layer but the top one."""
    cells: CellNames = "res_mbconv"
    """What cells are made of, by its published name; see `ladder.systems.nvae.cells`."""
    squeeze_excitation: bool = True
    """Whether cells weigh their channels."""
    residual_posterior: bool = True
    """Whether posteriors are relative to their priors; the top one never is."""
    flows: Natural = 0
    """Pairs of autoregressive cells of each posterior."""
    likelihood: Likelihood = LogisticMixtureSpec()
    """p(x | z)."""

    @model_validator(mode="before")
    @classmethod
    def _say_equal_channels_once(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("decoder_channels") == raw.get("channels", 32):
            return {key: value for key, value in raw.items() if key != "decoder_channels"}
        return raw

    @model_validator(mode="after")
    def _can_be_built(self) -> Config:
        if len(self.shape) != 3:
            raise ValueError(
                f"'shape' should be [channels, height, width], not {self.shape}: "
                "these convolutions are two-dimensional"
            )
        wrong = [extent for extent in self.padded if extent % self.factor]
        if wrong:
            raise ValueError(
                f"'shape' {self.shape} with 'pad' {self.pad} is {self.padded[0]} x "
                f"{self.padded[1]}, which cannot be halved {self.halvings} times; have fewer "
                f"scales ('groups' has {len(self.groups)}) or 'blocks' ({self.blocks}), or images "
                f"whose height and width with 'pad' are multiples of {self.factor}"
            )
        odd = [n for n in (self.channels, self.down_channels) if n % 8]
        if self.cells == "mbconv_den" and odd:
            raise ValueError(
                f"'channels' {odd[0]} is no multiple of 8, into which the cells 'mbconv_den' "
                "divide them"
            )
        return self

    @property
    def padded(self) -> list[int]:
        """Height and width of the data with zeros around them."""
        return [extent + 2 * self.pad for extent in self.shape[1:]]

    @property
    def halvings(self) -> int:
        """How often the resolution is halved between the data and the top layer."""
        return self.blocks + len(self.groups) - 1

    @property
    def factor(self) -> int:
        """Extent of the padded data over that of the top layer's z."""
        return int(2**self.halvings)

    @property
    def down_channels(self) -> int:
        """Channels of the downward pass at the resolution of the data."""
        return self.decoder_channels or self.channels

    @property
    def layers(self) -> int:
        """Number L of stochastic layers."""
        return sum(self.groups)

    @property
    def climb(self) -> int:
        """Cells of the upward pass for each layer, where there are several layers."""
        return self.encoder_cells if self.layers > 1 else 0

    @property
    def bits(self) -> int:
        """Bits of a level of the data, of which the upward pass sees no more."""
        return int(getattr(self.likelihood, "bits", 8))
