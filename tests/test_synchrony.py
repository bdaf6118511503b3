"""Sound and picture of every machine against the emulator itself"""

import numpy as np
import pytest
from test_games import BEEP

from metabonk.core.errors import SilentSound
from metabonk.play import gameboy_files, synchrony
from metabonk.play.game import OutOfSync, make_game

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    "name,config",
    [
        ("bonk", {}),
        ("bonk", {"ticks_per_step": 1, "sample_rate": 44_100, "music": 2, "decoys": 60, "chargers": 2}),
        ("bonk", {"ticks_per_step": 7, "sample_rate": 22_050, "image_size": None, "start_screen": 0}),
        ("atari:ms_pacman", {}),
        ("atari:asterix", {"ticks_per_step": 3, "noops": 0}),
        ("doom:defend_the_center", {}),
        ("doom:basic", {"sample_rate": 44_100, "ticks_per_step": 2}),
    ],
)
@pytest.mark.parametrize("seed", [0, 7])
def test_chunks_joined_are_the_emulators_own_stream(name, config, seed):
    proof = synchrony.prove(name, steps=50, seed=seed, **config)
    assert proof.repeats and proof.clock_error < 1 and proof.samples > 10_000


def test_a_cartridge_that_switches_its_screen(tmp_path):
    path = tmp_path / "beep.gb"
    path.write_bytes(gameboy_files.tiny_rom(BEEP, "BEEP"))
    proof = synchrony.prove(f"gameboy:{path}", steps=30, ticks_per_step=1)
    assert proof.clock_error < 1


@pytest.fixture(scope="module")
def pair():
    game = make_game("bonk")
    actions = np.random.default_rng(1).integers(len(game.action_names), size=30).tolist()
    yield synchrony.take(game, actions), synchrony.raw_gameboy(game, actions)
    game.close()


def test_every_kind_of_damage_is_caught(pair):
    kept, stream = pair
    audio = kept.audio
    assert synchrony.check_stream(kept, stream) == stream.shape[1]
    one_sample = audio[12].copy()
    one_sample[1, 500] += 512
    damaged = {
        "dropped": audio[:12] + audio[13:],
        "last dropped": audio[:-1],
        "doubled": audio[:12] + audio[11:],
        "swapped": [*audio[:12], audio[13], audio[12], *audio[14:]],
        "a sample short": [*audio[:12], audio[12][:, 1:], *audio[13:]],
        "one value changed": [*audio[:12], one_sample, *audio[13:]],
        "channels swapped": [*audio[:12], audio[12][::-1], *audio[13:]],
    }
    for kind, wrong in damaged.items():
        if kind == "channels swapped" and (audio[12][0] == audio[12][1]).all():
            continue
        with pytest.raises(OutOfSync, match="step"):
            synchrony.check_stream(kept._replace(audio=wrong), stream, kind)


def test_silence_proves_nothing(pair):
    kept, stream = pair
    quiet = kept._replace(audio=[np.zeros_like(chunk) for chunk in kept.audio])
    with pytest.raises(SilentSound, match="nothing"):
        synchrony.check_stream(quiet, np.zeros_like(stream))


@pytest.mark.parametrize(
    "name,action,config,tick",
    [
        ("bonk", "a", {"music": 0, "ticks": 10}, 1000 * 70_224 / 4_194_304),
        ("atari:space_invaders", "fire", {"noops": 0, "before": 150, "ticks": 8}, 1000 / 60),
        ("doom:defend_the_center", "attack", {"ticks": 10}, 1000 / 35),
    ],
)
def test_an_event_is_seen_and_heard_in_the_same_tick(name, action, config, tick):
    found = synchrony.offset(name, action, **config)
    assert found.seen <= 5.01 * tick
    assert -1.1 * tick <= found.sound_after_picture <= 0  # the picture stands for the end of its tick, the sound fills it


def test_an_event_in_the_cartridge_is_heard_at_once(tmp_path):
    path = tmp_path / "beep.gb"
    path.write_bytes(gameboy_files.tiny_rom(BEEP, "BEEP"))
    found = synchrony.offset(f"gameboy:{path}", "a", ticks=5)
    assert 0 <= found.heard < 1 and found.seen <= 34


def test_the_reason_why_atari_is_rebuilt():
    "After a second reset the emulator's picture is the same and its sound is not: `start` must load the cartridge again"
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setBool("sound_obs", True)
    ale.setFloat("repeat_action_probability", 0.0)

    def play():
        rng, actions = np.random.default_rng(0), ale.getMinimalActionSet()
        sounds, memories = [], []
        for _ in range(400):
            ale.act(actions[rng.integers(len(actions))])
            sounds.append(ale.getAudio().copy())
            memories.append(ale.getRAM().copy())
        return np.concatenate(sounds), np.stack(memories)

    ale.loadROM(roms.get_rom_path("pong"))
    first = play()
    ale.reset_game()
    again = play()
    ale.loadROM(roms.get_rom_path("pong"))
    rebuilt = play()
    assert (first[1] == again[1]).all() and not (first[0] == again[0]).all()
    assert (first[1] == rebuilt[1]).all() and (first[0] == rebuilt[0]).all()
