"""Every Atari cartridge of the package: the size of its picture, the clock of its television, its sound, or one line"""

import numpy as np
import pytest
from ale_py import ALEInterface, roms

from metabonk.core.errors import UsageError
from metabonk.play.game import Game, OutOfSync, make_game

TWO_PLAYERS = {"combat", "joust", "maze_craze", "warlords"}
HEIGHTS = {"carnival": 214, "pooyan": 220, "journey_escape": 230}  # NTSC pictures that are not 210 lines high
PAL = {
    "adventure", "air_raid", "keystone_kapers", "king_kong", "klax", "laser_gates", "mr_do", "pacman", "sir_lancelot",
    "space_war",
}  # fmt: skip


def check_television(game: Game, name: str) -> None:
    """Picture, clock and rate are those of the cartridge's television, to the frame and to the sample."""
    height, frames = (250, 50) if name in PAL else (HEIGHTS.get(name, 210), 60)
    observation, info = game.reset(seed=1)
    assert game.machine.picture().shape == (height, 160, 3) == game.render().shape
    assert observation["image"].shape == (64, 64, 3)
    assert (game.clock_rate, game.sample_rate) == (frames, 512 * frames)
    for _ in range(3):
        observation, *_, info = game.step(game.action_space.n - 1)
        assert observation["audio"].shape == (1, 4 * 512)
    seconds = info["clock"]["ticks"] / game.clock_rate
    assert seconds == info["clock"]["samples"] / game.sample_rate == 16 / frames  # `reset` runs a step, too


@pytest.mark.parametrize("name", sorted(roms.get_all_rom_ids()))
def test_every_cartridge_of_the_package(name: str) -> None:
    if name in TWO_PLAYERS:
        with pytest.raises(UsageError, match=f"atari:{name} has no rules for one player"):
            make_game(f"atari:{name}")
        return
    game = make_game(f"atari:{name}", noops=0)
    check_television(game, name)


def test_a_clock_of_sixty_hertz_on_a_european_cartridge_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    game = make_game("atari:adventure", noops=0)
    monkeypatch.setattr(game, "clock_rate", 60)
    with pytest.raises(OutOfSync, match="from what the machine"):
        check_television(game, "adventure")


def test_a_rate_that_is_not_the_cartridges() -> None:
    with pytest.raises(UsageError, match="adventure sounds at 25600 Hz, not at 30720"):
        make_game("atari:adventure", sample_rate=30_720)
    assert make_game("atari:adventure", sample_rate=25_600).sample_rate == 25_600


def test_a_silent_cartridge_keeps_its_clock() -> None:
    game = make_game("atari:adventure", sample_rate=0, noops=0)
    game.reset(seed=0)
    observation, *_, info = game.step(0)
    assert observation["audio"].shape == (1, 0) and info["clock"] == {"ticks": 4, "samples": 0}
    assert game.clock_rate == 50 and not np.any(observation["audio"])


def test_those_that_the_emulator_does_not_know_are_the_ones_refused() -> None:
    assert {name for name in roms.get_all_rom_ids() if not ALEInterface.isSupportedROM(roms.get_rom_path(name))} == TWO_PLAYERS
