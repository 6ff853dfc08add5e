"""The training loop that every stage shares: optimisers, cosine, clipping, moving average, resuming, a progress bar.

Knows parameters and losses. Knows nothing about what is being learned.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from rich.progress import Progress

CHECKPOINT_SECONDS = 120
SHEET_SECONDS = 600  # drawing samples holds training up
DECAY = 0.999  # of the moving average of the weights, reached gradually
MOMENTUM = 0.95  # of Muon
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, from https://kellerjordan.github.io/posts/muon/
ITERATIONS = 5  # of the quintic


def fit(
    name: str,
    modules: dict[str, torch.nn.Module],
    loss: Callable[[int], tuple[torch.Tensor, float]],
    steps: int,
    folder: Path,
    rate: float,
    parameters: Sequence[torch.nn.Parameter] | None = None,
    matrices: Collection[torch.nn.Parameter] = (),
    warmup: int = 100,
    show: Callable[[int], None] | None = None,
) -> None:
    """Train `modules` and leave the moving average of their weights in them.

    `matrices` are those of the `parameters` that Muon trains, at twice the rate; AdamW trains the others.

    `loss(step)` gives the scalar to go down and a float to show; it must depend on the step alone for its
    randomness. `show(step)` is called every `SHEET_SECONDS` and at the end, with the averaged weights in place.
    Stopped and started again, `fit` goes on from the last checkpoint in `folder`; a finished stage is loaded, not
    repeated.
    """
    parameters = parameters or [parameter for module in modules.values() for parameter in module.parameters()]
    optimisers = _optimisers(parameters, matrices, rate)
    average = [parameter.detach().clone() for parameter in parameters]
    path = folder / f"{name}.pt"
    start = _resume(path, modules, optimisers, average)
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    saved_at = shown_at = time.monotonic()
    with _progress() as bar:
        task = bar.add_task(name, total=steps, completed=start, loss="")
        for step in range(start, steps):
            for group in groups:
                group["lr"] = group["initial_lr"] * rate_share(step, steps, warmup)
            value, number = loss(step)
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            _update_average(average, parameters, step)
            bar.update(task, advance=1, loss=f"{number:.4f}")
            if step % 50 == 0:
                bar.console.log(f"{name} {step}/{steps} {number:.4f}")
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                _save(path, step + 1, modules, optimisers, average)
                saved_at = time.monotonic()
            if show and time.monotonic() - shown_at > SHEET_SECONDS:
                _swap_values(parameters, average)
                show(step + 1)
                _swap_values(parameters, average)
                shown_at = time.monotonic()
    _save(path, max(start, steps), modules, optimisers, average)
    _swap_values(parameters, average)
    if show and start < steps:
        show(steps)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal; Nesterov, decoupled weight decay, and steps as long as AdamW's for the same rate.

    `torch.optim.Muon` takes matrices one by one, and on matrices of 128 x 128 its time goes into starting operations:
    60 of them take 47 ms a step on two CPU cores. Here those of one shape are orthogonalised together, which takes 27.
    The step's length (0.2 times the root of the longer side) is that of https://arxiv.org/abs/2502.16982.
    """

    def __init__(self, matrices: Iterable[torch.nn.Parameter], lr: float, weight_decay: float):
        super().__init__(list(matrices), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                directions = orthogonal(torch.stack([self._momentum(matrix) for matrix in matrices]))
                length = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(directions.to(matrices[0].dtype)), alpha=-length)

    def _momentum(self, matrix: torch.Tensor) -> torch.Tensor:
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"]
        momentum.lerp_(matrix.grad, 1 - MOMENTUM)
        direction = matrix.grad.lerp(momentum, MOMENTUM)
        # A processor without instructions for bfloat16 takes 26 times as long for its products.
        return direction.bfloat16() if direction.is_cuda else direction


def orthogonal(stacked: torch.Tensor) -> torch.Tensor:
    """Each of (B, rows, columns) with its singular values brought near to 1, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = stacked.shape[1] > stacked.shape[2]
    x = stacked.mT if tall else stacked
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def rate_share(step: int, steps: int, warmup: int) -> float:
    """What share of its rate a stage learns with: linear warm-up, then half a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def is_finished(path: Path, steps: int) -> bool:
    """Whether the stage whose checkpoint is at `path` has come to `steps`."""
    return path.exists() and torch.load(path, weights_only=True, map_location="cpu")["step"] >= steps


def write_whole(value: Any, path: Path) -> None:
    """`torch.save` that leaves at `path` either the whole value or the file that was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def _optimisers(
    parameters: Sequence[torch.nn.Parameter], matrices: Collection[torch.nn.Parameter], rate: float
) -> list[torch.optim.Optimizer]:
    of_muon = {id(matrix) for matrix in matrices}
    others = [parameter for parameter in parameters if id(parameter) not in of_muon]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    ]
    if of_muon:
        optimisers.append(Muon(matrices, lr=2 * rate, weight_decay=0.01))
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["initial_lr"] = group["lr"]
    return optimisers


def _update_average(average: list[torch.Tensor], parameters: Sequence[torch.nn.Parameter], step: int) -> None:
    decay = min(DECAY, (step + 1) / (step + 10))
    torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)


def _swap_values(parameters: Sequence[torch.nn.Parameter], average: list[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, average, strict=True):
        before = parameter.detach().clone()
        parameter.data.copy_(value)
        value.copy_(before)


def _resume(
    path: Path,
    modules: dict[str, torch.nn.Module],
    optimisers: Sequence[torch.optim.Optimizer],
    average: list[torch.Tensor],
) -> int:
    """Load the checkpoint at `path`, if there is one, into all of them; returns the step to go on from."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    for optimiser, optimiser_state in zip(optimisers, state["optimisers"], strict=False):
        optimiser.load_state_dict(optimiser_state)
    for value, saved in zip(average, state["average"], strict=True):
        value.copy_(saved)
    return state["step"]


def _save(
    path: Path,
    step: int,
    modules: dict[str, torch.nn.Module],
    optimisers: Sequence[torch.optim.Optimizer],
    average: list[torch.Tensor],
) -> None:
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "average": average,
    }
    write_whole(state, path)  # a stop meanwhile must not cost the last good checkpoint


def _progress() -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[loss]}"))
