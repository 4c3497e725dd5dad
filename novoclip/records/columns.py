"""Decide by name which column holds what. Names are compared without case, and with "-", " ", "." and "/" alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import difflib
import re


def _words(words: str) -> tuple[str, ...]:
    return tuple(words.split())


# In order of preference, as parts of a name. What stands around them must be among AROUND.
NORMS = _words(
    "grad_norm grads_norm gradnorm gnorm gradient_norm gradients_norm grad_norms norm_grad grad_l2_norm "
    "grad_global_norm gradient_global_norm gradients_global_norm grads_global_norm grad_2_0_norm grad_2_norm "
    "global_norm spikes_norm guard_norm clip_norm"
)
RAW = _words("raw unclipped preclip noclip pre_clip before_clip pre_clipping before_clipping")
AROUND = frozenset(
    _words(
        "train training trainer optim optimizer optimization learning total global all overall model metrics "
        "metric stats step log debug info norm norms l2 2 0 raw unclipped preclip noclip pre before clip clipping "
        "mean avg actor monitor grad gradient gradients grads"
    )
)
NOT_NORMS = frozenset(
    _words(
        "after clipped post postclip param params parameter parameters weight weights update updates max min limit "
        "limits threshold eval evaluation val valid validation test std var variance ema ratio scale lr fraction num"
    )
)
STEPS = _words("step global_step trainer_global_step iteration iterations iter steps num_updates training_step")
AROUND_STEPS = frozenset(_words("completed train training trainer global optimizer current"))
LOSSES = _words(
    "loss train_loss training_loss lm_loss learning_loss loss_train total_loss train_total_loss cross_entropy_loss "
    "train_cross_entropy_loss train_crossentropyloss loss_metrics_global_avg_loss ce_loss nll_loss"
)
AROUND_LOSSES = frozenset(
    _words(
        "train training trainer total lm learning cross entropy crossentropyloss ce nll avg mean global actor metrics "
        "loss step model"
    )
)
EPOCHS = _words("epoch train_epoch trainer_epoch current_epoch epoch_idx epoch_index")
RATES = _words("lr learning_rate learning_current_learning_rate train_lr train_learning_rate current_lr")

_SEPARATED = r"(?:clip|spikes)/norms?|(?:raw_)?grad(?:ient|s|ients)?[_/ -](?:2(?:\.0)?_)?norms?|g_?norms?|gradnorms?"
TENSOR = re.compile(rf"((?:train/|optim/|learning/)*(?:{_SEPARATED}))[/.](.+)", re.IGNORECASE)
# OLMo: beside it stand param/, exp_avg/ and exp_avg_sq/, and .min, .max and .avg, which are no norms of gradients.
NORM_LAST = re.compile(r"((?:train/|optim/)*grad)/(.+)\.norm")


def plain(name: str) -> str:
    """Return a name in lower case with its words joined by "_"."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def find_norms(names: Sequence[str]) -> list[str]:
    """Return the columns that may be the norm of the whole gradient: the best first, then those that fit as well."""
    within = {column for tensors in _tensor_groups(names).values() for column in tensors.values()}
    ranked = sorted((rank, index) for index, name in enumerate(names) if name not in within and (rank := _rank(name)))
    if not ranked:
        return []
    best = [index for rank, index in ranked if rank[0] == ranked[0][0][0]]
    # A norm of something unknown is taken only if there is just one.
    return [] if ranked[0][0][0] == 2 and len(best) > 1 else [names[index] for index in best]


def find_step(names: Iterable[str]) -> str | None:
    """Return the column of steps, if there is one."""
    return _find(names, STEPS, frozenset({"step", "iteration", "iter"}), AROUND_STEPS)


def find_loss(names: Iterable[str]) -> str | None:
    """Return the column of the training loss, if there is one; never a loss of an evaluation."""
    return _find(names, LOSSES, frozenset({"loss", "crossentropyloss"}), AROUND_LOSSES)


def find_epoch(names: Iterable[str]) -> str | None:
    """Return the column that counts the epochs, if there is one."""
    return _find(names, EPOCHS, frozenset(), frozenset())


def find_learning_rate(names: Iterable[str]) -> str | None:
    """Return the column of learning rates, if there is one: of several, the shortest name."""
    names = list(names)
    if exact := _find(names, RATES, frozenset(), frozenset()):
        return exact
    fits = [name for name in names if re.search(r"(?:^|_)(?:lr|learning_rate)(?:_|$)", plain(name))]
    return min(fits, key=len, default=None)


def find_tensors(names: Sequence[str]) -> dict[str, str]:
    """Return the columns of single tensors' norms by the tensors' names: at least two after the same prefix."""
    groups = _tensor_groups(names)
    return max(groups.values(), key=len) if groups else {}


def find_named(names: Iterable[str], wanted: str) -> str | None:
    """Return the column that a user named, which need not be spelled exactly."""
    names = list(names)
    alike = [name for name in names if plain(name) == plain(wanted)]
    return wanted if wanted in names else (alike[0] if alike else None)


def nearest(names: Iterable[str], wanted: str) -> str:
    """Return the nearest columns for an error message."""
    by_plain = {plain(name): name for name in names}
    found = difflib.get_close_matches(plain(wanted), by_plain, n=3, cutoff=0.0)
    return ", ".join(repr(by_plain[name]) for name in found)


def _tensor_groups(names: Sequence[str]) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        found = TENSOR.fullmatch(name) or NORM_LAST.fullmatch(name)
        if found and not set(plain(found[2]).split("_")) <= AROUND:
            groups.setdefault(plain(found[1]), {})[found[2]] = name
    return {prefix: tensors for prefix, tensors in groups.items() if len(tensors) > 1}


def _contains(name: str, part: str) -> bool:
    return f"_{part}_" in f"_{name}_"


def _rank(name: str) -> tuple[int, int, int] | None:
    """Return how well a name fits a norm before clipping, the smallest best, or None."""
    words = plain(name)
    # The mean of the norms of several blocks, as `novoclip.metrics` has it, is no norm of the whole.
    if NOT_NORMS & set(words.split("_")) or (words.startswith("clip_") and "mean" in words.split("_")):
        return None
    parts = [index for index, part in enumerate(NORMS) if _contains(words, part)]
    if words in {"norm", "norms"}:
        parts = [len(NORMS)]
    if not parts:
        return None
    left = _without(words, NORMS[parts[0]]) if parts[0] < len(NORMS) else set()
    tier = 2 if left - AROUND else 0 if any(_contains(words, part) for part in RAW) else 1
    return tier, parts[0], len(words)


def _without(words: str, part: str) -> set[str]:
    return set(f"_{words}_".replace(f"_{part}_", "_").split("_")) - {""}


def _find(names: Iterable[str], exact: Sequence[str], last: frozenset[str], around: frozenset[str]) -> str | None:
    by_plain: dict[str, str] = {}
    for name in names:
        by_plain.setdefault(plain(name), name)
    for words in exact:
        if words in by_plain:
            return by_plain[words]
    for words, name in by_plain.items():
        parts = words.split("_")
        if parts[-1] in last and set(parts[:-1]) <= around:
            return name
    return None
