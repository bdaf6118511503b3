"""Keys and a mouse: what a class turns, what a person's mouse becomes, and that it is recorded, learned and played."""

from pathlib import Path

import numpy as np
import pytest
import torch

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.core.actions import ActionSpec, camera_classes, camera_degrees
from metabonk.core.errors import UsageError
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.dynamics import DynamicsConfig, ShortcutModel
from metabonk.play.game import make_game
from metabonk.play.keyboard import MOUSE_DEGREES, Keyboard
from metabonk.play.page import read_message
from metabonk.record.recorder import record
from metabonk.record.store import Store

pytest.importorskip("vizdoom")
DOOM = {"mouse": 20.0, "sample_rate": 0, "image_size": (24, 32)}


def test_the_camera_is_fine_in_the_middle() -> None:
    every = np.stack(np.meshgrid(np.arange(11), np.arange(11), indexing="ij"), -1).reshape(-1, 2)
    angles = camera_degrees(every)
    assert (camera_classes(angles) == every).all() and (angles[60] == 0).all() and angles.max() == pytest.approx(10)
    steps = np.diff(angles[55:66, 1])
    assert steps[5] < steps[9] / 3
    assert camera_classes(np.array([-90.0, 90.0])).tolist() == [0, 10]
    assert camera_degrees(np.array([10, 0]), limit=20).tolist() == pytest.approx([20, -20])


def views(*cameras: int, ticks: int = 4) -> list[np.ndarray]:
    """What is seen in a silent maze after each turn."""
    with make_game("doom:my_way_home", ticks_per_step=ticks, **DOOM) as game:
        seen = [game.reset(seed=1)[0]["image"]]
        for camera in cameras:
            action = np.array([0] * len(game.key_names) + [camera])
            seen.append(game.step(action)[0]["image"])
    return seen


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """Mean distance of two pictures, of 255."""
    return float(np.abs(one.astype(int) - other).mean())


def test_what_is_turned_can_be_turned_back_and_the_axes_are_told_apart() -> None:
    begin, right, back, up, level, down = views(65, 55, 5, 115, 115)
    assert apart(begin, back) < 1 and apart(begin, level) < 1, "but for the engine's rounding"
    assert all(apart(begin, seen) > 5 for seen in (right, up, down)) and apart(up, down) > 5
    assert apart(views(64)[1], right) > 5, "a smaller class turns less"


def test_a_turn_is_that_of_the_step_however_many_tics_it_has() -> None:
    once, spread = views(65, ticks=1)[1], views(65, ticks=10)[1]
    assert apart(once, spread) < 1
    assert apart(once, views(55, ticks=10)[1]) > 5, "the control: the other way"


def test_keys_that_turn_are_left_out_and_bad_settings_say_so() -> None:
    with make_game("doom:defend_the_center", **DOOM) as game:
        assert game.key_names == ("attack",) and ActionSpec.of(game.action_space) == ActionSpec(binary=1, categorical=(121,))
        game.reset(seed=0)
        with pytest.raises(UsageError, match="action"):
            game.step(np.array([0, 121]))
    wrongs = (({"mouse": 200}, "180"), ({"mouse": -1}, "180"), ({"mouse": 5, "actions": ("noop",)}, "leave actions out"))
    for wrong, said in wrongs:
        with pytest.raises(UsageError, match=said):
            make_game("doom:basic", **wrong)


def person() -> Keyboard:
    with make_game("doom:my_way_home", **DOOM) as game:
        return Keyboard(game)


def turned(keyboard: Keyboard, right: int, down: int, steps: int) -> np.ndarray:
    """Degrees down and right by which the game turns, all in all."""
    total = np.zeros(2)
    for _ in range(steps):
        keyboard.screen.receive({"kind": "mouse", "right": right, "down": down})
        total += camera_degrees(np.array(divmod(int(keyboard(None, {})[-1]), 11)), 20.0)
    return total


@pytest.mark.parametrize(("right", "down", "left"), [(1, 0, 1.3), (-3, 2, 1.3), (40, -25, 4.0)])
def test_slow_movements_add_up(right: int, down: int, left: float) -> None:
    total = turned(person(), right, down, 60)
    np.testing.assert_allclose(total, 60 * MOUSE_DEGREES * np.array([down, right]), atol=left)  # less than one class


def test_a_hand_that_rests_turns_nothing() -> None:
    """What was left never turns back and forth."""
    keyboard = person()
    for right in (60, 17, -33):
        ways = [turned(keyboard, right, 0, 1)[1], *(turned(keyboard, 0, 0, 1)[1] for _ in range(20))]
        moved = [float(np.sign(way)) for way in ways if way]
        assert set(moved) == {np.sign(right)} and abs(sum(ways)) <= abs(right) * MOUSE_DEGREES + 1.3 and not any(ways[6:])


def test_without_what_is_left_slow_movements_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a person's mouse that forgets what a class did not say."""
    turn = Keyboard._turn

    def forgetful(self: Keyboard) -> int:
        taken = turn(self)
        self.screen.turned[:] = 0
        return taken

    monkeypatch.setattr(Keyboard, "_turn", forgetful)
    assert (turned(person(), 1, 0, 60) == 0).all()


def test_all_keys_that_are_held_count_and_a_flick_turns_no_further_than_it_may() -> None:
    keyboard = person()
    keyboard.press("KeyW")
    keyboard.press("KeyA")
    keyboard.screen.receive({"kind": "mouse", "right": 100_000, "down": 0})
    assert keyboard(None, {}).tolist() == [1, 1, 0, 5 * 11 + 10]
    keyboard.release()
    assert keyboard(None, {}).tolist() == [0, 0, 0, 60], "what was beyond the limit is not made up for later"
    assert "mouse" in keyboard.screen.legend and keyboard.screen.mouse
    with make_game("bonk") as game:
        assert not Keyboard(game).screen.mouse


def test_a_page_tells_movements_within_reason() -> None:
    assert read_message('{"kind": "mouse", "right": -3, "down": 4}')["right"] == -3
    for bad in ('{"kind": "mouse", "right": 1.5, "down": 0}', f'{{"kind": "mouse", "right": 1{"0" * 60}, "down": 0}}',
                '{"kind": "mouse", "right": 1}', '{"kind": "seen", "number": -1, "scheduled": 0, "gaps": 0}'):  # fmt: skip
        with pytest.raises(UsageError):
            read_message(bad)


def test_it_is_recorded_and_an_agent_plays_it(tmp_path: Path) -> None:
    record("doom:my_way_home", tmp_path / "s", "random", steps=60, seed=0, settings={**DOOM, "max_steps": 30})
    store = Store.open(tmp_path / "s")
    action = np.concatenate([store.read(episode).action for episode in store.episodes])
    assert action.shape[1] == 4 and set(np.unique(action[:, :3])) == {0, 1} and len(np.unique(action[:, 3])) > 20
    torch.manual_seed(0)
    tiny = {"width": 8, "layers": 2, "heads": 2, "time_every": 2}
    eyes = CausalTokenizer(CausalTokenizerConfig(size=(24, 32), patch=8, latents=2, bottleneck=2, context=2, **tiny)).eval()
    config = DynamicsConfig(**tiny, context=2, kv_heads=1, registers=1, units=8)
    model = ShortcutModel(eyes, store.schema.actions, config, game=store.schema.game).eval()
    agent = Agent(model, ActorCritic(ActorCriticConfig(layers=1, units=8), model.feature_size, store.schema.actions))
    played = play_episodes(agent, "doom:my_way_home", 2, 0, 2, {**DOOM, "max_steps": 10})
    assert played["length"].tolist() == [10, 10]
