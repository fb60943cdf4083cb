from ladder.systems.nvae.config import Config as Config
from ladder.systems.nvae.model import build as build
from ladder.systems.nvae.released import convert_released as convert_released
