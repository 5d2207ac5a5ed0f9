"""Views start inside the streams, at the right distance, with the right distribution."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from crisscross.data.relaxation import RELAXATIONS, Extent, ViewStarts, draw_view_starts, even_starts
from crisscross.utils.rng import generator

VIDEO_SECONDS, AUDIO_SECONDS = 0.5, 2.0
TEN_SECONDS = Extent(0.0, 10.0, 0.0, 10.0)
EPS = 2e-6
FALLBACKS = {
    "none": {"", "pad"},
    "mild": {"", "none", "pad"},
    "medium": {"", "mild", "none", "pad"},
    "mixed": {"", "pad"},
    "extreme": {"", "medium", "mild", "none", "pad"},
    "video_extreme": {"", "none", "pad"},
    "audio_extreme": {"", "none", "pad"},
}


def draw(name: str, extent: Extent, seed: int, *, video=VIDEO_SECONDS, audio=AUDIO_SECONDS) -> ViewStarts:
    rng = generator(seed, "test")
    return draw_view_starts(name, extent, video_seconds=video, audio_seconds=audio, rng=rng)


def draws(name: str, extent: Extent, num: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    starts = [draw(name, extent, seed) for seed in range(num)]
    assert {one.fallback for one in starts} == {""}
    return np.array([one.video_s for one in starts]), np.array([one.audio_s for one in starts])


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.001


def random_extent(rng: np.random.Generator) -> Extent:
    video_start, audio_start = rng.uniform(-1, 3, 2) * rng.integers(0, 2, 2)
    video_long, audio_long = rng.choice([0.1, 0.7, 1.5, 2.0, 3.0, 4.0, 5.0, 9.9, 10.0, 30.0], 2)
    return Extent(video_start, video_start + video_long, audio_start, audio_start + audio_long)


def one_view_fits(extent: Extent) -> bool:
    """Return whether some audio window holds a video window, independently of the code under test."""
    last_audio, last_video = extent.audio_end_s - AUDIO_SECONDS, extent.video_end_s - VIDEO_SECONDS
    if last_audio < extent.audio_start_s - 1e-9 or last_video < extent.video_start_s - 1e-9:
        return False
    slack = AUDIO_SECONDS - VIDEO_SECONDS
    return extent.audio_start_s <= last_video + 1e-9 and extent.video_start_s <= last_audio + slack + 1e-9


@pytest.mark.parametrize("name", RELAXATIONS)
def test_inside_the_streams_whenever_a_view_fits(name):
    rng = np.random.default_rng(0)
    seen = set()
    for seed in range(3000):
        extent = random_extent(rng)
        starts = draw(name, extent, seed)
        seen.add(starts.fallback)
        assert (starts.fallback == "pad") == (not one_view_fits(extent)), extent
        for video_s, audio_s in zip(starts.video_s, starts.audio_s, strict=True):
            assert video_s >= extent.video_start_s - EPS
            assert audio_s >= extent.audio_start_s - EPS
            if extent.video_end_s - extent.video_start_s >= VIDEO_SECONDS:
                assert video_s + VIDEO_SECONDS <= extent.video_end_s + EPS
            else:
                assert video_s == extent.video_start_s
            if extent.audio_end_s - extent.audio_start_s >= AUDIO_SECONDS:
                assert audio_s + AUDIO_SECONDS <= extent.audio_end_s + EPS
            else:
                assert audio_s == extent.audio_start_s
    assert seen == FALLBACKS[name]


@pytest.mark.parametrize("name", ["none", "mild", "medium", "mixed", "extreme"])
@pytest.mark.parametrize("lengths", [(0.5, 2.0), (2.0, 2.0), (3.0, 1.0)])
def test_the_shorter_segment_lies_inside_the_longer_in_each_view(name, lengths):
    rng = np.random.default_rng(1)
    video, audio = lengths
    low, high = min(0.0, audio - video), max(0.0, audio - video)
    for seed in range(1000):
        starts = draw(name, random_extent(rng), seed, video=video, audio=audio)
        if starts.fallback == "pad":
            continue
        for video_s, audio_s in zip(starts.video_s, starts.audio_s, strict=True):
            assert low - EPS <= video_s - audio_s <= high + EPS


@pytest.mark.parametrize(("name", "shift"), [("none", 0.0), ("mild", 0.5), ("medium", 1.0)])
def test_exact_distance_between_views(name, shift):
    video, audio = draws(name, TEN_SECONDS, 500)
    np.testing.assert_allclose(video[:, 1] - video[:, 0], shift * VIDEO_SECONDS, atol=1e-12)
    np.testing.assert_allclose(audio[:, 1] - audio[:, 0], shift * AUDIO_SECONDS, atol=1e-12)


def test_extreme_is_half_a_clip_apart_at_the_same_offset():
    video, audio = draws("extreme", Extent(1.0, 9.0, 0.0, 10.0))
    np.testing.assert_allclose(video[:, 1] - video[:, 0], 4.0, atol=1e-12)
    np.testing.assert_allclose(audio[:, 1] - audio[:, 0], 4.0, atol=1e-12)
    assert_uniform(audio[:, 0], 1.0, 3.0)
    assert_uniform(video[:, 0] - audio[:, 0], 0.0, 1.5)
    assert (audio[:, 0] + AUDIO_SECONDS <= 5.0).all()


def test_one_view_is_uniform_and_the_offset_is_independent_of_it():
    video, audio = draws("none", TEN_SECONDS)
    assert_uniform(audio[:, 0], 0.0, 8.0)
    assert_uniform(video[:, 0] - audio[:, 0], 0.0, 1.5)
    assert stats.spearmanr(audio[:, 0], video[:, 0] - audio[:, 0]).pvalue > 0.001


def test_spans_are_uniform():
    video, audio = draws("mild", TEN_SECONDS)
    assert_uniform(audio[:, 0], 0.0, 7.0)
    assert_uniform(video[:, 0] - audio[:, 0], 0.75, 1.5)
    video, audio = draws("medium", TEN_SECONDS)
    assert_uniform(audio[:, 0], 0.0, 6.0)
    np.testing.assert_allclose(video[:, 0] - audio[:, 0], 1.5, atol=1e-12)


def test_mixed_views_are_independent_draws_of_one_view():
    video, audio = draws("mixed", TEN_SECONDS)
    for view in range(2):
        assert_uniform(audio[:, view], 0.0, 8.0)
        assert_uniform(video[:, view] - audio[:, view], 0.0, 1.5)
    assert stats.spearmanr(audio[:, 0], audio[:, 1]).pvalue > 0.001


def test_variants_move_one_modality_only():
    video, audio = draws("video_extreme", TEN_SECONDS)
    np.testing.assert_allclose(video[:, 1] - video[:, 0], 5.0, atol=1e-12)
    assert (audio[:, 0] == audio[:, 1]).all()
    offset = video - audio
    assert (((offset > -EPS) & (offset < 1.5 + EPS)).sum(axis=1) >= 1).all()
    assert 0.4 < (audio[:, 0] > 4.0).mean() < 0.6  # audio of the second half is drawn as often

    video, audio = draws("audio_extreme", TEN_SECONDS)
    np.testing.assert_allclose(audio[:, 1] - audio[:, 0], 5.0, atol=1e-12)
    assert (video[:, 0] == video[:, 1]).all()
    offset = video - audio
    assert (((offset > -EPS) & (offset < 1.5 + EPS)).sum(axis=1) == 1).all()
    assert 0.4 < (video[:, 0] > 5.0).mean() < 0.6


def test_streams_with_their_own_starts_and_ends():
    short_audio = Extent(0.0, 10.0, 0.0, 4.0)
    video, audio = draws("mixed", short_audio)
    assert_uniform(audio[:, 0], 0.0, 2.0)
    assert video.max() + VIDEO_SECONDS <= 4.0
    video, audio = draws("mixed", Extent(2.0, 10.0, 0.0, 10.0))
    assert_uniform(audio[:, 0], 2.0, 8.0)
    assert_uniform(video[:, 0] - audio[:, 0], 0.0, 1.5)


def test_shared_time_too_short_for_the_audio_still_gives_synchronous_views():
    video, audio = draws("none", Extent(3.0, 4.0, 0.0, 10.0), 300)
    assert video.min() >= 3.0
    assert video.max() <= 3.5
    assert ((video - audio >= -EPS) & (video - audio <= 1.5 + EPS)).all()


@pytest.mark.parametrize(
    ("name", "seconds", "fallback"),
    [
        ("extreme", 4.0, ""),
        ("extreme", 3.9, "mild"),
        ("extreme", 2.9, "none"),
        ("medium", 4.0, ""),
        ("medium", 3.9, "mild"),
        ("medium", 2.9, "none"),
        ("mild", 3.0, ""),
        ("mild", 2.9, "none"),
        ("mixed", 2.0, ""),
        ("mixed", 1.9, "pad"),
        ("video_extreme", 2.0, ""),
        ("video_extreme", 1.9, "pad"),
        ("audio_extreme", 4.0, ""),
        ("audio_extreme", 3.9, "none"),
        ("none", 1.2, "pad"),
    ],
)
def test_short_clips_get_the_widest_relaxation_that_fits(name, seconds, fallback):
    for seed in range(20):
        assert draw(name, Extent(5.0, 5.0 + seconds, 5.0, 5.0 + seconds), seed).fallback == fallback


def test_padded_views():
    starts = draw("extreme", Extent(1.0, 1.3, 0.5, 1.1), 0)
    assert starts == ViewStarts((1.0, 1.0), (0.5, 0.5), fallback="pad")
    starts = [draw("mixed", Extent(0.0, 1.2, 0.0, 1.2), seed) for seed in range(50)]  # short UCF101 clips
    video = np.array([one.video_s for one in starts])
    assert (video[:, 0] != video[:, 1]).all()
    assert video.min() >= 0
    assert video.max() <= 0.7
    for seed in range(50):  # the audio lies around a video too short for one segment
        starts = draw("mild", Extent(6.0, 6.3, 0.0, 10.0), seed)
        assert starts.video_s == (6.0, 6.0)
        assert 4.5 <= starts.audio_s[0] <= 6.0
    assert draw("none", Extent(5.0, 9.0, 0.0, 3.0), 0).fallback == "pad"  # streams that never meet
    assert draw("none", Extent(5.0, 5.0, 0.0, 0.0), 0) == ViewStarts((5.0, 5.0), (0.0, 0.0), "pad")


@pytest.mark.parametrize("name", RELAXATIONS)
def test_same_key_same_starts(name):
    assert draw(name, TEN_SECONDS, 3) == draw(name, TEN_SECONDS, 3)
    assert draw(name, TEN_SECONDS, 3) != draw(name, TEN_SECONDS, 4)


def test_errors_name_value_and_remedy():
    with pytest.raises(ValueError, match="unknown relaxation 'wild'; choose one of none, mild, medium"):
        draw("wild", TEN_SECONDS, 0)
    with pytest.raises(ValueError, match=r"video_seconds=0.0; .* above 0"):
        draw("none", TEN_SECONDS, 0, video=0.0)
    with pytest.raises(ValueError, match="leave out clips that lack one"):
        draw("none", Extent(0.0, 10.0, float("nan"), float("nan")), 0)
    with pytest.raises(ValueError, match="at least 1"):
        even_starts(0.0, 10.0, seconds=2.0, num=0)
    with pytest.raises(ValueError, match="above 0"):
        even_starts(0.0, 10.0, seconds=0.0, num=1)
    with pytest.raises(ValueError, match="leave out clips"):
        even_starts(0.0, float("nan"), seconds=1.0, num=1)


def test_even_starts():
    np.testing.assert_allclose(even_starts(1.0, 11.0, seconds=2.0, num=5), [1.0, 3.0, 5.0, 7.0, 9.0])
    assert even_starts(0.0, 5.0, seconds=2.0, num=1) == [1.5]
    assert even_starts(0.0, 5.0, seconds=5.0, num=1) == [0.0]
    assert even_starts(3.0, 4.0, seconds=2.0, num=3) == [3.0, 3.0, 3.0]
