"""Policies for recording: deterministic under their seed, distributed as they say, one clear line per mistake"""

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from metabonk.core.errors import UsageError
from metabonk.play.game import make_game
from metabonk.play.policies import RandomPolicy, RulePolicy, ScriptedPolicy, StickyRandomPolicy, make_policy

NAMES = ["noop", "left", "right", "a"]


class Pad(gym.Env[Any, Any]):
    "The part of a game that policies look at"

    action_space: gym.Space[Any] = gym.spaces.Discrete(4)
    action_names, name = NAMES, "pad"


def play(policy: Any, seed: int, steps: int = 200) -> list[Any]:
    policy.reset(seed)
    return [policy(None, {"probes": {"x": step % 7}}) for step in range(steps)]


def rules(trust: float) -> RulePolicy:
    return RulePolicy([(lambda p: p["x"] > 3, "a")], StickyRandomPolicy(Pad.action_space), NAMES, trust)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomPolicy(Pad.action_space),
        lambda: StickyRandomPolicy(Pad.action_space),
        lambda: RandomPolicy(gym.spaces.Box(-1, 1, (3,), np.float32)),
        lambda: rules(0.5),
    ],
)
def test_a_seed_decides_everything(make: Any) -> None:
    one, two = make(), make()
    first = play(one, 5)
    np.testing.assert_array_equal(first, play(two, 5))
    np.testing.assert_array_equal(first, play(one, 5))
    assert not np.array_equal(first, play(two, 6))


def test_random_takes_every_action_and_leaves_the_game_alone() -> None:
    space = gym.spaces.Discrete(4, seed=1)
    expected = gym.spaces.Discrete(4, seed=1).sample()
    counts = np.bincount(play(RandomPolicy(space), 0, 4000))
    assert len(counts) == 4 and counts.min() > 850
    assert space.sample() == expected


@pytest.mark.parametrize("mean", [1.0, 4.0, 20.0])
def test_sticky_random_holds_as_long_as_it_says(mean: float) -> None:
    actions = play(StickyRandomPolicy(gym.spaces.Discrete(1000), mean), 0, 20_000)  # neighbours hardly ever the same by chance
    holds = 1 + np.count_nonzero(np.diff(actions))
    assert abs(20_000 / holds / mean - 1) < 0.1


def test_scripts() -> None:
    assert play(ScriptedPolicy("right 2, a,noop 1", NAMES), 0, 6) == [2, 2, 3, 0, 0, 0]
    assert play(ScriptedPolicy("right 2, a", NAMES, loop=True), 0, 7) == [2, 2, 3, 2, 2, 3, 2]
    assert play(ScriptedPolicy(["right", 1, 3], NAMES, after="left"), 0, 5) == [2, 1, 3, 1, 1]
    policy = ScriptedPolicy("a 2", NAMES)
    seen = []
    for _ in range(3):
        seen.append(policy.over)
        policy(None, {})
    assert seen == [False, False, True]


def test_rules_are_asked_in_order() -> None:
    otherwise = ScriptedPolicy("noop", NAMES)
    policy = RulePolicy([(lambda p: p["x"] > 5, "a"), (lambda p: p["x"] > 3, "left")], otherwise, NAMES)
    assert play(policy, 0, 7) == [0, 0, 0, 0, 1, 1, 3]
    followed = np.mean([action == 3 for step, action in enumerate(play(rules(0.5), 0, 7000)) if step % 7 > 3])
    assert 0.5 < followed < 0.75  # half by trust, and a quarter of the rest by chance


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ScriptedPolicy("rihgt 2", NAMES), "unknown action 'rihgt': did you mean 'right'"),
        (lambda: ScriptedPolicy("right two", NAMES), "'right two' is not an action and a number of steps"),
        (lambda: ScriptedPolicy(" , ", NAMES), "the script is empty"),
        (lambda: ScriptedPolicy("a 0", NAMES), "the script is empty"),
        (lambda: ScriptedPolicy([4], NAMES), "action 4 does not exist: the game has 4"),
        (lambda: ScriptedPolicy("a", NAMES, after="b4"), "unknown action 'b4'"),
        (lambda: StickyRandomPolicy(Pad.action_space, 0.5), "mean_steps is 0.5"),
        (lambda: RulePolicy([(bool, "lefft")], RandomPolicy(Pad.action_space), NAMES), "did you mean 'left'"),
        (lambda: make_policy("stickyrandom", Pad()), "unknown policy 'stickyrandom': did you mean 'sticky_random'"),
    ],
)
def test_a_mistake_is_one_clear_line(make: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["random", "sticky_random", "noop", "script:right 3, a"])
def test_by_name_seeded_and_picklable(name: str) -> None:
    policy = make_policy(name, Pad(), seed=4)
    other = pickle.loads(pickle.dumps(policy))
    first = [policy(None, {}) for _ in range(50)]
    assert first == [other(None, {}) for _ in range(50)] == play(make_policy(name, Pad()), 4, 50)
    assert all(type(action) is int for action in first)


def test_a_game_without_named_actions_has_no_script() -> None:
    pad = Pad()
    pad.action_names = []
    with pytest.raises(UsageError, match="needs a game with named actions"):
        make_policy("script:a", pad)


def test_the_wanderer_does_in_one_place_now_this_and_now_that_and_the_champion_does_not() -> None:
    doors: dict[str, set[tuple[int, int]]] = {"wanderer": set(), "scripted": set()}
    for name, taken in doors.items():
        for seed in range(2):
            game = make_game("bonk", sample_rate=0, image_size=(8, 8))
            observation, info = game.reset(seed=seed)
            player, before = make_policy(name, game, seed), int(info["probes"]["screen"])
            for _ in range(500):
                observation, _, terminated, _, info = game.step(player(observation, info))
                screen = int(info["probes"]["screen"])
                if screen != before:
                    taken.add((before, screen))
                before = screen
                if terminated:
                    break
            game.close()
    plaza = {there for here, there in doors["wanderer"] if here == 4}
    assert len(plaza) >= 3 and not {0, 6} & {there for _, there in doors["wanderer"]}
    assert len({there for here, there in doors["scripted"] if here == 4}) < len(plaza)
    with pytest.raises(UsageError, match="no wanderer player of 'minatar:breakout', only of BONK"):
        make_policy("wanderer:0.1", make_game("minatar:breakout"))
