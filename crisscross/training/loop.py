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

import psutil
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crisscross.data.catalogue import open_manifest
from crisscross.data.decode import DecodeError
from crisscross.data.loader import Batch, Clips, ViewDataset, batch_loader
from crisscross.data.step_plan import StepPlan
from crisscross.files import read_json
from crisscross.journal import Journal, read_journal
from crisscross.methods.base import build_method
from crisscross.models.released import export_backbone
from crisscross.optim.build import build_optimizer, build_schedules, set_learning_rates
from crisscross.randomness import derive_key
from crisscross.run_directory import RunDirectory
from crisscross.settings import PretrainSettings, parse
from crisscross.training.checkpoint import CheckpointWriter, load_newest
from crisscross.training.distributed import World, join_world
from crisscross.training.interruption import INTERRUPTION
from crisscross.training.views import augmented_views
from crisscross.transforms.audio import AudioTransformSettings
from crisscross.transforms.video import VideoTransformSettings

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
        return Pretraining(run, settings, world).run_to_end()


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
        manifest = open_manifest(settings.data)
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
        self.method.to(world.device).train()
        self.optimizer = build_optimizer(settings.optim, self.method.parameter_groups())
        self.schedules = (
            build_schedules(
                settings.optim,
                total_steps=max(self.total_steps, 1),
                steps_per_epoch=self.plan.steps_per_epoch,
            )
            if self.total_steps
            else {}
        )
        fp16 = settings.training.precision == "fp16"
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=fp16)
        self.step = 0
        self._resume()
        self.network = self._wrapped()
        self._meter = _Meter(settings.training.global_batch_size)

    def run_to_end(self) -> bool:
        """Train until the last step, or until asked to leave."""
        done = self.step >= self.total_steps
        if not done:
            done = self._train()
        if done and self.world.is_main:
            self._finish()
        self.world.barrier()
        return done

    def _train(self) -> bool:
        execution = self.settings.execution
        last_save = time.monotonic()
        stop_at = self.step + (execution.max_steps_this_launch or self.total_steps)
        batches = self._batches()
        while self.step < self.total_steps:
            metrics = self._one_step(batches)
            self.step += 1
            self._record(metrics)
            due = time.monotonic() - last_save > 60 * execution.checkpoint_minutes
            leave, due = self.world.any(INTERRUPTION.requested or self.step >= stop_at, due)
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
        names, stacked = list(sums), torch.stack(list(sums.values())).tolist()  # one copy from the device
        metrics = dict(zip(names, stacked, strict=True))
        self._check_finite(metrics["loss/total"], seen)
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

    def _check_finite(self, loss: float, batches: list[Batch]) -> None:
        """Stop before the optimiser spoils the weights."""
        (broken,) = self.world.any(not math.isfinite(loss))
        if not broken:
            return
        clips = [str(self.clips.path(index)) for batch in batches for index in batch.clip_ids.tolist()]
        shown = ", ".join(clips[:8]) + (f" and {len(clips) - 8} more" if len(clips) > 8 else "")
        raise NonFiniteLossError(
            f"the loss is {loss} at step {self.step} (of {self.total_steps}): no step was taken, the last checkpoint is"
            f" good; lower the learning rate or use training.precision=fp32. Clips of this step: {shown}"
        )

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's batch of every pass from the current step on."""
        share = self.settings.training.samples_per_pass // self.world.size
        requests = _Requests(self.plan, self.step, self.total_steps, share=share, world=self.world)
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
            if isinstance(batch, DecodeError):
                raise batch
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
        if not self.world.is_main:
            return
        started = time.monotonic()
        state = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        self.writer.save(self.step, state, metrics_bytes=self.journal.sync())
        logger.info(
            "checkpoint at step %d held training up for %.0f ms",
            self.step,
            1e3 * (time.monotonic() - started),
        )

    def _leave(self) -> None:
        if self.world.is_main:
            self.writer.wait()
            self.journal.close()
            why = INTERRUPTION.signal_name or "execution.max_steps_this_launch"
            logger.info("%s: stopped after step %d of %d, checkpoint written", why, self.step, self.total_steps)
        self.world.barrier()

    def _finish(self) -> None:
        """Make the end durable, put the backbones beside it, and declare success."""
        if self.total_steps == 0:
            self._save()
        self.writer.wait()
        self.journal.close()
        for modality in ("video", "audio"):
            export_backbone(
                self.method.get_submodule(f"{modality}_backbone"), self.run.path / f"{modality}_backbone.pt"
            )
        last = self._last_metrics()
        self.run.write_result(
            {
                "steps": self.total_steps,
                "checkpoint": f"checkpoints/step-{self.total_steps:09d}.pt",
                "backbones": {"video": "video_backbone.pt", "audio": "audio_backbone.pt"},
                "metrics": last,
            }
        )

    def _last_metrics(self) -> dict[str, float]:
        last: dict[str, float] = {}
        for line in read_journal(self.run.metrics_path):
            last = line["metrics"]
        return last

    def _resume(self) -> None:
        """Take the newest valid checkpoint; cut the history to what is durable; keep what is already told."""
        loaded = load_newest(self.run.checkpoints)
        durable = read_json(self.run.path / "durable.json") or {"step": 0, "metrics_bytes": 0}
        if loaded is not None:
            state, about = loaded
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step = about["step"]
            durable = max(durable, about, key=lambda entry: entry["step"])
            logger.info("going on from step %d of %d", self.step, self.total_steps)
        if self.world.is_main:
            self.journal = Journal(
                self.run.metrics_path, resume_at=durable["metrics_bytes"], durable_step=durable["step"]
            )
            steps = [epoch * self.plan.steps_per_epoch for epoch in self.settings.training.keep_epochs]
            self.writer = CheckpointWriter(self.run.checkpoints, keep_steps=[*steps, self.total_steps])
        self.world.barrier()

    def _wrapped(self) -> nn.Module:
        """Return the method as the loop calls it: compiled, distributed, or as it is."""
        network: nn.Module = self.method
        if self.settings.training.compile:
            if self.world.device.type == "cuda":
                network = torch.compile(network)
            else:
                logger.warning("training.compile=true is for GPUs: ignored on %s", self.world.device)
        if self.world.size > 1:
            network = DistributedDataParallel(
                network,
                device_ids=[self.world.device.index] if self.world.device.type == "cuda" else None,
                find_unused_parameters=not self.method.uses_all_parameters,
            )
        return network

    def _synchronised_only_if(self, last_pass: bool) -> contextlib.AbstractContextManager:
        if last_pass or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _epoch_to_keep(self) -> bool:
        epoch, rest = divmod(self.step, self.plan.steps_per_epoch)
        return rest == 0 and epoch in self.settings.training.keep_epochs


