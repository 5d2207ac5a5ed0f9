"""AVID: the loss against a literal implementation, negatives, memory, Z, and resuming."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from crisscross.config.base import parse
from crisscross.config.experiment import PretrainSettings
from crisscross.config.method import settings_of
from crisscross.config.views import AudioTransformSettings
from crisscross.data.catalog import check_batch
from crisscross.methods.avid import AVID, draw_negatives, nce_loss, update_memory_
from crisscross.methods.base import DatasetInfo, Views, build_method
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from tests.methods.support import TINY, random_views, tiny_run
from tests.processes import run_ranks
from tests.support import assert_same_state, final_state, history, tiny_config
from tests.warm import warm_python

OPTIONS = {
    "name": "avid",
    "num_negatives": 5,
    "temperature": 0.07,
    "memory_momentum": 0.5,
    "head_dims": [16, 16, 8],
    "head_batch_norm": False,
    "pool": "avg",
}
NUM_CLIPS = 12
REPOSITORY = Path(__file__).parents[2]


def _build(num_clips: int = NUM_CLIPS, **changed: object) -> AVID:
    return build_method({**OPTIONS, **changed}, TINY, DatasetInfo(num_clips=num_clips, num_classes=3), seed=0)


def _views(*clip_ids: int, seed: int = 0) -> Views:
    return random_views(clip_ids, seed=seed)


def _state(method: AVID) -> dict[str, torch.Tensor]:
    return {name: method.get_buffer(name).clone() for name in method.replicated_buffers}


# The loss.


def _literal_loss(
    queries: torch.Tensor, memory: torch.Tensor, clip_ids: list[int], negative_ids: list[list[int]], partition: float
) -> float:
    """Return the equation, one clip and one negative at a time, in double precision."""
    total = 0.0
    for query, clip, others in zip(queries.double().tolist(), clip_ids, negative_ids, strict=True):

        def exp_score(of: int, query: list[float] = query) -> float:
            return math.exp(sum(a * b for a, b in zip(query, memory[of].double().tolist(), strict=True)) / 0.07)

        noise = len(others) * partition
        loss = -math.log(exp_score(clip) / (exp_score(clip) + noise))
        for other in others:
            loss -= math.log(noise / (exp_score(other) + noise))
        total += loss
    return total / len(clip_ids)


def test_the_loss_equals_the_equation() -> None:
    generator = torch.Generator().manual_seed(1)
    positives, negatives = torch.randn(6, generator=generator) * 6, torch.randn(6, 9, generator=generator) * 6
    noise, total = 9 * 2.5, 0.0
    for positive, row in zip(positives.double().tolist(), negatives.double().tolist(), strict=True):
        total -= math.log(math.exp(positive) / (math.exp(positive) + noise))
        total -= sum(math.log(noise / (math.exp(negative) + noise)) for negative in row)
    got = nce_loss(positives, negatives, torch.tensor(2.5))
    assert got.item() == pytest.approx(total / 6, rel=1e-5)


def test_a_pass_equals_the_equations_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    method, views, drawn = _build(), _views(3, 0, 11, 7), []

    def remembered(*arguments: torch.Tensor, **numbers: int) -> torch.Tensor:
        drawn.append(draw_negatives(*arguments, **numbers))
        return drawn[-1]

    monkeypatch.setattr("crisscross.methods.avid.draw_negatives", remembered)
    torch.manual_seed(5)
    loss, metrics = method(views)
    clip_ids, negative_ids = views.clip_ids.tolist(), [draw.tolist() for draw in drawn]
    seen = method._seen[-1]
    exponentials = [
        math.exp(float(query.double() @ memory[other].double()) / 0.07)
        for queries, memory, draw in zip(
            (seen["video"], seen["audio"]), (method.audio_memory, method.video_memory), negative_ids, strict=True
        )
        for query, row in zip(queries, draw, strict=True)
        for other in row
    ]
    partition = sum(exponentials) / len(exponentials)
    assert len(exponentials) == 2 * 4 * 5
    assert method.partition.item() == pytest.approx(partition, rel=1e-5)
    video = _literal_loss(seen["video"], method.audio_memory, clip_ids, negative_ids[0], partition)
    audio = _literal_loss(seen["audio"], method.video_memory, clip_ids, negative_ids[1], partition)
    assert metrics["loss/video_to_audio"].item() == pytest.approx(video, rel=1e-5)
    assert metrics["loss/audio_to_video"].item() == pytest.approx(audio, rel=1e-5)
    assert loss.item() == pytest.approx((video + audio) / 2, rel=1e-5)


def test_large_scores_and_autocast_leave_it_in_single_precision() -> None:
    scores = torch.tensor([[1 / 0.02, -1 / 0.02]])
    assert torch.isfinite(nce_loss(scores[:, 0], scores, torch.tensor(1e21)))
    assert torch.isfinite(nce_loss(scores[:, 1], scores, torch.tensor(1e-21)))
    method = _build()
    # Frames of 16 px give maps of single points, for which bfloat16 convolutions on CPUs (PyTorch 2.11) sometimes give
    # non-finite gradients of weights, whatever the loss.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = method(random_views((0, 1, 2), side_px=32))
    assert loss.dtype == torch.float32
    assert method._seen[-1]["video"].dtype == torch.float32
    torch.testing.assert_close(method._seen[-1]["video"].norm(dim=1), torch.ones(3))
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in method.parameters())


# The negatives.


def test_a_clip_is_never_its_own_negative_and_all_others_are_as_likely() -> None:
    torch.manual_seed(0)
    clip_ids = torch.arange(7).repeat(2)
    negatives = draw_negatives(clip_ids, num_clips=7, num_negatives=20_000)
    assert negatives.shape == (14, 20_000)
    for clip, row in zip(clip_ids.tolist(), negatives, strict=True):
        counts = torch.bincount(row, minlength=7)
        assert counts[clip] == 0
        others = torch.cat([counts[:clip], counts[clip + 1 :]])
        assert (others - 20_000 / 6).abs().max() < 5 * math.sqrt(20_000 / 6)
    assert draw_negatives(torch.tensor([0, 1]), num_clips=2, num_negatives=3).tolist() == [[1, 1, 1], [0, 0, 0]]


# The memory.


def test_the_memory_moves_as_a_loop_over_the_clips_would_move_it() -> None:
    generator = torch.Generator().manual_seed(2)
    memory = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1)
    embeddings = torch.nn.functional.normalize(torch.randn(7, 4, generator=generator), dim=1)
    clip_ids = torch.tensor([5, 0, 3, 0, 5, 0, 1])  # clip 0 three times, clip 5 twice
    expected = memory.double().numpy().copy()
    for clip in (0, 1, 3, 5):
        mean = np.mean([embeddings[row].double().numpy() for row in range(7) if clip_ids[row] == clip], axis=0)
        moved = 0.75 * expected[clip] + 0.25 * mean
        expected[clip] = moved / np.sqrt((moved**2).sum())
    before = memory.clone()
    assert update_memory_(memory, clip_ids, embeddings, momentum=0.75) is memory
    np.testing.assert_allclose(memory.numpy(), expected, atol=1e-6)
    assert torch.equal(memory[[2, 4]], before[[2, 4]])
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    again = update_memory_(before.clone(), clip_ids[order], embeddings[order], momentum=0.75)
    torch.testing.assert_close(again, memory, atol=1e-6, rtol=0)  # the order of the draws does not matter


def test_the_memory_is_constant_during_a_step_and_then_uses_all_micro_batches() -> None:
    method = _build()
    start = _state(method)
    for clips in ((1, 4), (2, 1)):
        method(_views(*clips))
        assert torch.equal(method.video_memory, start["video_memory"])
    seen = list(method._seen)
    method.after_step()
    for modality in ("video", "audio"):
        embeddings = torch.cat([one[modality] for one in seen])
        expected = update_memory_(start[f"{modality}_memory"], torch.tensor([1, 4, 2, 1]), embeddings, momentum=0.5)
        assert torch.equal(method.get_buffer(f"{modality}_memory"), expected)
        torch.testing.assert_close(expected.norm(dim=1), torch.ones(NUM_CLIPS))
    method(_views(7, 8))
    method.after_step()  # the embeddings of the previous step are cleared
    assert torch.equal(method.video_memory[[1, 2, 4]], start["video_memory"][[1, 2, 4]])
    method.eval()(_views(0, 5))
    assert method._seen == []  # eval mode stores no embeddings


def test_it_starts_as_unit_vectors_that_the_seed_makes() -> None:
    one, other = _build(), _build(num_clips=8)
    torch.testing.assert_close(one.video_memory.norm(dim=1), torch.ones(NUM_CLIPS))
    assert torch.equal(_build().video_memory, one.video_memory)
    assert not torch.equal(one.video_memory, one.audio_memory)
    assert one.video_memory.mean().abs() < 0.1
    assert other.video_memory.shape == (8, 8)


# Z.


def test_z_is_frozen_after_the_first_batch_and_goes_with_the_state() -> None:
    method = _build()
    assert method.partition == 0
    method(_views(0, 1, 2))
    first = method.partition.clone()
    assert first > 0
    for seed in range(3):
        method.after_step()
        method(_views(3, 4, seed=seed))
        assert torch.equal(method.partition, first)
    fresh = _build()
    fresh.load_state_dict(method.state_dict())
    fresh(_views(5, 6))
    assert torch.equal(fresh.partition, first)
    fresh.load_state_dict(_build().state_dict())  # its Z is not computed yet
    fresh(_views(5, 6))
    assert fresh.partition > 0
    assert not torch.equal(fresh.partition, first)


# In the training loop.


SMALL = ("method.num_negatives=5", "method.head_dims=[16,16,8]", "training.epochs=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("avid")


def _run(folder: Path, name: str, *overrides: str) -> RunDirectory:
    return tiny_run(folder, name, *SMALL, *overrides)


@pytest.mark.parametrize(
    "chosen",
    [
        ("method=avid", "training.micro_batch_size=2", "training.draws_per_clip=2"),
        ("method=avid_authors", "training.draws_per_clip=1", "training.keep_epochs=[]"),
    ],
    ids=["two passes a step, two draws a clip", "inputs and bf16 of the authors"],
)
def test_a_run_in_pieces_equals_one_that_ran_through(folder: Path, chosen: tuple[str, ...]) -> None:
    whole = _run(folder, "whole", *chosen)
    assert run_experiment(whole)
    pieces = _run(folder, "pieces", "execution.max_steps_this_launch=4", *chosen)  # epochs end elsewhere
    launches = 1
    while not run_experiment(pieces):
        launches += 1
    assert launches > 1
    assert history(pieces) == history(whole)
    assert_same_state(final_state(pieces), final_state(whole))
    state = final_state(whole)["method"]
    assert state["video_memory"].shape == state["audio_memory"].shape == (12, 8)
    assert state["partition"] > 0
    expected = {"loss/total", "loss/video_to_audio", "loss/audio_to_video", "collapse/video_std", "collapse/audio_std"}
    for _, metrics in history(whole):
        assert expected <= metrics.keys()
        assert all(math.isfinite(value) for value in metrics.values())


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from crisscross.utils.distributed import data_parallel, join_world
from tests.methods.test_avid import _build, _state, _views
with join_world("cpu") as world:
    method = _build()
    wrapped = data_parallel(method, world, uses_all_parameters=True, replicated_buffers=method.replicated_buffers)
    for step in range(2):
        torch.manual_seed(10 * step + world.rank)
        clips = [[0, 1], [2, 1]][world.rank]  # clip 1 is on both
        loss, _ = wrapped(_views(*clips, seed=world.rank))
        loss.backward()
        method.after_step()
    torch.save(_state(method), f"{sys.argv[1]}/rank{world.rank}.pt")
"""


