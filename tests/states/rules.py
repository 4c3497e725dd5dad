"""Transforms as users of a release may have them, whose saved states every later release reads. Only ever add to these.

Those of SINCE_0_2_0 have no state of 0.1.0.
"""

import optax

import novoclip

# In 0.1.0 one Limit judged both norms and losses.
SIX = novoclip.limits.deviation(6.0, window=5, warmup=2)

RULES = {
    "agc": novoclip.agc(0.1),
    "acclip": novoclip.acclip(0.1),
    "adaclip": novoclip.adaclip(),
    "adagc": novoclip.adagc(1.05, lambda_abs=1.0, warmup=2),
    "adagn": novoclip.adagn(),
    "adagrad": novoclip.adagrad(0.1, 0.0, 1e-10, eps_in_sqrt=False, per="tensor"),
    "adam": novoclip.adam(0.1, clip=novoclip.zclip(max_norm=1.0), weight_decay=0.01),
    "adopt": novoclip.adopt(0.1),
    "amsgrad": novoclip.amsgrad(0.1, maximum="raw"),
    "autoclip": novoclip.autoclip(90.0, window=5, per="tensor"),
    "autoclip per element": novoclip.autoclip(90.0, window=5, per="element"),
    "centralize": novoclip.centralize(),
    "chain": optax.chain(novoclip.autoclip(50.0, window=5), novoclip.agc(0.1), optax.adamw(0.01)),
    "clip21": novoclip.clip21(novoclip.clip_by_global_norm(1.0)),
    "clip_by_deviation": novoclip.clip_by_deviation(window=5, warmup=2, learn="raw"),
    "clip_by_global_norm": novoclip.clip_by_global_norm(1.0),
    "clip_by_running_mean": novoclip.clip_by_running_mean(per="tensor", decay=0.98),
    "clip_by_running_quantile": novoclip.clip_by_running_quantile(0.9),
    "clip_by_second_moment": novoclip.clip_by_second_moment(0.01, per="tensor", count=True),
    "clip_by_spectral_norm": novoclip.clip_by_spectral_norm(0.1),
    "clip_by_trust_ratio": novoclip.clip_by_trust_ratio(0.1),
    "clip_by_value": novoclip.clip_by_value(0.1, count=True),
    "clippy": novoclip.clippy(0.1, 1e-7, floor=0.0),
    "delta_gclip": novoclip.delta_gclip(),
    "guard_nonfinite": novoclip.guard_nonfinite(optax.adam(0.1)),
    "groups": novoclip.zclip(max_norm=1.0, per=novoclip.groups(lambda path, _: path[0])),
    "momentum": novoclip.momentum(0.1),
    "novoclip": novoclip.novoclip(0.1, per="tensor"),
    "novograd": novoclip.novograd(0.1, 0.95, 0.98, 1e-8),
    "nsgd": novoclip.nsgd(0.1),
    "per_example": novoclip.per_example(novoclip.clip_by_global_norm(1.0)),
    "record": novoclip.record(per="unit"),
    "rmsprop": novoclip.rmsprop(0.1, eps_in_sqrt=False, centered=True, momentum=0.9),
    "sgd": novoclip.sgd(0.1),
    "skip_spikes": novoclip.skip_spikes(novoclip.adam(0.1), SIX, value_limit=SIX),
    "spam": novoclip.spam(0.1),
    "stable_adamw": novoclip.stable_adamw(0.1),
    "start_after": novoclip.start_after(novoclip.clip_by_global_norm(1.0), 2),
    "tighter": novoclip.clip_by_limit(
        "tensor", novoclip.limits.tighter(novoclip.limits.constant(1.0), novoclip.limits.autoclip(90.0))
    ),
    "uclip": novoclip.uclip(novoclip.clip_by_global_norm(1.0)),
    "zclip": novoclip.zclip(warmup=2, max_norm=1.0, per="unit", mode="percentile"),
}

SINCE_0_2_0 = {
    "adam in 8 bits": novoclip.adam(0.1, mu_dtype="int8", nu_dtype="int8"),
    "adamw": novoclip.adamw(0.1, clip=novoclip.adagc()),
    "adaptive_grad_clip": novoclip.adaptive_grad_clip(0.1),
    "clippy_adagrad": novoclip.clippy_adagrad(0.1),
    "lamb": novoclip.lamb(0.1),
    "lars": novoclip.lars(0.1),
    "loss_scaling": novoclip.loss_scaling(novoclip.sgd(0.1)),
    "master_weights": novoclip.master_weights(optax.adam(0.1)),
    "novograd as in NeMo": novoclip.novograd(0.1, amsgrad=True, luc=1e-2),
    "protect": novoclip.protect(novoclip.adam(0.1)),
    "stochastic_rounding": novoclip.stochastic_rounding(optax.sgd(0.1)),
    "watch": novoclip.watch(novoclip.sgd(0.1), every=2),
}
RULES |= SINCE_0_2_0
