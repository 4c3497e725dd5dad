"""When to use a rule: the table of the README."""

USE_WHEN = {
    "protect": "runs spike, and you do not want to choose anything",
    "clip_by_global_norm": "a threshold is known to work: 1.0 in most language models, 0.5 in PPO",
    "autoclip": "norms are unknown, and you want the largest tenth of them clipped",
    "zclip": "the norms have a steady level, with rare, large spikes above it",
    "adagc": "each tensor needs a limit of its own, learned from its own norms",
    "agc": (
        "there are no normalization layers, or the learning rate is large: limits relative to the weights "
        "(also of Equinox)"
    ),
    "clip_by_value": "single elements, or the root mean square of tensors, must be bounded",
    "clip_by_block_rms": "single elements, or the root mean square of tensors, must be bounded",
    "clip_by_spectral_norm": "single directions of a matrix explode",
    "clippy": "steps are too long for the weights: place them after the optimizer",
    "clip_by_trust_ratio": "steps are too long for the weights: place them after the optimizer",
    "skip_spikes": "some batches are bad: skip them, and clip nothing",
    "guard_nonfinite": "NaN and infinity are the only problem",
    "record": "you want to see the norms first, and change nothing",
}
