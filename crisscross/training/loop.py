"""The one training loop: every method, every scale, one device or many, resumed as if it had never stopped.

A step is a function of the weights, the optimiser's state and the step's number: which samples it sees, where their
views begin, how they are augmented and what the networks draw at random are all keyed by that number
(crisscross/randomness.py). So a checkpoint holds the state and the number, nothing of any stream, and going on is the
same as never having stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crisscross.data.catalogue import open_manifest
from crisscross.data.decode import DecodeError
from crisscross.data.loader import Batch, Clips, ViewDataset, batch_loader
from crisscross.data.manifest import Manifest
from crisscross.data.staging import staged
from crisscross.data.step_plan import PassRequests, StepPlan
from crisscross.files import read_json
from crisscross.journal import Journal, read_journal
from crisscross.methods.base import build_method
from crisscross.models.released import export_backbone
from crisscross.optim.build import build_optimizer, set_learning_rates
from crisscross.optim.schedules import build_schedules
from crisscross.randomness import derive_key
from crisscross.run_directory import RunDirectory
from crisscross.settings import PretrainSettings
from crisscross.settings_base import parse
from crisscross.training.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    checkpoint_path,
    load_checkpoint,
    load_newest,
)
from crisscross.training.distributed import World, data_parallel, join_world
from crisscross.training.interruption import INTERRUPTION, Interrupted
from crisscross.training.meter import Meter
from crisscross.training.views import augmented_views
from crisscross.transforms.settings import AudioTransformSettings, VideoTransformSettings

logger = logging.getLogger(__name__)

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLossError(RuntimeError):
    """The loss is not a number any more."""


def pretrain(run: RunDirectory) -> bool:
    """Pretrain from wherever the run directory stands.

    Args:
        run: the experiment's run directory.

    Returns:
        True when training is done and ``result.json`` written; False when it was interrupted after a checkpoint.

    Raises:
        ValueError: when a setting is impossible for this data or machine.
        DecodeError: when a clip cannot be read any more, naming it.
        NonFiniteLossError: when the loss is not finite, naming the step and the clips.
        CheckpointError: when a checkpoint could not be written.
    """
    settings = parse(PretrainSettings, run.config)
    torch.set_num_threads(settings.execution.num_threads)
    with join_world(settings.execution.device) as world:
        try:
            training = Pretraining(run, settings, world)
        except Interrupted as signal_name:
            INTERRUPTION.note(str(signal_name))  # whichever rank was told
            logger.info("%s: stopped while clips were brought to this node; what is there is kept", signal_name)
            return False
        return training.run_to_end()


class Pretraining:
    """One process's part in a pretraining."""

    def __init__(self, run: RunDirectory, settings: PretrainSettings, world: World) -> None:
        """Build everything and take the newest valid checkpoint, if there is one."""
        if settings.training.samples_per_pass % world.size:
            raise ValueError(
                f"a pass of {settings.training.samples_per_pass} samples cannot be shared by {world.size} processes:"
                " choose a number of devices that divides training.micro_batch_size"
            )
        self.run, self.settings, self.world = run, settings, world
        manifest = self._staged(open_manifest(settings.data))
        self.clips = Clips(manifest.split(settings.data.train_split), manifest.root)
        self.plan = StepPlan(
            num_clips=len(self.clips),
            draws_per_clip=settings.training.draws_per_clip,
            batch_size=settings.training.global_batch_size,
            seed=settings.seed,
        )
        self.total_steps = settings.training.epochs * self.plan.steps_per_epoch
        self.video_transform = VideoTransformSettings(**settings.views.video.transform)
        self.audio_transform = AudioTransformSettings(**settings.views.audio.transform)
        self.method = build_method(settings.method, settings.model, seed=settings.seed)
        if world.device.type == "cuda" and world.size > 1:
            self.method = nn.SyncBatchNorm.convert_sync_batchnorm(self.method)
        elif world.size > 1:
            logger.warning("on CPUs each process normalises by its own share of the batch, unlike a single process")
        self.method.to(world.device).train()
        self.optimizer = build_optimizer(settings.optim, self.method.parameter_groups())
        self.schedules = (
            build_schedules(
                settings.optim.groups,
                total_steps=max(self.total_steps, 1),
                steps_per_epoch=self.plan.steps_per_epoch,
            )
            if self.total_steps
            else {}
        )
        fp16 = settings.training.precision == "fp16"
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=fp16)
        self.step = 0
        self._open_run_directory(self._resume())
        self.network = self._wrapped()
        self._meter = Meter(settings.training.global_batch_size)

    def _staged(self, manifest: Manifest) -> Manifest:
        """Bring the clips to each node's own disk, if the settings say so; all processes go on, or none."""
        error = None
        data = self.settings.data
        report = self.run.say_phase if self.world.is_main else None
        try:
            manifest = staged(manifest, data, splits=[data.train_split], report=report)
        except (OSError, ValueError, Interrupted) as problem:
            error = problem
        self._raise_together(error)
        return manifest

    def run_to_end(self) -> bool:
        """Train until the last step, or until asked to leave."""
        batches = self._batches()
        try:
            done = self.step >= self.total_steps or self._train(batches)
            if done:
                self._finish()
            return done
        finally:
            batches.close()
            self._close()

    def _train(self, batches: Iterator[Batch]) -> bool:
        execution = self.settings.execution
        last_save = time.monotonic()
        stop_at = self.step + (execution.max_steps_this_launch or self.total_steps)
        while self.step < self.total_steps:
            metrics = self._one_step(batches)
            self.step += 1
            self._record(metrics)
            due = time.monotonic() - last_save > 60 * execution.checkpoint_minutes
            leave, due, requeue = self.world.any(
                INTERRUPTION.requested or self.step >= stop_at, due, INTERRUPTION.signal_name == "SIGUSR2"
            )
            if requeue:
                INTERRUPTION.note("SIGUSR2")  # whichever rank was told: all leave for the same reason
            if leave or due or self._epoch_to_keep() or self.step == self.total_steps:
                self._save()
                last_save = time.monotonic()
            if leave and self.step < self.total_steps:
                self._leave()
                return False
        return True

    def _one_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """Do one optimiser step, over as many passes as the global batch needs, and return its metrics."""
        passes = self.settings.training.accumulation_passes
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
                metrics = self._one_pass(batch, index, passes)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0) + value.float() / passes
        sums["optim/gradient_norm"] = self._gradient_norm()
        names, stacked = list(sums), torch.stack(list(sums.values())).tolist()  # one copy from the device
        metrics = dict(zip(names, stacked, strict=True))
        self._check_finite(metrics, seen)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        fallback = sum(batch.fallback.float().mean().item() for batch in seen) / passes
        return {**metrics, **rates, "data/fallback_fraction": fallback}

    def _one_pass(self, batch: Batch, index: int, passes: int) -> dict[str, torch.Tensor]:
        """Augment, go forward and backward once."""
        # Whatever a network draws by itself (dropout, say) is keyed by the step as well.
        torch.manual_seed(derive_key(self.settings.seed, "network", self.step, index, self.world.rank))
        device = self.world.device
        views = augmented_views(
            batch,
            seed=self.settings.seed,
            device=device,
            video=self.video_transform,
            audio=self.audio_transform,
        )
        precision = self.settings.training.precision
        with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
            loss, metrics = self.network(views)
        self.scaler.scale(loss / passes).backward()
        return {"loss/total": loss.detach(), **metrics}

    def _gradient_norm(self) -> torch.Tensor:
        """Return the norm of the whole gradient; fp16's may overflow, and the scaler then skips the step."""
        self.scaler.unscale_(self.optimizer)
        gradients = [parameter.grad for parameter in self.method.parameters() if parameter.grad is not None]
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
                clips = [str(self.clips.path(index)) for batch in batches for index in batch.clip_ids.tolist()]
                shown = ", ".join(clips[:8]) + (f" and {len(clips) - 8} more" if len(clips) > 8 else "")
                error = NonFiniteLossError(
                    f"the {name} is {value} at step {self.step} (of {self.total_steps}): no step was taken, the last"
                    " checkpoint is good; lower the learning rate or use training.precision=fp32."
                    f" Clips of this step: {shown}"
                )
        self._raise_together(error)

    def _raise_together(self, error: Exception | None) -> None:
        error = self.world.first_error(error)
        if error is not None:
            raise error

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's batch of every pass from the current step on."""
        share = self.settings.training.samples_per_pass // self.world.size
        requests = PassRequests(
            self.plan, self.step, self.total_steps, share=share, rank=self.world.rank, num_ranks=self.world.size
        )
        dataset = ViewDataset(
            self.clips,
            self.settings.views,
            relaxation=self.settings.relaxation,
            seed=self.settings.seed,
            num_views=self.method.num_views,
        )
        loader = batch_loader(
            dataset,
            requests,
            num_workers=self.settings.execution.num_workers,
            pin_memory=self.world.device.type == "cuda",
        )
        for batch in loader:
            self._raise_together(batch if isinstance(batch, DecodeError) else None)
            yield batch

    def _record(self, metrics: dict[str, float]) -> None:
        """Write the history and say where we are. ``time/`` metrics are the only ones a resumed run does not repeat."""
        every = self.settings.tracking.log_every_steps
        times = self._meter.tick()
        if self.step % every == 0 or self.step == self.total_steps:
            metrics = self.world.mean(metrics)
            if self.world.is_main:
                self.journal.write(self.step, {**metrics, **times})
        if self.world.is_main and self._meter.report_due():
            self.run.write_progress(
                state="running",
                phase="pretraining",
                step=self.step,
                total=self.total_steps,
                loss=metrics["loss/total"],
                rate=self._meter.rate,
                rate_unit="clips/s",
                eta_s=self._meter.seconds_left(self.total_steps - self.step),
            )

    def _save(self) -> None:
        """Begin to write a checkpoint; every process comes here at the same step."""
        error = None
        if self.world.is_main:
            started = time.monotonic()
            state = {
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
            try:
                self.writer.save(self.step, state, metrics_bytes=self.journal.sync())
            except (CheckpointError, OSError) as problem:
                error = problem
            held_up_ms = 1e3 * (time.monotonic() - started)
            logger.info("checkpoint at step %d held training up for %.0f ms", self.step, held_up_ms)
        self._raise_together(error)

    def _make_durable(self) -> None:
        """Wait until the last checkpoint is on disk."""
        error = None
        if self.world.is_main:
            try:
                self.writer.wait()
            except CheckpointError as problem:
                error = problem
        self._raise_together(error)

    def _leave(self) -> None:
        self._make_durable()
        why = INTERRUPTION.signal_name or "told"
        logger.info("%s: stopped after step %d of %d, checkpoint written", why, self.step, self.total_steps)

    def _close(self) -> None:
        """Let go of the run directory, whatever happened: no thread may write there once the lock is gone."""
        if self.world.is_main:
            try:
                self.writer.wait()
            except CheckpointError as error:
                logger.error("%s", error)
            self.journal.close()

    def _finish(self) -> None:
        """Make the end durable, put the backbones beside it, and declare success."""
        if self.total_steps == 0:
            self._save()
        self._make_durable()
        if self.world.is_main:
            for modality in ("video", "audio"):
                backbone = self.method.get_submodule(f"{modality}_backbone")
                export_backbone(backbone, self.run.path / f"{modality}_backbone.pt")
            self.run.write_result(
                {
                    "steps": self.total_steps,
                    "checkpoint": f"checkpoints/{checkpoint_path(self.run.checkpoints, self.total_steps).name}",
                    "backbones": {"video": "video_backbone.pt", "audio": "audio_backbone.pt"},
                    "metrics": self._last_metrics(),
                }
            )
        self.world.barrier()

    def _last_metrics(self) -> dict[str, float]:
        last: dict[str, float] = {}
        for line in read_journal(self.run.metrics_path):
            last = line["metrics"]
        return last

    def _resume(self) -> dict[str, Any]:
        """Take the newest valid checkpoint, the same on every process; return what is known of it."""
        loaded, error = None, None
        if self.world.is_main:
            try:
                loaded = load_newest(self.run.checkpoints, discard_damaged=True)
            except OSError as problem:
                error = problem
        self._raise_together(error)
        about = self.world.from_main(None if loaded is None else loaded[1])
        if about is None:
            return {"step": 0, "history_step": 0, "metrics_bytes": 0}
        state, _ = loaded or load_checkpoint(checkpoint_path(self.run.checkpoints, about["step"]))
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = about["step"]
        logger.info("going on from step %d of %d", self.step, self.total_steps)
        return about

    def _open_run_directory(self, about: dict[str, Any]) -> None:
        """Cut the history to what is durable and keep what was perhaps told already; get ready to write."""
        error = None
        if self.world.is_main:
            declared = read_json(self.run.path / "durable.json") or about
            history = max(about, declared, key=lambda entry: entry["history_step"])
            keep = [epoch * self.plan.steps_per_epoch for epoch in self.settings.training.keep_epochs]
            try:
                self.journal = Journal(
                    self.run.metrics_path, resume_at=history["metrics_bytes"], durable_step=history["history_step"]
                )
                self.writer = CheckpointWriter(
                    self.run.checkpoints, keep_steps=[*keep, self.total_steps], history_step=history["history_step"]
                )
            except (ValueError, OSError) as problem:
                error = problem
        self._raise_together(error)

    def _wrapped(self) -> nn.Module:
        """Return the method as the loop calls it: compiled, distributed, or as it is."""
        network: nn.Module = self.method
        if self.settings.training.compile:
            if self.world.device.type == "cuda":
                network = torch.compile(network)
            else:
                logger.warning("training.compile=true is for GPUs: ignored on %s", self.world.device)
        if self.world.size > 1:
            network = data_parallel(network, self.world, uses_all_parameters=self.method.uses_all_parameters)
        return network

    def _synchronised_only_if(self, last_pass: bool) -> contextlib.AbstractContextManager:
        if last_pass or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _epoch_to_keep(self) -> bool:
        epoch, rest = divmod(self.step, self.plan.steps_per_epoch)
        return rest == 0 and epoch in self.settings.training.keep_epochs
