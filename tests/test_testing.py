"""The contract finds what is wrong with a transform, says where, and passes Optax's."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip.testing import CHECKS, Subject, check_contract, run_checks
from tests import programs


def transform(update, init=lambda params: ()):
    return optax.GradientTransformation(init, update)


def counted(params):
    del params
    return jnp.zeros((), jnp.int32)


def through_float64(updates, state, params=None):
    del params
    sizes = [float(jnp.sum(leaf)) for leaf in jax.tree.leaves(updates)]
    return updates, state + len(sizes)


def by_the_square(updates, state, params=None):
    del params
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(updates))
    return jax.tree.map(lambda leaf: leaf * (total / jnp.sqrt(total)).astype(leaf.dtype), updates), state


def twice_the_same(params):
    shared = jnp.zeros(3)
    del params
    return {"one": shared, "other": shared}


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (transform(lambda u, s, p=None: (u, s + 0.5), counted), "state_never_changes_its_type"),
        (transform(lambda u, s, p=None: (u, s + jnp.ones(2)), lambda p: jnp.zeros(())), "state_never_changes_its_type"),
        (transform(through_float64, counted), "same_result_in_jit_scan_and_vmap"),
        (transform(by_the_square), "finite_gradients_give_finite_updates"),
        (transform(lambda u, s, p=None: (u, s), twice_the_same), "donated_buffers_are_distinct"),
        (transform(lambda u, s, p=None: ({k: u[k] for k in ("kernel", "bias")}, s)), "missing_and_empty_leaves_pass"),
        (
            transform(lambda u, s, p=None: (jax.tree.map(lambda x: jnp.asarray(np.random.rand()) * x, u), s)),
            "extra_arguments_are_accepted",
        ),
        (
            transform(lambda u, s, p=None: (jax.tree.map(lambda x: x / jnp.max(jnp.abs(x), initial=0), u), s)),
            "finite_gradients_give_finite_updates",
        ),
    ],
    ids=[
        "dtype of the state",
        "shape of the state",
        "waits for the host",
        "overflow",
        "shared buffers",
        "leaves lost",
        "impure",
        "0 / 0",
    ],
)
def test_a_broken_transform_is_found(broken, check):
    (found,) = (found for found in CHECKS if found.name == check)
    report = run_checks(Subject(broken, "any", strict=False), [found])
    assert list(report.failed) == [check]


def test_a_gradient_that_is_changed_below_its_limit_is_reported_with_norm_and_limit():
    (check,) = (check for check in CHECKS if check.name == "gradients_within_the_limit_are_untouched")
    report = run_checks(Subject(novoclip.clip_by_global_norm(1e-4)), [check])
    found = re.search(r"was changed: norm (\S+), limit (\S+)", report.failed[check.name])
    # The check's gradient is float16, with 28 normally distributed elements of size 1e-3.
    generator = np.random.default_rng(2)
    elements = [1e-3 * generator.normal(size=shape).ravel() for shape in ((4, 3), (3,), (), (2, 3, 2))]
    norm = np.linalg.norm(np.concatenate(elements))
    np.testing.assert_allclose([float(each) for each in found.groups()], [norm, 1e-4], rtol=1e-3)


def test_the_report_has_every_failure_and_every_reason():
    broken = transform(lambda u, s, p=None: ({k: 2 * u[k] for k in ("kernel", "bias")}, s + 0.5), counted)
    with pytest.raises(AssertionError) as raised:
        check_contract(broken)
    lines = str(raised.value).splitlines()
    assert re.fullmatch(r"\d+ of 10 checks failed\.", lines[0])
    for name in ("state_never_changes_its_type", "missing_and_empty_leaves_pass"):
        assert any(line.startswith(f"{name}: ") for line in lines)
    assert any(line.startswith("passed: ") and "init_takes_abstract_and_numpy_parameters" in line for line in lines)
    assert "does not apply: the_bound_is_honoured, for kind 'clip'; this is 'any'" in lines
    assert "does not apply: a_step_that_is_not_finite_is_skipped, for kind 'optimizer'; this is 'any'" in lines


def test_the_contract_of_adam_takes_few_compilations():
    process = programs.start("tests.compilations", JAX_PLATFORMS="cpu", XLA_FLAGS=programs.flags())
    output, _ = process.communicate(timeout=programs.HANG)
    assert process.returncode == 0, output
    assert 20 <= int(output.split()[-1]) <= 120


class LostError(Exception):
    pass


def test_every_check_can_fail():
    """Of a transform whose init raises, or, for checks that only call that, whose update does."""

    def lost(*_, **__):
        raise LostError

    for check in CHECKS:
        rule = novoclip.clip_by_norm(1.0)
        for broken in (transform(lost, rule.init), transform(rule.update, lost)):
            with contextlib.suppress(LostError, AssertionError):
                check.run(Subject(broken, check.kinds[0], check.shapes[0]))
                continue
            break
        else:
            pytest.fail(f"{check.name} passes whatever is broken")


@pytest.mark.parametrize(
    "valid",
    [
        transform(lambda u, s, p=None: (u, jax.random.split(s)[0]), lambda p: jax.random.key(0)),
        optax.inject_hyperparams(optax.scale)(-0.1),
        optax.MultiSteps(optax.chain(novoclip.zclip(), optax.adam(0.1)), 2),
    ],
    ids=["keys", "injected", "MultiSteps"],
)
def test_optaxs_transforms_pass(valid):
    check_contract(valid)


@pytest.mark.parametrize("wrong", [{"kind": "rule"}, {"per": "layer"}, {"norm": "l3"}, {"shape": "soft"}])
def test_a_subject_of_an_unknown_kind_is_refused(wrong):
    field, value = next(iter(wrong.items()))
    with pytest.raises(ValueError, match=f"Subject.{field} must be one of .*; got {value!r}"):
        check_contract(Subject(novoclip.clip_by_norm(1.0), **wrong))
