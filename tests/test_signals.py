"""Any lengths, any rates, any signals: what must hold whatever a machine emits, on examples that a search makes up"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mutants import mutant

from metabonk.core.actions import ActionSpec
from metabonk.play.game import OutOfSync, check_sync
from metabonk.play.machine import Shrink, area_weights
from metabonk.record.chunks import from_arrow, to_arrow
from metabonk.record.exchange import picture_times, read_wav, write_wav
from metabonk.record.experience import Batch, Schema, Step, Steps
from metabonk.sense.logmel import LogMel, LogMelConfig, LogMelStream, frame_ends, to_int16, to_unit

LOUDEST = np.array([-32_768, -32_767, -1, 0, 1, 32_766, 32_767], np.int16)
search = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
lengths = st.lists(st.integers(0, 700), min_size=1, max_size=8)
seeds = st.integers(0, 2**31)


def signal(channels: int, samples: int, seed: int) -> np.ndarray:
    """Noise with every extreme value in it, at random places."""
    rng = np.random.default_rng(seed)
    sound = rng.integers(-(2**15), 2**15, (channels, samples), np.int16)
    sound[rng.random(sound.shape) < 0.3] = rng.choice(LOUDEST)
    return sound


def rows_of(sound: np.ndarray, lengths: list[int]) -> tuple[Schema, Steps]:
    """An episode in which each step has its part of a sound."""
    actions = ActionSpec(categorical=(3,))
    schema = Schema(
        game="any", image_shape=(2, 3, 3), channels=len(sound), sample_rate=8_000, clock_rate=8_000.0, actions=actions
    )
    edges = np.cumsum([0, *lengths])
    image = np.zeros(schema.image_shape, np.uint8)
    rows = [
        Step(image + t, sound[:, a:b], np.array(0), 0.0, False, False, t == 0, int(b), int(b))
        for t, (a, b) in enumerate(zip(edges, edges[1:], strict=False))
    ]
    return schema, Steps.stack(schema, rows)


@search
@given(lengths, st.integers(1, 2), seeds)
@example([0], 1, 0)
@example([0, 0, 5], 2, 0)
def test_every_sample_goes_through_a_chunk_and_a_batch(lengths: list[int], channels: int, seed: int) -> None:
    sound = signal(channels, sum(lengths), seed)
    schema, steps = rows_of(sound, lengths)
    back = from_arrow(schema, to_arrow(schema, steps))
    assert back.audio.dtype == np.int16 and np.array_equal(back.audio, sound)
    assert back.audio_length.tolist() == lengths
    fields = {name: getattr(back, name)[None] for name in Batch.__dataclass_fields__ if hasattr(back, name)
              and isinstance(getattr(back, name), np.ndarray)}
    cut, kept = Batch(**fields).step_audio()
    joined = [cut[0, t, :, :length] for t, length in enumerate(kept[0])]
    assert np.array_equal(np.concatenate(joined, 1), sound)
    assert not any(cut[0, t, :, length:].any() for t, length in enumerate(kept[0]))


@search
@given(st.integers(0, 3_000), st.integers(1, 2), st.integers(1, 384_000), seeds)
def test_every_sample_goes_through_a_wav_file(tmp_path: Path, samples: int, channels: int, rate: int, seed: int) -> None:
    sound = signal(channels, samples, seed)
    back, told = read_wav(write_wav(tmp_path / "any.wav", sound, rate))
    assert told == rate and np.array_equal(back, sound)


@given(st.lists(st.integers(-32_768, 32_767), min_size=1, max_size=50))
@example(LOUDEST.tolist())
def test_samples_and_numbers_are_the_same(values: list[int]) -> None:
    samples = np.array(values, np.int16)
    unit = to_unit(torch.from_numpy(samples))
    assert float(unit.abs().max()) <= 1.0 and np.array_equal(to_int16(unit.numpy()), samples)


def frames_end_in_their_steps(ends: torch.Tensor, lengths: list[int]) -> None:
    """Frames are in order, begin after their step's start, and the last one ends with the step."""
    edges = np.cumsum([0, *lengths])
    for row, begin, end in zip(ends.tolist(), edges, edges[1:], strict=False):
        assert row == sorted(row) and row[-1] == end and row[0] >= begin
        assert end == begin or row[0] > begin
        steps = np.diff([begin, *row])
        assert steps.max() - steps.min() <= 1  # spread as evenly as whole samples go


