"""Write torch_keras.json: trajectories of torch's and Keras's own optimizers, in float64.

    KERAS_BACKEND=torch python tests/trajectories/make.py

needs torch and keras, which the tests do not. Every optimizer starts at the same parameters and is
given the same gradients; our arguments for the same formula stand beside each.
"""

import json
from pathlib import Path

import keras
import numpy as np
import torch

STEPS = 50
generator = np.random.default_rng(0)
START = generator.normal(size=5)
GRADIENTS = generator.normal(size=(STEPS, 5)) * np.array([1.0, 10.0, 0.1, 1e-3, 1.0])
GRADIENTS[20] *= 1000

TORCH_ADAGRAD = {"initial_accumulator_value": 0.0, "eps": 1e-10, "eps_in_sqrt": False}
TORCH = [
    ("sgd", torch.optim.SGD, {"lr": 0.1}, "sgd", {"learning_rate": 0.1}),
    ("heavy ball", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, "momentum", {"learning_rate": 0.1}),
    (
        "dampened",
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
        "momentum",
        {"learning_rate": 0.1, "dampening": 0.3},
    ),
    (
        "nesterov, L2",
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        "momentum",
        {"learning_rate": 0.1, "nesterov": True, "weight_decay": 0.01, "weight_decay_mode": "coupled"},
    ),
    ("adagrad", torch.optim.Adagrad, {"lr": 0.1}, "adagrad", {"learning_rate": 0.1} | TORCH_ADAGRAD),
    (
        "rmsprop",
        torch.optim.RMSprop,
        {"lr": 0.01},
        "rmsprop",
        {"learning_rate": 0.01, "decay": 0.99, "eps_in_sqrt": False},
    ),
    (
        "rmsprop, centered, momentum",
        torch.optim.RMSprop,
        {"lr": 0.01, "centered": True, "momentum": 0.9},
        "rmsprop",
        {"learning_rate": 0.01, "decay": 0.99, "eps_in_sqrt": False, "centered": True, "momentum": 0.9},
    ),
    (
        "adam, L2",
        torch.optim.Adam,
        {"lr": 0.01, "weight_decay": 0.1},
        "adam",
        {"learning_rate": 0.01, "weight_decay": 0.1, "weight_decay_mode": "coupled"},
    ),
    (
        "adamw",
        torch.optim.AdamW,
        {"lr": 0.01, "weight_decay": 0.1},
        "adam",
        {"learning_rate": 0.01, "weight_decay": 0.1},
    ),
    ("amsgrad", torch.optim.Adam, {"lr": 0.01, "amsgrad": True}, "amsgrad", {"learning_rate": 0.01, "maximum": "raw"}),
]
KERAS = [
    (
        "adagrad",
        keras.optimizers.Adagrad,
        {"learning_rate": 0.1},
        "adagrad",
        {"learning_rate": 0.1},
    ),
    (
        "rmsprop",
        keras.optimizers.RMSprop,
        {"learning_rate": 0.01},
        "rmsprop",
        {"learning_rate": 0.01, "eps": 1e-7},
    ),
    # Keras adds epsilon before it corrects the bias of v: with 0 both are one.
    (
        "amsgrad",
        keras.optimizers.Adam,
        {"learning_rate": 0.01, "amsgrad": True, "epsilon": 0.0},
        "amsgrad",
        {"learning_rate": 0.01, "eps": 0.0, "maximum": "raw"},
    ),
]


def with_torch(make, arguments):
    params = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = make([params], **arguments)
    for gradient in GRADIENTS:
        params.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        yield params.detach().numpy().tolist()


def with_keras(make, arguments):
    keras.backend.set_floatx("float64")
    variable = keras.Variable(START, dtype="float64")
    optimizer = make(**arguments)
    optimizer.build([variable])
    for gradient in GRADIENTS:
        optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype="float64")], [variable])
        yield keras.ops.convert_to_numpy(variable.value).tolist()


cases = []
for library, run, table in (("torch", with_torch, TORCH), ("keras", with_keras, KERAS)):
    for name, make, arguments, ours, our_arguments in table:
        steps = list(run(make, arguments))
        cases.append({"name": f"{library}: {name}", "optimizer": ours, "arguments": our_arguments, "params": steps})
versions = {"torch": torch.__version__, "keras": keras.__version__}
data = {"versions": versions, "start": START.tolist(), "gradients": GRADIENTS.tolist(), "cases": cases}
path = Path(__file__).parent / "torch_keras.json"
path.write_text(json.dumps(data, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
