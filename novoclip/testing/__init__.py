"""The contract that every novoclip transform keeps, as checks to run on your own.

    from novoclip.testing import Subject, check_contract

    def test_my_transform():
        check_contract(my_transform(0.1))

    def test_my_rule():
        check_contract(Subject(my_rule(1.0), per="tensor"))

The first takes any `optax.GradientTransformation`; the second also checks what a rule made by `novoclip.clip`
promises. Each check raises an AssertionError that says what was expected and what came.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

from novoclip.testing import descent, interface, numerics, places, properties
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
    """One point of the contract, and the subjects that it applies to."""

    run: Callable[[Subject], None]
    kinds: tuple[str, ...] = ANY
    shapes: tuple[str, ...] = SHAPES

    @property
    def name(self) -> str:
        """The check's name."""
        return self.run.__name__

    def applies(self, subject: Subject) -> bool:
        """Whether the subject's kind and shape promise what is checked."""
        return subject.kind in self.kinds and subject.shape in self.shapes


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
    Check(numerics.derivatives_are_finite, CLIP),
    Check(numerics.derivatives_are_those_of_differences, CLIP),
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


def check_contract(subject: Subject | optax.GradientTransformation) -> None:
    """Run every check that applies to the subject.

    Args:
      subject: a transform and what it promises; a transform alone promises what any does.

    Raises:
      TypeError: if `subject` is neither.
      AssertionError: naming the check that failed.
    """
    if isinstance(subject, optax.GradientTransformation | optax.MultiSteps):
        subject = Subject(checked_inner(subject), "any", strict=False)
    if not isinstance(subject, Subject):
        msg = f"subject must be a GradientTransformation, or a Subject with what it promises; got {subject!r}"
        raise TypeError(msg)
    for check in CHECKS:
        if check.applies(subject):
            try:
                check.run(subject)
            except Exception as error:
                kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                msg = f"{check.name}: {kind}{error}"
                raise AssertionError(msg) from error


__all__ = ["CHECKS", "Check", "Subject", "check_contract"]
