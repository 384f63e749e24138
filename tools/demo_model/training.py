"""What every training stage shares: a budget in minutes, checkpoints to resume from, averaged weights."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

RESTORED_PEAK = 0.6  # share of the usual peak learning rate, for networks that are already trained


class Averaged:
    """An exponential moving average of a network's weights; the first steps use a smaller decay."""

    def __init__(self, net: nn.Module, decay: float = 0.998) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Moves the average towards `net` after optimiser step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, now in zip(self.net.parameters(), net.parameters(), strict=True):
            average.lerp_(now, 1 - decay)


class Threads:
    """Lets torch use all threads on an idle machine, and one thread on a busy machine.

    Threads wait for each other at every layer. If another process uses the core of one of them, two threads were
    measured to be up to forty times slower than one; on an idle machine they are nearly twice as fast.
    """

    def __init__(self) -> None:
        self.most = torch.get_num_threads()
        torch.set_num_threads(1)

    def tick(self) -> None:
        """Checks the load of the last minute; called before every step."""
        if self.most == 1:
            return
        others = os.getloadavg()[0] - torch.get_num_threads()
        spare = (os.cpu_count() or 1) - others
        torch.set_num_threads(self.most if spare > self.most - 0.5 else 1)


def rate(progress: float, warm_up: float = 0.03) -> float:
    """The learning rate's share of its peak: a linear rise, then a half cosine down to a hundredth."""
    if progress < warm_up:
        return progress / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


def train(
    name: str,
    net: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    *,
    folder: Path,
    minutes: float,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    batch: int,
    peak: float,
    save_every: float = 120.0,
    after_step: Callable[[], None] | None = None,
) -> nn.Module:
    """Trains `net` on `loss_of(step)` for `minutes` of wall clock and returns the averaged network.

    The budget includes earlier runs of the same stage, so an interrupted stage continues from its checkpoint, and a
    larger `--minutes` extends a finished one. The learning rate follows the clock and falls to nearly nothing
    at the end of the budget, however fast the machine is. A stage that starts from a trained network (see
    `restore`) has a lower peak, as large steps would destroy what it has learned.
    """
    path = folder / f"{name}.pt"
    net.to(device)
    average = Averaged(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.98))
    step, spent, restored = 0, 0.0, False
    if path.exists():
        state = torch.load(path, weights_only=True, map_location=device)
        net.load_state_dict(state["net"])
        average.net.load_state_dict(state["average"])
        step, spent, restored = state["step"], state["spent"], state["restored"]
        if state["optimizer"] is not None:
            optimizer.load_state_dict(state["optimizer"])
        print(f"{name}: continues at step {step}, {spent / 60:.1f} minutes spent", flush=True)
    if restored:
        peak *= RESTORED_PEAK

    def save() -> None:
        state = {"net": net.state_dict(), "average": average.net.state_dict(), "optimizer": optimizer.state_dict()}
        _write(path, state | {"step": step, "spent": spent + time.monotonic() - start, "restored": restored})

    net.train()
    threads = Threads()
    start = reported = saved = time.monotonic()
    smooth, reported_step = None, step
    while (now := spent + time.monotonic() - start) < minutes * 60:
        lr = peak * rate(now / (minutes * 60))
        for group in optimizer.param_groups:
            group["lr"] = lr
        threads.tick()
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        average.update(net, step)
        if after_step is not None:
            after_step()
        value = loss.item()
        if not math.isfinite(value):
            raise RuntimeError(f"{name}: the loss is {value} at step {step}; resume from the last checkpoint")
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        if time.monotonic() - reported > 15:
            speed = (step - reported_step) * batch / (time.monotonic() - reported)
            report = f"{name}: {now / 60:5.1f} min  step {step}  loss {smooth:.5f}  lr {lr:.1e}"
            print(f"{report}  {speed:.0f}/s, {torch.get_num_threads()} threads", flush=True)
            reported, reported_step = time.monotonic(), step
        if time.monotonic() - saved > save_every:
            save()
            saved = time.monotonic()
    save()
    print(f"{name}: {step} steps of {batch} = {step * batch} samples in {minutes:.1f} minutes", flush=True)
    return average.net.cpu()


def restore(name: str, net: nn.Module, folder: Path) -> None:
    """Makes a checkpoint of a trained network, from which its stage can continue; an existing checkpoint is kept."""
    path = folder / f"{name}.pt"
    if not path.exists():
        weights = net.float().state_dict()
        state = {"net": weights, "average": weights, "optimizer": None, "step": 0, "spent": 0.0, "restored": True}
        _write(path, state)


def _write(path: Path, state: dict[str, Any]) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def averaged(name: str, net: nn.Module, folder: Path) -> nn.Module:
    """`net` with the averaged weights of a stage's last checkpoint, ready for use."""
    path = folder / f"{name}.pt"
    if not path.exists():
        raise FileNotFoundError(f"{path}: run the stage {name!r} first")
    net.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["average"])
    return net.eval().requires_grad_(False)
