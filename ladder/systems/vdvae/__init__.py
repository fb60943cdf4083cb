"""VD-VAE: very deep, deterministic up, stochastic down, everything through one residual stream.

Generative model:   p(z_L) prod_l p(z_l | z_>l) p(x | z)
Inference:          q(z_L | x) prod_l q(z_l | z_>l, x), drawn going down
Objective:          log p(x | z) - sum_l KL(q_l || p_l), closed form
Layer:              x <- x + the prior's residual + W z, then a residual block

State: a feature map x for every resolution, `{resolution: [B, width, r, r]}`; layers of one
resolution change the same map, and the first of them adds the map of a smaller one, enlarged.
Evidence: the last activation of the upward pass at the layer's resolution, `[B, width, r, r]`.

Sources: Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images (Child,
2021), https://arxiv.org/abs/2011.10650, and its code, https://github.com/openai/vdvae (MIT), whose
state dicts `convert_released` reads.

Differences from the released code:

* the plan is data, from the data up, where theirs is two strings; a decoder that goes back to a
  smaller resolution, or mixes one in more than once, cannot be said;
* the default likelihood has bins that tile the line; presets name the published ones (`vdvae`),
  which at 5 bits overlap, so that published 5-bit results are up to 0.04 bits/dim too good;
* means and log-scales of latents are float32 whatever the precision of the networks;
* draws from p(x | z) are levels of the data, at 5 bits too, where theirs are rounded to 8 bits;
* what goes with training: noise is a function of (seed, step), every datum of a split is scored,
  the last smaller batch of an epoch is used, and a resumed run does not warm up again.
"""

from ladder.systems.vdvae.config import Config as Config
from ladder.systems.vdvae.model import build as build
from ladder.systems.vdvae.released import convert_optimizer as convert_optimizer
from ladder.systems.vdvae.released import convert_released as convert_released