def test_two_processes_keep_the_same_memory_and_the_same_z(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two.py").write_text(TWO_RANKS)
    command = [*warm_python(), str(tmp_path / "two.py"), str(tmp_path)]
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    ranks = run_ranks(command, num=2)
    assert [code for code, _ in ranks] == [0, 0], ranks
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_same_state(one, other)
    start = _state(_build())
    moved = (one["video_memory"] != start["video_memory"]).any(dim=1)
    assert moved.nonzero()[:, 0].tolist() == [0, 1, 2]


def test_what_its_authors_used_is_one_word() -> None:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("pretrain", ["method=avid_authors", "scale=paper"]), resolve=True)
        fair = OmegaConf.to_container(compose("pretrain", ["method=avid", "scale=paper"]), resolve=True)
        crisscross = OmegaConf.to_container(compose("pretrain", ["scale=paper"]), resolve=True)
    settings = parse(PretrainSettings, config)
    audio = AudioTransformSettings(**settings.views.audio.transform)
    assert (audio.num_bins, audio.sample_rate_hz, settings.views.audio.seconds) == (257, 24000, 2.0)
    assert (settings.views.video.num_frames, settings.views.video.transform["crop_px"]) == (8, 224)
    assert (settings.training.epochs, settings.training.draws_per_clip, settings.training.global_batch_size) == (
        30,
        10,
        256,
    )
    assert settings.optim.groups["base"].model_dump() == {"name": "constant", "value": 2e-4}
    assert config["method"] == {**fair["method"], "pool": "max"}
    assert fair["method"]["num_negatives"] == 1024
    for node in ("views", "training", "model"):
        assert fair[node] == crisscross[node]


