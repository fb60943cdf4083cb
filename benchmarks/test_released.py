"""Our plans in the words of the released code, which `steps.py --released` times beside ours."""

from __future__ import annotations

import biva_released
from vdvae_released import strings

from ladder.build import resolve


def test_vdvae() -> None:
    assert strings(resolve("tiny_vdvae").model) == {
        "enc_blocks": "8x1,8d2,4x1,4d4,1x1",
        "dec_blocks": "1x1,4m1,4x2,8m4,8x1",
        "custom_width_str": "",
    }


def test_biva() -> None:
    assert biva_released.stages(resolve("tiny_biva").model) == [
        [[8, 3, 1], [8, 3, 2]],
        [[8, 3, 1], [8, 3, 1]],
        [[8, 3, 1], [8, 3, 2]],
    ]
