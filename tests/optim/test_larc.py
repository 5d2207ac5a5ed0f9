"""LARC against a scalar implementation, inside Adam and SGD, and under GradScaler."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from crisscross.optim.larc import register_larc, rescale_gradients
from tests.support import needs_cuda


def literal_larc(
    weights: list[float], gradients: list[float], *, lr: float, decay: float, trust: float, eps: float
) -> list[float]:
    """Return the gradients of the definition, number by number, without tensors."""
    weight_norm = math.sqrt(sum(weight**2 for weight in weights))
    gradient_norm = math.sqrt(sum(gradient**2 for gradient in gradients))
    if weight_norm == 0 or gradient_norm == 0:
        return gradients
    local = trust * weight_norm / (gradient_norm + decay * weight_norm + eps)
    factor = 1.0 if lr == 0 else min(local / lr, 1.0)
    return [(g + decay * w) * factor for w, g in zip(weights, gradients, strict=True)]


def parameters_and_gradients(seed: int = 0) -> list[nn.Parameter]:
    """Return tensors of several shapes: clipped, not clipped, all zero, with zero gradient."""
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for shape, weight_scale, gradient_scale in (
        ((3, 2), 1.0, 1e-3),
        ((4,), 0.01, 10.0),
        ((2, 1, 3), 5.0, 1e4),
        ((3,), 0.0, 1.0),
        ((2, 2), 1.0, 0.0),
        ((), 0.5, 0.2),
    ):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        parameter = nn.Parameter(weight_scale * values)
        parameter.grad = gradient_scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        parameters.append(parameter)
    return parameters


@pytest.mark.parametrize("lr", [0.0, 2e-4, 2e-3, 1.0])
@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.5])
def test_rescaled_gradients_equal_the_definition(lr: float, decay: float) -> None:
    parameters = parameters_and_gradients()
    expected = [
        literal_larc(
            parameter.flatten().tolist(),
            parameter.grad.flatten().tolist(),
            lr=lr,
            decay=decay,
            trust=1e-3,
            eps=1e-8,
        )
        for parameter in parameters
    ]
    rescale_gradients(parameters, learning_rate=lr, weight_decay=decay, trust=1e-3, eps=1e-8)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad.flatten().tolist() == pytest.approx(gradient, rel=1e-12, abs=0.0)


def test_clipping_happens_and_does_not_always() -> None:
    parameters = parameters_and_gradients()
    before = [parameter.grad.clone() for parameter in parameters]
    rescale_gradients(parameters, learning_rate=2e-4, weight_decay=0.0, trust=1e-3, eps=1e-8)
    unchanged = [torch.equal(a, b.grad) for a, b in zip(before, parameters, strict=True)]
    assert unchanged == [True, False, False, True, True, True]


def literal_adam(
    weights: list[float], gradient_steps: list[list[float]], *, lr: float, decay: float, eps: float
) -> list[float]:
    """Return the weights after several steps of LARC inside Adam, number by number."""
    weights = list(weights)
    first, second = [0.0] * len(weights), [0.0] * len(weights)
    for step, gradients in enumerate(gradient_steps, start=1):
        adapted = literal_larc(weights, gradients, lr=lr, decay=decay, trust=1e-3, eps=1e-8)
        for i, g in enumerate(adapted):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            mean, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            weights[i] -= lr * mean / (math.sqrt(square) + eps)
    return weights


@pytest.mark.parametrize("foreach", [False, True])
def test_steps_inside_adam_equal_the_definition(foreach: bool) -> None:
    steps = [parameters_and_gradients(seed) for seed in range(5)]
    parameters = [nn.Parameter(parameter.detach().clone()) for parameter in steps[0]]
    optimizer = register_larc(torch.optim.Adam(parameters, lr=2e-3, weight_decay=1e-2, foreach=foreach))
    for step in steps:
        for parameter, source in zip(parameters, step, strict=True):
            parameter.grad = source.grad.clone()
        optimizer.step()
    for i, parameter in enumerate(parameters):
        expected = literal_adam(
            steps[0][i].flatten().tolist(),
            [step[i].grad.flatten().tolist() for step in steps],
            lr=2e-3,
            decay=1e-2,
            eps=1e-8,
        )
        assert parameter.flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_weight_decay_is_hidden_only_during_the_step() -> None:
    seen = []
    parameters = parameters_and_gradients()
    groups = [{"params": parameters[:2]}, {"params": parameters[2:], "larc": False}]
    optimizer = register_larc(torch.optim.SGD(groups, lr=0.1, weight_decay=0.01))

    def watch(watched: torch.optim.Optimizer, *arguments: object) -> None:
        seen.append([group["weight_decay"] for group in watched.param_groups])

    optimizer.register_step_pre_hook(watch)
    optimizer.step()
    assert seen == [[0.0, 0.01]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.01]


def test_weight_decay_comes_back_after_a_failure() -> None:
    parameters = parameters_and_gradients()
    optimizer = register_larc(torch.optim.SGD(parameters, lr=0.1, weight_decay=0.01))

    def fail(*arguments: object) -> None:
        raise RuntimeError("device lost")

    failing = optimizer.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="device lost"):
        optimizer.step()
    failing.remove()
    again = parameters_and_gradients(1)
    expected = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for i, source in enumerate(again):
        parameters[i].grad, expected[i].grad = source.grad.clone(), source.grad.clone()
    optimizer.step()
    register_larc(torch.optim.SGD(expected, lr=0.1, weight_decay=0.01)).step()
    for a, b in zip(parameters, expected, strict=True):
        assert torch.equal(a, b)
    assert optimizer.param_groups[0]["weight_decay"] == 0.01


def test_the_state_dict_is_that_of_the_optimizer_without_larc() -> None:
    states = []
    for larc in (False, True):
        optimizer = torch.optim.Adam(parameters_and_gradients(), lr=1e-9, weight_decay=0.01)
        if larc:
            assert register_larc(optimizer) is optimizer
        optimizer.step()
        states.append(optimizer.state_dict())
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert [list(state) for state in states[0]["state"].values()] == [list(s) for s in states[1]["state"].values()]


def test_a_learning_rate_scheduler_keeps_the_hooks() -> None:
    """PyTorch's schedulers replace ``optimizer.step``."""
    results = []
    for scheduled in (False, True):
        parameters = parameters_and_gradients()
        optimizer = register_larc(torch.optim.SGD(parameters, lr=0.1, weight_decay=0.01))
        if scheduled:
            torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        optimizer.step()
        results.append(parameters)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_group_without_larc_is_left_to_the_optimizer() -> None:
    ours, plain = parameters_and_gradients(), parameters_and_gradients()
    groups = [{"params": ours, "larc": False}]
    register_larc(torch.optim.Adam(groups, lr=0.1, weight_decay=0.5)).step()
    torch.optim.Adam(plain, lr=0.1, weight_decay=0.5).step()
    for a, b in zip(ours, plain, strict=True):
        assert torch.equal(a, b)


