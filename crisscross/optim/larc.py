"""LARC: layer-wise adaptive rate clipping around any optimiser (section 4 of PAPER.md).

For a parameter p with gradient g, learning rate lr and weight decay wd (You, Gitman, Ginsburg 2017; clip mode
is the variant in which the rate is only ever lowered):

    local = trust * |p| / (|g| + wd * |p| + eps)
    g    <- (g + wd * p) * min(local / lr, 1)

and the wrapped optimiser then steps with its own weight decay at 0. A parameter whose norm or whose
gradient's norm is 0 keeps its gradient as it is, and gets no weight decay.

Under Adam, as in the paper, little of this is left. Adam divides by the gradient's own size, so a factor
common to a whole tensor cancels, except while it changes from step to step and where gradients come near
Adam's eps. Measured by feeding Adam and LARC around Adam the same gradients (the whole 49.66 M model, the
paper's peak learning rates after 10 steps of warm-up, 40 steps on 8 clips of noise at 48 x 48, six steps
looked at): at most 1 of 66 weight tensors and 27 of 132 biases and normalisation vectors were clipped, by
factors down to 0.04, and the update differed from Adam's by at most 0.6 % of its length for the weights and
1.6 % for the vectors. This is no measurement of real pretraining. What remains for certain is the weight
decay, which acts as an L2 penalty inside Adam.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARC:
    """Clips each tensor's learning rate by its weight and gradient norms around any optimiser.

    It offers what a loop and ``torch.amp.GradScaler`` use of an optimiser: ``param_groups``, ``state``,
    ``step``, ``zero_grad``, ``state_dict``, ``load_state_dict``, ``add_param_group``. It holds no state of
    its own, so its state dict is the wrapped optimiser's.

    All parameters take part, biases and normalisations included (the paper is silent; chosen by us). A group
    with ``"larc": False`` is left to the wrapped optimiser, with its own weight decay.
    """

    def __init__(self, optimizer: Optimizer, *, trust: float = 0.001, eps: float = 1e-8) -> None:
        """Wrap an optimiser.

        Args:
            optimizer: any ``torch.optim`` optimiser; keep its parameters on one device.
            trust: the trust coefficient (paper: 0.001).
            eps: added to the denominator (paper: 1e-8).

        Raises:
            ValueError: ``trust`` is not above 0 or ``eps`` is negative.
        """
        if trust <= 0:
            raise ValueError(f"trust={trust}: expected more than 0 (the paper has 0.001); raise it")
        if eps < 0:
            raise ValueError(f"eps={eps}: expected at least 0 (the paper has 1e-8); raise it")
        self.optimizer = optimizer
        self.trust = trust
        self.eps = eps

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimiser's groups: change ``lr`` here."""
        return self.optimizer.param_groups

    @property
    def state(self) -> dict[Tensor, Any]:
        """The wrapped optimiser's state."""
        return self.optimizer.state

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimiser's state dict."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimiser's state dict."""
        self.optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimiser."""
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Rescale the gradients in place, then step. Log gradient norms before, not after.

        Args:
            closure: computes the loss and the gradients; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self._adapted_groups():
            rescale_gradients(
                group["params"],
                learning_rate=group["lr"],
                weight_decay=group.get("weight_decay", 0.0),
                trust=self.trust,
                eps=self.eps,
            )
        with self._without_weight_decay():
            self.optimizer.step()
        return loss

    def __repr__(self) -> str:
        return f"LARC(trust={self.trust}, eps={self.eps}, {self.optimizer!r})"

    def _adapted_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group.get("larc", True)]

    @contextmanager
    def _without_weight_decay(self) -> Iterator[None]:
        """Weight decay is already in the gradients: hide it from the wrapped optimiser while it steps."""
        groups = [group for group in self._adapted_groups() if "weight_decay" in group]
        saved = [group["weight_decay"] for group in groups]
        try:
            for group in groups:
                group["weight_decay"] = 0.0
            yield
        finally:
            for group, weight_decay in zip(groups, saved, strict=True):
                group["weight_decay"] = weight_decay


@torch.no_grad()
def rescale_gradients(
    parameters: list[Tensor], *, learning_rate: float, weight_decay: float, trust: float, eps: float
) -> None:
    """Apply LARC's rule to the gradients in place, without waiting for the device.

    Args:
        parameters: tensors of one device, each with a dense ``grad``; those without one are left alone.
        learning_rate: the group's; 0 (the first step of a warm-up) leaves the gradients unclipped.
        weight_decay: the group's.
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
    """Return what each gradient, weight decay already added, is to be multiplied by; all of shape (N,)."""
    local = trust * weight_norms / (gradient_norms + weight_decay * weight_norms + eps)
    factors = (local / learning_rate).clamp(max=1.0)
    # A zero weight has no decay to take back, so 1 leaves its gradient alone. A zero gradient is by now only
    # the decay, so 0 restores it.
    factors = torch.where(weight_norms == 0, torch.ones_like(factors), factors)
    return torch.where(gradient_norms == 0, torch.zeros_like(factors), factors)