# Errors.


def test_fewer_clips_than_negatives_are_refused_before_and_in_the_job(folder: Path) -> None:
    line = (
        r"method.num_negatives=12 is more than the 11 other clips that a clip has among 12: set"
        r" method.num_negatives=11 or lower, or add clips"
    )
    with pytest.raises(ValueError, match=line):
        check_batch(tiny_config("pretrain", folder, "method=avid", "method.num_negatives=12"))
    with pytest.raises(ValueError, match=line):
        _build(num_negatives=12)
    assert _build(num_negatives=11).num_negatives == 11
    with pytest.raises(ValueError, match="compares clips with each other, got 1 clip: add clips"):
        _build(num_clips=1)


def test_the_memory_of_other_clips_is_refused_in_one_line() -> None:
    line = r"video_memory holds 20 clips x 8, this pretraining has 12 clips x 8: it was made for other clips or another"
    with pytest.raises(ValueError, match=line) as caught:
        _build().load_state_dict(_build(num_clips=20).state_dict())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"num_negatives": 0}, "method.num_negatives=0"),
        ({"temperature": 0.0}, "method.temperature=0.0"),
        ({"memory_momentum": 1.0}, "method.memory_momentum=1.0"),
        ({"head_dims": []}, "method.head_dims"),
        ({"pool": "mean"}, "method.pool=mean"),
    ],
)
def test_impossible_numbers_are_refused(changed: dict[str, object], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        settings_of({**OPTIONS, **changed})


def test_two_views_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="avid learns from one view of a clip, there is nothing to relax"):
        run_experiment(_run(folder, "relaxed", "method=avid", "relaxation=mild"))
