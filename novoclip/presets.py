"""Published settings by name."""

from __future__ import annotations

from collections.abc import Mapping
import difflib
from types import MappingProxyType
from typing import Any, NamedTuple

_OPENSEQ2SEQ = "https://github.com/NVIDIA/OpenSeq2Seq/blob/master/example_configs"
_NEMO = "https://github.com/NVIDIA/NeMo/blob/main/examples/asr/conf"
_SQUARED = "polynomial decay to {} with power 2 over the training: {}"


class NovoGradPreset(NamedTuple):
    """The settings of a published training with NovoGrad.

    Attributes:
      arguments: keyword arguments of `novoclip.novograd`; learning_rate is the largest of the schedule.
      schedule: what the learning rate does, in words and in Optax.
      source: the configuration file that has them.
    """

    arguments: Mapping[str, float]
    schedule: str
    source: str


def _inside(learning_rate: float, b1: float, b2: float, weight_decay: float) -> dict[str, float]:
    """Return the arguments for a configuration of OpenSeq2Seq, which has eps inside the root."""
    numbers = {"learning_rate": learning_rate, "b1": b1, "b2": b2, "weight_decay": weight_decay}
    return {**numbers, "eps": 0.0, "eps_root": 1e-8}


def _outside(learning_rate: float, b1: float, b2: float, weight_decay: float) -> dict[str, float]:
    """Return the arguments for a configuration of NeMo, whose eps is 1e-8."""
    return {"learning_rate": learning_rate, "b1": b1, "b2": b2, "weight_decay": weight_decay, "eps": 1e-8}


def _squared(learning_rate: float, end: float = 0.0) -> str:
    return _SQUARED.format(end, f"optax.polynomial_schedule({learning_rate}, {end}, power=2, transition_steps=steps)")


def _cosine(learning_rate: float, warmup: int, end: float = 0.0) -> str:
    code = f"optax.warmup_cosine_decay_schedule(0.0, {learning_rate}, {warmup}, steps, {end})"
    return f"linear warm-up over {warmup} steps, then cosine decay to {end}: {code}"


_LARC = "; each tensor's gradient times min(1, 0.001 ||w|| / (learning rate ||g||)) (LARC): clip_by_trust_ratio"

# What the fields of a NovoGradPreset are, for each name.
_NOVOGRAD = {
    "resnet50": (
        _inside(0.03, 0.95, 0.98, 0.004),
        _squared(0.03),
        f"{_OPENSEQ2SEQ}/image2label/resnet-50v2-nvgrad.py",
    ),
    "jasper": (
        _inside(0.02, 0.95, 0.98, 0.001),
        _squared(0.02, 1e-5) + _LARC,
        f"{_OPENSEQ2SEQ}/speech2text/jasper10x5_LibriSpeech_nvgrad.py",
    ),
    "quartznet": (
        _inside(0.01, 0.95, 0.5, 0.001),
        _cosine(0.01, 1000),
        f"{_OPENSEQ2SEQ}/speech2text/quartznet15x5_LibriSpeech.py",
    ),
    "transformer_big": (
        _inside(0.04, 0.95, 0.99, 1e-5),
        _squared(0.04),
        f"{_OPENSEQ2SEQ}/text2text/en-de/transformer-nvgrad.py",
    ),
    "centaur": (
        _inside(0.02, 0.95, 0.98, 0.001),
        _squared(0.02),
        f"{_OPENSEQ2SEQ}/text2speech/centaur_float.py",
    ),
    "nemo_jasper": (
        _outside(0.01, 0.8, 0.5, 0.001),
        "cosine decay to 0.0, without warm-up: optax.cosine_decay_schedule(0.01, steps)",
        f"{_NEMO}/jasper/jasper_10x5dr.yaml",
    ),
    "nemo_quartznet": (
        _outside(0.01, 0.8, 0.5, 0.001),
        "cosine decay to 0.0, without warm-up: optax.cosine_decay_schedule(0.01, steps)",
        f"{_NEMO}/quartznet/quartznet_15x5.yaml",
    ),
    "matchboxnet": (
        _outside(0.05, 0.95, 0.5, 0.001),
        "linear warm-up over 5% of the steps, 0.05 for another 45%, then polynomial decay to 0.001 with power 2",
        f"{_NEMO}/matchboxnet/matchboxnet_3x1x64_v2.yaml",
    ),
    "citrinet": (
        _outside(0.05, 0.8, 0.25, 0.001),
        _cosine(0.05, 5000, 1e-5),
        f"{_NEMO}/citrinet/citrinet_1024.yaml",
    ),
}


def novograd_preset(name: str) -> NovoGradPreset:
    """Return the settings of a published training with NovoGrad.

    | name | learning rate | b1 | b2 | weight decay | schedule |
    |---|---|---|---|---|---|
    | "resnet50" | 0.03 | 0.95 | 0.98 | 0.004 | squared decay |
    | "jasper" | 0.02 | 0.95 | 0.98 | 0.001 | squared decay, with LARC |
    | "quartznet" | 0.01 | 0.95 | 0.5 | 0.001 | warm-up, cosine |
    | "transformer_big" | 0.04 | 0.95 | 0.99 | 1e-5 | squared decay |
    | "centaur" | 0.02 | 0.95 | 0.98 | 0.001 | squared decay |
    | "nemo_jasper", "nemo_quartznet" | 0.01 | 0.8 | 0.5 | 0.001 | cosine |
    | "matchboxnet" | 0.05 | 0.95 | 0.5 | 0.001 | warm-up, hold, squared decay |
    | "citrinet" | 0.05 | 0.8 | 0.25 | 0.001 | warm-up, cosine |

    Args:
      name: a name of the table.

    Returns:
      A NovoGradPreset: keyword arguments of `novoclip.novograd`, the schedule as text, and the source.

    Raises:
      TypeError: if `name` is not a string.
      ValueError: if it is unknown.

    Example:
      >>> import novoclip
      >>> preset = novograd_preset("citrinet")
      >>> print(preset.arguments["b1"], preset.arguments["b2"])
      0.8 0.25
      >>> optimizer = novoclip.novograd(**preset.arguments)  # or **preset.arguments | {"learning_rate": schedule}

    References:
      `OpenSeq2Seq <https://github.com/NVIDIA/OpenSeq2Seq>`_ and `NeMo <https://github.com/NVIDIA/NeMo>`_, NVIDIA.

    The first five are of OpenSeq2Seq, and have eps inside the root. The numbers are those of its configurations.
    """
    if not isinstance(name, str):
        msg = f"name must be a string, one of {', '.join(map(repr, _NOVOGRAD))}; got {name!r}"
        raise TypeError(msg)
    if name not in _NOVOGRAD:
        plain = name.lower().replace("-", "").replace(" ", "")
        by_plain = {known.replace("_", ""): known for known in _NOVOGRAD}
        found = difflib.get_close_matches(plain.replace("_", ""), by_plain, n=1, cutoff=0.0)
        near: Any = by_plain[found[0]]
        msg = f"name={name!r} is no preset: write {near!r}, or one of {', '.join(map(repr, _NOVOGRAD))}"
        raise ValueError(msg)
    arguments, schedule, source = _NOVOGRAD[name]
    return NovoGradPreset(MappingProxyType(arguments), schedule, source)
