"""The training loop of pretraining and fine-tuning."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from crisscross.config.optim import OptimSettings
from crisscross.config.runtime import ExecutionSettings, TrackingSettings
from crisscross.config.training import TrainingSettings
from crisscross.config.views import AudioTransformSettings, VideoTransformSettings, ViewSettings
from crisscross.data.loader import Batch, Clips, ViewDataset, batch_loader
from crisscross.data.media.decode import DecodeError
from crisscross.data.sampler import EpochPlan, RankBatches
from crisscross.methods.base import Trainable
from crisscross.optim.build import build_optimizer, set_learning_rates
from crisscross.optim.schedules import build_schedules
from crisscross.run.run_dir import RunDirectory
from crisscross.run.state import RunState
from crisscross.training.augment import augmented_views
from crisscross.training.checkpoint import CHECKPOINTS_BEYOND_KEPT, CheckpointManager, require_space
from crisscross.training.features import TrainSetFeatures, clear_train_set_features
from crisscross.training.metrics import SystemMonitor, ThroughputMeter
from crisscross.utils.distributed import DistributedContext, data_parallel, main_process_only, share_buffers
from crisscross.utils.rng import derive_key
from crisscross.utils.signals import SHUTDOWN, Preempted

Trained = TypeVar("Trained", bound=Trainable, covariant=True)
"""Class of the network."""


@dataclass(frozen=True)
class Task(Generic[Trained]):
    """A training: network, data and settings. The caller exports the result.

    Attributes:
        phase: name of the training in the progress bar, such as ``pretraining``.
        network: maps views to a loss; with its initial weights, on the CPU.
        clips: the training clips.
        views: lengths and augmentations of the views.
        relaxation: where the two views of a clip start.
        modalities: ``v``, ``a`` or ``av``: the streams to decode.
        optim: the optimizer and its schedules.
        training: epochs, draws, batch, precision.
        execution: devices, loaders, interval of checkpoints.
        tracking: interval of metrics.
        seed: seed of the order of the clips, the views, their augmentation, and the network's draws.
        node: path of ``training`` in the config, for error messages.
    """

    phase: str
    network: Trained
    clips: Clips
    views: ViewSettings
    relaxation: str
    modalities: str
    optim: OptimSettings
    training: TrainingSettings
    execution: ExecutionSettings
    tracking: TrackingSettings
    seed: int
    node: str = "training"


logger = logging.getLogger(__name__)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient norm is not finite."""


