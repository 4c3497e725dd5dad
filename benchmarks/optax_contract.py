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

# They read fields of novoclip's ClipState.
OWN_FIELDS = ("norms_are_those_of_float64", "a_step_that_is_not_finite_leaves_no_trace")
OWN_FIELDS_OF_BLOCKS = (  # not per element
    "the_bound_is_honoured",
    "sudden_gradients_are_made_smaller",
    "complex_gradients_keep_their_phase",
)
TYPES = ("float0_leaves_pass", "updates_keep_the_gradients_types", "integer_gradients_raise")
INTRODUCTION = f"""# Optax's transforms and this contract

From this page you learn where Optax's own transforms differ from novoclip's in what they promise, check by check.

Optax never promised this contract: a failure below says where the two libraries differ, not that Optax breaks its word.
Each is run as `check_contract(transform)` runs any transform, and beyond that through novoclip's own checks of types
({", ".join(TYPES)}); those that clip also through the checks of clipping
that read no field of novoclip's own states (left out: {", ".join(OWN_FIELDS)};
and, except per element, {", ".join(OWN_FIELDS_OF_BLOCKS)}).

`python benchmarks/optax_contract.py`, Optax {optax.__version__}; "-" where a check does not apply. Promotion of dtypes
is allowed (`strict=False`).
"""
LONGEST = 150
# The second says what a transform that clips promises.
SUBJECTS = (
    ("clip(0.1)", optax.clip(0.1), {"per": "element"}),
    ("clip_by_global_norm(1.0)", optax.clip_by_global_norm(1.0), {"per": "tree"}),
    ("clip_by_block_rms(0.1)", optax.clip_by_block_rms(0.1), {"per": "tensor", "norm": "rms"}),
    ("adaptive_grad_clip(0.01)", optax.adaptive_grad_clip(0.01), {"per": "unit"}),
    ("normalize_by_update_norm()", optax.normalize_by_update_norm(), {"shape": "normalize"}),
    ("centralize()", optax.centralize(), None),
    ("zero_nans()", optax.zero_nans(), None),
    ("scale_by_adam()", optax.scale_by_adam(), None),
    ("novograd(0.1)", optax.novograd(0.1), None),
    ("adafactor(0.1)", optax.adafactor(0.1), None),
    ("apply_if_finite(sgd(0.1), 5)", optax.apply_if_finite(optax.sgd(0.1), 5), None),
    ("inject_hyperparams(adam)(0.1)", optax.inject_hyperparams(optax.adam)(0.1), None),
)


def subject_of(
    check: Check, transform: optax.GradientTransformation, promises: dict[str, str] | None
) -> Subject | None:
    """Return the transform as what the check takes it for, or None where it does not apply."""
    anything = Subject(transform, "any", strict=False)
    if check.applies(anything) or check.name in TYPES:
        return anything
    if promises is None or check.name in OWN_FIELDS:
        return None
    clips = Subject(transform, "clip", strict=False, **promises)
    blocks = clips.per != "element" and check.name in OWN_FIELDS_OF_BLOCKS
    return clips if check.kinds == ("clip",) and check.applies(clips) and not blocks else None


def outcome(check: Check, subject: Subject) -> str:
    """Return "passes", or the beginning of what the check raises."""
    try:
        check.run(subject)
    except Exception as error:
        text = re.sub(r"Array\(.*?dtype=(\w+)\)", r"\1", " ".join(str(error).split())).replace("|", "/")
        text = text.replace("[Chex] ", "")
        text = re.split(r"(?<=\w)\. ", text)[0]
        return f"{type(error).__name__}: {text[: LONGEST - 3] + '...' if len(text) > LONGEST else text}"
    return "passes"


def main() -> None:
    warnings.simplefilter("ignore")  # Optax warns of float0 and of names that it has renamed
    found = {
        (check.name, name): outcome(check, subject)
        for name, transform, promises in SUBJECTS  # whose checks share what is compiled
        for check in CHECKS
        if (subject := subject_of(check, transform, promises))
    }
    print(INTRODUCTION)
    print("| check |" + "".join(f" {name} |" for name, *_ in SUBJECTS))
    print("|---|" + "---|" * len(SUBJECTS))
    for check in (check.name for check in CHECKS if any(name == check.name for name, _ in found)):
        words = [found.get((check, name), "-").split(":")[0] for name, *_ in SUBJECTS]
        print(f"| {check} |" + "".join(f" {word if word in ('passes', '-') else '**fails**'} |" for word in words))
    print("\n| check | transform | first words of the error |\n|---|---|---|")
    for (check, name), words in found.items():
        if words != "passes":
            print(f"| {check} | {name} | {words} |")


if __name__ == "__main__":
    main()
