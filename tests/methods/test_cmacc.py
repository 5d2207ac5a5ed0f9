"""CM-ACC against literal implementations: loss, choice of negatives, momentum encoders, state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hydra import compose, initialize_config_module
from torch import nn

from crisscross.config.base import parse
from crisscross.config.experiment import PretrainSettings
from crisscross.config.method import settings_of
from crisscross.methods.base import DatasetInfo, Views, build_method
from crisscross.methods.cmacc import CMACC, NO_CLIP, KeyQueue, contrast, gradient_embeddings, kmeans_seeds
from crisscross.run.run_dir import RunDirectory
from crisscross.run_experiment import run as run_experiment
from crisscross.utils.distributed import DistributedContext, data_parallel
from tests.methods.support import TINY, random_views
from tests.support import assert_same_state, final_state, history, tiny_config
from tests.training.driver import CONTEXT

OPTIONS = {
    "name": "cmacc",
    "hidden_dim": 8,
    "embedding_dim": 6,
    "temperature": 0.2,
    "encoder_momentum": 0.75,
    "pool_size": 10,
    "dictionary_size": 7,
}
OVERRIDES = ("method=cmacc", "method.hidden_dim=16", "method.embedding_dim=8", "method.pool_size=8")
OVERRIDES = (*OVERRIDES, "method.dictionary_size=6")
OTHER = {"video": "audio", "audio": "video"}


def _build() -> CMACC:
    return build_method(OPTIONS, TINY, DatasetInfo(num_clips=12, num_classes=3), seed=0)


def _views(step: int, clips: list[int]) -> Views:
    return random_views(clips, seed=step, draw_seed=100 + step)


def _unit(rows: int, *, seed: int, dim: int = 5) -> torch.Tensor:
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(drawn, dim=1)


def _contents(queue: KeyQueue) -> list[tuple[list[float], int]]:
    """Return the (key, clip) pairs of a queue, the newest first."""
    pairs = zip(queue.keys.tolist(), queue.clips.tolist(), strict=True)
    return [(key, clip) for key, clip in pairs if clip != NO_CLIP]


def _literal_loss(
    queries: list[list[float]], clips: list[int], keys: list[list[float]], others: list[tuple[list[float], int]]
) -> float:
    """Return InfoNCE, one query and key at a time; other keys of a query's own clip are skipped."""
    total = 0.0
    for place, (query, clip) in enumerate(zip(queries, clips, strict=True)):
        terms = {}
        for index, (key, of_clip) in enumerate([*zip(keys, clips, strict=True), *others]):
            if index == place or of_clip != clip:
                cosine = sum(a * b for a, b in zip(query, key, strict=True))
                terms[index] = math.exp(cosine / OPTIONS["temperature"])
        total -= math.log(terms[place] / sum(terms.values()))
    return total / len(queries)


def _literal_seeds(points: list[list[float]], num_seeds: int, generator: torch.Generator) -> list[int]:
    """Return k-means++ seeds by brute force: all distances for each seed, each race by comparison."""
    picked: list[int] = []
    for _ in range(num_seeds):
        waits = torch.empty(len(points), dtype=torch.float64).exponential_(generator=generator).tolist()
        best, best_rate = -1, -1.0
        for index, point in enumerate(points):
            distances = [sum((a - b) ** 2 for a, b in zip(point, points[other], strict=True)) for other in picked]
            rate = min(distances, default=1.0) / waits[index]
            if index not in picked and rate > best_rate:
                best, best_rate = index, rate
        picked.append(best)
    return picked


def _literal_choice(
    queries: torch.Tensor,
    keys: torch.Tensor,
    clips: list[int],
    pool: list[tuple[list[float], int]],
    generator: torch.Generator,
) -> list[int]:
    """Return the result of steps 1 to 3 with autograd's gradient."""
    pool_keys = torch.tensor([key for key, _ in pool], dtype=torch.float64, requires_grad=True)
    loss = torch.zeros((), dtype=torch.float64)
    for place, clip in enumerate(clips):
        scores = [queries[place].double() @ keys[place].double() / OPTIONS["temperature"]]
        candidates = [*zip(keys.double(), clips, strict=True), *zip(pool_keys, [of for _, of in pool], strict=True)]
        scores += [queries[place].double() @ key / OPTIONS["temperature"] for key, of in candidates if of != clip]
        loss = loss - torch.stack(scores).log_softmax(0)[0]
    (gradient,) = torch.autograd.grad(loss, pool_keys)
    return _literal_seeds(gradient.tolist(), min(len(clips), len(pool)), generator)


