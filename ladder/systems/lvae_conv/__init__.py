"""The convolutional Ladder VAE: a deterministic upward pass, z maps drawn going down.

Generative model:   p(z_L) prod_l p(z_l | t_{l+1}) p(x | t_1), where t_l is a map of features that
                    every z_k with k >= l has entered (without `skip` only z_l)
Inference:          q(z_L | b_L) prod_l q(z_l | b_l, t_{l+1}), b_l the features of the upward pass

State: t of the layer above, `[B, filters, H, W]`; above the top it holds the parameters of p(z_L),
`[B, 2 channels, H, W]`. Evidence: b_l, which has the resolution of z_l. Data whose extent is no
multiple of the network's factor are padded with zeros, and the features of p(x | t_1) are cropped.

Sources: Ladder Variational Autoencoders (Sønderby, Raiko, Maaløe, Sønderby, Winther, 2016),
https://arxiv.org/abs/1602.02282, and its convolutional relative in PyTorch,
https://github.com/addtt/ladder-vae-pytorch (MIT), whose state dicts `convert_released` reads. It
merges with convolutions where the paper multiplies Gaussians.

Differences from the released code:

* dropout 0 is possible, where its default block fails; so is `batch_norm: false` with every block,
  of which no released layout is known;
* a likelihood draws only when it is asked to, not in every forward pass of training;
* the log-probability of a Bernoulli is the same; Gaussian, logistic and categorical likelihoods
  are this library's, and only Bernoulli and mixture-of-logistics weights can be converted;
* what goes with training: the last, smaller batch of an epoch is used, and a run resumes with its
  optimiser.
"""

from ladder.systems.lvae_conv.config import Config as Config
from ladder.systems.lvae_conv.initial import initialise as initialise
from ladder.systems.lvae_conv.model import build as build
from ladder.systems.lvae_conv.released import convert_released as convert_released