class Trainer(Generic[Trained]):
    """Training of one process."""

    def __init__(self, run: RunDirectory, task: Task[Trained], world: DistributedContext) -> None:
        """Build optimizer, schedules and data order, and load the newest valid checkpoint.

        Args:
            run: run directory for checkpoints and metrics.
            task: the training; its network is moved to the process's device.
            world: this process's rank, world size and device.

        Raises:
            ValueError: if a setting is impossible for this data or number of processes.
            OSError: if a checkpoint cannot be read, or the disk has too little space.
        """
        if task.training.samples_per_pass % world.size:
            raise ValueError(
                f"a pass of {task.training.samples_per_pass} samples cannot be shared by {world.size} processes:"
                f" choose a number of devices that divides {task.node}.micro_batch_size"
            )
        self.run, self.task, self.world = run, task, world
        self.plan = EpochPlan(
            num_clips=len(task.clips),
            draws_per_clip=task.training.draws_per_clip,
            batch_size=task.training.global_batch_size,
            seed=task.seed,
            node=task.node,
            pick=self._epoch_indices if task.network.custom_sampling else None,
        )
        self.total_steps = task.training.epochs * self.plan.steps_per_epoch
        self.video_transform = VideoTransformSettings(**task.views.video.transform)
        self.audio_transform = AudioTransformSettings(**task.views.audio.transform)
        self.network = task.network
        if world.device.type == "cuda" and world.size > 1:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)  # type: ignore[no-untyped-call]
        elif world.size > 1:
            logger.warning("on CPUs each process normalizes by its own share of the batch, unlike a single process")
        self.network.to(world.device).train()
        self.optimizer = build_optimizer(task.optim, self.network.parameter_groups())
        self.schedules = {}
        if self.total_steps:
            self.schedules = build_schedules(
                task.optim.groups, total_steps=self.total_steps, steps_per_epoch=self.plan.steps_per_epoch
            )
        self.scaler = GradScaler(world.device.type, enabled=task.training.precision == "fp16")
        self.step = 0
        self.checkpoints = CheckpointManager(run, world)
        about = self._resume()
        self._started_at = self.step
        kept = [epoch * self.plan.steps_per_epoch for epoch in task.training.keep_epochs]
        self.checkpoints.open(about, keep_steps=[*kept, self.total_steps])
        self._check_space()
        self._loss_of = self._wrapped()
        self._meter = ThroughputMeter(task.training.global_batch_size)
        self._machine = SystemMonitor(world.device)

    def _check_space(self) -> None:
        """Check that the disk has room for this training's checkpoints.

        Raises:
            OSError: if there is too little space, on every rank.
        """
        training, moments = self.task.training, 2 if self.task.optim.name == "adam" else 1
        tensors = [*self.network.state_dict().values(), *[*self.network.parameters()] * moments]
        num_kept = len({epoch for epoch in training.keep_epochs if 0 < epoch < training.epochs})
        num = num_kept + CHECKPOINTS_BEYOND_KEPT if self.total_steps else 1
        num_bytes = num * sum(tensor.nbytes for tensor in tensors)
        main_process_only(lambda: require_space(self.run.checkpoints, num_bytes))

    def run_to_end(self) -> bool:
        """Train until the last step or a shutdown signal.

        Afterwards everything is on disk.

        Returns:
            Whether the training is done.
        """
        batches = self._batches()
        try:
            try:
                done = self.step >= self.total_steps or self._train(batches)
            except Preempted as signal_name:
                logger.info("%s: stopped before step %d of %d", signal_name, self.step + 1, self.total_steps)
                done = False
            if self.total_steps == 0:
                self._save()
            self.checkpoints.flush()
            if done and self.world.is_main_process:
                clear_train_set_features(self.run)
            return done
        finally:
            batches.close()
            self.checkpoints.close()

    def summary(self) -> dict[str, Any]:
        """Return the entries of ``result.json`` after training; call it on rank 0."""
        return self.checkpoints.summary(self.total_steps)

    def _train(self, batches: Iterator[Batch]) -> bool:
        execution = self.task.execution
        last_save = time.monotonic()
        stop_at = self.step + (execution.max_steps_this_launch or self.total_steps)
        while self.step < self.total_steps:
            if self._at_epoch_start():
                self._start_epoch()
            metrics = self._one_step(batches)
            self.step += 1
            self._record(metrics)
            due = time.monotonic() - last_save > 60 * execution.checkpoint_minutes
            leave, due, requeue = self.world.any(
                SHUTDOWN.requested or self.step >= stop_at, due, SHUTDOWN.signal_name == "SIGUSR2"
            )
            if requeue:
                SHUTDOWN.propagate("SIGUSR2")  # of any rank: all exit for the same reason
            if leave or due or self._epoch_to_keep() or self._at_epoch_start() or self.step == self.total_steps:
                self._save()
                last_save = time.monotonic()
            if leave and self.step < self.total_steps:
                why = SHUTDOWN.signal_name or "execution.max_steps_this_launch"
                logger.info("%s: stopped after step %d of %d", why, self.step, self.total_steps)
                return False
        return True

    def _one_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Do one optimizer step over all micro-batches and return its metrics."""
        passes = self.task.training.accumulation_passes
        rates = set_learning_rates(self.optimizer, self.schedules, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        seen: list[Batch] = []
        for index in range(passes):
            waiting = time.monotonic()
            batch = next(batches)
            self._meter.waited(time.monotonic() - waiting)
            seen.append(batch)
            with self._synchronized_only_if(index == passes - 1):
                found = self._one_pass(batch, index, passes)
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value.float() / passes
        sums["optim/gradient_norm"] = self._gradient_norm()
        names, stacked = list(sums), torch.stack(list(sums.values())).tolist()  # one copy from the device
        metrics = dict(zip(names, stacked, strict=True))
        self._check_finite(metrics, seen)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.network.after_step()
        fallback = sum(batch.fallback.float().mean().item() for batch in seen) / passes
        return {**metrics, **rates, "data/fallback_fraction": fallback}

    def _one_pass(self, batch: Batch, index: int, passes: int) -> dict[str, torch.Tensor]:
        """Augment one micro-batch and run forward and backward."""
        # The network's own draws (dropout, for example) depend on the step as well.
        torch.manual_seed(derive_key(self.task.seed, "network", self.step, index, self.world.rank))
        device = self.world.device
        views = augmented_views(
            batch,
            seed=self.task.seed,
            device=device,
            video=self.video_transform,
            audio=self.audio_transform,
            draw_seed=derive_key(self.task.seed, "method", self.step, index),
        )
        precision = self.task.training.precision
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss, metrics = self._loss_of(views)
        self.scaler.scale(loss / passes).backward()
        return {"loss/total": loss.detach(), **metrics}

    def _gradient_norm(self) -> torch.Tensor:
        """Return the norm of the whole gradient; infinite if fp16 overflows."""
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).float()

    def _check_finite(self, metrics: dict[str, float], batches: list[Batch]) -> None:
        """Check, before a step, that loss and gradient are finite.

        Raises:
            NonFiniteLossError: if one is not.
        """
        skips_overflow = self.scaler.is_enabled()
        watched = {"loss": metrics["loss/total"], "gradient norm": metrics["optim/gradient_norm"]}
        if skips_overflow:
            del watched["gradient norm"]
            if not math.isfinite(metrics["optim/gradient_norm"]):
                metrics["optim/gradient_norm"] = -1.0  # JSON has no infinity; -1 = step skipped
        error = None
        for name, value in watched.items():
            if error is None and not math.isfinite(value):
                clips = [str(self.task.clips.path(index)) for batch in batches for index in batch.clip_ids.tolist()]
                shown = ", ".join(clips[:8]) + (f" and {len(clips) - 8} more" if len(clips) > 8 else "")
                error = NonFiniteLossError(
                    f"the {name} is {value} at step {self.step} (of {self.total_steps}): no step was taken, the last"
                    f" checkpoint is good; lower the learning rate or use {self.task.node}.precision=fp32."
                    f" Clips of this step: {shown}"
                )
        self.world.raise_on_any_rank(error)

    def _batches(self) -> Generator[Batch, None, None]:
        """Yield this process's micro-batches from the current step on."""
        dataset = ViewDataset(
            self.task.clips,
            self.task.views,
            relaxation=self.task.relaxation,
            seed=self.task.seed,
            num_views=self.network.num_views,
            modalities=self.task.modalities,
        )
        for requests in self._requests():
            loader = batch_loader(
                dataset,
                requests,
                num_workers=self.task.execution.num_workers,
                pin_memory=self.world.device.type == "cuda",
            )
            for batch in loader:
                self.world.raise_on_any_rank(batch if isinstance(batch, DecodeError) else None)
                yield batch

    def _requests(self) -> Iterator[RankBatches]:
        """Yield the remaining samples, epoch by epoch with custom sampling."""
        share = self.task.training.samples_per_pass // self.world.size
        step, per_epoch = self.step, self.plan.steps_per_epoch
        while step < self.total_steps:
            end = (step // per_epoch + 1) * per_epoch if self.network.custom_sampling else self.total_steps
            yield RankBatches(self.plan, step, end, share=share, rank=self.world.rank, num_ranks=self.world.size)
            step = end

    def _record(self, metrics: dict[str, float]) -> None:
        """Write metrics and progress.

        A resumed run repeats all metrics except ``time/`` and ``system/``.
        """
        times = self._meter.tick()
        if self.step % self.task.tracking.log_every_steps == 0 or self.step == self.total_steps:
            metrics = self.checkpoints.record(self.step, metrics, measured={**times, **self._machine.sample()})
        if self.world.is_main_process and self._meter.report_due():
            self.run.write_progress(
                state=RunState.RUNNING,
                phase=self.task.phase,
                step=self.step,
                total=self.total_steps,
                loss=metrics["loss/total"],
                rate=self._meter.rate,
                rate_unit="clips/s",
                eta_s=self._meter.seconds_left(self.total_steps - self.step),
            )

    def _save(self) -> None:
        """Start to write a checkpoint.

        Every process calls this at the same step.
        """
        state = {
            "method": self.network.state_dict(),  # the key in existing checkpoints
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        self.checkpoints.save(self.step, state)

    def _resume(self) -> dict[str, Any]:
        """Load the newest valid checkpoint and return its metadata.

        The checkpoint is the same on every process.
        """
        state, about = self.checkpoints.load_latest()
        if state is not None:
            self.network.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step = about["step"]
            logger.info("going on from step %d of %d", self.step, self.total_steps)
        return about

    def _wrapped(self) -> nn.Module:
        """Return the network for the forward pass: compiled, distributed, or unchanged."""
        network: nn.Module = self.network
        if self.task.training.compile:
            if self.world.device.type == "cuda":
                network = torch.compile(network)  # type: ignore[assignment]  # it returns a module for a module
            else:
                logger.warning("%s.compile=true is for GPUs: ignored on %s", self.task.node, self.world.device)
        if self.world.size > 1:
            network = data_parallel(
                network,
                self.world,
                uses_all_parameters=self.network.uses_all_parameters,
                replicated_buffers=self.network.replicated_buffers,
            )
        return network

    def _synchronized_only_if(self, last_pass: bool) -> contextlib.AbstractContextManager[object]:
        if last_pass or not isinstance(self._loss_of, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._loss_of.no_sync()

    def _at_epoch_start(self) -> bool:
        """Whether this step starts an epoch with ``on_epoch_start``."""
        return self.network.needs_epoch_start and self.step % self.plan.steps_per_epoch == 0

    def _start_epoch(self) -> None:
        """Call the network's ``on_epoch_start``.

        Features of an earlier start of the job are valid only if this start resumed at this very step, with the same
        weights.
        """
        epoch = self.step // self.plan.steps_per_epoch
        share_buffers(self.network)
        task = self.task
        features = TrainSetFeatures(
            self.run,
            task.clips,
            task.views,
            task.execution,
            self.world,
            epoch=epoch,
            resumed=self.step == self._started_at,
        )
        seed = derive_key(self.task.seed, "epoch", epoch)
        for parameter in self.network.on_epoch_start(epoch, features.extract, seed=seed):
            self.optimizer.state.pop(parameter, None)
        self.network.train()

    def _epoch_indices(self, epoch: int) -> np.ndarray:
        return self.network.epoch_indices(self.plan.num_samples, seed=derive_key(self.task.seed, "pick", epoch))

    def _epoch_to_keep(self) -> bool:
        epoch, rest = divmod(self.step, self.plan.steps_per_epoch)
        return rest == 0 and epoch in self.task.training.keep_epochs