def test_parameters_without_gradient_stay() -> None:
    parameter, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    register_larc(torch.optim.Adam([parameter, frozen], lr=0.1, weight_decay=0.5)).step()
    assert torch.equal(frozen, torch.ones(2))
    assert not torch.equal(parameter, torch.ones(2))
    register_larc(torch.optim.Adam([frozen], lr=0.1)).step()


def small_problem() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(16, 6)


def make(model: nn.Module) -> torch.optim.Optimizer:
    return register_larc(torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3))


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, *, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_resuming_from_a_state_dict_is_exact(tmp_path) -> None:
    model, x = small_problem()
    optimizer = make(model)
    advance(model, optimizer, x, steps=3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    advance(model, optimizer, x, steps=3)

    resumed, _ = small_problem()
    optimizer_again = make(resumed)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(state["model"])
    optimizer_again.load_state_dict(state["optimizer"])
    advance(resumed, optimizer_again, x, steps=3)
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learning_rate_and_groups_go_through() -> None:
    model, x = small_problem()
    optimizer = make(model)
    extra = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [extra], "lr": 0.5})
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.5]
    before = copy.deepcopy(model.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    advance(model, optimizer, x, steps=2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert len(optimizer.state) == 4
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_closure_gives_the_loss() -> None:
    model, x = small_problem()
    optimizer = make(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure).item() < first.item()


def test_grad_scaler_gives_the_same_steps() -> None:
    """With a power of two as scale, gradients and weights are bit-identical."""
    plain, x = small_problem()
    scaled = copy.deepcopy(plain)
    advance(plain, make(plain), x, steps=4)
    optimizer, scaler = make(scaled), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for _ in range(4):
        optimizer.zero_grad()
        scaler.scale(scaled(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.equal(a, b)


def test_grad_scaler_unscales_once_and_skips_overflows() -> None:
    model, x = small_problem()
    optimizer, scaler = make(model), torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(model(x).square().mean()).backward()
    scaled = [parameter.grad.clone() for parameter in model.parameters()]
    scaler.unscale_(optimizer)  # as for logging the gradient norm
    for before, parameter in zip(scaled, model.parameters(), strict=True):
        assert torch.equal(before / 2.0**12, parameter.grad)
    scaler.step(optimizer)
    scaler.update()

    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    scaler.scale(model(x).square().mean() * torch.tensor(math.inf)).backward()
    scaler.step(optimizer)
    scaler.update()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert scaler.get_scale() == 2.0**11


class NoReadBack(TorchDispatchMode):
    """A mode that fails if a tensor's value is read on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


def test_no_value_is_read_back() -> None:
    parameters = parameters_and_gradients()
    with pytest.raises(AssertionError), NoReadBack():
        parameters[0].sum().item()
    with NoReadBack():
        rescale_gradients(parameters, learning_rate=2e-4, weight_decay=1e-4, trust=1e-3, eps=1e-8)


@needs_cuda
def test_no_synchronization_on_a_gpu() -> None:
    parameters = [nn.Parameter(parameter.detach().cuda()) for parameter in parameters_and_gradients()]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rescale_gradients(parameters, learning_rate=2e-4, weight_decay=1e-4, trust=1e-3, eps=1e-8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_constant_factor_cancels_under_adam() -> None:
    """Adam is invariant to a gradient's scale, except for its changes and eps."""
    moves = []
    for scale in (1.0, 1e-2, 1e-9):
        parameter = nn.Parameter(torch.ones(8, dtype=torch.float64))
        optimizer = torch.optim.Adam([parameter], lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(10):
            parameter.grad = scale * torch.randn(8, generator=generator, dtype=torch.float64)
            optimizer.step()
        moves.append(parameter.detach() - 1)
    assert (moves[0] - moves[1]).norm() < 1e-4 * moves[0].norm()
    assert moves[2].norm() < 0.2 * moves[0].norm()  # eps dominates here


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"trust": 0.0}, "trust=0.0: expected more than 0"), ({"eps": -1.0}, "eps=-1.0")],
)
def test_impossible_settings_are_explained(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_larc(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), **settings)
