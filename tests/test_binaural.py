"""What two ears hear in a room: images as pyroomacoustics has them, a head like a measured one, sound without seams."""

import math

import numpy as np
import pyroomacoustics
import pytest
import scipy.signal
from scipy.spatial import cKDTree

from metabonk.play.binaural import (
    FADE,
    RATE,
    STEP,
    Acoustics,
    AcousticsConfig,
    Arrival,
    Listener,
    Room,
    image_sources,
    telephone_ring,
    to_int16,
)

ROOM = Room(x0=-1, y0=2, x1=4, y1=6, height=2.7, absorption=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
SOURCE, POSE = Arrival(1.2, 3.1, 0.8), (3.0, 5.0, 1.0)


@pytest.mark.parametrize("order", [0, 1, 3, 6])
def test_images_are_those_of_pyroomacoustics(order):
    """The same positions and amplitudes, one for one."""
    positions, gains = image_sources(ROOM, SOURCE[:3], order)
    walls = zip(("west", "east", "south", "north", "floor", "ceiling"), ROOM.absorption, strict=True)
    theirs = pyroomacoustics.ShoeBox(
        ROOM.size,
        fs=RATE,
        materials={wall: pyroomacoustics.Material(alpha) for wall, alpha in walls},
        max_order=order,
        air_absorption=False,
    )
    corner = (ROOM.x0, ROOM.y0, 0)
    theirs.add_source(np.subtract(SOURCE[:3], corner))
    theirs.add_microphone(np.subtract((*POSE[:2], 1.5), corner))
    theirs.image_source_model()
    away, which = cKDTree(theirs.sources[0].images.T + corner).query(positions)
    assert len(positions) == theirs.sources[0].images.shape[1] == len(set(which))
    assert away.max() < 2e-6
    assert np.abs(theirs.sources[0].damping[0][which] - gains).max() < 1e-6


def test_a_listener_who_stands_still_hears_one_long_convolution():
    """Steps joined are the loop convolved at once, to the rounding."""
    ring, response = telephone_ring(), Acoustics(ROOM).response(POSE, SOURCE)
    listener = Listener(ring, index=700)
    heard = np.concatenate([listener.step(response) for _ in range(12)], 1)
    loop = np.resize(ring, len(ring) * 4)[700:].astype(float)
    start = len(ring)
    whole = np.array([scipy.signal.fftconvolve(loop, ear)[start : start + 12 * STEP] for ear in response])
    assert np.array_equal(heard, to_int16(whole))


def test_a_listener_goes_on_from_its_state():
    """Restored bytes give the same samples, and a fresh one begins without a fade."""
    acoustics, listener = Acoustics(ROOM, AcousticsConfig(tail=False)), Listener(telephone_ring())
    poses = [(2.0, 4.0, 0.3 * step) for step in range(4)]
    listener.step(acoustics.response(poses[0], SOURCE))
    state = listener.state()
    first = [listener.step(acoustics.response(pose, SOURCE)) for pose in poses]
    other = Listener(telephone_ring(), index=5)
    other.restore(state)
    assert all(np.array_equal(a, other.step(acoustics.response(p, SOURCE))) for a, p in zip(first, poses, strict=True))
    assert len(state) == 8 + 16 * FADE and math.isclose(len(Listener(telephone_ring()).state()), 8)
