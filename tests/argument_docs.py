"""The docstring entries of arguments that many functions share, written once.

`python -m tests.argument_docs` copies these texts into the docstrings; tests/test_project.py fails where one differs.
An argument that means something else in a file, as `decay` of nsgd does, keeps its own text if `OWN` names both.
The docstrings contain them in full, since editors show the source.
"""

from pathlib import Path
import re
import sys
import textwrap

ROOT = Path(__file__).parent.parent
NUMBER = "a float, an array or a schedule"

EVERYWHERE = {
    "mask": "which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function "
    "that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm. "
    "None for all.",
    "shape": 'how a block is clipped: "hard" (to at most its limit), "tanh", "arctan", "algebraic", "smooth" (every '
    'block, smoothly to below its limit), "normalize" (every block to its limit) or "drop" (to zero beyond its limit).',
    "nonfinite": '"zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.',
}
OPTIMIZERS = {
    "learning_rate": f"at least 0: {NUMBER}. Skipped steps do not advance schedules.",
    "b1": f"decay rate of the first moment m, in [0, 1): {NUMBER}.",
    "b2": f"decay rate of the second moment v, in [0, 1): {NUMBER}.",
    "decay": f"decay rate of v, in [0, 1): {NUMBER}.",
    "eps": f"added to the root of the second moment, at least 0: {NUMBER}.",
    "eps_root": f"added to the second moment inside the root, at least 0: {NUMBER}.",
    "eps_in_sqrt": "whether eps is added inside the root, as in Optax and Keras, or outside, as in torch.",
    "initial_accumulator_value": "G_0, at least 0: a float or an array.",
    "initial_scale": "v_0, at least 0: a float or an array.",
    "mu_dtype": "dtype of m; None for float32 (float64 for float64 parameters).",
    "nu_dtype": "dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 "
    "bits, rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.",
    "accumulator_dtype": "dtype of the accumulator v; None for float32 (float64 for float64 parameters).",
    "nesterov": "whether to use Nesterov momentum, which looks one step ahead.",
    "dampening": f"in [0, 1]: {NUMBER}; None for 0. It must be None with nesterov.",
    "bias_correction": "whether to divide m and v by the weights of the gradients in them. Without, the first steps "
    "are (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.",
    "per": 'the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a '
    "Measure, such as `novoclip.tensors(stacked=1)`, whose own norm is not used.",
    "clip": "a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.",
    "weight_decay": f"strength of the weight decay, at least 0: {NUMBER}; None or 0 for none.",
    "weight_decay_mask": "which parameters decay: a pytree of booleans, or a function of the parameters that returns "
    "one; None for all.",
    "mask": "which parameters decay: a pytree of booleans, or a function of the parameters that returns one; None for "
    "all.",
    "weight_decay_mode": '"decoupled" adds weight_decay * w to the update, before the learning rate (AdamW); "coupled" '
    "adds it to the clipped gradients (L2 regularization).",
    "nonfinite": '"skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters '
    'change; "propagate" does not check.',
}
# (file, argument), where an argument of that name means something else: its docstring keeps its own text.
OWN = {
    ("novoclip/optimizers/novograd.py", "b1"),
    ("novoclip/optimizers/novograd.py", "b2"),
    ("novoclip/optimizers/novograd.py", "weight_decay"),
    ("novoclip/optimizers/novograd.py", "weight_decay_mode"),
    ("novoclip/optimizers/momentum.py", "decay"),
    *(("novoclip/optimizers/adagrad.py", name) for name in ("eps", "per")),
    ("novoclip/optimizers/nsgd.py", "decay"),
    *(("novoclip/optimizers/rmsprop.py", name) for name in ("eps", "bias_correction")),
    *(("novoclip/optimizers/rms.py", name) for name in ("eps", "bias_correction")),
    ("novoclip/optimizers/lars.py", "eps"),
    ("novoclip/optimizers/stable_adamw.py", "weight_decay"),
    *(("novoclip/optimizers/acclip.py", name) for name in ("b1", "b2", "eps")),
    *(("novoclip/optimizers/adopt.py", name) for name in ("b1", "b2", "eps")),
    *((f"novoclip/optimizers/{name}.py", "eps") for name in ("spam", "novoclip", "stable_adamw")),
    ("novoclip/optimizers/nsgd.py", "per"),
    ("novoclip/optimizers/novoclip.py", "per"),
    ("novoclip/rules/record.py", "mask"),
    *((f"novoclip/rules/{name}.py", "nonfinite") for name in ("value", "second_moment", "spectral", "clippy")),
    *((f"novoclip/rules/{name}.py", "shape") for name in ("value", "second_moment", "spectral")),
}
FOLDERS = {"novoclip/optimizers": OPTIMIZERS, "novoclip/rules": EVERYWHERE}
ENTRY = re.compile(r"^      (\w+): .*\n(?:        .*\n)*", re.MULTILINE)


def written(path: str, source: str, texts: dict[str, str]) -> str:
    """Return the source of a file with the texts that this table has for its arguments."""

    def filled(match: re.Match[str]) -> str:
        name = match[1]
        if name not in texts or (path, name) in OWN:
            return match[0]
        text = f"{name}: {texts[name]}"
        wide = textwrap.wrap(text, 120, initial_indent=" " * 6, subsequent_indent=" " * 8, break_on_hyphens=False)
        return "\n".join(wide) + "\n"

    def in_arguments(match: re.Match[str]) -> str:
        return ENTRY.sub(filled, match[0])

    return re.sub(r"^    Args:\n(?:(?:      .*)?\n)+?(?=^    \S)", in_arguments, source, flags=re.MULTILINE)


def files() -> list[tuple[Path, str, str]]:
    """Return each file, its source, and its source as this table has it."""
    found = []
    for folder, texts in FOLDERS.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            source = path.read_text()
            found.append((path, source, written(str(path.relative_to(ROOT)), source, texts)))
    return found


if __name__ == "__main__":
    for path, before, after in files():
        if before != after:
            path.write_text(after)
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")
