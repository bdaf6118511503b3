"""What two ears hear in a room: images as pyroomacoustics has them, a head like a measured one, sound without seams."""

import json
import math
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyroomacoustics
import pytest
import scipy.signal
from mutants import mutant
from scipy.spatial import cKDTree

from metabonk.core.errors import UsageError
from metabonk.play.binaural import (
    FADE,
    HEAD_RADIUS,
    RATE,
    SPEED_OF_SOUND,
    STEP,
    Acoustics,
    AcousticsConfig,
    Arrival,
    Listener,
    Room,
    doorway_loss,
    image_sources,
    late_tail,
    telephone_ring,
    to_int16,
)

WALLS = ("west", "east", "south", "north", "floor", "ceiling")
ROOM = Room(x0=-1, y0=2, x1=4, y1=6, height=2.7, absorption=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
SOURCE, POSE = Arrival(1.2, 3.1, 0.8), (3.0, 5.0, 1.0)
FIELD = Room(x0=-9, y0=-9, x1=9, y1=9, height=3, absorption=(1.0,) * 6)  # walls that reflect nothing
DRY = AcousticsConfig(order=0, tail=False, taps=1_600)


def theirs(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (n, 3) and amplitudes (n) of pyroomacoustics' images; it computes them in float32."""
    walls = zip(WALLS, ROOM.absorption, strict=True)
    materials = {wall: pyroomacoustics.Material(alpha) for wall, alpha in walls}
    room = pyroomacoustics.ShoeBox(ROOM.size, fs=RATE, materials=materials, max_order=order, air_absorption=False)
    corner = (ROOM.x0, ROOM.y0, 0)
    room.add_source(np.subtract(SOURCE[:3], corner))
    room.add_microphone(np.subtract((*POSE[:2], 1.5), corner))
    room.image_source_model()
    return room.sources[0].images.T + corner, room.sources[0].damping[0]


def ring_around(angle: float, distance: float = 1.4) -> Arrival:
    """A source on the level of the ears, `angle` degrees to the left of +x."""
    return Arrival(distance * math.cos(math.radians(angle)), distance * math.sin(math.radians(angle)), 1.5)


def energy(response: np.ndarray) -> float:
    """dB above 400 Hz, as low notes of image sources add up in step, which those of rooms do not."""
    high = scipy.signal.butter(4, 400, "high", fs=RATE, output="sos")
    return float(10 * np.log10((scipy.signal.sosfilt(high, response) ** 2).sum()))


# ---- images


@pytest.mark.parametrize("order", [0, 1, 3, 6])
def test_images_are_those_of_pyroomacoustics(order):
    """The same positions and amplitudes, one for one."""
    positions, gains = image_sources(ROOM, SOURCE[:3], order)
    images, damping = theirs(order)
    away, which = cKDTree(images).query(positions)
    assert len(positions) == len(images) == len(set(which))
    assert away.max() < 1e-6
    assert np.abs(damping[which] - gains).max() < 1e-6


def test_response_is_the_sum_of_pyroomacoustics_images_through_the_head():
    """The spectrum from their images and the published formulas; arrival times and energies are all in it."""
    images, damping = theirs(3)
    from_head = images - (*POSE[:2], 1.5)
    distance = np.linalg.norm(from_head, axis=1)
    frequencies = np.fft.rfftfreq(3_200, 1 / RATE)
    below = frequencies <= 6_000
    warped = 2j * RATE * np.tan(math.pi * frequencies[below] / RATE)  # the bilinear transform of j w
    response = Acoustics(ROOM, AcousticsConfig(order=3, tail=False, taps=3_200)).response(POSE, SOURCE)
    for ear, side in ((0, math.pi / 2), (1, -math.pi / 2)):
        axis = (math.cos(POSE[2] + side), math.sin(POSE[2] + side), 0)
        incidence = np.arccos(from_head @ axis / distance)
        later = np.where(incidence < math.pi / 2, -np.cos(incidence), incidence - math.pi / 2) * HEAD_RADIUS
        alpha = 1.05 + 0.95 * np.cos(incidence * 180 / 150)
        pole = warped[:, None] * HEAD_RADIUS / (2 * SPEED_OF_SOUND)
        shadow = (1 + alpha * pole) / (1 + pole)  # (frequencies, images)
        turns = np.exp(-2j * math.pi * frequencies[below, None] * (distance + later) / SPEED_OF_SOUND)
        expected = (damping / distance * shadow * turns).sum(1)
        error = np.abs(np.fft.rfft(response[ear])[below] - expected)
        assert error.max() < 0.002 * np.abs(expected).max()


# ---- the head


def differences(ears: np.ndarray, rate: float) -> tuple[float, float]:
    """ILD in dB (300 Hz to 7 kHz) and ITD in us (below 1.5 kHz): positive if the left is louder or earlier."""
    band = scipy.signal.butter(4, [300, 7_000], "band", fs=rate, output="sos")
    heard = scipy.signal.sosfilt(band, ears)
    low = scipy.signal.sosfilt(scipy.signal.butter(4, 1_500, fs=rate, output="sos"), ears)
    left, right = scipy.signal.resample_poly(low, 16, 1, axis=1)
    lag = np.argmax(scipy.signal.correlate(right, left)) - (len(left) - 1)
    return float(10 * np.log10((heard[0] ** 2).sum() / (heard[1] ** 2).sum())), float(lag / 16 / rate * 1e6)


@pytest.fixture(scope="module")
def kemar() -> Callable[[int], tuple[float, float]]:
    """ILD and ITD of the measured head, by degrees to the left."""
    patch = pytest.MonkeyPatch()
    try:
        import sounddevice  # noqa: F401
    except (OSError, ImportError):  # it needs a system library to play sound, and nothing is played here
        patch.setitem(sys.modules, "sounddevice", types.ModuleType("sounddevice"))
    import slab

    patch.undo()
    head = slab.HRTF.kemar()
    azimuth, elevation = head.sources.vertical_polar[:, :2].T

    def measured(angle: int) -> tuple[float, float]:
        which = np.argmin(np.abs((azimuth - angle + 180) % 360 - 180) + 10 * np.abs(elevation))
        return differences(head[which].data.T, head[which].samplerate)

    return measured


def check_head(response: Callable[..., np.ndarray], kemar: Callable[[int], tuple[float, float]]) -> None:
    """Sign and size of both differences are a measured head's: within 3 dB and 100 us, of up to 13 dB and 700 us."""
    for angle in (30, 60, 90, -30, -60, -90):
        level, time = differences(response((0.0, 0.0, 0.0), ring_around(angle)), RATE)
        true_level, true_time = kemar(angle)
        assert level * angle > 0 and time * angle > 0 and true_level * angle > 0 and true_time * angle > 0
        assert abs(level - true_level) < 3 and abs(time - true_time) < 100, (angle, level, true_level, time, true_time)


def test_sphere_is_like_a_measured_head(kemar):
    """At 30, 60 and 90 degrees on both sides; ears that are swapped are noticed."""
    check_head(Acoustics(FIELD, DRY).response, kemar)
    swapped = mutant(Acoustics, "return response", "return response[::-1].copy()")
    with pytest.raises(AssertionError):
        check_head(swapped(FIELD, DRY).response, kemar)


def test_the_page_tells_kemars_numbers(kemar, root):
    """The table in the notebook is what is measured here."""
    page = json.loads((root / "nbs/play/13_binaural.ipynb").read_text())
    (cell,) = [source for c in page["cells"] if (source := "".join(c["source"])).startswith("KEMAR = {")]
    told: dict[str, Any] = {}
    exec(cell, told)
    assert set(told["KEMAR"]) == set(range(0, 181, 15))
    for angle, (level, time) in told["KEMAR"].items():
        assert np.allclose(kemar(angle), (level, time), atol=(0.06, 1))


@pytest.mark.parametrize("seed", range(8))
def test_a_mirrored_pose_swaps_the_ears(seed):
    """North and south exchanged, the left ear hears what the right one heard."""
    rng = np.random.default_rng(seed)
    west, east, south, north, floor, ceiling = rng.uniform(0.1, 0.9, 6)
    (x, y), (source_x, source_y), heading = *rng.uniform(0.2, 3.8, (2, 2)), rng.uniform(-4, 4)
    config = AcousticsConfig(tail=False, order=4)
    room = Room(x1=4, y1=4, absorption=(west, east, south, north, floor, ceiling))
    mirrored = Room(x1=4, y0=-4, y1=0, absorption=(west, east, north, south, floor, ceiling))
    one = Acoustics(room, config).response((x, y, heading), Arrival(source_x, source_y, 1.0, 2.0, 3.0))
    other = Acoustics(mirrored, config).response((x, -y, -heading), Arrival(source_x, -source_y, 1.0, 2.0, 3.0))
    assert np.allclose(one[::-1], other, rtol=0, atol=1e-10 * np.abs(one).max())
    assert not np.allclose(one, other, atol=0.1 * np.abs(one).max())


@pytest.mark.parametrize("room", [FIELD, Room(x0=-3, y0=-3, x1=3, y1=3)])
def test_closer_is_louder(room):
    """On a straight line away from the source, in the open and in a room."""
    acoustics = Acoustics(room)
    levels = [energy(acoustics.response((0.0, 0.0, 0.3), ring_around(200, d))) for d in (0.4, 0.6, 0.9, 1.4, 2.0, 2.8)]
    assert (np.diff(levels) < 0).all()


# ---- doorway


def test_doorway_loss_is_the_published_curve():
    """Maekawa's barrier: 5 dB at the edge of the shadow, 13 dB at N = 1, at most 24; nothing in the line of sight."""
    wavelength = SPEED_OF_SOUND / 1_000
    assert doorway_loss(0.0) == 0
    assert doorway_loss(1e-6) == pytest.approx(5, abs=0.01)
    assert doorway_loss(wavelength / 2) == pytest.approx(13.1, abs=0.05)  # N = 1
    assert doorway_loss(wavelength / 2, 4_000.0) == pytest.approx(doorway_loss(2 * wavelength), rel=1e-9)
    assert doorway_loss(9.0) == 24
    losses = [doorway_loss(d) for d in np.linspace(0, 3, 50)]
    assert (np.diff(losses) >= 0).all()


def test_sound_from_an_opening_is_late_and_weak_by_its_whole_path():
    """100 samples of path before the opening: the same response, later, spread over the whole path, with the loss."""
    path = 100 * SPEED_OF_SOUND / RATE
    there, acoustics = ring_around(40, 2.0), Acoustics(FIELD, DRY)
    direct = acoustics.response((0.0, 0.0, 0.0), there)
    through = acoustics.response((0.0, 0.0, 0.0), there._replace(path=path, loss=12.0))
    weaker = 2.0 / (2.0 + path) * 10 ** (-12 / 20)
    assert np.allclose(through[:, 100:], weaker * direct[:, :-100], rtol=0, atol=1e-6 * direct.max())
    assert np.abs(through[:, :100]).max() == 0


@pytest.mark.parametrize("wall", range(4))
def test_an_opening_in_a_wall_is_no_louder_than_its_path_says(wall):
    """Images that coincide count once: the direct sound is that of the open field, whichever wall the door is in."""
    room = Room(x0=-2, y0=-3, x1=2, y1=3, absorption=(0.2,) * 6)
    x, y = ((-2.0, 0.5), (2.0, 0.5), (0.5, -3.0), (0.5, 3.0))[wall]
    door, pose = Arrival(x, y, 1.5, path=3.0, loss=6.0), (0.1, 0.2, 0.4)
    config = AcousticsConfig(order=3, tail=False, taps=round((3.0 + math.hypot(x - 0.1, y - 0.2)) / 343 * RATE) + 10)
    alone = Acoustics(FIELD, replace(config, order=0)).response(pose, door)
    assert np.allclose(Acoustics(room, config).response(pose, door), alone, rtol=0, atol=0.05 * alone.max())
    positions, gains = image_sources(room, door[:3], 4, wall)
    kept = positions[gains > 0]
    assert len(np.unique(kept.round(6), axis=0)) == len(kept)
    plain, _ = image_sources(room, door[:3], 3)
    assert set(map(tuple, plain.round(6))) <= set(map(tuple, kept.round(6)))


@pytest.mark.parametrize("path", [0.0, 6.0])
def test_the_tail_comes_through_the_door_as_the_images_do(path):
    """Order 20 of images alone has the energy of order 3 with a tail, from the source itself and from an opening."""
    room, levels = Room(x1=5, y1=4, absorption=(0.15,) * 6), []
    for config in (AcousticsConfig(order=3), AcousticsConfig(order=20, tail=False)):
        x = 0.0 if path else 1.0
        response = Acoustics(room, config).response((4.0, 3.0, 1.0), Arrival(x, 1.5, 1.0, path))
        start = round(path / SPEED_OF_SOUND * RATE)
        levels.append([energy(response[:, start + a : start + b]) for a, b in ((0, 500), (500, 1_000), (1_000, 1_800))])
    assert np.abs(np.subtract(*levels)).max() < 1.2, levels


# ---- the late tail


@pytest.mark.parametrize("absorption", [0.1, 0.2, 0.4])
def test_tail_decays_as_sabine_demands(absorption):
    """T60 = .161 V / A, within 5 percent for each seed and 2 on average."""
    times, room = [], Room(x1=6, y1=4, absorption=(absorption,) * 6)
    assert room.reverberation_time == pytest.approx(0.161 * 6 * 4 * 2.7 / (absorption * 2 * (24 + 16.2 + 10.8)))
    taps = round(1.2 * room.reverberation_time * RATE)
    for seed in range(6):
        tail = late_tail(Room(x1=6, y1=4, absorption=(absorption,) * 6, seed=seed), AcousticsConfig(taps=taps))
        left = (tail**2).sum(0)[::-1].cumsum()[::-1]  # Schroeder's integral
        part = slice(round(0.25 * room.reverberation_time * RATE), round(0.75 * room.reverberation_time * RATE))
        slope = np.polyfit(np.arange(taps)[part] / RATE, 10 * np.log10(left[part]), 1)[0]
        times.append(-60 / slope)
    assert np.abs(np.array(times) / room.reverberation_time - 1).max() < 0.05
    assert abs(np.mean(times) / room.reverberation_time - 1) < 0.02


def check_join(tail: Callable[..., np.ndarray]) -> None:
    """Early part and tail together have the energy of many more images, window by window where they meet."""
    room = Room(x1=5, y1=4, absorption=(0.12,) * 6)
    noise, gaps = tail(room, AcousticsConfig()), []
    for seed in range(4):
        x, y, source_x, source_y = np.random.default_rng(seed).uniform(0.5, 3.5, 4)
        both = [
            Acoustics(room, AcousticsConfig(order=order, tail=False)).response(
                (x, y, 0.0), Arrival(source_x, source_y, 1.0)
            )
            for order in (3, 18)
        ]
        windows = [slice(start, start + 400) for start in (200, 500, 800, 1_200)]
        gaps.append([energy((both[0] + noise)[:, window]) - energy(both[1][:, window]) for window in windows])
    assert np.abs(np.mean(gaps, 0)).max() < 1.0, np.mean(gaps, 0)


def test_tail_joins_the_images_with_their_energy():
    """And a tail that is too weak, or begins before the images end, is noticed."""
    check_join(late_tail)
    for old, new in (("4 * math.pi", "2 * math.pi"), ("images * share", "2 * images * share")):
        with pytest.raises(AssertionError):
            check_join(mutant(late_tail, old, new))


def test_tail_is_the_rooms_own():
    """The same each time, another in another room, and independent in both ears."""
    tail = late_tail(ROOM, AcousticsConfig())
    assert np.array_equal(tail, late_tail(ROOM, AcousticsConfig()))
    other = late_tail(replace(ROOM, seed=1), AcousticsConfig())
    assert abs(np.corrcoef(tail)[0, 1]) < 0.1
    assert abs(np.corrcoef(tail.ravel(), other.ravel())[0, 1]) < 0.1


# ---- the ring, and sound in steps


def test_ring_is_ours_and_has_no_long_silence():
    """A loop of whole steps at a quarter of full scale, reproducible; closed, and never silent for 0.4 s."""
    ring = telephone_ring()
    assert np.array_equal(ring, telephone_ring()) and len(ring) % STEP == 0
    assert np.abs(ring).max() == 8_000 and abs(int(ring[0]) - int(ring[-1])) < 100
    loud = np.flatnonzero(np.abs(np.tile(ring, 2).astype(int)) > 80)  # 40 dB below the peak
    assert np.diff(loud).max() < 0.4 * RATE


def check_still(listener: type[Listener]) -> None:
    """Steps joined are the loop convolved at once, to the last bit, for a loop of any length."""
    response = Acoustics(ROOM).response(POSE, SOURCE)
    for samples, index in ((8 * STEP, 700), (7_001, 7_000), (500, 3)):
        ring = telephone_ring()[:samples]
        heard = listener(ring, index)
        steps = np.concatenate([heard.step(response) for _ in range(12)], 1)
        turns = -(-response.shape[1] // samples)  # of the past
        loop = np.resize(ring, 12 * STEP + (turns + 1) * samples)[index:].astype(float)
        whole = np.array([scipy.signal.fftconvolve(loop, ear) for ear in response])
        assert np.array_equal(steps, to_int16(whole[:, turns * samples :][:, : 12 * STEP]))


def test_a_listener_who_stands_still_hears_one_long_convolution():
    """And sound a step late, a sample late, or an index that does not advance by a step, is noticed."""
    check_still(Listener)
    for old, new in (
        ("self.index - taps + 1", "self.index - STEP - taps + 1"),
        ("self.index - taps + 1", "self.index - taps"),
        ("self.index + STEP", "self.index + STEP - 1"),
    ):
        with pytest.raises(AssertionError):
            check_still(mutant(Listener, old, new))


def check_seams(listener: type[Listener]) -> None:
    """A tone, heard while walking and turning, jumps at seams and in fades no more than where nothing changes."""
    tone = np.round(8_000 * np.sin(2 * np.pi * 160 * np.arange(STEP) / RATE)).astype(np.int16)
    acoustics, heard = Acoustics(ROOM), listener(tone)
    poses = [(1.5 + 0.15 * step, 4.0, 0.3 * step) for step in range(12)]
    sound = np.concatenate([heard.render(acoustics.response(pose, SOURCE)) for pose in poses], 1)
    jumps = np.abs(np.diff(sound))
    for seam in range(STEP, sound.shape[1], STEP):
        still = np.r_[seam - FADE : seam - 1, seam + FADE : seam + STEP - 1]
        for ear in range(2):
            assert jumps[ear, seam - 1 : seam + FADE].max() <= jumps[ear, still].max() * 1.05


def test_walking_makes_no_clicks():
    """And a missing fade, or one that runs the wrong way, is noticed."""
    check_seams(Listener)
    for old, new in (
        ("if self._before is not None:", "if False:"),
        ("(1 - np.arange(FADE) / FADE)", "np.arange(FADE)[None] / FADE"),
        ("heard[:, STEP:].copy()", "heard[:, STEP - 40 : -40].copy()"),
    ):
        with pytest.raises(AssertionError):
            check_seams(mutant(Listener, old, new))


def test_fade_is_50_ms_and_linear():
    """Between two responses that only differ in level, the level goes in a straight line."""
    flat = np.full(500, 1_000, np.int16)
    listener, quiet, loud = Listener(flat), np.zeros((2, 8)), np.zeros((2, 8))
    quiet[:, 0], loud[:, 0] = 1.0, 2.0
    listener.render(quiet)
    heard = listener.render(loud)
    assert np.allclose(heard[:, :FADE], 1_000 * (1 + np.arange(FADE) / FADE)) and np.allclose(heard[:, FADE:], 2_000)
    assert FADE == 0.05 * RATE


def test_a_listener_goes_on_from_its_state():
    """Restored bytes give the same samples; they are small, and responses of other lengths may follow."""
    acoustics, listener = Acoustics(ROOM, AcousticsConfig(tail=False)), Listener(telephone_ring(), index=5)
    poses, new = [(2.0, 4.0, 0.3 * step) for step in range(4)], listener.state()
    first = listener.step(acoustics.response(poses[0], SOURCE))
    state = listener.state()
    after = [listener.step(acoustics.response(pose, SOURCE)) for pose in poses]
    other = Listener(telephone_ring())
    other.restore(state)
    assert all(np.array_equal(a, other.step(acoustics.response(p, SOURCE))) for a, p in zip(after, poses, strict=True))
    other.restore(new)
    assert np.array_equal(other.step(acoustics.response(poses[0], SOURCE)), first)
    assert len(state) == 8 + 16 * FADE and len(new) == 8
    short, long = np.zeros((2, 300)), np.zeros((2, 9_000))
    short[:, 7] = long[:, 7] = 1
    other.reset(), listener.reset()
    assert np.array_equal(other.step(short), listener.step(long))


def test_several_sources_add_up():
    """Each rendered by a listener of its own, then rounded once."""
    response, ring = Acoustics(ROOM).response(POSE, SOURCE), telephone_ring()
    both = Listener(ring).render(response) + Listener(ring, 5 * STEP).render(response)
    together = (np.tile(ring, 2)[: len(ring)].astype(int) + np.roll(ring, -5 * STEP)).astype(np.int16)
    assert np.array_equal(to_int16(both), Listener(together).step(response))


def test_the_ring_does_not_clip_in_any_room():
    """Live and dead rooms, near and far: of 200 places none reaches full scale, and most use its upper six bits."""
    rng, peaks, ring = np.random.default_rng(0), [], telephone_ring()
    for seed in range(200):
        size = rng.uniform(2.5, 7, 2)
        room = Room(x1=size[0], y1=size[1], absorption=(rng.uniform(0.05, 0.5),) * 6, seed=seed)
        (x, y), (source_x, source_y) = rng.uniform(0.05, 0.95, (2, 2)) * size
        response = Acoustics(room).response((x, y, rng.uniform(-3, 3)), Arrival(source_x, source_y, 0.8))
        peaks.append(np.abs(Listener(ring, STEP).render(response)).max())
    assert max(peaks) < 32_767 and np.median(peaks) > 3_000


def test_to_int16_limits_instead_of_wrapping():
    """Too loud is as loud as can be."""
    assert to_int16(np.array([[40_000.0, -40_000.0, 0.6, -1.4]])).tolist() == [[32_767, -32_768, 1, -1]]


# ---- bad input


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Acoustics(ROOM).response((9.0, 5.0, 0.0), SOURCE), "the listener at (9.00, 5.00, 1.50) is outside"),
        (lambda: Acoustics(ROOM).response((math.nan, 5.0, 0.0), SOURCE), "the listener at (nan, 5.00, 1.50) is outside"),
        (lambda: Acoustics(ROOM).response(POSE, Arrival(1.0, 7.0, 1.0)), "the source at (1.00, 7.00, 1.00) is outside"),
        (lambda: Acoustics(ROOM).response(POSE, SOURCE._replace(path=-1.0)), "path -1.0"),
        (lambda: Acoustics(ROOM).response(POSE, SOURCE._replace(loss=math.inf)), "loss inf"),
        (lambda: Acoustics(ROOM).response((3.0, 5.0, math.nan), SOURCE), "heading nan"),
        (lambda: Room(absorption=(0.1, 0.1, 0.1, 1.5, 0.1, -0.1)), "north 1.5, ceiling -0.1"),
        (lambda: Room(absorption=(0.0,) * 6), "set one of them above 0"),
        (lambda: Room(absorption=(0.2,) * 4), "has 4 numbers, but a room has six surfaces: west, east"),
        (lambda: Room(x0=5.0), "x1 > x0"),
        (lambda: doorway_loss(-0.1), "detour is -0.1 m"),
        (lambda: doorway_loss(math.nan), "detour is nan m"),
        (lambda: AcousticsConfig(order=-1), "order"),
        (lambda: AcousticsConfig(taps=0), "taps"),
        (lambda: Listener(np.zeros((2, 100), np.int16)), "one channel"),
        (lambda: Listener(np.zeros(100)), "int16"),
        (lambda: Listener(telephone_ring()).step(np.zeros((1, 100))), "two ears are needed"),
        (lambda: Listener(telephone_ring()).restore(b"12"), "2 bytes"),
    ],
)
def test_bad_input_gets_one_clear_line(call, says):
    """What was wrong, where, and what is allowed."""
    with pytest.raises(UsageError) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value)
