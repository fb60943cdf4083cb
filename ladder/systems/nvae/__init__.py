"""NVAE: cells of depthwise convolutions, groups of latents at several scales, drawn going down.

Generative model:   p(z_L) prod_l p(z_l | z_>l) p(x | z)
Inference:          q(z_L | x) prod_l q(z_l | z_>l, x), drawn going down; with flows, each draw is
                    moved by one
Posterior:          N(c(m_p + m_q), exp(c(s_p + s_q)) + 0.01), relative to the raw parameters m_p,
                    s_p of the prior; c(v) = 5 tanh(v / 5) clamps both
Objective:          log p(x | z) - beta sum_l gamma_l KL_l, gamma balancing the scales while
                    beta < 1; penalties of spectral norms and of the scales of batch norms. The
                    KL is closed, and log q - log p at the draw with flows

State: a feature map, `[B, channels, H, W]`; the first is a learned constant. Evidence: the upward
pass's activation after the cells of a layer, `[B, channels, H, W]`. Layers are counted from the
data up, so their group 0 is z_L.

Source: NVAE: A Deep Hierarchical Variational Autoencoder (Vahdat & Kautz, 2020),
https://arxiv.org/abs/2007.03898. The released code is non-commercial; this is an implementation
from descriptions alone, which computes the same numbers. `convert_released` reads its state dicts,
`ladder import nvae FILE` its checkpoints.

Differences from the released code:

* images may be of any height and width, `pad` and the number of channels included;
* batch norm is synchronised over processes on CPUs too, and only where there are several;
* networks are float32 or bfloat16 with float32 latents, where theirs are float16 with scaled
  gradients; power iterations of the spectral penalty are float32 and saved in checkpoints, so
  that a resumed run goes on with them;
* in one process, KL balancing goes by means over the whole batch, theirs over each GPU's share;
  parameters are never averaged over processes, because they never differ;
* the default likelihood has bins that tile the line; presets name the published ones (`nvae`),
  which at 8 bits count the mass of 255 twice. Draws from p(x | z) are levels of the data, at
  temperature 1 whatever that of the latents, where theirs divide logits and multiply noise;
* batch norm is recalibrated by a function that returns a copy, `ladder.recalibrate`, not in place;
* cells with data-dependent initialisation have it before the first step, once, from a whole batch;
  theirs average over GPUs, and repeat it whenever a checkpoint is loaded;
* binarised data are drawn once for evaluation, theirs at every access; the last, smaller batch of
  an epoch is used;
* decoders have as many halvings as encoders; with others, the output has not the data's size.
"""

from ladder.systems.nvae.arguments import RELEASED_TYPES as RELEASED_TYPES
from ladder.systems.nvae.arguments import released_config as released_config
from ladder.systems.nvae.arguments import unpack_released as unpack_released
from ladder.systems.nvae.config import Config as Config
from ladder.systems.nvae.initial import initialise as initialise
from ladder.systems.nvae.model import build as build
from ladder.systems.nvae.released import convert_released as convert_released
