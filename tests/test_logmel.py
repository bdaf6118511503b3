"""A sound out of log-mel frames: the same each time, without holes where frames lie far apart, and on time to its end."""

import tracemalloc

import numpy as np
import pytest
import torch

from metabonk.sense.logmel import LogMel, LogMelConfig, to_audio

RATE = 8_000


def frames(sound: np.ndarray, config: LogMelConfig, step: float) -> torch.Tensor:
    """Log-mel frames of one channel, in steps of `step` samples on average."""
    edges = torch.arange(int(len(sound) / step) + 1).mul(step).round().long()
    return LogMel(config)(torch.from_numpy(sound)[None, : edges[-1]], edges.diff())[:, 0]


def tone(samples: int, pitch: float = 440) -> np.ndarray:
    """A sound of one pitch."""
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / RATE)).astype(np.float32)


def test_the_same_frames_give_the_same_sound() -> None:
    config = LogMelConfig(sample_rate=RATE, n_fft=256, bands=24)
    heard = frames(tone(5_000), config, 500)
    torch.manual_seed(0)
    np.random.seed(0)
    once = to_audio(heard, config, 500)
    np.random.seed(1)
    assert np.array_equal(once, to_audio(heard, config, 500))
    assert not np.array_equal(once, to_audio(heard, config, 500, seed=1))


@pytest.mark.parametrize("step", [1_097, 2_194, 549.3, 266.6])  # apart: more than a window, less, never a whole number
def test_frames_at_any_distance_give_a_sound_without_holes(step: float) -> None:
    """Bonk at four ticks in the tiny preset has frames 549 samples apart and a window of 512."""
    config = LogMelConfig(sample_rate=RATE, n_fft=512, bands=32, frames_per_step=2)
    sound = to_audio(frames(tone(round(20 * step)), config, step), config, step)
    assert abs(len(sound) - 20 * step) <= 1
    middle = sound[1_000:-512]
    assert np.abs(middle[: len(middle) // 100 * 100]).reshape(-1, 100).max(1).min() > 0.05
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(np.argmax(spectrum) * RATE / len(middle) - 440) < 20


def test_a_long_sound_stays_on_time() -> None:
    """Negative control: frames taken to lie a rounded number of samples apart end 200 samples early."""
    config, step = LogMelConfig(sample_rate=RATE, n_fft=256, bands=24, frames_per_step=4), 401.0
    sound = np.zeros(round(100 * step), np.float32)
    sound[-3_000:] = tone(3_000)
    heard = frames(sound, config, step)

    def begins(again: np.ndarray) -> int:
        return int(np.argmax(np.abs(again) > 0.15))

    right, early = begins(to_audio(heard, config, step)), begins(to_audio(heard, config, 400))
    assert abs(right - (len(sound) - 3_000)) < 80
    assert right - early > 60


def test_memory_does_not_grow_with_the_sound() -> None:
    """The search of mel bands for a spectrum holds 512 x 512 x 4 bytes a column: of these 600 at once, 600 megabytes."""
    config = LogMelConfig(sample_rate=RATE, n_fft=512, bands=24, frames_per_step=4)
    heard = torch.rand(150, 4, 24, generator=torch.Generator().manual_seed(0)) * 2 - 3
    tracemalloc.start()
    try:
        sound = to_audio(heard, config, 1_024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(sound) == 150 * 1_024 and np.abs(sound[1_024:-1_024]).max() > 0.01
    assert peak < 300e6


def test_silence_stays_silent() -> None:
    config = LogMelConfig(sample_rate=RATE, n_fft=256, bands=24)
    sound = to_audio(torch.full((3, 4, 24), -4.0), config, 266.7)
    assert sound.shape == (800,) and not sound.any()


def test_no_sound_falls_between_two_frames_that_cover_their_step() -> None:
    config = LogMelConfig(sample_rate=RATE, n_fft=256, bands=24, frames_per_step=2)
    click, step = np.zeros(3_000, np.float32), 1_000
    click[1_600] = 0.5  # after the second step's first frame, 400 samples before its second
    for used, heard in ((config, False), (config.covering(step), True)):
        quiet = frames(np.zeros_like(click), used, step)
        assert bool((frames(click, used, step)[1] - quiet[1]).abs().max() > 0.05) is heard
    assert config.covering(step).n_fft == 512 and config.covering(200) == config
