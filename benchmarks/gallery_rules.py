"""The words of the gallery's cards: rules."""

from benchmarks.gallery_card import Card

BEFORE = {
    "clip_by_value": Card(
        "novoclip.clip_by_value(1.0)",
        "the direction of the step matters: every element is clipped by itself, which changes the direction",
    ),
    "clip_by_norm": Card(
        "novoclip.clip_by_norm(1.0)",
        "tensors have norms of different sizes, and one number is given for all: give thresholds by name, or use "
        "`adagc`, which learns one for each",
        use="one tensor may explode while the others are fine, and you know a threshold for each",
    ),
    "clip_by_global_norm": Card(
        "novoclip.clip_by_global_norm(1.0)",
        "the level of the norms is unknown, or changes much during the run: a fixed threshold is then too low or too "
        "high for part of it",
    ),
    "clip_by_second_moment": Card(
        'novoclip.clip_by_second_moment(3.0, form="proportional")',
        "the direction of the gradient must not change, or one more copy of the parameters is too much memory. The "
        'default, `form="inverse"`, also needs a threshold that suits the scale of the gradients',
        use="single elements explode, and no threshold for them is known",
    ),
    "clip_by_block_rms": Card(
        "novoclip.clip_by_block_rms(1.0)",
        "tensors have gradients of different sizes, and one number is given for all: a threshold that suits one is too "
        "high or too low for another",
    ),
    "normalize_by_norm": Card(
        "novoclip.normalize_by_norm()",
        "the learning rate is constant: steps do not become smaller near a minimum",
        use="only the direction of the gradient should count, and the learning rate decays",
    ),
    "clip_to_band": Card(
        "novoclip.clip_to_band(0.1, 1.0)",
        "small gradients must stay small: every nonzero block below the lower bound is scaled up to it",
        use="gradients have heavy tails, and you want steps similar to Adam's without its state",
    ),
    "delta_gclip": Card(
        "novoclip.delta_gclip(1.0)",
        "spikes must be removed: a gradient of norm n still leaves with a norm of at least `delta` n",
        use="clipped norms must still grow with the norm of the gradient, as its proof of convergence requires",
    ),
    "autoclip": Card(
        "novoclip.autoclip(90.0)",
        "only rare spikes should be clipped: at 90 it clips about one step in ten, and more while the norms rise",
    ),
    "clip_by_running_quantile": Card(
        "novoclip.clip_by_running_quantile(0.9)",
        "only rare spikes should be clipped: at a quantile of 0.9 it clips about one step in ten",
        use="you want what `autoclip` does, with one scalar of state for each block",
    ),
    "clip_by_deviation": Card(
        "novoclip.clip_by_deviation(3.0, warmup=8)",
        "the first steps need a limit: there is none before the warm-up ends, after 64 norms by default",
        use="the norms vary around a level, and only norms far above it should be clipped",
    ),
    "zclip": Card(
        "novoclip.zclip()",
        "the level of the norms may rise for good by more than half: every later step is then clipped to the old "
        'level, unless you give `release=20` or `mode="percentile"`. The first 25 norms have no limit either, without '
        "`max_norm=`",
    ),
    "clip_by_running_mean": Card(
        "novoclip.clip_by_running_mean(2.0)",
        "good steps often have more than twice the usual norm: they are clipped too. Give a larger factor",
        use="the level of the norms rises or falls during the run, and the limit must follow it",
    ),
    "adagc": Card(
        "novoclip.adagc()",
        "norms rise fast for long: with the default decay and factor, a limit grows by at most 2 % per step",
    ),
    "adaclip": Card(
        "novoclip.adaclip()",
        "it is the only protection: a spike enters the running mean before it is scaled, and early in a run passes "
        "almost unchanged",
        use="elements far above the usual maximum of their tensor should shrink, as in Stable-SPAM before `adagn`",
    ),
    "adagn": Card(
        "novoclip.adagn()",
        "the optimizer after it depends on the scale of gradients, as SGD does: the new norm is near 1 whatever the "
        "old one was. Without `adaclip` before it, the hundred steps after a large spike are short",
        use="Adam follows, and the size of a gradient should count only relative to the latest ones",
    ),
    "agc": Card(
        "novoclip.agc(0.01)",
        "weights begin at 0, such as adapters: their limit is then 1e-3 times `clipping`. The authors do not clip the "
        'last layer either: `agc({"head": None, "*": 0.01})`',
        weight=100.0,
    ),
    "adaptive_grad_clip": Card(
        "novoclip.adaptive_grad_clip(0.01)",
        "weights are (out, in), as in Equinox: its default axes are wrong for them. `agc` recognizes these layers",
        use="code has `optax.adaptive_grad_clip`, and you want to keep its arguments",
        weight=100.0,
    ),
    "clip_by_spectral_norm": Card(
        "novoclip.clip_by_spectral_norm(1.0)",
        "matrices have more than some thousands of rows and columns: singular values then cost too much",
    ),
    "centralize": Card(
        "novoclip.centralize()",
        "spikes are the problem: it does not bound the gradient, and did nothing against them in "
        "[the storm](../rules.md)",
        use="the recipe that you follow has gradient centralization",
        unseen="It depends on the elements of a matrix, which a record of norms does not have.",
    ),
    "record": Card(
        "novoclip.record()",
        "a clipping rule of novoclip is already first in the chain: its state has the norms, before and after the clip",
    ),
    "per_example": Card(
        "novoclip.per_example(novoclip.clip_by_global_norm(1.0))",
        "there is no memory for a gradient of each example. For differential privacy it is not enough: it adds "
        "no noise",
        use="a few examples dominate the gradient of a batch, or the influence of each has to be bounded",
        seen="In the picture, a batch has eight examples, and what is above 1.5 times the usual level is of one of "
        "them. The norm before is that of the mean of the batch.",
    ),
}

AFTER = {
    "clip_by_trust_ratio": Card(
        "novoclip.clip_by_trust_ratio(1e-3)",
        "spikes are the problem: after the optimizer, they are already in its moments. Steps of weights that are 0 are "
        "not clipped",
        weight=1000.0,
    ),
    "scale_by_trust_ratio": Card(
        "novoclip.scale_by_trust_ratio()",
        "steps must not become longer: it lengthens short ones too. `clip_by_trust_ratio` does not",
        use="the step of each tensor should be as long as its weights, times the learning rate, as in LAMB",
    ),
    "clippy": Card(
        "novoclip.clippy()",
        "spikes are the problem: after the optimizer, they are already in its moments. With the published "
        "`absolute=1e-7, floor=0.0`, one weight of 0 stops its whole tensor",
        weight=10.0,
    ),
}