def _embeddings(method: CMACC, views: Views) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return queries and keys of a batch in eval mode, which does not change running statistics."""
    queries, keys = {}, {}
    for name, inputs in (("video", views.video[0]), ("audio", views.audio[0])):
        backbone, head = method.get_submodule(f"{name}_backbone"), method.get_submodule(f"{name}_head")
        with torch.no_grad():
            queries[name] = nn.functional.normalize(head(backbone(inputs)), dim=1)
            keys[name] = nn.functional.normalize(method.get_submodule(f"{name}_momentum")(inputs), dim=1)
    return queries, keys


def test_a_queue_is_first_in_first_out_and_has_no_empty_places_to_offer() -> None:
    queue, keys = KeyQueue(5, 2), torch.arange(14.0).reshape(7, 2)
    assert [len(part) for part in queue.held()] == [0, 0]
    queue.put(keys[:3], torch.tensor([7, 8, 9]))
    assert queue.held()[1].tolist() == [7, 8, 9]
    queue.put(keys[3:], torch.tensor([0, 1, 2, 3]))
    assert queue.held()[1].tolist() == [0, 1, 2, 3, 7]
    assert torch.equal(queue.held()[0], torch.cat([keys[3:], keys[:1]]))
    queue.put(keys, torch.arange(7))
    assert queue.held()[1].tolist() == [0, 1, 2, 3, 4]


def test_the_gradient_embedding_is_the_gradient() -> None:
    queries, batch, pool = _unit(4, seed=1), _unit(4, seed=2), _unit(6, seed=3).requires_grad_()
    clips, pool_clips = torch.tensor([0, 1, 2, 1]), torch.tensor([3, 1, 4, 0, 5, 6])
    scores = contrast(
        queries,
        torch.cat([batch, pool]),
        query_clips=clips,
        key_clips=torch.cat([clips, pool_clips]),
        positives=torch.arange(4),
        temperature=0.3,
    )
    nn.functional.cross_entropy(scores, torch.arange(4), reduction="sum").backward()
    closed_form = gradient_embeddings(scores.detach(), queries, temperature=0.3)[4:]
    torch.testing.assert_close(closed_form, pool.grad, rtol=1e-12, atol=1e-14)


def test_seeding_picks_what_brute_force_picks() -> None:
    for seed in range(20):
        points = 1e-9 * _unit(9, seed=seed, dim=3)  # as small as gradients among many keys are
        picked = kmeans_seeds(points, 5, torch.Generator().manual_seed(seed)).tolist()
        assert picked == _literal_seeds((1e9 * points).tolist(), 5, torch.Generator().manual_seed(seed))
        assert len({*picked}) == 5


def test_seeds_are_drawn_in_proportion_to_the_squared_distance() -> None:
    points, generator = torch.tensor([[0.0], [1.0], [3.0]]), torch.Generator().manual_seed(0)
    pairs = [tuple(kmeans_seeds(points, 2, generator).tolist()) for _ in range(4000)]
    expected = {(0, 1): 1 / 10, (0, 2): 9 / 10, (1, 0): 1 / 5, (1, 2): 4 / 5, (2, 0): 9 / 13, (2, 1): 4 / 13}
    for pair, probability in expected.items():
        assert pairs.count(pair) / 4000 == pytest.approx(probability / 3, abs=0.025)


def test_equal_points_are_picked_last_and_once() -> None:
    points = torch.tensor([[1.0], [1.0], [1.0], [2.0]])
    for seed in range(10):
        picked = kmeans_seeds(points, 4, torch.Generator().manual_seed(seed)).tolist()
        assert sorted(picked) == [0, 1, 2, 3]
        assert 3 in picked[:2]
    assert kmeans_seeds(points[:0], 0, torch.Generator()).tolist() == []


def test_loss_and_choice_equal_the_literal_rewriting() -> None:
    method = _build().eval()
    pools: dict[str, Any] = {name: [] for name in OTHER}
    dictionaries: dict[str, Any] = {name: [] for name in OTHER}
    # Clip 3 is twice in one batch; clips recur while their older keys are in pool and dictionary.
    for step, clips in enumerate(([0, 1, 2, 3], [4, 5, 3, 3], [0, 6, 7, 1], [2, 4, 8, 0], [3, 1, 9, 5])):
        views = _views(step, clips)
        queries, keys = _embeddings(method, views)
        loss, metrics = method(views)
        generator, literal = views.generator(), {}
        for name, other in OTHER.items():
            chosen = _literal_choice(queries[name], keys[other], clips, pools[other], generator) if step else []
            dictionaries[other] = [*(pools[other][place] for place in chosen), *dictionaries[other]][:7]
            literal[f"loss/{name}_to_{other}"] = _literal_loss(
                queries[name].tolist(), clips, keys[other].tolist(), dictionaries[other]
            )
        for name in OTHER:
            pools[name] = [*zip(keys[name].tolist(), clips, strict=True), *pools[name]][:10]
            assert _contents(method.get_submodule(f"pool_{name}")) == pools[name]
            assert _contents(method.get_submodule(f"dictionary_{name}")) == dictionaries[name]
        assert len(dictionaries["audio"]) == min(4 * step, 7)
        for name, value in literal.items():
            assert metrics[name].item() == pytest.approx(value, abs=1e-5)
        assert loss.item() == pytest.approx(sum(literal.values()), abs=1e-5)
    assert dictionaries["audio"] != dictionaries["video"]


def test_momentum_encoders_follow_normalization_buffers_included() -> None:
    method = _build().train()
    pairs = []
    for name in OTHER:
        for part in ("backbone", "head"):
            online = method.get_submodule(f"{name}_{part}")
            pairs.append((online, method.get_submodule(f"{name}_momentum.{['backbone', 'head'].index(part)}")))
    assert all(
        torch.equal(value, follower.state_dict()[key])
        for online, follower in pairs
        for key, value in online.state_dict().items()
    )
    before = [{key: value.clone() for key, value in follower.state_dict().items()} for _, follower in pairs]
    method(_views(0, [0, 1, 2, 3]))[0].backward()
    for (_, follower), state in zip(pairs, before, strict=True):
        assert_same_state(dict(follower.state_dict()), state)  # a forward pass changes no running statistics
    with torch.no_grad():
        for parameter in method.parameter_groups()["base"]:
            parameter += 0.1
    method.after_step()
    kinds = {"running_mean": 0, "running_var": 0, "num_batches_tracked": 0, "weight": 0}
    for (online, follower), state in zip(pairs, before, strict=True):
        for key, value in online.state_dict().items():
            now = follower.state_dict()[key]
            if key.endswith("num_batches_tracked"):
                assert now.item() == value.item() == 1
            else:
                torch.testing.assert_close(now, 0.75 * state[key] + 0.25 * value)
                assert not torch.equal(now, state[key])
            for kind in kinds:
                kinds[kind] += key.endswith(kind)
    assert all(kinds.values())


def test_momentum_encoders_learn_nothing_and_normalize_by_the_batch() -> None:
    method = _build().train()
    trained = {id(parameter) for parameter in method.parameter_groups()["base"]}
    inside = [parameter for name in OTHER for parameter in method.get_submodule(f"{name}_momentum").parameters()]
    assert not trained & {id(parameter) for parameter in inside}
    assert len(trained) == len(inside) == len(list(method.parameters())) - len(inside)
    views = _views(0, [0, 1, 2, 3])
    method(views)[0].backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in inside)
    assert all(parameter.grad is not None for parameter in method.parameter_groups()["base"])
    queries, keys = _embeddings(method, views)  # in training mode; both have the same weights at the start
    for name in OTHER:
        assert torch.equal(queries[name], keys[name])
        assert torch.equal(method.get_submodule(f"pool_{name}").held()[0], keys[name])
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(method)  # as on several GPUs
    assert synchronized.state_dict().keys() == _build().state_dict().keys()
    norms = [part for part in synchronized.video_momentum.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert norms
    assert not any(part.track_running_stats for part in norms)


def test_the_loss_is_in_single_precision_under_autocast() -> None:
    method = _build()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method(_views(0, [0, 1, 2, 3]))
    assert loss.dtype == torch.float32
    assert method.pool_video.keys.dtype == torch.float32


def _rank(rank: int, folder: str) -> None:
    """Run one of two processes on its half of each batch, in eval mode (no batch statistics)."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    method = _build().eval()
    world = DistributedContext(rank=rank, size=2, device=torch.device("cpu"))
    network = data_parallel(method, world, uses_all_parameters=True, replicated_buffers=method.replicated_buffers)
    losses = _three_steps(method, network, [[4 * step + 2 * rank, 4 * step + 2 * rank + 1] for step in range(3)], rank)
    torch.save({"losses": losses, **method.state_dict()}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def _three_steps(method: CMACC, network: nn.Module, batches: list[list[int]], rank: int | None) -> list[float]:
    optimizer, losses = torch.optim.SGD(method.parameter_groups()["base"], lr=0.01), []
    for step, clips in enumerate(batches):
        whole = _views(step, [4 * step + place for place in range(4)])
        share = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
        views = Views(
            video=whole.video[:, share],
            audio=whole.audio[:, share],
            clip_ids=torch.tensor(clips),
            labels=whole.labels[share],
            epoch=0,
            seed=whole.seed,
        )
        optimizer.zero_grad()
        loss, _ = network(views)
        loss.backward()
        optimizer.step()
        method.after_step()
        losses.append(loss.item())
    return losses


def test_two_processes_choose_and_learn_what_one_does(tmp_path: Path) -> None:
    processes = [CONTEXT.Process(target=_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    method = _build().eval()
    alone = _three_steps(method, method, [[4 * step + place for place in range(4)] for step in range(3)], None)
    together = [sum(pair) / 2 for pair in zip(first.pop("losses"), second.pop("losses"), strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert_same_state(first, second)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5)
    assert method.dictionary_audio.clips[-1] != NO_CLIP


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cmacc")


def test_stopped_anywhere_it_ends_bit_for_bit_the_same(folder: Path) -> None:
    def make(runs: str, *overrides: str) -> RunDirectory:
        config = tiny_config("pretrain", folder, *OVERRIDES, *overrides)
        return RunDirectory.create("pretrain", {**config, "runs_root": str(folder / runs)})

    whole, pieces = make("whole"), make("pieces", "execution.max_steps_this_launch=4")
    assert run_experiment(whole)
    assert [run_experiment(pieces) for _ in range(3)] == [False, False, True]
    assert history(pieces) == history(whole)
    assert_same_state(final_state(pieces), final_state(whole))
    state = final_state(whole)["method"]
    assert {clip for name in OTHER for clip in state[f"pool_{name}.clips"].tolist()} <= {*range(12)}
    assert {clip for name in OTHER for clip in state[f"dictionary_{name}.clips"].tolist()} <= {*range(12)}
    assert {"loss/video_to_audio", "loss/audio_to_video", "collapse/video_std"} <= history(whole)[0][1].keys()


def test_what_cannot_work_is_said_in_one_line(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"method.dictionary_size=12 .* 12 clips: set it to at most 11") as caught:
        settings_of({**OPTIONS, "dictionary_size": 12}).check_clips(num_clips=12, num_classes=3)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"method.pool_size=4: expected more than the 4 samples of a pass.*raise it"):
        parse(PretrainSettings, tiny_config("pretrain", folder, *OVERRIDES, "method.pool_size=4"))
    with pytest.raises(ValueError, match=r"relaxation=mild: cmacc learns from one view"):
        parse(PretrainSettings, tiny_config("pretrain", folder, *OVERRIDES, "relaxation=mild"))
    for wrong in ({"temperature": 0}, {"encoder_momentum": 1}, {"pool_size": 0}, {"embedding_dim": 0}):
        with pytest.raises(ValueError, match=rf"method.{next(iter(wrong))}"):
            settings_of({**OPTIONS, **wrong})


def test_every_scale_brings_its_numbers() -> None:
    with initialize_config_module("experiments.conf", version_base="1.3"):
        demo = compose("pretrain", overrides=["method=cmacc"])
        paper = compose("pretrain", overrides=["method=cmacc", "scale=paper"])
        authors = compose("pretrain", overrides=["method=cmacc_authors", "scale=paper"])
    assert [config.method.pool_size for config in (demo, paper, authors)] == [160, 38400, 38400]
    assert paper.method == authors.method
    assert [config.optim.name for config in (demo, paper, authors)] == ["adam", "sgd", "sgd"]
    assert [config.training.global_batch_size for config in (demo, paper, authors)] == [16, 2048, 128]
    assert authors.model.video.torchvision == "r3d_18"
