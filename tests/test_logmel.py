"""Log-mel frames are those of librosa to the sample; a sound out of them is whole and on time, the same each time."""

import tracemalloc
from collections.abc import Callable

import librosa
import numpy as np
import pytest
import torch
from mutants import mutant

from metabonk.sense import logmel
from metabonk.sense.logmel import LogMel, LogMelConfig, LogMelStream, to_audio, to_int16, to_unit

RATE = 8_000


def frames(sound: np.ndarray, config: LogMelConfig, step: float) -> torch.Tensor:
    """Log-mel frames of one channel, in steps of `step` samples on average."""
    edges = torch.arange(int(len(sound) / step) + 1).mul(step).round().long()
    return LogMel(config)(torch.from_numpy(sound)[None, : edges[-1]], edges.diff())[:, 0]


def tone(samples: int, pitch: float = 440) -> np.ndarray:
    """A sound of one pitch."""
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(samples) / RATE)).astype(np.float32)


HEARD = LogMelConfig(sample_rate=RATE, n_fft=256, bands=24, frames_per_step=2, floor=1e-9)
STEP = 150  # samples of a step: shorter than a window, so that the past counts


def sound(channels: int = 2) -> np.ndarray:
    """A second of everything, int16: noise over a rising tone, and one click."""
    time, rng = np.arange(50 * STEP) / RATE, np.random.default_rng(0)
    rising = np.sin(2 * np.pi * (200 + 1_500 * time) * time)
    heard = 3_000 * rng.normal(size=(channels, len(time))) + 9_000 * rising
    heard[:, 4_321] = 30_000
    return np.round(heard).clip(-32_768, 32_767).astype(np.int16)


def theirs(heard: np.ndarray) -> np.ndarray:
    """Frames by librosa's own spectrogram, Slaney's filters, each with its last sample where half a step ends."""
    padded = np.pad(heard.astype(np.float64) / 32_768, ((0, 0), (HEARD.n_fft, 0)))
    power = librosa.feature.melspectrogram(
        y=padded, sr=RATE, n_fft=HEARD.n_fft, hop_length=STEP // 2, window="hann", center=False, power=2.0,
        n_mels=HEARD.bands, fmin=HEARD.f_min, fmax=HEARD.f_max, htk=False, norm="slaney",
    )  # fmt: skip
    columns = np.log10(np.maximum(power, HEARD.floor))[..., 1:]  # column 0 ends with the silence before the first sample
    return columns.reshape(len(heard), HEARD.bands, -1, 2).transpose(2, 0, 3, 1)  # (time, channels, frames, bands)


def whole(heard: np.ndarray) -> np.ndarray:
    """All steps at once."""
    lengths = torch.full((heard.shape[1] // STEP,), STEP)
    return LogMel(HEARD)(torch.from_numpy(heard), lengths).numpy()


def live(heard: np.ndarray) -> np.ndarray:
    """Step by step."""
    stream = LogMelStream(LogMel(HEARD), len(heard))
    return np.stack([stream(torch.from_numpy(part)).numpy() for part in np.split(heard, heard.shape[1] // STEP, 1)])


@pytest.mark.parametrize("read", [whole, live])
def test_frames_are_those_of_librosa(read: Callable[[np.ndarray], np.ndarray]) -> None:
    np.testing.assert_allclose(read(sound()), theirs(sound()), atol=2e-3)


@pytest.mark.parametrize(("name", "old", "new"), [
    ("LogMel.__init__", "fmax=config.f_max\n", "fmax=config.f_max, norm=None\n"),
    ("LogMel.__init__", "fmax=config.f_max\n", "fmax=config.f_max, htk=True\n"),
    ("LogMel.__init__", "torch.hann_window(config.n_fft)", "torch.hann_window(config.n_fft, periodic=False)"),
    ("LogMel.frames", "windows[..., some, :]", "windows[..., some - 1, :]"),
    ("LogMel.frames", "(size, 0))", "(size // 2, size // 2))"),
    ("LogMel.frames", "real.square().addcmul_(imaginary, imaginary)", "real.square().addcmul_(imaginary, imaginary).sqrt()"),
    ("LogMelStream.__call__", "torch.cat([self.past, audio], -1)", "torch.cat([self.past, audio[:, :-1]], -1)"),
    ("LogMelStream.__call__", "[:, -self.logmel.config.n_fft :]", "[:, -self.logmel.config.n_fft // 2 :]"),
    ("frame_ends", " + frames - 1) // frames", ") // frames - 1"),
    ("to_unit", "32_768 if", "32_767 if"),
], ids=["no Slaney norm", "HTK's scale", "symmetric window", "a sample early", "centred", "amplitude", "no newest sample",
        "half the past", "frames end early", "full scale 32,767"])  # fmt: skip
def test_deliberate_errors_in_frames_are_caught(monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str) -> None:
    "Negative controls; full scale is seen in whole numbers, for a hundred-thousandth drowns in rounding."
    *owners, name = name.split(".")
    owner = getattr(logmel, owners[0]) if owners else logmel
    monkeypatch.setattr(owner, name, mutant(getattr(owner, name), old, new))
    levels = torch.tensor([-32_768, -16_384, 1, 32_767], dtype=torch.int16)
    wanted = theirs(sound())
    off = max(np.abs(read(sound()) - wanted).max() for read in (whole, live))
    assert off > 0.01 or logmel.to_unit(levels).tolist() != [-1, -0.5, 2**-15, 1 - 2**-15]


def test_samples_and_numbers_are_the_same_sound() -> None:
    every = torch.arange(-32_768, 32_768, dtype=torch.int32).to(torch.int16)
    unit = to_unit(every)
    assert [float(unit.min()), float(unit.max())] == [-1, 1 - 2**-15] and to_unit(unit) is unit
    assert np.array_equal(to_int16(unit.numpy()), every.numpy()), "and back without loss"
    assert to_int16(np.array([1.0, 3.0, -1.0, -3.0, 0.4 / 32_768])).tolist() == [32_767, 32_767, -32_768, -32_768, 0]


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
