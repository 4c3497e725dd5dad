"""NovoGrad as its published implementations compute it, in plain float64 loops over one dict of arrays.

Each takes gradients, the first parameters and a learning rate, which may be a function of the step counted from 0, and
yields the parameters after every step.
"""

import numpy as np

from tests.oracles.limits import at


def copies(tree):
    return {name: np.array(leaf, np.float64) for name, leaf in tree.items()}


def blanks(tree):
    return {name: np.zeros_like(leaf, np.float64) for name, leaf in tree.items()}


def timm(
    gradients,
    params,
    lr,
    betas=(0.95, 0.98),
    eps=1e-8,
    weight_decay=0.0,
    grad_averaging=False,
    amsgrad=False,
    decoupled_decay=False,
    corrected_weight_decay=False,
    max_lr=None,
):
    """NvNovoGrad: https://github.com/huggingface/pytorch-image-models/blob/main/timm/optim/nvnovograd.py"""
    b1, b2 = betas
    p, m = copies(params), blanks(params)
    v, top = dict.fromkeys(p, 0.0), dict.fromkeys(p, 0.0)
    for step, tree in enumerate(gradients):
        rate = at(lr, step)
        for name, g in tree.items():
            square = np.sum(g**2)
            v[name] = square if v[name] == 0 else b2 * v[name] + (1 - b2) * square
            top[name] = max(top[name], v[name])
            update = g / (np.sqrt(top[name] if amsgrad else v[name]) + eps)
            if decoupled_decay:
                scale = rate**2 / max_lr if corrected_weight_decay else rate
                p[name] = p[name] * (1 - scale * weight_decay)
            else:
                update = update + weight_decay * p[name]
            if grad_averaging:
                update = update * (1 - b1)
            m[name] = b1 * m[name] + update
            p[name] = p[name] - rate * m[name]
        yield dict(p)


def nemo(
    gradients,
    params,
    lr,
    betas=(0.95, 0.98),
    eps=1e-8,
    weight_decay=0.0,
    grad_averaging=False,
    amsgrad=False,
    luc=False,
    luc_trust=1e-3,
    luc_eps=1e-8,
):
    """Novograd: https://github.com/NVIDIA/NeMo/blob/main/nemo/core/optim/novograd.py"""
    b1, b2 = betas
    p, exp_avg = copies(params), blanks(params)
    exp_avg_sq, largest = dict.fromkeys(p, 0.0), dict.fromkeys(p, 0.0)
    for step, tree in enumerate(gradients):
        for name, g in tree.items():
            norm = np.linalg.norm(np.ravel(g)) ** 2
            if exp_avg_sq[name] == 0:
                exp_avg_sq[name] = norm
            else:
                exp_avg_sq[name] = b2 * exp_avg_sq[name] + (1.0 - b2) * norm
            denominator = np.sqrt(exp_avg_sq[name]) + eps
            if amsgrad:
                largest[name] = np.maximum(largest[name], exp_avg_sq[name])
                denominator = np.sqrt(largest[name]) + eps
            added = g / denominator + weight_decay * p[name]
            if grad_averaging:
                added = (1 - b1) * added
            exp_avg[name] = b1 * exp_avg[name] + added
            factor = at(lr, step)
            if luc:
                data, update = np.linalg.norm(np.ravel(p[name])), np.linalg.norm(np.ravel(exp_avg[name]))
                factor = min(luc_trust * data / (update + luc_eps), factor)
            p[name] = p[name] - factor * exp_avg[name]
        yield dict(p)


def tensorflow_addons(
    gradients,
    params,
    lr,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-7,
    weight_decay=0.0,
    grad_averaging=False,
    amsgrad=False,
):
    """NovoGrad: https://github.com/tensorflow/addons/blob/master/tensorflow_addons/optimizers/novograd.py"""
    var, m = copies(params), blanks(params)
    v, vhat = dict.fromkeys(var, 0.0), dict.fromkeys(var, 0.0)
    for iterations, tree in enumerate(gradients):
        for name, grad in tree.items():
            g_2 = np.sum(np.square(grad))
            v[name] = g_2 if iterations == 0 else v[name] * beta_2 + g_2 * (1 - beta_2)
            vhat[name] = np.maximum(vhat[name], v[name])
            scaled = grad / (np.sqrt(vhat[name] if amsgrad else v[name]) + epsilon)
            if weight_decay > 0:
                scaled = scaled + weight_decay * var[name]
            if grad_averaging and iterations != 0:
                scaled = scaled * (1 - beta_1)
            # The momentum of Keras: the accumulator holds minus the steps, with their learning rates.
            m[name] = beta_1 * m[name] - at(lr, iterations) * scaled
            var[name] = var[name] + m[name]
        yield dict(var)


