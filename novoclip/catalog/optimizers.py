"""The public optimizers."""

import novoclip
from novoclip.catalog.entry import Entry

BLOCKS = ("tensor", "tree", "unit")
PARAMS = frozenset({novoclip.clippy_adagrad})  # whose update always needs the parameters
OPTIMIZERS = tuple(
    Entry(make, "optimizer", "hard", per, examples, needs_params=make in PARAMS)
    for make, per, examples in (
        (
            novoclip.sgd,
            ("element",),
            (
                {"learning_rate": 0.1, "clip": novoclip.clip_by_norm(1.0), "weight_decay": 0.01},
                {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay_mode": "coupled"},
            ),
        ),
        (novoclip.momentum, ("element",), ({"learning_rate": 0.1, "nesterov": True, "weight_decay": 0.01},)),
        (novoclip.trace, ("element",), ({"decay": 0.9, "dampening": 0.5}, {"decay": 0.9, "form": "averaged"})),
        (novoclip.adagrad, ("element", *BLOCKS), ({"learning_rate": 0.1},)),
        (novoclip.scale_by_rss, ("element", *BLOCKS), ({"per": "tensor"}, {"per": "tree"})),
        (
            novoclip.rmsprop,
            ("element",),
            (
                {
                    "learning_rate": 0.1,
                    "centered": True,
                    "momentum": 0.9,
                    "weight_decay": 0.01,
                    "weight_decay_mode": "coupled",
                },
                {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
            ),
        ),
        (novoclip.scale_by_rms, ("element",), ({}, {"eps_in_sqrt": False, "bias_correction": True})),
        (novoclip.scale_by_stddev, ("element",), ({"bias_correction": True},)),
        (novoclip.adam, ("element",), ({"learning_rate": 0.1, "weight_decay": 0.01},)),
        (novoclip.adamw, ("element",), ({"learning_rate": 0.1, "nesterov": True},)),
        (novoclip.scale_by_adam, ("element",), ({"bias_correction": False},)),
        (novoclip.amsgrad, ("element",), ({"learning_rate": 0.1},)),
        (novoclip.scale_by_amsgrad, ("element",), ({"maximum": "raw"},)),
        (novoclip.lamb, BLOCKS, ({"learning_rate": 0.1, "weight_decay": 0.01},)),
        (novoclip.lars, BLOCKS, ({"learning_rate": 0.1, "weight_decay": 0.01, "nesterov": True},)),
        (
            novoclip.novograd,
            BLOCKS,
            (
                {"learning_rate": 0.1, "weight_decay": 0.01},
                {
                    "learning_rate": 0.1,
                    "start": "zero",
                    "averaging": "always",
                    "amsgrad": True,
                    "luc": 1e-2,
                    "weight_decay": 0.01,
                    "weight_decay_mode": "decoupled",
                },
                {"learning_rate": 0.1, "normalize": "after", "norm": "max"},
            ),
        ),
        (novoclip.scale_by_novograd, BLOCKS, ({},)),
        (
            novoclip.novoclip,
            ("element", *BLOCKS),
            ({"weight_decay": 0.01, "bias_correction": True},),
        ),
        (novoclip.nsgd, ("tree", "tensor", "unit"), ({"learning_rate": 0.1, "weight_decay": 0.01},)),
        (novoclip.scale_by_nsgd, ("tree", "tensor", "unit"), ({"normalize": "before", "per": "tensor"},)),
        (novoclip.stable_adamw, BLOCKS, ({"learning_rate": 0.1, "weight_decay": 0.01},)),
        (novoclip.scale_by_stable_adamw, BLOCKS, ({},)),
        (novoclip.adopt, ("element",), ({"learning_rate": 0.1, "weight_decay": 0.01},)),
        (novoclip.scale_by_adopt, ("element",), ({},)),
        (novoclip.acclip, ("element",), ({"learning_rate": 0.1, "weight_decay": 0.01},)),
        (novoclip.scale_by_acclip, ("element",), ({"previous": True, "alpha": 1.5},)),
        (novoclip.spam, ("element",), ({"learning_rate": 0.1, "weight_decay": 0.01},)),
        (
            novoclip.scale_by_spam,
            ("element",),
            ({"reset_every": 2, "delay": 1, "warmup": 1, "restart_bias_correction": True},),
        ),
        (
            novoclip.scale_by_novoclip,
            ("element", *BLOCKS),
            ({"threshold": "proportional"}, {"threshold": "proportional", "per": "tensor"}, {"per": "tensor"}),
        ),
        (novoclip.clippy_adagrad, BLOCKS, ({"learning_rate": 0.1, "absolute_threshold": 0.01},)),
    )
)
