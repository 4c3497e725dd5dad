"""Tests of many combinations, of which every run takes each second, third or fourth; -m full takes all of them.

What one test says of rules, dtypes or places is the same code for most of its parameters. Only tests whose programs
take long to compile are here, and none of formulas.
"""

import collections

import pytest

EACH = {
    "test_a_regression_ends_where_that_of_float32_ends": 2,
    "test_a_skipped_step_keeps_every_bit_and_types_never_change": 2,
    "test_a_state_goes_on_elsewhere_as_on_the_mesh_it_was_saved_on": 2,
    "test_derivatives_over_three_steps_are_central_differences_and_finite_at_zero": 2,
    "test_derivatives_with_respect_to_arguments_that_are_arrays": 3,
    "test_every_variant_of_a_rule_gives_the_same": 2,
    "test_examples_of_zeros_or_nan_do_not_stop_the_learning": 2,
    "test_explicit_axis_types_give_what_whole_leaves_give_and_gather_nothing": 3,
    "test_faults_come_to_what_is_promised": 2,
    "test_finite_gradients_pass_under_every_debugging_mode": 3,
    "test_finite_gradients_pass_under_every_debugging_mode_without_jit": 2,
    "test_hessians_are_finite_in_float32": 2,
    "test_it_trains_inside": 2,
    "test_leaves_without_a_gradient_do_not_matter": 2,
    "test_losses_of_any_sign_are_judged_alike": 3,
    "test_norms_are_those_of_the_whole_gradient": 2,
    "test_numbers_may_be_arrays_schedules_or_injected": 3,
    "test_optimizers_clip_decay_and_follow_schedules": 2,
    "test_pairs_of_options_compose": 4,
    "test_sharded_leaves_give_what_whole_ones_give": 3,
    "test_sharded_leaves_of_16_bits_give_what_whole_ones_give": 2,
    "test_shards_of_which_nothing_is_recorded_give_what_whole_leaves_give": 3,
    "test_stacked_layers_are_layers": 3,
    "test_start_after_blends_by_its_shares": 3,
    "test_states_of_earlier_versions_load_and_take_the_next_step": 3,
    "test_the_inner_state_is_as_if_the_step_had_not_been": 2,
    "test_the_norm_that_is_judged_is_that_of_the_whole_gradient": 2,
    "test_the_state_keeps_its_dtypes_whatever_the_gradients_have": 3,
    "test_units_of_explicitly_split_leaves_outside_of_a_mesh_context": 2,
    "test_what_is_recommended_catches_spikes_and_leaves_calm_rows_alone": 2,
}


def thin(items):
    """Mark those that are not taken in every run as `full`."""
    seen = collections.Counter()
    for item in items:
        name = getattr(item, "originalname", None)
        if name in EACH and not any(item.iter_markers("full")):
            if seen[name] % EACH[name]:
                item.add_marker(pytest.mark.full)
            seen[name] += 1
