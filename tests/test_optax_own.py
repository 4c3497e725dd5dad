"""Optax's own tests of its optimizers, which its wheel holds, run on those of ours that have the same names."""

import importlib
import importlib.util
import inspect
import re
import sys
import types

import optax
import pytest

import novoclip

NAMES = ("sgd", "adam", "adamw", "amsgrad", "adagrad", "rmsprop", "novograd", "lamb", "lars")
# Deliberate differences, which the docstrings state.
DIFFERENT = (
    # Moments are float32 whatever the parameters are, and have a floating dtype: complex where the parameters are.
    ("test_explicit_dtype", "state_dtype=None"),
    ("test_explicit_dtype", "state_dtype='complex64'"),
    ("test_explicit_dtype", "params_dtype='complex64'"),
)
# In every run one optimizer, with -m full all; those that take 10,000 steps only there.
ALWAYS = "opt_name='adamw'"
LONG = ("test_optimization",)


def optaxs_tests():
    """Return the class of Optax's tests, with our optimizers in place of its own, and the names of tests of these."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("sklearn") is None:  # of tests that are not run here
            packages = {
                name: types.ModuleType(name) for name in ("sklearn", "sklearn.datasets", "sklearn.linear_model")
            }
            packages["sklearn"].datasets = packages["sklearn"].linear_model = None
            for name, package in packages.items():
                patch.setitem(sys.modules, name, package)
        module = importlib.import_module("optax." + "_src.alias_test")
    ours = {name: getattr(novoclip, name) for name in NAMES}
    module.alias = types.SimpleNamespace(**vars(module.alias) | ours)
    tests = {}
    for name, method in inspect.getmembers(module.AliasTest, inspect.isfunction):
        shown = getattr(method, "__x_params_repr__", "")
        mine = any(f"opt_name='{own}'" in shown for own in (*NAMES, "sgd_mom"))
        if name.startswith("test_") and mine and not any(name.startswith(a) and b in shown for a, b in DIFFERENT):
            tests[re.sub(r"<function (\w+) at \w+>", r"\1", f"{name} {shown}")] = name
    return module.AliasTest, tests


LOADED = optaxs_tests()  # a class at the top would be collected
TESTS = LOADED[1]


def is_quick(name, shown):
    return ALWAYS in shown and not name.startswith(LONG) and ("dtype" not in shown or "16" in shown)


CASES = [
    pytest.param(name, id=shown, marks=() if is_quick(name, shown) else pytest.mark.full)
    for shown, name in TESTS.items()
]


def test_there_are_tests_of_each_name():
    for name in NAMES:
        assert sum(f"opt_name='{name}'" in shown for shown in TESTS) >= 5, name
    assert optax.adam is not novoclip.adam


@pytest.mark.parametrize("name", CASES)
def test_optaxs_own_tests_pass(name):
    case = LOADED[0](name)
    case.debug()
