"""Optimizers, one file an algorithm."""

from novoclip.optimizers.adagrad import AdagradMemory, adagrad, scale_by_adagrad
from novoclip.optimizers.adam import AdamMemory, adam, scale_by_adam
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.optimizers.amsgrad import AMSGradMemory, amsgrad, scale_by_amsgrad
from novoclip.optimizers.momentum import MomentumMemory, momentum, scale_by_momentum
from novoclip.optimizers.novoclip import NovoClipMemory, novoclip, scale_by_novoclip
from novoclip.optimizers.novograd import NovoGradMemory, novograd, scale_by_novograd
from novoclip.optimizers.rmsprop import RMSpropMemory, rmsprop, scale_by_rmsprop
from novoclip.optimizers.sgd import sgd

__all__ = [
    "AMSGradMemory",
    "AdagradMemory",
    "AdamMemory",
    "MomentumMemory",
    "NovoClipMemory",
    "NovoGradMemory",
    "OptimizerState",
    "RMSpropMemory",
    "adagrad",
    "adam",
    "amsgrad",
    "momentum",
    "novoclip",
    "novograd",
    "rmsprop",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_amsgrad",
    "scale_by_momentum",
    "scale_by_novoclip",
    "scale_by_novograd",
    "scale_by_rmsprop",
    "sgd",
]
