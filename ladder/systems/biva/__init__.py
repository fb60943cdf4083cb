"""BIVA: two variables in every layer but the top, one drawn going up and one going down.

Generative model:   p(z_L) prod_l p(z_l^TD | d_l) p(z_l^BU | d_l) p(x | z), where d_l are features
                    that every z_k with k > l has entered, through z_{l+1} and through skips
Inference, up:      prod_l q(z_l^BU | x, z_<l^BU), then q(z_L | x, z_<L^BU)
Inference, down:    prod_l q(z_l^TD | x, z_<l^BU, z_>l)
Objective:          log p(x | z) - sum over 2L - 1 variables of (log q - log p) at their draws, of
                    each at least its free bits for each datum

`inference: ladder` and `inference: bottom_up` keep the blocks of the generative model and have one
variable in each layer, drawn going down from q(z_l | x, z_>l), or going up from q(z_l | x, z_<l).

Up:        b_l = blocks(what z_{l-1}^BU was widened to; [b_{l-1}, t_{l-1}] beside it)
           t_l = blocks(t_{l-1}; b_l beside it), which no draw enters but through b
Down:      every block of layer l sees that in its place in layer l + 1 beside its input
State:     the outputs of the blocks of the layer above, `[B, filters, H, W]` each, of which the
           last is d_l; above the top, the parameters of p(z_L), `[B, 2 N, ...]`.
Evidence:  t_l and the drawn posterior of z_l^BU (`BothWays`); b_l (ladder); a drawn posterior
           (bottom-up); q(z_L | ...) at the top of bidirectional inference.
Latent:    [z_l^TD, z_l^BU] joined on axis 1, numbers or maps; z_L alone.

**Scales.** With `scale: softplus_log_variance`, which the published models have, the *logarithm*
of a variance is a softplus, so no prior and no posterior has a standard deviation below 1; `scale:
log_variance` has no such floor, and the presets named so have that.

Sources: BIVA: A Very Deep Hierarchy of Latent Variables for Generative Modeling (Maaløe, Fraccaro,
Liévin, Winther, 2019), https://arxiv.org/abs/1902.02102; its code in PyTorch,
https://github.com/vlievin/biva-pytorch (MIT), whose state dicts `convert_released` reads, and its
TensorFlow original, https://github.com/larsmaaloee/BIVA.

Differences from the released code, in PyTorch:

* initialisation by data is a function, called once before weights are averaged, and saved; theirs
  runs in the first forward pass of every copy, so that the average of the weights, which starts
  earlier, is initialised anew with other weights; and v is drawn when the model is built;
* free bits act on the loss only, theirs on the reported validation loss as well;
* data whose extent the strides do not divide are padded; theirs fail;
* every layer has as many blocks, whose last one has the stride, and both variables have one kind
  and size; that is all that runs in theirs too, but for fewer blocks in one layer than in another;
* `conditional_bu` works with dense layers, and `learn_top_prior` with a dense top layer, which
  theirs refuses and ignores; no released layout is known for the first;
* the projection of the top z of bottom-up inference, which nothing reads, is kept so that counts
  and files are theirs, but not trained;
* what goes with training: binarised data are drawn here, theirs are the published draw; a best
  checkpoint is marked with `data.validation` only, by held-out data, theirs by the test set.

Differences of the TensorFlow original, by name, all of them in the presets `biva_*_tensorflow`:
`input_activation: every`, `shortcut: padded`, `merge_kernel: above`, `top_order: td_bu`,
`initial_variance: biased`, and `train.bias_correction: false` of its Adamax. Not reproduced:

* 1e-8 more in the log of a variance, and Adamax's epsilon beside its decayed peak instead of the
  gradient, which hardly a single-precision number shows;
* batches drawn independently; ours go through the data in a new order each epoch;
* whether it initialises transposed convolutions by what is left of their outputs, or, as the code
  in PyTorch and ours, by the outputs before their edges are cut off, is not known here.

Compiled layer by layer, layers that are alike share a graph; in `biva_cifar10` every layer has a
size of its own, so there are 30.
"""

from ladder.systems.biva.config import Config as Config
from ladder.systems.biva.initial import initialise as initialise
from ladder.systems.biva.model import build as build
from ladder.systems.biva.released import convert_released as convert_released
