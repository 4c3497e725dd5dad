"""Optimizers, one file an algorithm."""

from novoclip.optimizers.acclip import ACClipState, acclip, scale_by_acclip
from novoclip.optimizers.adagrad import AdagradState, adagrad, scale_by_adagrad
from novoclip.optimizers.adam import AdamState, adam, scale_by_adam
from novoclip.optimizers.adopt import ADOPTState, adopt, scale_by_adopt
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.optimizers.amsgrad import AMSGradState, amsgrad, scale_by_amsgrad
from novoclip.optimizers.momentum import MomentumState, momentum, scale_by_momentum
from novoclip.optimizers.novoclip import NovoClipState, novoclip, scale_by_novoclip
from novoclip.optimizers.novograd import NovoGradState, novograd, scale_by_novograd
from novoclip.optimizers.nsgd import nsgd, scale_by_nsgd
from novoclip.optimizers.rmsprop import RMSpropState, rmsprop, scale_by_rmsprop
from novoclip.optimizers.sgd import sgd
from novoclip.optimizers.spam import scale_by_spam, spam
from novoclip.optimizers.stable_adamw import scale_by_stable_adamw, stable_adamw

__all__ = [
    "ACClipState",
    "ADOPTState",
    "AMSGradState",
    "AdagradState",
    "AdamState",
    "MomentumState",
    "NovoClipState",
    "NovoGradState",
    "OptimizerState",
    "RMSpropState",
    "acclip",
    "adagrad",
    "adam",
    "adopt",
    "amsgrad",
    "momentum",
    "novoclip",
    "novograd",
    "nsgd",
    "rmsprop",
    "scale_by_acclip",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_momentum",
    "scale_by_novoclip",
    "scale_by_novograd",
    "scale_by_nsgd",
    "scale_by_rmsprop",
    "scale_by_spam",
    "scale_by_stable_adamw",
    "sgd",
    "spam",
    "stable_adamw",
]
