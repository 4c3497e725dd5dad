r"""Tables of what training programs print.

Any `name: number`, `name=number` or `'name': number` in a line is read, and lines without one are ignored. So are read:

- CLU and absl: `I0101 12:00:00.000000 123 logging_writer.py:48] [100] grad_norm=1.23, loss=4.5`
- Megatron-LM: ` iteration      100/  500000 | lm loss: 1.03E+01 | grad norm: 12.345 |`
- torchtitan: `step: 10  loss:  7.9  grad_norm:  1.5`, with colors
- Hugging Face: `{'loss': 2.31, 'grad_norm': 1.23, 'learning_rate': 5e-05, 'epoch': 0.1}`
- OLMo and OLMo-core: `[step=100/1000,epoch=1]`, and after it a line for each metric, `    optim/total grad norm=0.3`
- MaxText: `completed step: 12, seconds: 1.2, loss: 10.87`. It prints no norms, but forks of it do.
"""

from __future__ import annotations

import re

from novoclip.records.table import Table, number, table_of_rows

COLOR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|nan|inf(?:inity)?)"
WORD = r"[A-Za-z_][\w./-]*"
PAIR = re.compile(rf"""['"]?({WORD}(?: {WORD})*)['"]?\s*[:=]\s*['"]?({NUMBER})(?![\w.])""", re.IGNORECASE)
CLU = re.compile(r"\[(\d+)\](?: collection=(\S+))? (?=[^\s=]+=)")
MEGATRON = re.compile(r"iteration\s+(\d+)\s*/\s*\d+ \|")
CONTINUED = re.compile(rf"\s{{2,}}({WORD}(?: [\w./()-]+)*)=(\S+)\s*")  # of OLMo: one metric, indented


def read_console(text: str) -> list[Table]:
    """Return the Table of what a training program printed; it has no columns if no line holds a number."""
    rows: list[dict[str, str]] = []
    for line in COLOR.sub("", text).splitlines():
        continued = CONTINUED.fullmatch(line)
        if continued and rows and "=" not in continued[2]:
            _continue(rows, continued[1], continued[2].replace(",", ""))
        elif row := _row(line):
            rows.append(row)
    return [table_of_rows("", rows)]


def _continue(rows: list[dict[str, str]], key: str, value: str) -> None:
    """Add a metric to the last row, or to a new one if the last has it; a text, such as "skipped", is ignored."""
    if number(value) is None:
        return
    if key in rows[-1]:
        rows.append({})
    rows[-1][key] = value


def _row(line: str) -> dict[str, str]:
    step: dict[str, str] = {}
    prefix = ""
    if found := CLU.search(line):
        step = {"step": found[1]}
        prefix = f"{found[2]}/" if found[2] else ""
        line = line[found.end() :]
    elif found := MEGATRON.search(line):
        step = {"iteration": found[1]}
        line = line[found.end() :]
    found_pairs = [pair for pair in PAIR.findall(line) if not pair[0].endswith(".py")]  # "train.py:48]" is a place
    pairs = {prefix + key: value.replace(",", "") for key, value in found_pairs}
    return step | pairs if pairs else {}
