"""NovoGrad with all its options together, in a plain float64 loop over one dict of arrays."""

import numpy as np

from tests.oracles.limits import at
from tests.oracles.novograd import blanks, copies


def general(
    gradients,
    params,
    lr,
    b1=0.9,
    b2=0.25,
    eps=1e-6,
    eps_root=0.0,
    weight_decay=0.0,
    start="nonzero",
    averaging="never",
    amsgrad=False,
    norm="l2",
    normalize="before",
    weight_decay_mode="moment",
    bias_correction_mu=False,
    bias_correction_nu=True,
    luc=None,
    luc_eps=1e-8,
    decays=lambda name: True,
):
    """All options together, from the formulas of the docstring: numbers may be functions of the step."""
    p, m = copies(params), blanks(params)
    v, top = dict.fromkeys(p, 0.0), dict.fromkeys(p, 0.0)
    product1 = product2 = 1.0
    for step, tree in enumerate(gradients):
        beta1, beta2, rate = at(b1, step), at(b2, step), at(lr, step)
        product1, product2 = product1 * beta1, product2 * beta2
        share = {"never": 1.0, "always": 1 - beta1, "later": 1.0 if step == 0 else 1 - beta1}[averaging]
        for name, g in tree.items():
            absolute, squares = np.abs(g), norm in ("l2", "rms")
            size = {"l2": np.sum, "rms": np.mean, "l1": np.sum, "max": np.max}[norm](absolute ** (1 + squares))
            begins = {"nonzero": v[name] == 0, "first": step == 0, "zero": False}[start]
            v[name] = size if begins else beta2 * v[name] + (1 - beta2) * size
            top[name] = max(top[name], v[name])
            used = top[name] if amsgrad else v[name]
            if start == "zero" and bias_correction_nu and product2 < 1:
                used = used / (1 - product2)
            inside = (used if squares else used**2) + at(eps_root, step)
            below = np.sqrt(inside) + at(eps, step)
            scale = 1 / below if below > 0 else 0.0
            decay = (at(weight_decay, step) if decays(name) else 0.0) * p[name]
            added = g * scale if normalize == "before" else g
            if weight_decay_mode == "moment":
                added = added + decay
            m[name] = beta1 * m[name] + share * added
            u = m[name]
            if bias_correction_mu and averaging != "later" and product1 < 1:
                u = u / (1 - product1)
            if normalize == "after":
                u = u * scale
            own = rate
            if luc is not None:
                length = np.sqrt(np.sum(u**2)) + at(luc_eps, step)
                own = min(rate, at(luc, step) * np.sqrt(np.sum(p[name] ** 2)) / length) if length > 0 else rate
            step_taken = own * u
            if weight_decay_mode == "decoupled":
                step_taken = step_taken + rate * decay
            p[name] = p[name] - step_taken
        yield dict(p)
