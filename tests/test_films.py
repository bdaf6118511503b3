"""Films without actions become rows at the right times, whole or not at all, and nobody takes them for recordings."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from metabonk.core.errors import FolderError, StoreError, UsageError
from metabonk.record import films
from metabonk.record.films import (
    FilmConfig,
    FilmSound,
    actions_unknown,
    check_actions_known,
    film_pictures,
    film_rows,
    film_times,
    import_films,
)
from metabonk.record.recorder import record
from metabonk.record.store import Store
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.tokens import TokenData, Tokenizers

RATE = 25  # pictures a second


def make_film(path: Path, pictures: int = 100, sound: bool = True, size: tuple[int, int] = (48, 64), late: float = 0.0) -> Path:
    """Picture t has brightness 2 t; a tone sounds from 1.0 s to 1.4 s after the first picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=RATE, options={"crf": "2", "preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        audio = file.add_stream("aac", rate=48_000, layout="mono") if sound else None
        for t in range(pictures):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 2 * t, np.uint8), format="rgb24")
            frame.pts, frame.time_base = t + round(late * RATE), Fraction(1, RATE)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio is not None:
            time = np.arange(48_000 * pictures // RATE) / 48_000
            wave = (0.5 * np.sin(time * 2 * np.pi * 1_000) * ((time >= 1) & (time < 1.4))).astype(np.float32)[None]
            wave = np.pad(wave, ((0, 0), (round(late * 48_000), 0)))
            for begin in range(0, wave.shape[1], 1_024):
                piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, begin : begin + 1_024]), "fltp", "mono")
                piece.sample_rate, piece.pts, piece.time_base = 48_000, begin, Fraction(1, 48_000)
                file.mux(audio.encode(piece))
            file.mux(audio.encode(None))
    return path


@pytest.mark.parametrize("late", [0.0, 2.0])
@pytest.mark.parametrize("step", [0.04, 0.1, 0.5])
def test_a_row_has_the_picture_and_the_sound_of_its_time(tmp_path, step, late):
    film = make_film(tmp_path / "a.mp4", late=late)
    schema = FilmConfig((12, 16), step, 16_000, 1).schema()
    rows = list(film_rows(film, schema, step))
    assert len(rows) == int(99 / RATE / step + 1e-6) + 1
    shown = [np.floor(k * step * RATE + 0.026) * 2 for k in range(len(rows))]
    assert np.abs(np.array([row.image.mean() for row in rows]) - shown).max() < 2.5
    assert all(row.image.shape == (12, 16, 3) for row in rows)
    assert [row.sample for row in rows] == [round(k * step * 16_000) for k in range(len(rows))]
    assert [row.audio.shape[1] for row in rows] == np.diff([0, *(row.sample for row in rows)]).tolist()
    heard = np.abs(np.concatenate([row.audio for row in rows], 1)[0]) > 3_000
    assert abs(np.flatnonzero(heard)[[0, -1]] / 16_000 - [1, 1.4]).max() < 0.01
    assert rows[0].first and rows[-1].truncated and not any(row.terminated or row.reward or row.first for row in rows[1:])


def test_pictures_a_step_late_are_caught(tmp_path, monkeypatch):
    "Negative control of the test above."
    late = films.film_pictures
    monkeypatch.setattr(films, "film_pictures", lambda path, size, wanted: late(path, size, wanted + 0.1))
    with pytest.raises(AssertionError):
        test_a_row_has_the_picture_and_the_sound_of_its_time(tmp_path, 0.1, 0.0)


def test_pictures_from_the_middle_are_those_of_the_whole(tmp_path):
    film, wanted = make_film(tmp_path / "a.mp4"), np.arange(2.0, 3.6, 0.08)
    whole = list(film_pictures(film, (12, 16), np.concatenate([[0.0], wanted])))[1:]
    part = list(film_pictures(film, (12, 16), wanted))
    assert len(part) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(whole, part, strict=True))


def test_films_join_a_recording_in_its_own_form(tmp_path):
    record("bonk", tmp_path / "store", steps=40, settings={"max_steps": 20, "image_size": (32, 32)})
    make_film(tmp_path / "in" / "deep" / "a.mp4")
    before = Store.open(tmp_path / "store")
    store, faults = import_films(tmp_path / "in", tmp_path / "store")
    assert not faults and not store.verify() and store.schema == before.schema
    film = store.episodes[-1]
    assert [actions_unknown(episode) for episode in store.episodes] == [False] * len(before.episodes) + [True]
    assert film.about == {"source": "deep/a.mp4", "actions": "unknown"}
    step, rows = FilmConfig.like(before).step, store.read(film)
    assert film.rows == int(99 / RATE / step) + 1 and rows.image.shape[1:] == (32, 32, 3)
    assert rows.tick[-1] == round((film.rows - 1) * step * store.schema.clock_rate)
    assert len(import_films(tmp_path / "in", tmp_path / "store")[0]) == len(store), "a film comes once"
    with pytest.raises(UsageError, match="leave the settings out"):
        import_films(tmp_path / "in", tmp_path / "store", FilmConfig())
    with pytest.raises(UsageError, match="1 of . episodes of .* are films"):
        check_actions_known(store)
    with pytest.raises(UsageError, match="are films, nobody knows what was done"):
        TokenData(store.path, Tokenizers(PictureTokenizer(PictureConfig.preset("tiny")), None)).prepare_data()
    assert check_actions_known(before) is before


