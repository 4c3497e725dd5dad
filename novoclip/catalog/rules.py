"""The public rules, and the wrappers."""

import novoclip
from novoclip.catalog.entry import Entry
from novoclip.granularity import PER

BLOCKS = ("tensor", "tree", "unit")
RULES = (
    Entry(
        novoclip.clip_by_value, "clip", "hard", ("element",), ({"max_delta": 0.1}, {"max_delta": 0.1, "count": True})
    ),
    Entry(
        novoclip.clip_by_norm,
        "clip",
        "hard",
        PER,
        (
            {"max_norm": 0.5},
            {"max_norm": 0.5, "per": "unit", "norm": "l1"},
            {"max_norm": 0.5, "per": "tree", "norm": "rms", "shape": "tanh"},
            {"max_norm": 0.5, "norm": "max", "shape": "drop"},
        ),
    ),
    Entry(
        novoclip.clip_by_global_norm,
        "clip",
        "hard",
        ("tree",),
        ({"max_norm": 1.0}, {"max_norm": 1.0, "shape": "arctan"}, {"max_norm": 1.0, "shape": "algebraic"}),
    ),
    Entry(
        novoclip.clip_by_second_moment,
        "clip",
        "hard",
        ("element", *BLOCKS),
        (
            {"threshold": 3.0, "form": "proportional"},
            {"threshold": 0.01},
            {"threshold": 0.01, "per": "tensor", "count": True},
        ),
        clips="element",
    ),
    Entry(novoclip.clip_by_block_rms, "clip", "hard", BLOCKS, ({"threshold": 0.1},), norm="rms"),
    Entry(novoclip.normalize_by_norm, "clip", "normalize", PER, ({}, {"per": "unit", "norm": "rms"})),
    Entry(novoclip.clip_to_band, "clip", "normalize", PER, ({"min_norm": 0.01, "max_norm": 0.1},)),
    Entry(novoclip.delta_gclip, "clip", "hard", PER, ({},)),
    Entry(
        novoclip.autoclip,
        "clip",
        "hard",
        PER,
        ({"percentile": 90.0, "window": 200}, {"percentile": 10.0, "window": 4, "per": "tensor"}),
        of_spikes=0.701,  # the percentile of four norms is 0.7 of the way to the largest
    ),
    Entry(
        novoclip.clip_by_running_quantile, "clip", "hard", PER, ({"quantile": 0.9}, {"quantile": 0.5, "per": "unit"})
    ),
    Entry(novoclip.clip_by_deviation, "clip", "hard", PER, ({"window": 200, "warmup": 1, "learn": "clipped"},)),
    Entry(
        novoclip.zclip,
        "clip",
        "hard",
        PER,
        ({"max_norm": 1.0}, {"warmup": 2, "max_norm": 0.5, "per": "unit", "mode": "percentile"}),
    ),
    Entry(novoclip.clip_by_running_mean, "clip", "hard", PER, ({"per": "tensor"},)),
    Entry(novoclip.adagc, "clip", "hard", BLOCKS, ({"warmup": 1},)),
    Entry(novoclip.adaclip, "clip", "hard", BLOCKS, ({},), norm="max", of_spikes=0.251),  # a mean with a part of each
    Entry(novoclip.adagn, "clip", "normalize", BLOCKS, ({},)),
    Entry(
        novoclip.agc,
        "clip",
        "hard",
        ("unit", "tree", "tensor", "element"),
        ({}, {"clipping": 0.3, "per": "tensor"}),
        needs_params=True,
    ),
    Entry(
        novoclip.adaptive_grad_clip,
        "transform",
        "hard",
        ("unit",),
        ({"clipping": 0.01},),
        needs_params=True,
    ),
    Entry(
        novoclip.clip_by_trust_ratio,
        "clip",
        "hard",
        ("tensor", "tree", "unit", "element"),
        ({"learning_rate": 0.1}, {"shape": "normalize", "max_norm": 10.0}),
        place="updates",
        needs_params=True,
    ),
    Entry(
        novoclip.scale_by_trust_ratio,
        "clip",
        "normalize",
        BLOCKS,
        ({}, {"per": "unit", "eps": 0.1}),
        place="updates",
        needs_params=True,
    ),
    Entry(
        novoclip.clippy,
        "transform",
        "hard",
        BLOCKS,
        ({"floor": 0.1, "absolute": 1e-3},),
        place="updates",
        needs_params=True,
    ),
    Entry(novoclip.clip_by_spectral_norm, "transform", "hard", ("singular value",), ({"max_norm": 0.1},)),
    Entry(novoclip.centralize, "transform", "hard", ("unit",), ({},)),
    Entry(novoclip.record, "record", "hard", ("tree", "tensor", "unit"), ({}, {"per": "tensor", "norm": "max"})),
    Entry(
        novoclip.per_example,
        "clip",
        "hard",
        ("tree",),
        ({"inner": novoclip.clip_by_global_norm(1.0)},),
        place="examples",
    ),
    Entry(novoclip.uclip, "wrapper", "hard", ("any",), ({"inner": novoclip.clip_by_global_norm(1.0)},)),
    Entry(novoclip.clip21, "wrapper", "hard", ("any",), ({"inner": novoclip.clip_by_global_norm(1.0)},)),
    Entry(
        novoclip.start_after,
        "wrapper",
        "hard",
        ("any",),
        ({"inner": novoclip.clip_by_global_norm(1.0), "steps": 1},),
    ),
    Entry(
        novoclip.across_shards,
        "wrapper",
        "hard",
        ("any",),
        ({"inner": novoclip.clip_by_global_norm(1.0), "axis_name": "devices", "sharded": True},),
        place="shards",
    ),
    Entry(novoclip.protect, "wrapper", "hard", ("any",), ({"inner": novoclip.sgd(0.1)},), place="optimizer"),
    Entry(novoclip.skip_spikes, "wrapper", "hard", ("any",), ({"inner": novoclip.sgd(0.1)},), place="optimizer"),
    Entry(novoclip.guard_nonfinite, "wrapper", "hard", ("any",), ({"inner": novoclip.sgd(0.1)},), place="optimizer"),
    *(
        Entry(make, "wrapper", "hard", ("any",), ({"inner": novoclip.sgd(0.1)},), place="optimizer", needs_params=True)
        for make in (novoclip.master_weights, novoclip.stochastic_rounding)
    ),
    Entry(
        novoclip.loss_scaling,
        "wrapper",
        "hard",
        ("any",),
        ({"inner": novoclip.sgd(0.1), "scale": 1.0},),
        place="optimizer",
    ),
    Entry(
        novoclip.watch,
        "wrapper",
        "hard",
        ("tensor", "tree"),
        ({"inner": novoclip.sgd(0.1), "every": 2},),
        place="optimizer",
    ),
)