def apex(
    gradients,
    params,
    lr,
    bias_correction=True,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    reg_inside_moment=False,
    grad_averaging=True,
    norm_type=2,
    init_zero=False,
):
    """FusedNovoGrad: https://github.com/NVIDIA/apex/blob/master/apex/optimizers/fused_novograd.py

    Its formulas are in csrc/multi_tensor_novograd.cu, and those of the norms in csrc/multi_tensor_l2norm_kernel.cu.
    """
    beta1, beta2 = betas
    beta3 = 1 - beta1 if grad_averaging else 1.0
    p, m, gn = copies(params), blanks(params), None
    size = (lambda g: np.max(np.abs(g))) if norm_type == 0 else (lambda g: np.sqrt(np.sum(g**2)))
    for step, tree in enumerate(gradients, 1):
        correction1, correction2 = 1.0, 1.0
        if bias_correction:
            correction1, correction2 = 1 - beta1**step, np.sqrt(1 - beta2**step)
        if gn is None:
            gn = {name: 0.0 if init_zero else size(g) for name, g in tree.items()}
        for name, g in tree.items():
            n = size(g)
            if norm_type == 0:
                gn[name] = beta2 * gn[name] + (1 - beta2) * n
            else:
                gn[name] = np.sqrt(beta2 * gn[name] ** 2 + (1 - beta2) * n**2)
            denominator = gn[name] / correction2 + eps
            if reg_inside_moment:
                m[name] = beta1 * m[name] + beta3 * (g / denominator + weight_decay * p[name])
                update = m[name] / correction1
            else:
                m[name] = beta1 * m[name] + beta3 * g
                update = m[name] / correction1 / denominator + weight_decay * p[name]
            p[name] = p[name] - at(lr, step - 1) * update
        yield dict(p)


def openseq2seq(
    gradients,
    params,
    lr,
    beta1=0.95,
    beta2=0.98,
    epsilon=1e-8,
    weight_decay=0.0,
    grad_averaging=False,
    stored=True,
):
    """NovoGrad: https://github.com/NVIDIA/OpenSeq2Seq/blob/master/open_seq2seq/optimizers/novograd.py

    Its docstring has the recurrence of v (`stored`). Its code assigns the new v to a Python list, and never to the
    variable, which stays 0: each step then takes the branch v = ||g||^2.
    """
    w, momentum, ema = copies(params), blanks(params), dict.fromkeys(params, 0.0)
    for step, tree in enumerate(gradients):
        for name, g in tree.items():
            g_2 = np.sum(g**2)
            new = g_2 if ema[name] == 0.0 else ema[name] * beta2 + g_2 * (1.0 - beta2)
            if stored:
                ema[name] = new
            scaled = g * (1.0 / np.sqrt(new + epsilon))
            if weight_decay > 0.0:
                scaled = scaled + weight_decay * w[name]
            if grad_averaging:
                scaled = scaled * (1.0 - beta1)
            momentum[name] = beta1 * momentum[name] + scaled
            w[name] = w[name] - at(lr, step) * momentum[name]
        yield dict(w)


def optax(gradients, params, lr, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0):
    """scale_by_novograd: https://github.com/google-deepmind/optax/blob/main/optax/_src/transform.py"""
    p, mu, nu = copies(params), blanks(params), dict.fromkeys(params, 0.0)
    for step, tree in enumerate(gradients):
        for name, g in tree.items():
            square = np.linalg.norm(np.ravel(g)) ** 2
            nu[name] = square if step == 0 else (1 - b2) * square + b2 * nu[name]
            added = g / (np.sqrt(nu[name] + eps_root) + eps) + weight_decay * p[name]
            mu[name] = added if step == 0 else b1 * mu[name] + added
            p[name] = p[name] - at(lr, step) * mu[name]
        yield dict(p)
