"""Which rule, and which threshold? Answered from the gradient norms of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from typing import Any, Literal, NamedTuple

import optax

from novoclip.records import Record, read_record
from novoclip.replays.candidates import Candidate, candidates
from novoclip.replays.cautions import cautions
from novoclip.replays.judge import Rows, judged, why_unfit
from novoclip.replays.outcome import Outcome, outcome
from novoclip.replays.run import Course, course, course_of, courses, why_not_by_tensor
from novoclip.replays.text import table, told
from novoclip.replays.wish import check_wish, fits, ranked


class Replay(NamedTuple):
    """The answer of `replay`; as a string, the table and the recommendation.

    Attributes:
      record: the norms that were read, with notes of what was noticed.
      rows: which rows are spikes and which are calm, and the level.
      outcomes: what each rule did, the best first.
      want: the wish.
      max_clipped: the largest fraction of rows that may be clipped; None for any.
      recommended: the best outcome, or None if nothing can be recommended.
      runner_up: the best outcome of another rule, or None.
      warnings: why nothing fits, or what to keep in mind; one sentence each.
    """

    record: Record
    rows: Rows
    outcomes: tuple[Outcome, ...]
    want: str
    max_clipped: float | None
    recommended: Outcome | None
    runner_up: Outcome | None
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return "\n\n".join([table(self.outcomes), told(self)])


def replay(
    source: Any,
    rules: Mapping[str, optax.GradientTransformation] | Sequence[optax.GradientTransformation] | None = None,
    *,
    want: Literal["spikes", "steady"] = "spikes",
    max_clipped: float | None = None,
    norm: str | None = None,
    loss: str | None = None,
    step: str | None = None,
    learning_rate: str | None = None,
    run: str | int | None = None,
) -> Replay:
    """Try clipping rules on the gradient norms of a run, and recommend one.

    A recorded norm is a gradient with one element, so each rule runs on the record as it would have run in the
    training. The run would have gone differently after the first step that is clipped: the figures compare rules, and
    do not predict a run. Rules that need the weights, or that change directions, cannot be judged by norms alone.

    A spike is a finite norm above 5 times the median of the 32 rows before it, or of the 64 rows before it, from row 8
    on, and of at least 3.3 levels. The level is the median of the 101 rows around a row; norms of 0, NaN and infinity
    enter no median. A calm row is at most 5 times the median of the 32 rows before it, and below 2 levels. A spike is
    caught if it is skipped, or let through at less than 3.3 levels. A calm row is touched if it is made smaller by more
    than 0.1 %, or skipped.

    Args:
      source: the path of a log (CSV, JSONL, NPZ, a TensorBoard folder, trainer_state.json, console lines, and others:
        see `novoclip.records.read_record`), a Record, a 1-D array of norms, or a mapping of columns to arrays.
      rules: transforms to try in place of the usual ones: a mapping of names to transforms, or a sequence. Guards with
        `optax.identity()` inside, since an optimizer would change the norms.
      want: "spikes" (catch spikes, and leave calm rows alone) or "steady" (let hardly a norm through that is 3 levels
        or more, and shrink the others as little as possible).
      max_clipped: the largest fraction of rows that may be clipped, such as 0.05; None for any.
      norm: the column of the norms, if it is not found by itself.
      loss: the column of the losses.
      step: the column of the steps.
      learning_rate: the column of the learning rates.
      run: which of several runs in one log: its name, or its number from 1; "all" joins the epochs of one run, where
        the steps of a log begin again at each.

    Returns:
      A Replay. `print` it for the table and the recommendation.

    Raises:
      RecordError: if the run cannot be read, or its norms were recorded after a clip.
      TypeError: if `rules` holds something that is no transform.
      ValueError: if `want` is unknown, or `max_clipped` is no fraction.

    Example:
      >>> import numpy as np
      >>> norms = np.exp(0.1 * np.random.default_rng(0).normal(size=300))
      >>> norms[[50, 120, 200]] = 40.0
      >>> print(replay(norms).recommended.line)
      novoclip.protect(optimizer)
    """
    check_wish(want, max_clipped)
    columns: dict[str, Any] = {"norm": norm, "loss": loss, "step": step, "learning_rate": learning_rate, "run": run}
    given = [f"{name}=" for name, value in columns.items() if value is not None]
    if isinstance(source, Record) and given:
        msg = f"{', '.join(given)} has no effect on a Record: give it to read_record"
        raise ValueError(msg)
    record = source if isinstance(source, Record) else read_record(source, **columns)
    rows, without_tensors = judged(record.norms), why_not_by_tensor(record)
    if rules is None:
        tried = candidates(record._replace(tensors={}) if without_tensors else record, rows)
    else:
        tried = _own(rules)
    found = [
        outcome(each.line, made, record.norms, rows, guard=each.guard)
        for each, made in zip(tried, _courses(tried, record, own=rules is not None), strict=True)
    ]
    ordered = tuple(ranked(found, want, max_clipped))
    fitting = [each for each in ordered if fits(each, want, max_clipped)]
    warnings = why_unfit(record.norms, rows)
    if not fitting and not warnings:
        most = f" with {100 * max_clipped:g} % clipped at most" if max_clipped else ""
        warnings = [f"no rule fulfils the wish {want!r}{most}"]
    best = None if warnings else fitting[0]
    second = next((each for each in fitting if best and _name(each) != _name(best)), None)
    if best is not None:
        warnings = cautions(best, record.norms, rows)
    if without_tensors and rules is None:
        warnings = [*warnings, without_tensors]
    return Replay(record, rows, ordered, want, max_clipped, best, second, tuple(warnings))


def _courses(tried: Sequence[Candidate], record: Record, *, own: bool) -> list[Course]:
    """Return what each made of the record; those of a grid are compiled as one program."""
    grids: dict[Any, list[int]] = {}
    for i, each in enumerate(tried):
        grids.setdefault(i if each.number is None else (each.rule, each.tensors), []).append(i)
    found: dict[int, Course] = {}
    for members in grids.values():
        each, numbers = tried[members[0]], [n for n in (tried[i].number for i in members) if n is not None]
        if numbers:
            found |= zip(members, courses(each.rule, numbers, record, tensors=each.tensors), strict=True)
        elif own:
            # What is compiled for a user's transform is not kept: the transform could not be freed.
            found[members[0]] = course(each.rule(), record)
        else:
            found[members[0]] = course_of(each.rule, record, tensors=each.tensors)
    return [found[i] for i in range(len(tried))]


def _own(rules: Any) -> list[Candidate]:
    if isinstance(rules, optax.GradientTransformation) or not isinstance(rules, Mapping | Sequence):
        msg = f"rules must be a mapping of names to transforms, or a sequence of transforms, [rule]; got {rules!r}"
        raise TypeError(msg)
    named = dict(rules) if isinstance(rules, Mapping) else {f"rule {i + 1}": rule for i, rule in enumerate(rules)}
    for name, rule in named.items():
        if not isinstance(rule, optax.GradientTransformation):
            msg = f"rules must hold transforms, such as novoclip.zclip(); {name} is {rule!r}"
            raise TypeError(msg)
    if not named:
        msg = "rules must hold at least one transform; omit it for the usual ones"
        raise ValueError(msg)
    return [Candidate(name, functools.partial(lambda rule: rule, rule)) for name, rule in named.items()]


def _name(each: Outcome) -> str:
    return each.line.partition("(")[0]
