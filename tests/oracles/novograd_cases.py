"""How the arguments of published implementations of NovoGrad are written here, and the options that compose."""

STEPS = 50


def falling(high, low):
    return lambda step: high + (low - high) * step / STEPS


SMALL = {"eps": 1e-8}
DECAY = {"weight_decay": 0.05}
TIMM = {"b1": 0.95, "b2": 0.98, **SMALL}
TFA = {"b2": 0.999, "eps": 1e-7, "start": "first"}
OSS = {"b1": 0.95, "b2": 0.98, "eps": 0.0, "eps_root": 1e-8}
APEX = {"b2": 0.999, **SMALL, "averaging": "always"}
AFTER = {"normalize": "after", "weight_decay_mode": "decoupled"}
ZERO = {"start": "zero", "bias_correction_mu": True}
RATE = falling(0.1, 0.01)
IMPLEMENTATIONS = [
    ("timm", RATE, {}, TIMM),
    ("timm", RATE, DECAY, TIMM | DECAY),
    ("timm", RATE, {"grad_averaging": True, **DECAY}, TIMM | DECAY | {"averaging": "always"}),
    ("timm", RATE, {"amsgrad": True, "betas": (0.8, 0.25)}, TIMM | {"amsgrad": True, "b1": 0.8, "b2": 0.25}),
    ("timm", RATE, {"decoupled_decay": True, **DECAY}, TIMM | DECAY | {"weight_decay_mode": "decoupled"}),
    (
        "timm",
        RATE,
        {"decoupled_decay": True, "corrected_weight_decay": True, "max_lr": 0.1, **DECAY},
        TIMM | {"weight_decay_mode": "decoupled", "weight_decay": lambda step: 0.05 * RATE(step) / 0.1},
    ),
    (
        "nemo",
        RATE,
        {"grad_averaging": True, "amsgrad": True, **DECAY},
        TIMM | DECAY | {"averaging": "always", "amsgrad": True},
    ),
    ("nemo", RATE, {"luc": True}, TIMM | {"luc": 1e-3}),
    (
        "nemo",
        RATE,
        {"luc": True, "luc_trust": 0.05, "luc_eps": 0.1, **DECAY},
        TIMM | DECAY | {"luc": 0.05, "luc_eps": 0.1},
    ),
    ("tensorflow_addons", 0.1, {}, TFA),
    ("tensorflow_addons", 0.1, {"grad_averaging": True, **DECAY}, TFA | DECAY | {"averaging": "later"}),
    ("tensorflow_addons", 0.1, {"amsgrad": True, "beta_2": 0.5}, TFA | {"amsgrad": True, "b2": 0.5}),
    ("openseq2seq", RATE, DECAY, OSS | DECAY),
    ("openseq2seq", RATE, {"grad_averaging": True, "epsilon": 1e-2}, OSS | {"averaging": "always", "eps_root": 1e-2}),
    ("openseq2seq", RATE, {"stored": False, **DECAY}, OSS | DECAY | {"b2": 0.0}),
    ("optax", RATE, DECAY, DECAY | {"start": "first"}),
    ("optax", RATE, {"eps": 1e-3, "eps_root": 1e-2}, {"start": "first", "eps": 1e-3, "eps_root": 1e-2}),
    *(
        (
            "apex",
            RATE,
            {"reg_inside_moment": inside, **DECAY, **theirs},
            APEX | DECAY | ({} if inside else AFTER) | ours,
        )
        for inside in (True, False)
        for theirs, ours in (
            ({"init_zero": True}, ZERO),
            ({"init_zero": True, "grad_averaging": False}, ZERO | {"averaging": "never"}),
            ({"init_zero": True, "bias_correction": False}, {"start": "zero", "bias_correction_nu": False}),
            ({"bias_correction": False}, {"start": "first"}),
            ({"bias_correction": False, "norm_type": 0}, {"start": "first", "norm": "max"}),
            (
                {"init_zero": True, "bias_correction": False, "norm_type": 0},
                {"start": "zero", "bias_correction_nu": False, "norm": "max"},
            ),
        )
    ),
]


OPTIONS = {
    "start": ("nonzero", "first", "zero"),
    "averaging": ("never", "always", "later"),
    "amsgrad": (False, True),
    "norm": ("l2", "rms", "l1", "max"),
    "normalize": ("before", "after"),
    "weight_decay_mode": ("decoupled", "moment"),
    "bias_correction_mu": (False, True),
    "bias_correction_nu": (True, False),
    "luc": (None, 0.02, falling(0.05, 0.0)),
    "eps_root": (0.0, 1e-2),
    "eps": (1e-6, falling(1e-2, 1e-4), 0.0),
    "b1": (0.9, falling(0.95, 0.5)),
    "b2": (0.25, falling(0.9, 0.99)),
    "weight_decay": (0.0, falling(0.2, 0.05)),
}


# From the configuration files that the presets name.
PUBLISHED = {
    "resnet50": (0.03, 0.95, 0.98, 0.004),
    "jasper": (0.02, 0.95, 0.98, 0.001),
    "quartznet": (0.01, 0.95, 0.5, 0.001),
    "transformer_big": (0.04, 0.95, 0.99, 1e-5),
    "centaur": (0.02, 0.95, 0.98, 0.001),
    "nemo_jasper": (0.01, 0.8, 0.5, 0.001),
    "nemo_quartznet": (0.01, 0.8, 0.5, 0.001),
    "matchboxnet": (0.05, 0.95, 0.5, 0.001),
    "citrinet": (0.05, 0.8, 0.25, 0.001),
}
