"""Measures of picture and sound find the errors they are made for, and agree with others' formulas."""

import numpy as np
import pytest
import torch
from mutants import mutant
from scipy.signal import stft
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from metabonk.core.errors import UsageError
from metabonk.measure import audiovisual as av

RATE, STEP = 16_000, 2_400


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def noise(generator) -> np.ndarray:
    """(2, samples) of the same noise in both ears."""
    return np.repeat(0.03 * generator.standard_normal((1, STEP + 64)), 2, 0)


def ears(noise: np.ndarray, delay: int, gain: float) -> np.ndarray:
    """Noise `delay` samples later and `gain` dB softer in the right ear."""
    sound = np.stack([noise[0, 32 : 32 + STEP], noise[1, 32 - delay : 32 - delay + STEP] * 10 ** (-gain / 20)])
    return np.round(sound * 32_768).astype(np.int16)


@pytest.mark.parametrize("delay", [-16, -9, -1, 0, 1, 9, 16])
def test_a_pure_delay_is_found(noise, delay):
    assert av.time_difference(ears(noise, delay, 0)) == delay
    assert av.time_difference(torch.from_numpy(ears(noise, delay, 6))) == delay


@pytest.mark.parametrize("gain", [-12.0, -0.5, 0.0, 3.0, 20.0])
def test_known_gains_are_found(noise, gain):
    one = ears(noise, 0, gain)
    own = 10 * np.log10((one[0].astype(float) ** 2).mean() / (one[1].astype(float) ** 2).mean())
    assert av.level_difference(one) == pytest.approx(own, abs=1e-3) == pytest.approx(gain, abs=0.01)
    assert np.isclose(av.ild_error(ears(noise, 0, 1), one), abs(gain - 1), atol=0.01)


def swapped_ears_are_seen(noise) -> bool:
    right = ears(noise, 7, 6)
    told = [av.ild_error(right[::-1].copy(), right), av.itd_error(right[::-1].copy(), right)]
    same = [av.ild_error(right, right), av.itd_error(right, right)]
    side = av.pan_score(np.stack([right, right[::-1], right]), [0.8, 0.8, -2.0]).tolist()
    return bool(np.allclose(told, [12, 14], atol=0.02) and np.allclose(same, 0) and side == [1, -1, -1])


