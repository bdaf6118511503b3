"""Recordings in the format of Video PreTraining become rows: each line's action beside what it led to, faults told."""

import json
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from metabonk.core.actions import ActionSpec, camera_classes
from metabonk.core.errors import FolderError, StoreError, UsageError
from metabonk.core.files import temporary
from metabonk.record import films, vpt
from metabonk.record.cache import Cache
from metabonk.record.chunks import to_arrow
from metabonk.record.exchange import to_dataset
from metabonk.record.films import FilmSound
from metabonk.record.sampling import Sequences
from metabonk.record.store import Store
from metabonk.record.tasks import TaskSet
from metabonk.record.vpt import (
    KEYS,
    VPTConfig,
    episode_spans,
    import_vpt,
    null_actions,
    read_actions,
    vpt_rows,
)

LOG = "minecraft.mine_block:minecraft.oak_log"
WALK = "minecraft.custom:minecraft.walk_one_cm"


def line(
    t: int = 0, keys: tuple = (), buttons: tuple = (), new: tuple = (), dx: float = 0.0, dy: float = 0.0, **more: Any
) -> dict[str, Any]:
    """A line as the recorder writes it."""
    return {
        "mouse": {
            "x": 640.0, "y": 360.0, "dx": dx, "dy": dy, "scaledX": 0.0, "scaledY": 0.0, "dwheel": 0.0,
            "buttons": list(buttons), "newButtons": list(new),
        },
        "keyboard": {"keys": [f"key.keyboard.{key}" for key in keys], "newKeys": [], "chars": ""},
        "isGuiOpen": False, "isGuiInventory": False, "hotbar": 0, "yaw": 0.0, "pitch": 0.0,
        "xpos": 0.5, "ypos": 63.0, "zpos": 0.5, "tick": t, "milli": 1_649_575_088_006 + 50 * t,
        "inventory": [{"type": "oak_log", "quantity": 2}],
        "serverTick": 6_000 + t, "serverTickDurationMs": 36.3, "stats": {WALK: 7_554 + t}, **more,
    }  # fmt: skip


def shade(t: int) -> int:
    """How bright picture t is; told apart after compression."""
    return 10 + 12 * (t % 20)


