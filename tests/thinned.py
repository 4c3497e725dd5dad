"""Tests of many combinations, of which every run takes each second, third or fourth; -m full takes all of them.

What one test says of rules, dtypes, granularities or places is the same code for most of its parameters. Only tests
whose programs take long to compile are here. Each rule's formula is held by some of its parameters in every run.
"""

import collections

import pytest

EACH = {
    "test_a_regression_ends_where_that_of_float32_ends": 2,
    "test_a_skipped_step_keeps_every_bit_and_types_never_change": 2,
    "test_a_state_goes_on_elsewhere_as_on_the_mesh_it_was_saved_on": 2,
    "test_a_step_that_is_nan_leaves_no_trace": 2,
    "test_adagc_is_its_formula": 2,
    "test_an_nnx_optimizer_of_sharded_variables": 2,
    "test_around_any_optimizer_good_steps_are_its_own_and_bad_ones_leave_no_trace": 2,
    "test_autoclip_is_its_formula_at_five_granularities": 2,
    "test_bands_shares_and_smooth_limits_are_their_formulas": 2,
    "test_clip_by_norm_is_its_formula": 3,
    "test_contract_in_float64": 2,
    "test_derivatives_over_three_steps_are_central_differences_and_finite_at_zero": 2,
    "test_derivatives_with_respect_to_arguments_that_are_arrays": 3,
    "test_every_variant_of_a_rule_gives_the_same": 2,
    "test_examples_of_zeros_or_nan_do_not_stop_the_learning": 2,
    "test_explicit_axis_types_give_what_whole_leaves_give_and_gather_nothing": 3,
    "test_faults_come_to_what_is_promised": 2,
    "test_finite_gradients_pass_under_every_debugging_mode": 3,
    "test_finite_gradients_pass_under_every_debugging_mode_without_jit": 2,
    "test_frozen_leaves_count_neither_for_the_norm_nor_for_nan": 2,
    "test_gradients_may_be_wider_than_the_parameters": 2,
    "test_hessians_are_finite_in_float32": 2,
    "test_it_trains_inside": 2,
    "test_jit_over_sharded_arrays_gathers_no_gradient": 2,
    "test_leaves_without_a_gradient_do_not_matter": 2,
    "test_losses_of_any_sign_are_judged_alike": 3,
    "test_masked_leaves_pass_unchanged_and_count_for_nothing": 2,
    "test_memories_are_their_formulas": 2,
    "test_microbatches_are_the_whole_batch": 2,
    "test_nan_on_one_worker_is_skipped_by_all": 2,
    "test_norms_are_those_of_the_whole_gradient": 2,
    "test_numbers_may_be_arrays_schedules_or_injected": 3,
    "test_numbers_of_options": 2,
    "test_numpys_float64_without_x64_causes_no_warning": 2,
    "test_optaxs_transforms_pass": 2,
    "test_optimizers_clip_decay_and_follow_schedules": 2,
    "test_pairs_of_options_compose": 4,
    "test_rules_hold_where_arithmetic_is_not_that_of_ieee": 2,
    "test_shapes_are_their_formulas": 2,
    "test_sharded_leaves_give_what_whole_ones_give": 3,
    "test_sharded_leaves_of_16_bits_give_what_whole_ones_give": 2,
    "test_shards_of_which_nothing_is_recorded_give_what_whole_leaves_give": 3,
    "test_shares_of_the_weights_are_their_formulas": 2,
    "test_stacked_layers_are_layers": 3,
    "test_stacks_of_matrices_that_are_split_are_not_gathered": 2,
    "test_start_after_blends_by_its_shares": 3,
    "test_state_passes_through_everything": 2,
    "test_states_of_earlier_versions_load_and_take_the_next_step": 3,
    "test_states_of_units_made_outside_of_shard_map_fit_inside": 2,
    "test_steps_that_are_not_finite_leave_no_trace": 2,
    "test_the_inner_state_is_as_if_the_step_had_not_been": 2,
    "test_the_norm_that_is_judged_is_that_of_the_whole_gradient": 2,
    "test_the_run_is_that_of_float32_weights_kept_outside": 2,
    "test_the_state_keeps_its_dtypes_whatever_the_gradients_have": 3,
    "test_the_tighter_of_two_limits_holds_and_the_other_still_learns": 2,
    "test_uclip_loses_nothing": 3,
    "test_units_of_explicitly_split_leaves_outside_of_a_mesh_context": 2,
    "test_what_is_recommended_catches_spikes_and_leaves_calm_rows_alone": 2,
    "test_zclip_is_the_authors_loop": 2,
    "test_zclip_with_every_option_is_its_formula": 2,
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
