"""Optax's own transforms through the checks of `novoclip.testing`: the table in docs/optax_contract.md.

python benchmarks/optax_contract.py > docs/optax_contract.md
"""

from pathlib import Path
import re
import sys
import warnings

import optax

sys.path.insert(0, str(Path(__file__).parent.parent))
from novoclip.testing import CHECKS, Check, Subject

# They read fields of novoclip's states: `steps`, `norms`, `limits`, `clipped`, `nonfinite`, `memory`, `clip`.
OWN_FIELDS = (
    "metrics_are_found_in_a_chain",
    "norms_are_those_of_float64",
    "a_step_that_is_not_finite_leaves_no_trace",
    "a_step_that_is_not_finite_is_forgotten",
    "a_step_that_is_not_finite_is_skipped",
    "a_first_gradient_of_zeros_gives_zeros",
    "low_precision_follows_float32",
    "donated_buffers_are_distinct",
    "carried_through_cond_and_optax_wrappers",
)
OWN_FIELDS_OF_BLOCKS = ("the_bound_is_honoured", "complex_gradients_keep_their_phase")  # not per element
INTRODUCTION = f"""# Optax's transforms and this contract

Optax never promised this contract: a failure below says where the two libraries differ, not that Optax breaks its word.
Its states are of other classes, so the checks that read fields of novoclip's own are left out:
{", ".join(OWN_FIELDS)}; and, except per element, {" and ".join(OWN_FIELDS_OF_BLOCKS)}.

`python benchmarks/optax_contract.py`, Optax {optax.__version__}; "-" where a check does not apply. Promotion of dtypes
is allowed (`strict=False`).
"""
LONGEST = 150
SUBJECTS = (
    ("clip(0.1)", Subject(optax.clip(0.1), per="element", strict=False)),
    ("clip_by_global_norm(1.0)", Subject(optax.clip_by_global_norm(1.0), strict=False)),
    ("clip_by_block_rms(0.1)", Subject(optax.clip_by_block_rms(0.1), per="tensor", norm="rms", strict=False)),
    ("adaptive_grad_clip(0.01)", Subject(optax.adaptive_grad_clip(0.01), per="unit", strict=False)),
    ("centralize()", Subject(optax.centralize(), "transform", per="unit", strict=False)),
    (
        "normalize_by_update_norm()",
        Subject(optax.normalize_by_update_norm(), "clip", "normalize", strict=False),
    ),
    ("zero_nans()", Subject(optax.zero_nans(), "transform", strict=False)),
    ("scale_by_adam()", Subject(optax.scale_by_adam(), "optimizer", strict=False)),
    ("novograd(0.1)", Subject(optax.novograd(0.1), "optimizer", strict=False)),
    ("adafactor(0.1)", Subject(optax.adafactor(0.1), "optimizer", strict=False)),
    ("apply_if_finite(sgd(0.1), 5)", Subject(optax.apply_if_finite(optax.sgd(0.1), 5), "wrapper", strict=False)),
)


def applies(check: Check, subject: Subject) -> bool:
    left_out = OWN_FIELDS if subject.per == "element" else OWN_FIELDS + OWN_FIELDS_OF_BLOCKS
    return check.applies(subject) and check.name not in left_out


def outcome(check: Check, subject: Subject) -> str:
    """Return "passes", or the beginning of what the check raises."""
    try:
        check.run(subject)
    except Exception as error:
        text = re.sub(r"Array\(.*?dtype=(\w+)\)", r"\1", " ".join(str(error).split())).replace("|", "/")
        text = re.split(r"(?<=\w)\. ", text)[0]
        return f"{type(error).__name__}: {text[: LONGEST - 3] + '...' if len(text) > LONGEST else text}"
    return "passes"


def main() -> None:
    warnings.simplefilter("ignore")  # Optax warns of float0 and of names that it has renamed
    found = {
        (check.name, name): outcome(check, subject)
        for check in CHECKS
        for name, subject in SUBJECTS
        if applies(check, subject)
    }
    print(INTRODUCTION)
    print("| check |" + "".join(f" {name} |" for name, _ in SUBJECTS))
    print("|---|" + "---|" * len(SUBJECTS))
    for check in dict.fromkeys(check for check, _ in found):
        words = [found.get((check, name), "-").split(":")[0] for name, _ in SUBJECTS]
        print(f"| {check} |" + "".join(f" {word if word in ('passes', '-') else '**fails**'} |" for word in words))
    print("\n| check | transform | first words of the error |\n|---|---|---|")
    for (check, name), words in found.items():
        if words != "passes":
            print(f"| {check} | {name} | {words} |")


if __name__ == "__main__":
    main()