def test_swapped_ears(noise, monkeypatch):
    assert swapped_ears_are_seen(noise)
    for name, old, new in (
        ("level_difference", "energy[..., 0] / energy[..., 1]", "np.maximum(*energy.T) / np.minimum(*energy.T)"),
        ("time_difference", "np.array(shifts)[np.argmax", "abs(np.array(shifts))[np.argmax"),
        ("pan_score", "-pan(sound)", "pan(sound)"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(av, name, mutant(getattr(av, name), old, new))
            assert not swapped_ears_are_seen(noise), name


def test_lsd_is_voicefixers(generator):
    """Its formula by hand, on SciPy's transform."""
    one, other = (0.1 * generator.standard_normal((3, 2, STEP)) for _ in range(2))

    def magnitude(sound):
        padded = np.pad(sound, [(0, 0), (0, 0), (371, 371)], "reflect")
        _, _, found = stft(padded, window="hann", nperseg=743, noverlap=743 - 160, boundary=None, padded=False)
        return np.abs(found) * np.hanning(744)[:-1].sum()  # SciPy divides by the window's sum

    E, T = magnitude(one), magnitude(other)
    ratio = np.log10(T**2 / (E + 1e-12) ** 2 + 1e-12)
    by_hand = np.sqrt((ratio**2).mean(-2)).mean((-2, -1))
    assert np.allclose(av.lsd(one, other, RATE, quiet=-200, floor=0), by_hand, rtol=1e-9)


def test_rounding_and_silence_are_no_error(noise, generator):
    ring = ears(noise, 0, 0)
    last_bit = (ring + generator.integers(-1, 2, ring.shape)).astype(np.int16)
    none = np.zeros_like(ring)
    assert av.lsd(last_bit, ring, RATE) < 0.05
    for measure in (av.lsd, av.spectral_ssim):
        assert np.isnan(measure(none, none, RATE)) and np.isfinite(measure(ring, none, RATE)), measure
    assert av.lsd(ring, none, RATE) > 2 and av.spectral_ssim(ring, none, RATE) < 0.2
    for measure in (av.ild_error, av.itd_error):
        assert np.isnan(measure(ring, none)) and measure(none, ears(noise, 5, 5)) == pytest.approx(5, abs=0.02)
    half = np.concatenate([ring[:, : STEP // 2], none[:, STEP // 2 :]], 1)
    tail = np.concatenate([ring[:, : STEP // 2] // 2, generator.integers(-1, 2, (2, STEP // 2))], 1).astype(np.int16)
    assert av.lsd(tail, half, RATE) == pytest.approx(np.log10(4), abs=0.15)  # the silent half does not count


def test_one_ear_alone_is_wrong(noise):
    """Each channel is measured, then the mean is taken: a mistake in one ear must not hide in the sum of both."""
    target = ears(noise, 0, 0).astype(np.float64) / 32_768
    wrong = target * [[2.0], [0.5]]
    assert av.lsd(wrong, target, RATE) == pytest.approx(np.log10(4), abs=1e-6)


def test_pictures_agree_with_scikit_image(generator):
    one, other = (generator.integers(0, 256, (2, 3, 24, 20, 3), dtype=np.uint8) for _ in range(2))
    found = av.compare_steps({"image": one[0]}, {"image": other[0]}, RATE)
    psnr = [peak_signal_noise_ratio(b, a) for a, b in zip(one[0], other[0], strict=True)]
    ssim = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(one[0], other[0], strict=True)]
    assert np.allclose(found["psnr"], psnr, atol=1e-4) and np.allclose(found["ssim"], ssim)
    assert av.ssim(one, other).shape == (2, 3) and list(found) == ["psnr", "ssim"]
    with pytest.raises(UsageError, match="do not match"):
        av.ssim(one, other[:1])


def test_spectral_ssim_needs_its_range(noise):
    """A soft sound is no better than the same error when loud."""
    a, b = ears(noise, 0, 0) / 32_768, ears(noise[:, ::-1].copy(), 0, 0) / 32_768
    loud, soft = av.spectral_ssim(a, b, RATE), av.spectral_ssim(a / 20, b / 20, RATE)
    assert loud == pytest.approx(soft, abs=1e-9) and loud < 0.9
    without = mutant(av.spectral_ssim, "data_range=span", "data_range=2.0")
    assert abs(without(a, b, RATE) - without(a / 20, b / 20, RATE)) > 0.1


@pytest.fixture
def film(generator):
    """(steps, ...) pictures, sounds and the dry ring: loud where the picture moves, and off now and then."""
    stir = generator.random(40)
    image = (np.cumsum(stir)[:, None, None, None] * 6 * np.ones((1, 8, 8, 3))).astype(np.uint8)
    dry = 0.2 * generator.standard_normal((40, 2, 200)) * (np.arange(40) % 6 < 4)[:, None, None]
    dry *= 0.05 + generator.random((40, 1, 1))
    return image, dry * (0.1 + stir[:, None, None]), dry


@pytest.mark.parametrize("late", [-2, 0, 1, 3])
def test_late_sound_shows_as_lag(film, late):
    image, sound, dry = film
    found = av.av_correlation(image, np.roll(sound, late, 0), dry)
    assert av.av_lag(found) == late and found[late] > 0.9
    backwards = mutant(av.av_correlation, "found[lag] =", "found[-lag] =")
    own_time = mutant(av.av_correlation, "dry[seen]", "dry[after]")  # the ring would have to be late, too
    for wrong in (backwards, own_time):
        told = wrong(image, np.roll(sound, late, 0), dry)
        assert late == 0 or av.av_lag(told) != late or told[late] < 0.9


@pytest.mark.parametrize("late", [-1, 0, 1, 2])
def test_late_sound_is_seen_beside_its_source(film, late):
    """Whatever the pictures are, and from both ears or one."""
    _, sound, dry = film
    assert av.sound_lag(np.roll(sound, late, 0), dry) == av.sound_lag(np.roll(sound[:, :1], late, 0), dry) == late
    assert np.isnan(av.sound_lag(np.zeros_like(sound), dry))
    with pytest.raises(UsageError, match="equally many, at least 6"):
        av.sound_lag(sound[:5], dry[:5])


def test_the_dry_ring_is_divided_out(film):
    image, sound, dry = film
    assert av.av_correlation(image, sound)[0] < 0.8 < 0.9 < av.av_correlation(image, sound, dry)[0]
    still = np.zeros_like(image)
    assert np.isnan(av.av_lag(av.av_correlation(still, sound, dry)))
    with pytest.raises(UsageError, match="equally many"):
        av.av_correlation(image, sound[:-1])


def test_a_step_late_is_seen_by_single_steps_too(generator):
    loud = 0.1 * generator.standard_normal((8, 2, STEP)) * 10 ** (generator.random((8, 2, 1)) - 1)
    late = np.roll(loud, 1, 0)
    right, wrong = (av.compare_steps({"audio": x}, {"audio": loud}, RATE).mean() for x in (loud, late))
    assert (right[["lsd", "ild_error", "itd_error"]] < 1e-6).all()
    assert wrong["lsd"] > 0.2 and wrong["ild_error"] > 1 and wrong["spectral_ssim"] < right["spectral_ssim"]


def test_swapped_sound_must_change_what_is_heard(noise):
    image = np.zeros((3, 4, 4, 3), np.uint8)
    audio = np.stack([ears(noise, 0, gain) for gain in (0, 6, 12)])
    listens = lambda image, audio: {"image": image, "audio": audio, "reward": audio[:, 1].std(-1)}  # noqa: E731
    deaf = lambda image, ignored: {"image": image, "audio": audio, "reward": np.ones(3)}  # noqa: E731
    changed, same = av.audio_swap(listens, image, audio), av.audio_swap(deaf, image, audio)
    assert (changed[["audio", "reward"]].to_numpy() > 0.03).all() and not changed["image"].any() and not same.to_numpy().any()
    swap = mutant(av.audio_swap, "predict(image, swapped)", "predict(image, audio)")
    assert not swap(listens, image, audio).to_numpy().any()
    with pytest.raises(UsageError, match="two sequences"):
        av.audio_swap(listens, image[:1], audio[:1])


def test_what_is_not_there_has_no_column(noise):
    one = ears(noise, 3, 3)[None]
    assert list(av.compare_steps({"reward": [1.0]}, {"reward": [0.5], "audio": one}, RATE)) == ["reward_error"]
    assert "ild_error" not in av.compare_steps({"audio": one[:, :1]}, {"audio": one[:, :1]}, RATE)
    both = av.compare_steps({"audio": one, "reward": [1.0]}, {"audio": one, "reward": [0.5]}, RATE, [1.0])
    assert both["reward_error"].tolist() == [0.25] and both["pan_score"].tolist() == [1] and set(both) < set(av.MEASURES)
    with pytest.raises(UsageError, match="two ears"):
        av.pan(one[:, :1])
    with pytest.raises(UsageError, match="too short"):
        av.lsd(one[..., :300], one[..., :300], RATE)