class _Requests:
    """The lists of (epoch, sample id) that the loader decodes: this process's share of each pass."""

    def __init__(self, plan: StepPlan, start: int, end: int, *, share: int, world: World) -> None:
        self._plan, self._start, self._end, self._share, self._world = plan, start, end, share, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_pass = self._share * self._world.size
        for epoch, samples in self._plan.batches(self._start, self._end):
            for first in range(self._world.rank * self._share, len(samples), per_pass):
                yield [(epoch, int(sample)) for sample in samples[first : first + self._share]]


class _Meter:
    """Throughput and time left, over the steps of this launch."""

    def __init__(self, samples_per_step: int) -> None:
        self._samples = samples_per_step
        self._last = time.monotonic()
        self._step_seconds: float | None = None
        self._waited = 0.0
        self._reported = -math.inf
        self._first = True

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waited += seconds

    def tick(self) -> dict[str, float]:
        """Note the end of a step and return what it took."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        waited, self._waited = self._waited, 0.0
        if self._first:
            self._first = False
            started = time.time() - psutil.Process().create_time()
            logger.info("first step done %.1f s after the process started", started)
        else:  # the first step pays for set-up
            smoothing = 0.1 if self._step_seconds is not None else 1.0
            self._step_seconds = (1 - smoothing) * (self._step_seconds or 0.0) + smoothing * took
        return {"time/step_s": took, "time/data_wait_s": waited, "time/samples_per_s": self._samples / took}

    @property
    def rate(self) -> float | None:
        """Samples a second, smoothed."""
        return None if self._step_seconds is None else self._samples / self._step_seconds

    def seconds_left(self, steps: int) -> float | None:
        """Estimate the time that so many steps take."""
        return None if self._step_seconds is None else steps * self._step_seconds

    def report_due(self) -> bool:
        """Whether half a second has passed since progress was last told."""
        now = time.monotonic()
        if now - self._reported < 0.5:
            return False
        self._reported = now
        return True