def make_pair(
    folder: Path,
    name: str = "a",
    pictures: int = 12,
    lines: list | None = None,  # texts are written as they are
    rate: int = 20,
    size: tuple[int, int] = (48, 64),
    sound: bool = False,
) -> tuple[Path, Path]:
    """A film whose pictures get brighter, with a click in the sound of every fourth step, and its lines."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    film, text = folder / f"{name}.mp4", folder / f"{name}.jsonl"
    with av.open(str(film), "w", options={"movflags": "faststart"}) as file:
        video = file.add_stream("libx264", rate=rate, options={"crf": "4", "preset": "ultrafast"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        audio = file.add_stream("aac", rate=48_000, layout="stereo") if sound else None
        for t in range(pictures):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), shade(t), np.uint8), format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, rate)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if audio is not None:
            wave = np.zeros((2, 2_400 * pictures), np.float32)
            tone = 0.5 * np.sin(np.arange(2_400) * 2 * np.pi * 1_000 / 48_000) * np.hanning(2_400)
            for t in range(0, pictures, 4):  # the step that leads from picture t to picture t + 1
                wave[:, 2_400 * t : 2_400 * (t + 1)] = tone
            for begin in range(0, wave.shape[1], 1_024):
                part = np.ascontiguousarray(wave[:, begin : begin + 1_024])
                piece = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
                piece.sample_rate, piece.pts, piece.time_base = 48_000, begin, Fraction(1, 48_000)
                file.mux(audio.encode(piece))
            file.mux(audio.encode(None))
    lines = [line(t) for t in range(pictures)] if lines is None else lines
    text.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return film, text


def rows_of(pair: tuple[Path, Path], config: VPTConfig | None = None) -> list:
    """All rows of a pair."""
    return [row for row, _ in vpt_rows(*pair, config)]


def held(action: np.ndarray) -> set[str]:
    """Names of the keys of an action."""
    return {name for name, on in zip(KEYS, action[: len(KEYS)], strict=True) if on}


def random_lines(count: int, seed: int = 0) -> list[dict]:
    """Lines with any keys, buttons and turns."""
    rng = np.random.default_rng(seed)
    keys, lines = [*vpt.KEYBOARD], []
    for t in range(count):
        chosen = tuple(key for key in keys if rng.random() < 0.2)
        buttons = tuple(button for button in range(3) if rng.random() < 0.3)
        lines.append(line(t, chosen, buttons, (), *np.round(rng.normal(0, 25, 2)).tolist()))
    return lines


def same(one: Store, other: Store) -> bool:
    """Both hold the same rows in the same places, and tell the same of them."""
    pairs = list(zip(one.episodes, other.episodes, strict=True))
    equal = (to_arrow(one.schema, one.read(a)).equals(to_arrow(other.schema, other.read(b))) for a, b in pairs)
    return all(equal) and all((a.number, a.about, a.end) == (b.number, b.about, b.end) for a, b in pairs)


# Actions


def test_actions_are_those_of_the_lines_one_by_one(tmp_path):
    lines = random_lines(60)
    _, path = make_pair(tmp_path, pictures=1, lines=lines)
    played = read_actions(path)
    assert played.action.shape == (60, 24) and played.action.dtype == np.uint8 and played.broken == 0
    for said, action in zip(lines, played.action, strict=True):
        names = {vpt.KEYBOARD[key.split("keyboard.")[1]] for key in said["keyboard"]["keys"]}
        names |= {("attack", "use", "pickItem")[button] for button in said["mouse"]["buttons"]}
        assert held(action) == names
        down, right = camera_classes(np.array([said["mouse"]["dy"], said["mouse"]["dx"]]) * 360 / 2400)
        assert action[-1] == down * 11 + right
    spec = VPTConfig().schema().actions
    assert spec == ActionSpec(binary=23, categorical=(121,))
    spec.vectors(torch.from_numpy(played.action)[None])  # raises where one is out of range


def test_two_axes_are_the_same_camera(tmp_path):
    _, path = make_pair(tmp_path, pictures=1, lines=random_lines(40, seed=1))
    joint, axes = read_actions(path).action, read_actions(path, VPTConfig(camera="axes")).action
    assert axes.shape == (40, 25) and (axes[:, 23].astype(int) * 11 + axes[:, 24] == joint[:, 23]).all()
    both = VPTConfig(camera="axes").schema().actions
    assert both == ActionSpec(binary=23, categorical=(11, 11)) and both.vectors(torch.from_numpy(axes)[None]).shape[2] == 45


def test_down_and_right_have_their_signs(tmp_path):
    lines = [line(dy=30.0), line(dx=30.0), line(dy=-30.0), line(dx=-30.0), line(), line(dx=2_000.0)]
    _, path = make_pair(tmp_path, pictures=1, lines=lines)
    camera = read_actions(path, VPTConfig(camera="axes")).action[:, 23:].astype(int)
    assert (np.sign(camera - 5) == [[1, 0], [0, 1], [-1, 0], [0, -1], [0, 0], [0, 0]]).all()  # the last is an artefact


def test_menus_of_old_recorders_are_scaled(tmp_path):
    lines = [line(dx=10.0), line(dx=10.0, isGuiOpen=True)]
    _, path = make_pair(tmp_path, pictures=1, lines=lines)
    plain, doubled = (read_actions(path, VPTConfig(camera="axes", gui_scale=scale)).action[:, 24] for scale in (1.0, 2.0))
    assert plain[0] == plain[1] == doubled[0] < doubled[1]


def test_attack_is_stuck_until_it_is_pressed(tmp_path):
    lines = [line(buttons=(0,), new=(0,)), *[line(buttons=(0, 1))] * 3, line(buttons=(0,), new=(0,)), line(buttons=(0,)), line()]
    _, path = make_pair(tmp_path, pictures=1, lines=lines)
    played = read_actions(path)
    assert [held(action) for action in played.action] == [set(), *[{"use"}] * 3, {"attack"}, {"attack"}, set()]
    assert played.stuck == 4


def test_attack_that_is_not_stuck_stays(tmp_path):
    for number, new in enumerate([(), (0, 1), (1,)]):  # held since the segment before; both pressed at once; the other one
        _, path = make_pair(tmp_path, f"{number}", 1, [line(buttons=(0,), new=new), line(buttons=(0,))])
        played = read_actions(path)
        assert played.stuck == 0 and all("attack" in held(action) for action in played.action)


def test_the_wheel_is_a_hotbar_key(tmp_path):
    slots = [4, 4, 5, 5, 0, 8, None, 8]
    _, path = make_pair(tmp_path, pictures=1, lines=[line(hotbar=slot) for slot in slots])
    pressed = [held(action) for action in read_actions(path).action]
    assert pressed == [set(), set(), {"hotbar.6"}, set(), {"hotbar.1"}, {"hotbar.9"}, set(), set()]
    lines = [{name: value for name, value in line(t).items() if name != "hotbar"} for t in range(3)]  # old recorders do not tell
    assert not read_actions(make_pair(tmp_path, "old", 1, lines)[1]).action[:, :23].any()


def test_keys_that_the_game_does_not_know_are_counted(tmp_path):
    lines = [line(keys=("w", "left.alt")), line(keys=("left.alt", "f3"), buttons=(4,)), line(keys=("w",))]
    played = read_actions(make_pair(tmp_path, pictures=1, lines=lines)[1])
    assert played.unknown == {"key.keyboard.f3": 1, "key.keyboard.left.alt": 2, "mouse.4": 1}
    assert [held(action) for action in played.action] == [{"forward"}, set(), {"forward"}]


def test_null_actions_are_found_with_either_camera(tmp_path):
    lines = [line(), line(dx=1.0), line(dx=4.0), line(keys=("w",)), line(keys=("f3",)), line(hotbar=3), line(hotbar=3)]
    _, path = make_pair(tmp_path, pictures=1, lines=lines)
    for camera in ("classes", "axes"):
        nothing = null_actions(read_actions(path, VPTConfig(camera=camera)).action)
        assert nothing.tolist() == [True, True, False, False, True, False, True]


# Rows


def test_a_row_has_the_action_that_led_to_its_picture(tmp_path):
    lines = random_lines(12)
    pair = make_pair(tmp_path, lines=lines)
    rows, actions = rows_of(pair), read_actions(pair[1]).action
    assert len(rows) == 12 and not rows[0].action.any() and rows[0].first and rows[-1].truncated
    for t, row in enumerate(rows):
        assert row.image.shape == (64, 64, 3) and abs(row.image.mean() - shade(t)) < 4
        assert row.tick == t and row.first == (t == 0) and row.truncated == (t == 11) and not row.terminated and row.reward == 0
        assert t == 0 or (row.action == actions[t - 1]).all()
    assert not all((row.action == action).all() for row, action in zip(rows, actions, strict=True))  # the control: not beside it


@pytest.mark.parametrize("lines", [9, 11, 12, 13, 15])
def test_a_few_lines_more_or_less_are_all_right(tmp_path, lines):
    pair = make_pair(tmp_path, lines=random_lines(lines))
    rows, actions = rows_of(pair), read_actions(pair[1]).action
    assert len(rows) == min(12, lines + 1)
    assert all((row.action == action).all() for row, action in zip(rows[1:], actions, strict=False))
    assert abs(rows[-1].image.mean() - shade(len(rows) - 1)) < 4


def test_a_broken_line_cuts_and_moves_nothing(tmp_path):
    whole = random_lines(12)
    pair = make_pair(tmp_path, "whole", lines=whole)
    rows = rows_of(pair)
    broken = ['{"mouse": {"x"', "nonsense", "[]", '{"mouse": null, "keyboard": null}', json.dumps(line(dx=float("nan")))]
    broken += [json.dumps(line(keys=()) | {"keyboard": {"keys": "w"}}), json.dumps(line(buttons=([1],)))]
    for number, bad in enumerate(broken):
        cut = make_pair(tmp_path, f"{number}", lines=[*whole[:5], bad, *whole[6:]])
        parts = rows_of(cut)
        assert read_actions(cut[1]).broken == 1
        assert [row.first for row in parts] == [t in (0, 6) for t in range(12)]
        assert [row.truncated for row in parts] == [t in (5, 11) for t in range(12)]
        assert [row.tick for row in parts] == [*range(6), *range(6)]
        for t, (row, was) in enumerate(zip(parts, rows, strict=True)):
            assert (row.image == was.image).all() and (t == 6 or (row.action == was.action).all())


def test_many_broken_lines(tmp_path):
    lines: list = random_lines(12)
    for t in (0, 3, 4, 5, 11):
        lines[t] = "{"
    pair = make_pair(tmp_path, lines=lines)
    rows, actions = rows_of(pair), read_actions(pair[1]).action
    assert [int(np.round((row.image.mean() - 10) / 12)) for row in rows] == [1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert (rows[2].action == actions[2]).all() and (rows[-1].action == actions[10]).all()
    with pytest.raises(StoreError, match="no step that can be read.*12 of 12 lines are broken"):
        rows_of(make_pair(tmp_path, "none", lines=["{"] * 12))


def test_blank_lines_and_a_torn_last_line_cost_nothing(tmp_path):
    lines = random_lines(11)
    plain = rows_of(make_pair(tmp_path, "plain", lines=lines))
    torn = rows_of(make_pair(tmp_path, "torn", lines=[*lines[:4], "", *lines[4:], json.dumps(lines[0])[:50], "  "]))
    assert len(plain) == len(torn) == 12
    assert all((a.action == b.action).all() and a.first == b.first for a, b in zip(plain, torn, strict=True))


def test_spans_agree_with_counting_by_hand():
    rng = np.random.default_rng(0)
    for _ in range(300):
        good, pictures = rng.random(rng.integers(1, 9)) < 0.7, int(rng.integers(1, 10))
        covered = {t for begin, end in episode_spans(good, pictures) for t in range(begin + 1, end + 1)}
        assert covered == {t + 1 for t in np.flatnonzero(good) if t + 1 < pictures}


def test_pictures_have_the_size_that_was_asked_for(tmp_path):
    pair = make_pair(tmp_path, size=(90, 160))
    for size in ((90, 160), (36, 64), (17, 31), (180, 320)):
        rows = rows_of(pair, VPTConfig(image_size=size))
        assert rows[5].image.shape == (*size, 3) and abs(rows[5].image.mean() - shade(5)) < 4


def test_the_arrow_is_drawn_in_menus_only(tmp_path):
    lines = [line(t, isGuiOpen=t in (3, 4, 5, 6)) for t in range(12)]
    for t, (x, y) in {3: (320.0, 180.0), 4: (-50.0, 10.0), 5: (1_275.0, 715.0)}.items():
        lines[t]["mouse"] |= {"x": x, "y": y}
    config = VPTConfig(image_size=(360, 640))
    pair = make_pair(tmp_path, size=(360, 640), lines=lines)
    drawn, bare = rows_of(pair, config), rows_of(pair, config.change(cursor=False))
    changed = [np.argwhere((a.image != b.image).any(-1)) for a, b in zip(drawn, bare, strict=True)]
    assert [t for t, places in enumerate(changed) if len(places)] == [3, 5, 6]  # at 4 it is outside
    assert changed[3].min(0).tolist() == [90, 160] and (changed[3].max(0) - changed[3].min(0) <= 16).all()
    assert changed[5].min(0).tolist() == [357, 637] and changed[5].max(0).tolist() == [359, 638]  # cut off at the edge
    assert drawn[3].image[96:100, 162].min() == 255 and drawn[3].image[90, 160].max() == 0


def test_a_film_is_read_as_it_is_used(tmp_path, monkeypatch):
    pair, decoded = make_pair(tmp_path, pictures=200, lines=[line()] * 200), []
    pictures = vpt._pictures
    monkeypatch.setattr(vpt, "_pictures", lambda *given: (decoded.append(0) or image for image in pictures(*given)))
    rows = vpt_rows(*pair)
    assert [row.tick for row, _ in islice(rows, 10)] == [*range(10)] and len(decoded) == 10
    rows.close()


# Counts


def test_counts_begin_with_the_first_row(tmp_path):
    stats = [{}, {}, {LOG: 40, WALK: 5}, {LOG: 40}, {LOG: 41}, {LOG: 41}, {LOG: 41, LOG.replace("oak", "birch"): 2}]
    stats += [stats[-1]] * 5
    lines = [line(t, stats=told) for t, told in enumerate(stats)]
    rows = rows_of(make_pair(tmp_path, lines=lines), VPTConfig(rewards={"mine_log": 0.5}))
    assert [row.probes["mine_log"] for row in rows] == [0, 0, 0, 0, 1, 1, 3, 3, 3, 3, 3, 3]
    assert [row.reward for row in rows] == [0, 0, 0, 0, 0.5, 0, 1.0, 0, 0, 0, 0, 0] == [row.terms["mine_log"] for row in rows]
    assert not any(row.probes["mine_coal"] for row in rows)
    cut = [*lines[:5], "{", *lines[6:]]
    rows = rows_of(make_pair(tmp_path, "cut", lines=cut), VPTConfig(rewards={"mine_log": 0.5}))
    assert [row.probes["mine_log"] for row in rows] == [0, 0, 0, 0, 1, 1, *[0] * 6]  # a new episode counts anew
    assert sum(row.reward for row in rows) == 0.5


def test_other_counts_and_lines_without_any(tmp_path):
    config = VPTConfig(counts={"far": ("*walk_one_cm", "*swim_one_cm")}, rewards={"far": 0.01})
    rows = rows_of(make_pair(tmp_path), config)
    assert [row.probes["far"] for row in rows] == [*range(12)] and config.schema().probes == {"gui": "bool", "far": "int64"}
    lines = [{name: value for name, value in line(t).items() if name != "stats"} for t in range(12)]
    assert not any(row.probes["far"] for row in rows_of(make_pair(tmp_path, "none", lines=lines), config))
    lines = [line(t, stats={WALK: "far", LOG: None}) for t in range(12)]
    assert not any(row.probes["far"] for row in rows_of(make_pair(tmp_path, "odd", lines=lines), config))


def test_tasks_of_minecraft_are_found(tmp_path):
    stats = [{name: 0} | {"minecraft.craft_item:minecraft.stick": 4} for name in [LOG] * 12]
    for t in range(6, 12):
        stats[t] = {LOG: 1, "minecraft.craft_item:minecraft.stick": 4 + 4 * (t >= 9)}
    make_pair(tmp_path / "in", lines=[line(t, stats=told) for t, told in enumerate(stats)])
    import_vpt(tmp_path / "in", tmp_path / "store")
    tasks, cache = TaskSet.load("minecraft"), Cache.build(Store.open(tmp_path / "store"))
    done = tasks.done(cache)
    names = list(tasks.tasks)
    assert [(names[task], row) for row, task in np.argwhere(done)] == [("mine_log", 6), ("craft_stick", 9)]
    reached = tasks.reached(cache).iloc[0]
    assert reached["milestones/log"] == 6 and reached["milestones/stick"] == 9 and np.isnan(reached["milestones/diamond"])


# Sound


@pytest.mark.parametrize(("rate", "channels"), [(48_000, 2), (16_000, 1), (22_050, 2)])
def test_sound_is_cut_where_steps_end(tmp_path, rate, channels):
    rows = rows_of(make_pair(tmp_path, sound=True), VPTConfig(sample_rate=rate, channels=channels))
    edges = [round(t * rate / 20) for t in range(12)]
    assert [row.sample for row in rows] == edges and rows[0].audio.shape == (channels, 0)
    assert all(row.audio.shape == (channels, b - a) for row, a, b in zip(rows[1:], edges, edges[1:], strict=False))
    loud = [np.abs(row.audio.astype(float)).mean() if row.audio.size else 0.0 for row in rows]
    assert [t for t, level in enumerate(loud) if level > 2_000] == [1, 5, 9]  # the click of step t is heard on the way to t + 1
    assert max(level for t, level in enumerate(loud) if t not in (1, 5, 9)) < 200


def test_sound_begins_anew_after_a_cut(tmp_path):
    lines = [*random_lines(12)[:4], "{", "{", *random_lines(12)[6:]]
    rows = rows_of(make_pair(tmp_path, sound=True, lines=lines), VPTConfig(sample_rate=16_000, channels=1))
    assert [row.audio.shape[1] for row in rows] == [0, 800, 800, 800, 800, 0, 800, 800, 800, 800, 800]
    assert [row.sample for row in rows] == [0, 800, 1_600, 2_400, 3_200, 0, 800, 1_600, 2_400, 3_200, 4_000]
    loud = [bool(row.audio.size) and np.abs(row.audio.astype(float)).mean() > 2_000 for row in rows]
    assert np.flatnonzero(loud).tolist() == [1, 8]  # steps 0 and 8; step 4 is in no row


@pytest.mark.parametrize("start", [-0.1, -0.05, 0.05])
def test_sound_that_begins_apart_from_the_pictures_stays_in_time(tmp_path, start):
    "Seen from a first picture at another time, the same clicks come earlier or later by as much."
    film, _ = make_pair(tmp_path, sound=True)

    def heard(begin: float) -> np.ndarray:
        with FilmSound(film, 16_000, 1, begin) as sound:
            return np.concatenate([sound.take(800 * t) for t in range(1, 9)], axis=1)[0].astype(float)

    plain, moved, by = heard(0.0), heard(start), round(16_000 * start)
    one, other = (plain[by:], moved[: len(plain) - by]) if by > 0 else (plain[:by], moved[-by:])
    assert np.abs(one).max() > 5_000 and np.abs(one - other).max() <= 1


def test_a_silent_film_can_not_sound(tmp_path):
    with pytest.raises(StoreError, match=r"a\.mp4 has no sound.*sample_rate=0"):
        rows_of(make_pair(tmp_path), VPTConfig(sample_rate=16_000))
    assert rows_of(make_pair(tmp_path, "loud", sound=True))[3].audio.shape == (0, 0)  # nobody asked


# Faults


def test_faults_are_one_line_each(tmp_path):
    film, lines = make_pair(tmp_path, pictures=40, lines=[line()] * 40)
    content = film.read_bytes()
    cases = {
        "cut short, it has .* of 40 pictures": content[: int(len(content) * 0.6)],
        "can't be read as a film": content[:30],
        "can't be read as a film .*fetch": b"not a film at all" * 50,
        "can't be read": b"",
    }
    for said, damaged in cases.items():
        film.write_bytes(damaged)
        with pytest.raises(StoreError, match=said) as error:
            rows_of((film, lines))
        assert str(film) in str(error.value) and "\n" not in str(error.value)
    film.unlink()
    with pytest.raises(StoreError, match="can't be read as a film"):
        rows_of((film, lines))
    with pytest.raises(StoreError, match="can't read .*missing.jsonl"):
        rows_of((film, tmp_path / "missing.jsonl"))


def test_damage_within_a_film_is_found_or_decoded(tmp_path):
    "Noise in the middle of a file either still decodes to as many pictures, or is an error of ours."
    film, lines = make_pair(tmp_path, pictures=40, lines=[line()] * 40)
    content = bytearray(film.read_bytes())
    middle = content.index(b"mdat") + 200
    content[middle : middle + 400] = bytes(np.random.default_rng(0).integers(0, 256, 400, np.uint8))
    film.write_bytes(content)
    try:
        assert len(rows_of((film, lines))) == 40
    except StoreError as error:
        assert "damaged" in str(error)


def test_a_decoder_that_gives_up_is_told(tmp_path, monkeypatch):
    pair = make_pair(tmp_path)

    def some(*given: Any):
        yield from islice(pictures(*given), 7)

    def failing(*given: Any):
        yield from some(*given)
        raise av.error.InvalidDataError(1, "broken bits")

    pictures = vpt._pictures
    for stand_in, said in ((some, "only 7 of 12 pictures"), (failing, "after picture 6")):
        monkeypatch.setattr(vpt, "_pictures", stand_in)
        with pytest.raises(StoreError, match=said):
            rows_of(pair)


def test_lengths_must_nearly_agree(tmp_path):
    for count in (6, 18):
        with pytest.raises(StoreError, match=f"12 pictures and {count} lines, they may differ by 5"):
            rows_of(make_pair(tmp_path, f"{count}", lines=[line()] * count))
        assert rows_of((tmp_path / f"{count}.mp4", tmp_path / f"{count}.jsonl"), VPTConfig(slack=6))


def test_films_without_pictures_or_of_another_rate(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        audio = file.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1_024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        file.mux(audio.encode(frame))
        file.mux(audio.encode(None))
    (tmp_path / "sound.jsonl").write_text(json.dumps(line()))
    with pytest.raises(StoreError, match="has no pictures"):
        rows_of((tmp_path / "sound.mp4", tmp_path / "sound.jsonl"))
    with pytest.raises(StoreError, match=r"has 30\.0 pictures a second, a recording of VPT has 20"):
        rows_of(make_pair(tmp_path, "fast", rate=30))


def test_bad_settings_are_named():
    for changes in ({"image_size": (0, 4)}, {"channels": 3}, {"slack": -1}, {"sample_rate": -1}):
        with pytest.raises(UsageError, match="VPTConfig"):
            VPTConfig(**changes)
    with pytest.raises(UsageError, match="did you mean 'mine_log'"):
        VPTConfig(rewards={"mine_logs": 1.0})
    with pytest.raises(UsageError, match="camera.*did you mean 'axes'"):
        VPTConfig.from_dict({"camera": "axis"})


# A folder


def test_a_folder_becomes_a_store(tmp_path):
    lines = {name: random_lines(12, seed) for seed, name in enumerate(("8.0/b", "8.0/a", "9.0/c"))}
    pairs = {name: make_pair(tmp_path / "in", name, lines=said) for name, said in lines.items()}
    (tmp_path / "in" / "8.0" / "a-options.json").write_text("{}")
    report = import_vpt(tmp_path / "in", tmp_path / "store")
    assert report.index.tolist() == ["8.0/a", "8.0/b", "9.0/c"] and (report["rows"] == 12).all() and (report.fault == "").all()
    store = Store.open(tmp_path / "store")
    assert not store.verify() and [episode.about["source"] for episode in store.episodes] == report.index.tolist()
    for episode in store.episodes:
        steps, rows = store.read(episode), rows_of(pairs[episode.about["source"]])
        assert episode.end == "truncated" and (steps.image == np.stack([row.image for row in rows])).all()
        assert (steps.action == np.stack([row.action for row in rows])).all() and steps.action.dtype == np.uint8
    assert sorted(path.name for path in (tmp_path / "store").iterdir() if path.name[0] != ".") == [
        "README.md", "data", "manifest.jsonl", "store.json", "store.json.copy",
    ]  # fmt: skip


def test_caches_sequences_and_datasets_work(tmp_path):
    for seed, name in enumerate("ab"):
        make_pair(tmp_path / "in", name, lines=random_lines(12, seed), sound=True)
    import_vpt(tmp_path / "in", tmp_path / "store", VPTConfig(sample_rate=16_000, rewards={"mine_log": 1.0}))
    store = Store.open(tmp_path / "store")
    cache = Cache.build(store)
    sequences = Sequences(cache, 6)
    assert len(sequences) == 14
    batch = cache.gather(sequences.spans(np.arange(14))).torch()
    assert batch.image.shape == (14, 6, 64, 64, 3) and batch.action.shape == (14, 6, 24) and batch.audio.shape == (14, 2, 4_800)
    vectors = cache.schema.actions.vectors(batch.action)
    assert vectors.shape == (14, 6, 144) and (vectors[..., 23:].sum(-1) == 1).all()
    rows = to_dataset(store, cache=tmp_path / "cache").with_format("numpy")
    assert len(rows) == 24 and (np.stack(rows["action"][:12]) == store.read(store.episodes[0]).action).all()


def test_the_report_tells_what_was_found(tmp_path):
    lines: list = random_lines(12)
    lines[0]["mouse"] |= {"buttons": [0], "newButtons": [0]}
    lines[1]["mouse"] |= {"buttons": [0], "newButtons": []}
    lines[7] = "{"
    lines[9]["keyboard"]["keys"].append("key.keyboard.f5")
    lines[2]["mouse"] |= {"newButtons": [0]}
    make_pair(tmp_path / "in", "good", lines=lines)
    make_pair(tmp_path / "in", "longer", lines=[line()] * 30)
    (tmp_path / "in" / "half.mp4").write_bytes((tmp_path / "in" / "good.mp4").read_bytes()[:900])
    (tmp_path / "in" / "half.jsonl").write_text((tmp_path / "in" / "good.jsonl").read_text())
    (tmp_path / "in" / "alone.jsonl").write_text("{}")
    (tmp_path / "in" / "mute.mp4").write_bytes((tmp_path / "in" / "good.mp4").read_bytes())
    report = import_vpt(tmp_path / "in", tmp_path / "store")
    good = report.loc["good"]
    assert good[["episodes", "rows", "pictures", "lines", "broken", "stuck"]].tolist() == [2, 12, 12, 12, 1, 2]
    assert good["unknown"] == {"key.keyboard.f5": 1} and good["fault"] == ""
    said = {"longer": "12 pictures and 30 lines", "half": "half.mp4", "alone": "alone.mp4 is missing", "mute": "mute.jsonl is"}
    assert all(text in report.loc[name, "fault"] for name, text in said.items())
    assert [episode.about["source"] for episode in Store.open(tmp_path / "store").episodes] == ["good", "good"]
    with pytest.raises(StoreError, match="alone.mp4 is missing"):
        import_vpt(tmp_path / "in", tmp_path / "store", strict=True)


def test_nothing_to_convert_is_an_error(tmp_path):
    with pytest.raises(FolderError, match="has no pairs"):
        import_vpt(tmp_path / "nowhere", tmp_path / "store")
    make_pair(tmp_path / "in")[1].unlink()
    with pytest.raises(StoreError, match="a.jsonl is missing"):
        import_vpt(tmp_path / "in", tmp_path / "store")


def test_pairs_are_converted_once_and_faults_are_tried_again(tmp_path, monkeypatch):
    make_pair(tmp_path / "in", "a", lines=random_lines(12))
    make_pair(tmp_path / "in", "b", lines=random_lines(12, 1))
    held_back = (tmp_path / "in" / "b.jsonl").read_text()
    (tmp_path / "in" / "b.jsonl").unlink()
    read = []
    rows = vpt.vpt_rows
    monkeypatch.setattr(vpt, "vpt_rows", lambda film, *rest: read.append(film.stem) or rows(film, *rest))
    first = import_vpt(tmp_path / "in", tmp_path / "store")
    (tmp_path / "in" / "b.jsonl").write_text(held_back)
    second = import_vpt(tmp_path / "in", tmp_path / "store")
    third = import_vpt(tmp_path / "in", tmp_path / "store")
    assert read == ["a", "b"] and "missing" in first.loc["b", "fault"]
    assert second["rows"].tolist() == [12, 12] and third.equals(second)
    with pytest.raises(StoreError, match="holds other rows.*image_shape"):
        import_vpt(tmp_path / "in", tmp_path / "store", VPTConfig(image_size=(32, 32)))


@pytest.mark.parametrize("after", [3, 20])
def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch, after):
    for seed, name in enumerate("abc"):
        make_pair(tmp_path / "in", name, lines=random_lines(12, seed))
    import_vpt(tmp_path / "in", tmp_path / "whole", chunk_steps=5)
    count, rows = 0, vpt.vpt_rows

    def interrupted(*given: Any):
        nonlocal count
        for row in rows(*given):
            count += 1
            if count > after:
                raise KeyboardInterrupt
            yield row

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(vpt, "vpt_rows", interrupted)
        import_vpt(tmp_path / "in", tmp_path / "store", chunk_steps=5)
    kept = Store.open(tmp_path / "store")
    assert len(kept) == after // 12 * 12  # whole pairs, nothing of the one in progress
    import_vpt(tmp_path / "in", tmp_path / "store", chunk_steps=5)
    assert same(Store.open(tmp_path / "whole"), Store.open(tmp_path / "store"))


@pytest.mark.parametrize("published", [0, 1, 2, 3])
def test_a_move_that_was_interrupted_is_finished(tmp_path, monkeypatch, published):
    "Killed between two of a pair's chunks, or after the last one: nothing is lost, and nothing twice."
    for seed, name in enumerate("ab"):
        make_pair(tmp_path / "in", name, lines=random_lines(12, seed))
    import_vpt(tmp_path / "in", tmp_path / "whole", chunk_steps=5)  # three chunks a pair

    def killed(writer: Any, incoming: Path) -> None:
        for file in sorted(incoming.glob("*.arrow"))[:published]:
            writer.add_chunk(file.read_bytes())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(films, "publish", killed)
        import_vpt(tmp_path / "in", tmp_path / "store", chunk_steps=5)
    part = temporary(tmp_path / "store")
    part.mkdir()  # as a kill in the middle of a pair leaves it
    (part / "000000004.arrow").write_bytes(b"half")
    report = import_vpt(tmp_path / "in", tmp_path / "store", chunk_steps=5)
    store = Store.open(tmp_path / "store")
    assert report["rows"].tolist() == [12, 12] and not store.verify()
    assert same(Store.open(tmp_path / "whole"), store)
