"""What the one training loop is given: pretraining is a task, fine-tuning is another."""

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
from crisscross.training.augment import augmented_views
from crisscross.training.checkpoint import CHECKPOINTS_BEYOND_KEPT, CheckpointManager, require_space
from crisscross.training.features import TrainSetFeatures, forget
from crisscross.training.metrics import SystemMonitor, ThroughputMeter
from crisscross.utils.distributed import DistributedContext, data_parallel, main_process_only, share_buffers
from crisscross.utils.rng import derive_key
from crisscross.utils.signals import INTERRUPTION, Preempted

Trained = TypeVar("Trained", bound=Trainable, covariant=True)
"""The kind of network."""


@dataclass(frozen=True)
class Task(Generic[Trained]):
    """What is trained, on what, and how. What becomes of it afterwards is its owner's affair.

    Attributes:
        phase: what the progress bar calls it, such as ``pretraining``.
        network: turns views into a loss; with its initial weights, on the CPU.
        clips: what it learns from.
        views: lengths and augmentations of the views.
        relaxation: where the two views of a clip start.
        modalities: ``v``, ``a`` or ``av``: what is decoded.
        optim: the optimiser and its schedules.
        training: epochs, draws, batch, precision.
        execution: devices, loaders, how often to save.
        tracking: how often to record.
        seed: of the order of the clips, the views, their augmentation, and what the network draws.
        node: where the config has ``training``, for complaints.
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
    """The loss is not a number any more."""


class Trainer(Generic[Trained]):
    """One process's part in a training."""

    def __init__(self, run: RunDirectory, task: Task[Trained], world: DistributedContext) -> None:
        """Build everything and take the newest valid checkpoint, if there is one.

        Args:
            run: where checkpoints and history go.
            task: what to train; its network is moved to the world's device.
            world: this process among its fellows.

        Raises:
            ValueError: when a setting is impossible for this data or number of processes.
            OSError: when a checkpoint cannot be read.
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
            pick=self._pick if task.network.custom_sampling else None,
        )
        self.total_steps = task.training.epochs * self.plan.steps_per_epoch
        self.video_transform = VideoTransformSettings(**task.views.video.transform)
        self.audio_transform = AudioTransformSettings(**task.views.audio.transform)
        self.network = task.network
        if world.device.type == "cuda" and world.size > 1:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)  # type: ignore[no-untyped-call]
        elif world.size > 1:
            logger.warning("on CPUs each process normalises by its own share of the batch, unlike a single process")
        self.network.to(world.device).train()
        self.optimizer = build_optimizer(task.optim, self.network.parameter_groups())
        self.schedules = {}
        if self.total_steps:
            self.schedules = build_schedules(
                task.optim.groups, total_steps=self.total_steps, steps_per_epoch=self.plan.steps_per_epoch
            )
        self.scaler = GradScaler(world.device.type, enabled=task.training.precision == "fp16")
        self.step = 0
        self.books = CheckpointManager(run, world)
        about = self._resume()
        self._started_at = self.step
        kept = [epoch * self.plan.steps_per_epoch for epoch in task.training.keep_epochs]
        self.books.open(about, keep_steps=[*kept, self.total_steps])
        self._check_space()
        self._loss_of = self._wrapped()
        self._meter = ThroughputMeter(task.training.global_batch_size)
        self._machine = SystemMonitor(world.device)

    def _check_space(self) -> None:
        """Compare the free space of the disk with what the checkpoints of this training take.

        Raises:
            OSError: if there is too little, on every rank.
        """
        training, moments = self.task.training, 2 if self.task.optim.name == "adam" else 1
        tensors = [*self.network.state_dict().values(), *[*self.network.parameters()] * moments]
        num_kept = len({epoch for epoch in training.keep_epochs if 0 < epoch < training.epochs})
        num = num_kept + CHECKPOINTS_BEYOND_KEPT if self.total_steps else 1
        num_bytes = num * sum(tensor.nbytes for tensor in tensors)
        main_process_only(lambda: require_space(self.run.checkpoints, num_bytes))

    def run_to_end(self) -> bool:
        """Train until the last step, or until asked to leave; either way everything is on disk afterwards.

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
            self.books.make_durable()
            if done and self.world.is_main_process:
                forget(self.run)
            return done
        finally:
            batches.close()
            self.books.close()

    def summary(self) -> dict[str, Any]:
        """Return what ``result.json`` says of a training that is done; for rank 0."""
        return self.books.summary(self.total_steps)

    def _train(self, batches: Iterator[Batch]) -> bool:
        execution = self.task.execution
        last_save = time.monotonic()
        stop_at = self.step + (execution.max_steps_this_launch or self.total_steps)
        while self.step < self.total_steps:
            if self._at_epoch_start():
                self._begin_epoch()
            metrics = self._one_step(batches)
            self.step += 1
            self._record(metrics)
            due = time.monotonic() - last_save > 60 * execution.checkpoint_minutes
            leave, due, requeue = self.world.any(
                INTERRUPTION.requested or self.step >= stop_at, due, INTERRUPTION.signal_name == "SIGUSR2"
            )
            if requeue:
                INTERRUPTION.note("SIGUSR2")  # whichever rank was told: all leave for the same reason
            if leave or due or self._epoch_to_keep() or self._at_epoch_start() or self.step == self.total_steps:
                self._save()
                last_save = time.monotonic()
            if leave and self.step < self.total_steps:
                why = INTERRUPTION.signal_name or "told"
                logger.info("%s: stopped after step %d of %d", why, self.step, self.total_steps)
                return False
        return True

    def _one_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Do one optimiser step, over as many passes as the global batch needs, and return its metrics."""
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
            with self._synchronised_only_if(index == passes - 1):
                found = self._one_pass(batch, index, passes)
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value.float() / passes
        sums["optim/gradient_norm"] = self._gradient_norm()
        names, stacked = list(sums), torch.stack(list(sums.values())).tolist()  # one copy from the device
        metrics = dict(zip(names, stacked, strict=True))
        self._check_finite(metrics, seen)
        self.scaler.step(self.optimizer)  # type: ignore[arg-type]  # LARC offers what a scaler uses
        self.scaler.update()
        self.network.after_step()
        fallback = sum(batch.fallback.float().mean().item() for batch in seen) / passes
        return {**metrics, **rates, "data/fallback_fraction": fallback}

    def _one_pass(self, batch: Batch, index: int, passes: int) -> dict[str, torch.Tensor]:
        """Augment, go forward and backward once."""
        # Whatever a network draws by itself (dropout, say) is keyed by the step as well.
        torch.manual_seed(derive_key(self.task.seed, "network", self.step, index, self.world.rank))
        device = self.world.device
        views = augmented_views(
            batch,
            seed=self.task.seed,
            device=device,
            video=self.video_transform,
            audio=self.audio_transform,
            key=derive_key(self.task.seed, "method", self.step, index),
        )
        precision = self.task.training.precision
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss, metrics = self._loss_of(views)
        self.scaler.scale(loss / passes).backward()
        return {"loss/total": loss.detach(), **metrics}

    def _gradient_norm(self) -> torch.Tensor:
        """Return the norm of the whole gradient; fp16's may overflow, and the scaler then skips the step."""
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]  # LARC offers what a scaler uses
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).float()

    def _check_finite(self, metrics: dict[str, float], batches: list[Batch]) -> None:
        """Stop before the optimiser spoils the weights."""
        skips_overflow = self.scaler.is_enabled()
        watched = {"loss": metrics["loss/total"], "gradient norm": metrics["optim/gradient_norm"]}
        if skips_overflow:
            del watched["gradient norm"]
            if not math.isfinite(metrics["optim/gradient_norm"]):
                metrics["optim/gradient_norm"] = -1.0  # JSON and MLflow know no infinity; -1 says "step skipped"
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
        """Yield this process's batch of every pass from the current step on."""
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
        """Yield what is to be decoded: all that is left, or epoch after epoch where the network picks the clips."""
        share = self.task.training.samples_per_pass // self.world.size
        step, per_epoch = self.step, self.plan.steps_per_epoch
        while step < self.total_steps:
            end = (step // per_epoch + 1) * per_epoch if self.network.custom_sampling else self.total_steps
            yield RankBatches(self.plan, step, end, share=share, rank=self.world.rank, num_ranks=self.world.size)
            step = end

    def _record(self, metrics: dict[str, float]) -> None:
        """Write the history and say where we are. A resumed run repeats all metrics but ``time/`` and ``system/``."""
        times = self._meter.tick()
        if self.step % self.task.tracking.log_every_steps == 0 or self.step == self.total_steps:
            metrics = self.books.record(self.step, metrics, measured={**times, **self._machine.sample()})
        if self.world.is_main_process and self._meter.report_due():
            self.run.write_progress(
                state="running",
                phase=self.task.phase,
                step=self.step,
                total=self.total_steps,
                loss=metrics["loss/total"],
                rate=self._meter.rate,
                rate_unit="clips/s",
                eta_s=self._meter.seconds_left(self.total_steps - self.step),
            )

    def _save(self) -> None:
        """Begin to write a checkpoint; every process comes here at the same step."""
        state = {
            "method": self.network.state_dict(),  # the name that checkpoints have had from the beginning
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        self.books.save(self.step, state)

    def _resume(self) -> dict[str, Any]:
        """Take the newest valid checkpoint, the same on every process; return what is known of it."""
        state, about = self.books.newest()
        if state is not None:
            self.network.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step = about["step"]
            logger.info("going on from step %d of %d", self.step, self.total_steps)
        return about

    def _wrapped(self) -> nn.Module:
        """Return the network as the loop calls it: compiled, distributed, or as it is."""
        network: nn.Module = self.network
        if self.task.training.compile:
            if self.world.device.type == "cuda":
                network = torch.compile(network)  # type: ignore[assignment]  # of a module it makes a module
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

    def _synchronised_only_if(self, last_pass: bool) -> contextlib.AbstractContextManager[object]:
        if last_pass or not isinstance(self._loss_of, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._loss_of.no_sync()

    def _at_epoch_start(self) -> bool:
        """Whether an epoch begins here that the network wants to know of."""
        return self.network.needs_epoch_start and self.step % self.plan.steps_per_epoch == 0

    def _begin_epoch(self) -> None:
        """Let the network get ready.

        What an earlier start has kept of the way is of use only to one that begins right here, with the same weights.
        """
        epoch = self.step // self.plan.steps_per_epoch
        share_buffers(self.network)
        task = self.task
        look = TrainSetFeatures(
            self.run,
            task.clips,
            task.views,
            task.execution,
            self.world,
            epoch=epoch,
            goes_on=self.step == self._started_at,
        )
        seed = derive_key(self.task.seed, "epoch", epoch)
        for parameter in self.network.on_epoch_start(epoch, look.features_of, seed=seed):
            self.optimizer.state.pop(parameter, None)
        self.network.train()

    def _pick(self, epoch: int) -> np.ndarray:
        return self.network.epoch_indices(self.plan.num_samples, seed=derive_key(self.task.seed, "pick", epoch))

    def _epoch_to_keep(self) -> bool:
        epoch, rest = divmod(self.step, self.plan.steps_per_epoch)
        return rest == 0 and epoch in self.task.training.keep_epochs
