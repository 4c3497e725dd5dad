"""The list of all public rules: tests, documentation and benchmarks iterate it; the library does not.

`python -m novoclip.catalog` prints the table in the README.
"""

from collections.abc import Callable
import inspect
import re
import sys
from typing import Any, NamedTuple

import optax

import novoclip
from novoclip.granularity import PER

BLOCKS = ("tensor", "tree", "unit")


class Entry(NamedTuple):
    """One public rule.

    Attributes:
      make: the public function.
      kind: "clip" bounds what it passes on; "record" passes everything on; "transform" does something
        else to gradients or updates; "optimizer" descends, or gives the direction of an optimizer;
        "wrapper" stands around any of them.
      shape: what becomes of a block beyond its limit, unless `shape=` says otherwise.
      per: the granularities that `per=` takes; a single one if the function has no `per=`.
      clips: the blocks that are scaled, where these are not the ones that `per` names.
      norm: the norm that is measured, where there is no `norm=`.
      place: what it is given in a training step: "gradients", "updates" (behind the optimizer and its
        learning rate), the "optimizer" to wrap, the gradients of all "examples", or a device's "shards" of them.
      needs_params: whether `update` needs the parameters.
      of_spikes: how much of a sudden gradient may come through, as in `novoclip.testing.Subject`.
      examples: sets of arguments that the contract is run with; with the first, gradients
        of order 1 are clipped.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs]
    kind: str
    shape: str
    per: tuple[str, ...]
    examples: tuple[dict[str, Any], ...]
    clips: str | None = None
    norm: str = "l2"
    place: str = "gradients"
    needs_params: bool = False
    of_spikes: float = 0.1

    @property
    def name(self) -> str:
        """The function's name."""
        return self.make.__name__


CATALOG = (
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
    Entry(novoclip.normalize_by_norm, "clip", "normalize", PER, ({}, {"per": "unit", "norm": "rms"})),
    Entry(novoclip.clip_to_band, "clip", "normalize", PER, ({"min_norm": 0.01, "max_norm": 0.1},)),
    Entry(novoclip.delta_gclip, "clip", "hard", PER, ({},)),
    Entry(
        novoclip.autoclip,
        "clip",
        "hard",
        PER,
        ({"percentile": 90.0, "window": 200}, {"window": 4, "per": "tensor"}),
        of_spikes=0.701,  # the percentile of four norms is 0.7 of the way to the largest
    ),
    Entry(novoclip.clip_by_running_quantile, "clip", "hard", PER, ({"quantile": 0.9}, {"per": "unit"})),
    Entry(novoclip.clip_by_deviation, "clip", "hard", PER, ({"window": 200, "warmup": 1, "learn": "clipped"},)),
    Entry(
        novoclip.zclip, "clip", "hard", PER, ({}, {"warmup": 2, "max_norm": 0.5, "per": "unit", "mode": "percentile"})
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
        novoclip.clip_by_trust_ratio,
        "clip",
        "hard",
        ("tensor", "tree", "unit", "element"),
        ({"learning_rate": 0.1}, {"shape": "normalize", "max_norm": 10.0}),
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
    Entry(novoclip.skip_spikes, "wrapper", "hard", ("any",), ({"inner": novoclip.sgd(0.1)},), place="optimizer"),
    Entry(novoclip.guard_nonfinite, "wrapper", "hard", ("any",), ({"inner": novoclip.sgd(0.1)},), place="optimizer"),
    *(
        Entry(make, "optimizer", "hard", per, examples)
        for make, per, examples in (
            (
                novoclip.sgd,
                ("element",),
                ({"learning_rate": 0.1, "clip": novoclip.clip_by_norm(1.0), "weight_decay": 0.01},),
            ),
            (novoclip.momentum, ("element",), ({"learning_rate": 0.1, "nesterov": True, "weight_decay": 0.01},)),
            (novoclip.scale_by_momentum, ("element",), ({"dampening": 0.5}, {"form": "averaged"})),
            (novoclip.adagrad, ("element", *BLOCKS), ({"learning_rate": 0.1},)),
            (novoclip.scale_by_adagrad, ("element", *BLOCKS), ({"per": "tensor"}, {"per": "tree"})),
            (
                novoclip.rmsprop,
                ("element",),
                ({"learning_rate": 0.1, "centered": True, "momentum": 0.9, "weight_decay": 0.01, "decay": "coupled"},),
            ),
            (novoclip.scale_by_rmsprop, ("element",), ({"eps": 0.0, "eps_root": 1e-8},)),
            (novoclip.adam, ("element",), ({"learning_rate": 0.1, "weight_decay": 0.01},)),
            (novoclip.scale_by_adam, ("element",), ({"bias_correction": False},)),
            (novoclip.amsgrad, ("element",), ({"learning_rate": 0.1, "maximum": "corrected"},)),
            (novoclip.scale_by_amsgrad, ("element",), ({},)),
            (novoclip.novograd, BLOCKS, ({"learning_rate": 0.1, "weight_decay": 0.01},)),
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
        )
    ),
)


RULES = ("clip", "record", "transform")


def table(kinds: tuple[str, ...] = RULES, title: str = "rule") -> str:
    """Return the rules, wrappers or optimizers as a Markdown table, from the catalog and the docstrings.

    Example:
      >>> print(table().splitlines()[0])
      | rule | what it does | `per=` | paper |
    """
    chosen = [entry for entry in CATALOG if entry.kind in kinds and not entry.name.startswith("scale_by_")]
    return "\n".join([f"| {title} | what it does | `per=` | paper |", "|---|---|---|---|", *map(_row, chosen)])


def _row(entry: Entry) -> str:
    text = inspect.getdoc(entry.make) or ""
    source = entry.make.__module__.replace(".", "/")
    reference = re.search(r"<(http[^>]+)>`_,\s+(\d{4})", text)
    paper = f"[{reference[2]}]({reference[1]})" if reference else ""
    return f"| [`{entry.name}`]({source}.py) | {text.splitlines()[0]} | {', '.join(entry.per)} | {paper} |"


if __name__ == "__main__":
    sys.stdout.write("\n\n".join([table(), table(("wrapper",), "wrapper"), table(("optimizer",), "optimizer")]) + "\n")