@given(st.lists(st.integers(0, 5_000), min_size=1, max_size=20), st.integers(1, 16))
def test_frames_end_with_the_steps(lengths: list[int], frames: int) -> None:
    frames_end_in_their_steps(frame_ends(torch.tensor(lengths), frames), lengths)


def test_frames_a_sample_early_are_noticed() -> None:
    early = mutant(frame_ends, "+ frames - 1) // frames", "- 1) // frames")
    with pytest.raises(AssertionError):
        frames_end_in_their_steps(early(torch.tensor([100, 7]), 4), [100, 7])


@search
@given(lengths, st.integers(1, 2), st.integers(2_000, 96_000), st.integers(1, 5), seeds)
def test_live_ears_hear_what_a_recording_is_heard_as(
    lengths: list[int], channels: int, rate: int, frames: int, seed: int
) -> None:
    config = LogMelConfig(sample_rate=rate, n_fft=256, bands=8, frames_per_step=frames)
    logmel, sound = LogMel(config), torch.from_numpy(signal(channels, sum(lengths), seed))
    whole = logmel(sound, torch.tensor(lengths))  # (time, channels, frames, bands)
    assert bool(whole.isfinite().all()) and float(whole.min()) >= math.log10(config.floor) - 1e-5
    ears = LogMelStream(logmel, channels)
    live = torch.stack([ears(part) for part in sound.split(lengths, 1)])
    assert torch.allclose(live, whole, atol=1e-4)


@given(st.integers(1, 10**7), st.integers(1, 200_000), st.integers(0, 10**9))
def test_sound_may_be_a_sample_off_and_no_more(clock_rate: int, sample_rate: int, ticks: int) -> None:
    exact = ticks * sample_rate // clock_rate
    check_sync(ticks, exact, clock_rate, sample_rate)
    check_sync(ticks, exact + 1, clock_rate, sample_rate)
    for samples in (exact - 1 - (ticks * sample_rate % clock_rate == 0), exact + 2):
        with pytest.raises(OutOfSync):
            check_sync(ticks, samples, clock_rate, sample_rate)


@given(st.lists(st.floats(0, 1e-3), min_size=1, max_size=50), st.sampled_from([1.0, 100.0]))
def test_no_two_pictures_of_a_film_share_a_moment(steps: list[float], slower: float) -> None:
    stamps = picture_times(np.cumsum(steps) * slower)
    assert stamps[0] == 0 and (np.diff(stamps) >= 1).all()


@given(st.integers(1, 300), st.integers(1, 300))
def test_every_pixel_counts_as_much_as_every_other(source: int, target: int) -> None:
    weights = area_weights(source, target)
    assert weights.shape == (target, source) and (weights >= 0).all()
    assert len(set(weights.sum(0).tolist())) == len(set(weights.sum(1).tolist())) == 1
    assert weights.sum() == math.lcm(source, target)


@search
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 3, 4]), seeds)
def test_pictures_of_any_size(height: int, width: int, rows: int, columns: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shade = int(rng.integers(256))
    shrink = Shrink((height, width), (rows, columns))
    assert (shrink(np.full((height, width, channels), shade, np.uint8)) == shade).all()
    picture = rng.integers(0, 256, (height, width, channels), np.uint8)
    small = shrink(picture)
    plain = [picture[..., min(c, channels - 1)].astype(float) for c in range(3)]
    a, b = area_weights(height, rows).astype(float), area_weights(width, columns).astype(float)
    wanted = np.stack([a @ p @ b.T for p in plain], -1) / (a[0].sum() * b[0].sum())
    assert np.array_equal(small, np.floor(wanted + 0.5 + 1e-9).astype(np.uint8))
