"""The states of rules, optimizers and wrappers, whose fields `optax.tree.get` finds and checkpoints hold."""

from novoclip.clip_state import ClipState
from novoclip.guards.nonfinite import NonfiniteState
from novoclip.guards.spike_state import SpikeState
from novoclip.limits.history import HistoryState
from novoclip.limits.running_mean import RunningMeanState
from novoclip.limits.running_quantile import ArithmeticQuantileState, QuantileState
from novoclip.limits.second_moment import SecondMomentState
from novoclip.limits.zclip import ZClipState
from novoclip.optimizers.acclip import ACClipState
from novoclip.optimizers.adagrad import AdagradState
from novoclip.optimizers.adam import AdamState
from novoclip.optimizers.adopt import ADOPTState
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.optimizers.amsgrad import AMSGradState
from novoclip.optimizers.clippy_adagrad import ClippyAdagradState
from novoclip.optimizers.momentum import MomentumState
from novoclip.optimizers.novoclip import NovoClipState
from novoclip.optimizers.novograd import NovoGradState
from novoclip.optimizers.rms import RMSpropState
from novoclip.optimizers.step_momentum import StepMomentumState
from novoclip.precision.loss_scale import LossScaleState
from novoclip.precision.master_weights import MasterWeightsState
from novoclip.precision.stochastic import StochasticRoundingState
from novoclip.rules.adagc import AdaGCState
from novoclip.rules.stable_spam import AverageState, RootRatioState
from novoclip.slices import Slices
from novoclip.wrappers.carry import CarryState
from novoclip.wrappers.delay import DelayedState
from novoclip.wrappers.watch_state import WatchState

__all__ = [
    "ACClipState",
    "ADOPTState",
    "AMSGradState",
    "AdaGCState",
    "AdagradState",
    "AdamState",
    "ArithmeticQuantileState",
    "AverageState",
    "CarryState",
    "ClipState",
    "ClippyAdagradState",
    "DelayedState",
    "HistoryState",
    "LossScaleState",
    "MasterWeightsState",
    "MomentumState",
    "NonfiniteState",
    "NovoClipState",
    "NovoGradState",
    "OptimizerState",
    "QuantileState",
    "RMSpropState",
    "RootRatioState",
    "RunningMeanState",
    "SecondMomentState",
    "Slices",
    "SpikeState",
    "StepMomentumState",
    "StochasticRoundingState",
    "WatchState",
    "ZClipState",
]
