"""The contract that every novoclip transform keeps, as checks to run on your own transforms.

    from novoclip.testing import Subject, check_contract

    def test_my_transform():
        check_contract(my_transform(0.1))

    def test_my_rule():
        check_contract(Subject(my_rule(1.0), per="tensor"))

The first takes any `optax.GradientTransformation`. The second also checks what a rule made by `novoclip.clip_by_limit`
promises. All checks that apply are run. The AssertionError lists the checks that failed, with the expected and the
actual result, those that passed, and those that do not apply, with the reason.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import optax

from novoclip.arguments import check_choice
from novoclip.blocks import NORMS
from novoclip.granularity import PER
from novoclip.testing import derivatives, descent, interface, numerics, places, properties
from novoclip.testing.subject import Subject
from novoclip.wrappers.inner import checked_inner

MEASURED = ("clip", "record")
OPTIMIZER = ("optimizer",)
WRAPPER = ("wrapper",)
TRANSFORM = ("transform",)
OURS = (*MEASURED, *OPTIMIZER, *WRAPPER, *TRANSFORM)
ANY = (*OURS, "any")
CLIP = ("clip",)
SHAPES_WITHIN = ("hard", "drop")
SHAPES = (*SHAPES_WITHIN, "tanh", "arctan", "algebraic", "smooth", "normalize")


class Check(NamedTuple):
    """One check of the contract, and the subjects that it applies to."""

    run: Callable[[Subject], None]
    kinds: tuple[str, ...] = ANY
    shapes: tuple[str, ...] = SHAPES

    @property
    def name(self) -> str:
        """The check's name."""
        return self.run.__name__

    def reason_to_skip(self, subject: Subject) -> str:
        """Return why the check does not apply to the subject, or "" if it does."""
        if subject.kind not in self.kinds:
            return f"for {_listed('kind', self.kinds)}; this is {subject.kind!r}"
        if subject.shape not in self.shapes:
            return f"for {_listed('shape', self.shapes)}; this is {subject.shape!r}"
        return ""

    def applies(self, subject: Subject) -> bool:
        """Whether the check applies to the subject's kind and shape."""
        return not self.reason_to_skip(subject)


class Report(NamedTuple):
    """The results of the checks.

    Attributes:
      passed: the names of the checks that passed.
      skipped: for each check that does not apply, the reason.
      failed: for each check that failed, the expected and the actual result.
    """

    passed: tuple[str, ...]
    skipped: dict[str, str]
    failed: dict[str, str]

    def __str__(self) -> str:
        run = len(self.passed) + len(self.failed)
        lines = [f"{len(self.failed)} of {run} checks failed."]
        lines += [f"{name}: {message}" for name, message in self.failed.items()]
        lines += [f"passed: {', '.join(self.passed) or 'none'}"]
        lines += [f"does not apply: {name}, {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


CHECKS = (
    Check(interface.extra_arguments_are_accepted),
    Check(interface.state_is_a_named_tuple_that_optax_can_search, OURS),
    Check(interface.state_never_changes_its_type),
    Check(interface.init_takes_abstract_and_numpy_parameters),
    Check(interface.missing_and_empty_leaves_pass),
    Check(interface.float0_leaves_pass, OURS),
    Check(interface.updates_keep_the_gradients_types, OURS),
    Check(interface.integer_gradients_raise, OURS),
    Check(interface.metrics_are_found_in_a_chain, OURS),
    Check(numerics.norms_are_those_of_float64, MEASURED),
    Check(numerics.the_bound_is_honoured, CLIP),
    Check(numerics.sudden_gradients_are_made_smaller, CLIP),
    Check(numerics.gradients_within_the_limit_are_untouched, CLIP, SHAPES_WITHIN),
    Check(numerics.zero_gradients_give_zeros, (*MEASURED, *TRANSFORM)),
    Check(derivatives.derivatives_are_finite, CLIP),
    Check(derivatives.derivatives_are_those_of_differences, CLIP),
    Check(numerics.complex_gradients_keep_their_phase, CLIP),
    Check(numerics.a_step_that_is_not_finite_leaves_no_trace, CLIP),
    Check(numerics.a_step_that_is_not_finite_is_forgotten, (*WRAPPER, *TRANSFORM)),
    Check(numerics.records_change_nothing, ("record",)),
    Check(descent.a_first_gradient_of_zeros_gives_zeros, (*OPTIMIZER, *WRAPPER)),
    Check(descent.a_step_that_is_not_finite_is_skipped, OPTIMIZER),
    Check(descent.low_precision_follows_float32, OPTIMIZER),
    Check(places.same_result_in_jit_scan_and_vmap),
    Check(places.donated_buffers_are_distinct),
    Check(places.one_program_serves_every_step),
    Check(places.carried_through_cond_and_optax_wrappers),
    Check(properties.every_chex_variant_agrees),
    Check(properties.finite_gradients_give_finite_updates),
)


def check_contract(subject: Subject | optax.GradientTransformation) -> Report:
    """Run every check that applies to the subject.

    Args:
      subject: a Subject, which is a transform and what it promises; or a transform, which is checked for what every
        transform promises.

    Returns:
      A Report of the checks that passed, and of those that do not apply, with the reasons.

    Raises:
      TypeError: if `subject` is neither.
      AssertionError: with the Report, if any check failed.

    Example:
      >>> import novoclip
      >>> report = check_contract(novoclip.clip_by_global_norm(1.0))
      >>> "donated_buffers_are_distinct" in report.passed
      True
      >>> print(report.skipped["the_bound_is_honoured"])
      for kind 'clip'; this is 'any'
    """
    if isinstance(subject, optax.GradientTransformation | optax.MultiSteps):
        subject = Subject(checked_inner(subject), "any", strict=False)
    if not isinstance(subject, Subject):
        msg = f"subject must be a GradientTransformation, or a Subject with what it promises; got {subject!r}"
        raise TypeError(msg)
    report = run_checks(subject)
    if report.failed:
        raise AssertionError(str(report))
    return report


def run_checks(subject: Subject, checks: Sequence[Check] = CHECKS) -> Report:
    """Return the Report of these checks, without raising if a check fails.

    Raises:
      ValueError: if the subject's kind, shape, granularity or norm is unknown.
    """
    check_choice("Subject.kind", subject.kind, ANY)
    if subject.kind in MEASURED:
        for field, known in (("shape", SHAPES), ("per", PER), ("norm", NORMS)):
            check_choice(f"Subject.{field}", getattr(subject, field), known)
    skipped = {check.name: reason for check in checks if (reason := check.reason_to_skip(subject))}
    failed = {}
    for check in checks:
        if check.name in skipped:
            continue
        try:
            check.run(subject)
        except Exception as error:  # a transform that is wrong may raise anything
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            failed[check.name] = f"{kind}{error}"
    passed = tuple(check.name for check in checks if check.name not in skipped | failed)
    return Report(passed, skipped, failed)


def _listed(word: str, names: Sequence[str]) -> str:
    return f"{word} {' or '.join(map(repr, names))}"


__all__ = ["CHECKS", "Check", "Report", "Subject", "check_contract", "run_checks"]