def test_films_alone_are_a_world_in_which_nothing_can_be_done(tmp_path):
    for name in "ab":
        make_film(tmp_path / "in" / f"{name}.mp4", 30, sound=False)
    (tmp_path / "in" / "notes.txt").write_text("not a film")
    store, _ = import_films(tmp_path / "in", tmp_path / "store", FilmConfig(step=0.1))
    assert len(store.episodes) == 2 and store.schema.actions.categorical == (1,) and store.schema.channels == 0
    assert check_actions_known(store) is store
    assert len(import_films(tmp_path / "in" / "a.mp4", tmp_path / "store")[0].episodes) == 2
    with pytest.raises(StoreError, match="holds other rows"):
        import_films(tmp_path / "in", tmp_path / "store", FilmConfig(step=0.2))


def test_faults_are_one_line_each_and_do_not_keep_the_others_back(tmp_path):
    whole = make_film(tmp_path / "in" / "a.mp4").read_bytes()
    make_film(tmp_path / "in" / "short.mp4", 2)
    make_film(tmp_path / "in" / "silent.mp4", sound=False)
    (tmp_path / "in" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "text.mp4").write_text("<html>")
    store, faults = import_films(tmp_path / "in", tmp_path / "store", FilmConfig(sample_rate=16_000))
    assert [episode.about["source"] for episode in store.episodes] == ["a.mp4"]
    words = {"cut.mp4": "can't be read|cut short", "short.mp4": "shorter than a step"}
    words |= {"silent.mp4": "no sound", "text.mp4": "can't be read"}
    assert faults.keys() == words.keys()
    for name, pattern in words.items():
        with pytest.raises(StoreError, match=pattern):
            raise faults[name]
        assert "\n" not in str(faults[name])
    with pytest.raises(StoreError):
        import_films(tmp_path / "in", tmp_path / "strict", FilmConfig(sample_rate=16_000), strict=True)


def test_a_film_without_time_stamps_says_so(tmp_path, monkeypatch):
    """A bare stream of H.264: pictures, and nobody knows when."""
    film = make_film(tmp_path / "a.mp4", 20, sound=False)
    with av.open(str(film)) as source, av.open(str(tmp_path / "a.h264"), "w", format="h264") as bare:
        stream = bare.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                bare.mux(packet)
    with pytest.raises(StoreError, match="does not say when"):
        film_times(tmp_path / "a.h264")


def test_nothing_to_read_and_bad_settings(tmp_path):
    with pytest.raises(FolderError, match="holds no film"):
        import_films(tmp_path / "nowhere", tmp_path / "store")
    with pytest.raises(UsageError, match="a step takes time"):
        FilmConfig(step=0)
    with pytest.raises(StoreError, match="can't be read"):
        film_times(tmp_path / "nowhere.mp4")
    with pytest.raises(StoreError, match="no sound"):
        FilmSound(make_film(tmp_path / "a.mp4", 5, sound=False), 16_000, 1, 0.0)


@pytest.mark.parametrize("after", [3, 25])
def test_an_interrupted_import_goes_on(tmp_path, monkeypatch, after):
    for name in "ab":
        make_film(tmp_path / "in" / f"{name}.mp4", 50)
    config, count, rows = FilmConfig(step=0.1), 0, films.film_rows

    def interrupted(*given):
        nonlocal count
        for row in rows(*given):
            count += 1
            if count > after:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(films, "film_rows", interrupted)
        import_films(tmp_path / "in", tmp_path / "store", config)
    assert len(Store.open(tmp_path / "store")) == after // 20 * 20  # whole films
    store, _ = import_films(tmp_path / "in", tmp_path / "store", config)
    whole, _ = import_films(tmp_path / "in", tmp_path / "whole", config)
    assert len(store) == len(whole) == 40 and not store.verify()
    for one, two in zip(store.episodes, whole.episodes, strict=True):
        assert np.array_equal(store.read(one).image, whole.read(two).image)
