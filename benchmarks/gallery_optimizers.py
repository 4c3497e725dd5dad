"""The words of the gallery's cards: optimizers, and directions for chains of your own."""

from benchmarks.gallery_card import Card

OPTIMIZERS = {
    "sgd": Card(
        "novoclip.sgd(0.1)",
        "gradients may explode and there is no `clip=`: the step is as large as the gradient",
        use="a recipe asks for it, or there is no memory for any state",
    ),
    "momentum": Card(
        "novoclip.momentum(0.1)",
        "gradients may explode and there is no `clip=`: a spike drives the steps until it has decayed",
        use="a recipe asks for SGD with momentum, as for many convolutional networks",
    ),
    "adagrad": Card(
        "novoclip.adagrad(0.1)",
        "runs are long: its sum of squares only grows, so that steps shrink, and a spike stays in it for good",
        use="gradients are sparse, as those of embeddings are, and rare ones should count more",
    ),
    "rmsprop": Card(
        "novoclip.rmsprop(1e-3)",
        "first steps must be short: without `bias_correction=True` the very first is 3.2 times as long as later ones",
        use="a spike must leave the second moment soon: with the default decay, within some tens of steps",
    ),
    "adam": Card(
        "novoclip.adam(1e-3)",
        "spikes may come and there is no `clip=`: a spike stays in the second moment, and shortens thousands of steps",
        use="you want Adam without weight decay, or with the coupled one of torch's `Adam`",
    ),
    "adamw": Card(
        "novoclip.adamw(3e-4, weight_decay=0.1)",
        "spikes may come and there is no `clip=`: a spike stays in the second moment, and shortens thousands of steps",
        use="you have no reason for another one: it is the usual optimizer",
    ),
    "amsgrad": Card(
        "novoclip.amsgrad(1e-3)",
        "spikes may come and there is no `clip=`: its largest second moment never falls again",
        use="Adam does not converge because it forgets gradients that are rare and large",
    ),
    "lamb": Card(
        "novoclip.lamb(1e-3)",
        "steps must not be longer than Adam's: it scales each tensor's step, up or down, to the norm of the weights. "
        "`clip_by_trust_ratio(1.0)` after `scale_by_adam` only shortens",
        use="batches are very large, and you would train by Adam",
    ),
    "lars": Card(
        "novoclip.lars(0.1)",
        "the model is made of attention layers: the authors of LAMB found LARS to do poorly there",
        use="batches are very large, and you would train by SGD with momentum",
        weight=100.0,
    ),
    "novograd": Card(
        "novoclip.novograd(1e-3)",
        "elements of one tensor have gradients of very different sizes: they share one second moment",
        use="you want half of Adam's state: one second moment for each tensor in place of each element",
    ),
    "novoclip": Card(
        'novoclip.novoclip(1e-3, threshold="proportional", bias_correction=True)',
        'you would use its defaults without a search: the limit of `threshold="inverse"` suits one scale of gradients '
        "only",
        use="spikes in single elements must stay out of the second moment",
    ),
    "nsgd": Card(
        "novoclip.nsgd(1e-2)",
        "the learning rate is constant: every step of a block has its length",
        use="the length of a step should depend on the learning rate alone, and the learning rate decays",
    ),
    "stable_adamw": Card(
        "novoclip.stable_adamw(1e-3)",
        "outliers are the problem and there is no `clip=`: they still enter the second moment",
        use="gradients grow faster than Adam's second moment follows",
    ),
    "adopt": Card(
        "novoclip.adopt(1e-3)",
        "the first gradient may be far too large: it alone sets the second moment, which decays by 0.01 % per step",
        use="convergence is not to depend on `b2`",
    ),
    "acclip": Card(
        "novoclip.acclip(1e-2)",
        "you would keep Adam's learning rate: its steps have the size of the gradient. A spike enters its limit too",
        use="noise has heavy tails in all elements, as the authors saw in attention models",
    ),
    "spam": Card(
        "novoclip.spam(1e-3)",
        "spikes are moderate: by default, elements pass up to 71 times the root of their second moment",
        use="you follow SPAM, which resets the moments at intervals, with a short warm-up after each",
    ),
    "clippy_adagrad": Card(
        "novoclip.clippy_adagrad(0.1, absolute_threshold=1e-2)",
        "tensors begin at 0 and `absolute_threshold` keeps its default of 1e-7: they never change",
        use="you would train by Adagrad, as recommenders are, and steps are too long for the weights",
    ),
}
CHAIN = "you build a chain of your own around the direction of"
ARGUMENTS = {"scale_by_novoclip": 'threshold="proportional", bias_correction=True', "trace": "0.9"}
WHOLE = {  # the optimizer that has the direction
    "trace": "momentum",
    "scale_by_rss": "adagrad",
    "scale_by_rms": "rmsprop",
    "scale_by_stddev": "rmsprop(centered=True)",
    **{
        f"scale_by_{name}": name
        for name in ("adam", "amsgrad", "novograd", "novoclip", "nsgd", "stable_adamw", "adopt", "acclip", "spam")
    },
}
DIRECTIONS = {
    name: Card(
        f"novoclip.{name}({ARGUMENTS.get(name, '')})",
        f"the optimizer itself will do: `{whole}` also has the learning rate, and `clip=`",
        use=f"{CHAIN} `{whole}`",
        unseen=f"[`{whole}`](optimizers.md#{whole.partition('(')[0]}) shows the direction, times the learning rate.",
    )
    for name, whole in WHOLE.items()
}
