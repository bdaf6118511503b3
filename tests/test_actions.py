"""Actions of every Gymnasium space: from the game's own to what is recorded, to what models read, and back"""

import copy
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector.utils import batch_space
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import mutant

from metabonk.core.actions import ActionBox, ActionSpec, FlatActions, as_recorded
from metabonk.core.errors import StoreError, UsageError
from metabonk.play.game import make_game
from metabonk.record.experience import Schema, to_step
from metabonk.record.recorder import record
from metabonk.record.store import Store

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
FLOATS, INTS = (np.float16, np.float32, np.float64), (np.int8, np.uint8, np.int16, np.int32, np.int64)


@st.composite
def boxes(draw):
    shape = draw(shapes)
    dtype = draw(st.sampled_from(FLOATS + INTS))
    count = int(np.prod(shape))
    ends = st.integers(0, 100) if np.dtype(dtype).kind == "u" else st.integers(-100, 100)
    pairs = [sorted(draw(st.tuples(ends, ends))) for _ in range(count)]
    low, high = (np.array(side, np.float64).reshape(shape) for side in zip(*pairs, strict=True))
    if dtype in FLOATS:
        without = st.lists(st.booleans(), min_size=count, max_size=count)
        low = np.where(np.reshape(draw(without), shape), -np.inf, low)
        high = np.where(np.reshape(draw(without), shape), np.inf, high)
    return gym.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)


@st.composite
def multi_discretes(draw):
    nvec = np.array(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    if draw(st.booleans()):
        nvec = np.stack([nvec, nvec])
    start = np.array(draw(st.lists(st.integers(-9, 9), min_size=nvec.size, max_size=nvec.size)))
    return gym.spaces.MultiDiscrete(nvec, start=start.reshape(nvec.shape))


leaves = st.one_of(
    st.builds(lambda n, start: gym.spaces.Discrete(n, start=start), st.integers(1, 6), st.integers(-5, 5)),
    shapes.filter(bool).map(gym.spaces.MultiBinary), multi_discretes(), boxes(),
)  # fmt: skip
spaces = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(gym.spaces.Tuple),
        st.dictionaries(st.text("abc_", min_size=1), inner, min_size=1, max_size=3).map(gym.spaces.Dict),
    ),
    max_leaves=5,
)


def close(space, ours, theirs) -> bool:
    """Equal, but for the rounding of controls."""
    if isinstance(space, gym.spaces.Dict):
        return all(close(part, ours[name], theirs[name]) for name, part in space.spaces.items())
    if isinstance(space, gym.spaces.Tuple):
        return all(map(close, space.spaces, ours, theirs))
    if isinstance(space, gym.spaces.Box) and space.dtype.kind == "f":
        reach = np.where(np.isfinite(space.low) & np.isfinite(space.high), space.high / 2 - space.low / 2, 1 + abs(theirs))
        step = 2 * max(np.finfo(np.float32).eps, np.finfo(space.dtype).eps)
        return bool((abs(ours.astype(float) - theirs) <= step * np.maximum(reach, abs(theirs))).all())
    return bool(np.array_equal(ours, theirs))


def there_and_back(space, seed=0):
    """Own -> recorded -> vectors -> recorded -> own, every step of it checked."""
    flat = FlatActions(space)
    space.seed(seed)
    own = space.sample()
    recorded = flat.flatten(own)
    assert flat.space.contains(np.asarray(recorded)) and np.shape(recorded) == flat.spec.shape
    vectors = flat.spec.vectors(torch.as_tensor(np.asarray(recorded))[None, None])
    assert vectors.shape == (1, 1, flat.spec.size)
    again = flat.spec.recorded(vectors)[0, 0].numpy()
    assert np.allclose(again, recorded, rtol=1e-6)
    back = flat.unflatten(as_recorded(flat.space, np.clip(again, *limits(flat.space))))
    assert space.contains(back) and close(space, back, own), (back, own)


def limits(space):
    """Of a flat space, as arrays."""
    if isinstance(space, gym.spaces.Box):
        return space.low, space.high
    return 0, np.inf


@QUICK
@given(spaces, st.integers(0, 2**31))
def test_every_space_goes_there_and_back(space, seed):
    there_and_back(space, seed)
    flat = FlatActions(space)
    assert ActionSpec.of(flat.space) == flat.spec == ActionSpec.from_dict(json.loads(json.dumps(flat.spec.to_dict())))
    assert FlatActions(flat.space).space == flat.space  # once is enough: flat spaces stay as they are
    flat.space.seed(seed)
    for action in (flat.space.sample(), flat.null):
        assert space.contains(flat.unflatten(as_recorded(flat.space, action)))
    assert flat.spec.space().contains(np.asarray(flat.null, flat.spec.space().dtype))


@pytest.mark.parametrize(("old", "new"), [
    ("np.where(kind == _CHOICE, low, 0)", "0"),  # classes not shifted
    ("self._reach + self._middle", "self._reach + 2 * self._middle"),  # shifted twice
    ("[self._place]", "[self._order]"),  # numbers in the wrong places
    ("* self._reach", "* 1"),
], ids=["unshifted", "twice", "places", "scale"])  # fmt: skip
def test_errors_that_are_caught(monkeypatch, old, new):
    own = gym.spaces.Dict(
        a=gym.spaces.Box(0, 4, (2,)), b=gym.spaces.Discrete(3, start=1), c=gym.spaces.MultiBinary(2), d=gym.spaces.Discrete(4)
    )
    there_and_back(own)
    name = "__init__" if "_CHOICE" in old else "unflatten"
    monkeypatch.setattr(FlatActions, name, mutant(getattr(FlatActions, name), old, new))
    with pytest.raises((AssertionError, UsageError)):
        for seed in range(20):
            there_and_back(own, seed)


@pytest.mark.parametrize(("space", "spec", "flat"), [
    (gym.spaces.Discrete(3, start=1), ActionSpec(categorical=(3,)), gym.spaces.Discrete(3)),
    (gym.spaces.Box(0, 4, ()), ActionSpec(continuous=1), gym.spaces.Box(-1, 1, (1,))),
    (gym.spaces.Box(0, 4, (2, 3)), ActionSpec(continuous=6), gym.spaces.Box(-1, 1, (6,))),
    (gym.spaces.Box(0, np.inf, (1,)), ActionSpec(continuous=1, unbounded=1), gym.spaces.Box(0, np.inf, (1,))),
    (gym.spaces.Box(np.array([-np.inf, 0]), np.array([np.inf, 9]), dtype=np.float64), ActionSpec(continuous=2, unbounded=1),
     gym.spaces.Box(np.array([-1, -np.inf]), np.array([1, np.inf]), dtype=np.float64)),
    (gym.spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64), ActionSpec(continuous=1, unbounded=1),
     gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)),
    (gym.spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,)), ActionSpec(continuous=1, unbounded=1),
     gym.spaces.Box(-np.inf, np.inf, (1,))),
    (gym.spaces.MultiDiscrete([[2, 3], [4, 5]]), ActionSpec(categorical=(2, 3, 4, 5)), gym.spaces.MultiDiscrete([2, 3, 4, 5])),
    (gym.spaces.MultiDiscrete([3], start=[7]), ActionSpec(categorical=(3,)), gym.spaces.Discrete(3)),
    (gym.spaces.MultiBinary((2, 2)), ActionSpec(binary=4), gym.spaces.MultiBinary(4)),
    (gym.spaces.Box(0, 1, (3,), np.bool_), ActionSpec(binary=3), gym.spaces.MultiBinary(3)),
    (gym.spaces.Tuple([gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(5), gym.spaces.MultiBinary(2)]),
     ActionSpec(2, (5,), 1), ActionBox(2, (5,), 1)),
], ids=str)  # fmt: skip
def test_what_each_space_becomes(space, spec, flat):
    assert FlatActions(space).spec == spec and FlatActions(space).space == flat
    for seed in range(5):
        there_and_back(space, seed)


def test_the_largest_and_the_smallest_are_reached():
    flat = FlatActions(gym.spaces.Box(np.array([-1e308, -0.1]), np.array([1e308, 0.3]), dtype=np.float64))
    assert flat.unflatten([1, 1]).tolist() == [1e308, 0.3] and flat.unflatten([-1, -1]).tolist() == [-1e308, -0.1]
    assert flat.unflatten([0, 9]).tolist() == [0, 0.3]  # cut off
    whole = FlatActions(gym.spaces.Box(-2, 3, (1,), np.int8))
    assert {whole.unflatten([share])[0] for share in np.linspace(-1, 1, 99)} == {-2, -1, 0, 1, 2, 3}
    point = FlatActions(gym.spaces.Box(2, 2, (1,)))
    assert point.unflatten(point.flatten(np.array([2.0]))).tolist() == [2]


@pytest.mark.parametrize("space", [
    gym.spaces.Text(3), gym.spaces.Sequence(gym.spaces.Discrete(2)), gym.spaces.Dict(), gym.spaces.Tuple([]),
    gym.spaces.Discrete(2, start=2**53), gym.spaces.Dict(a=gym.spaces.Text(2), b=gym.spaces.Discrete(2)),
], ids=str)  # fmt: skip
def test_spaces_that_can_not_be(space):
    with pytest.raises(UsageError):
        FlatActions(space)


def test_actions_of_another_space_are_refused():
    own = gym.spaces.Dict(a=gym.spaces.Discrete(2, start=1), b=gym.spaces.Tuple([gym.spaces.Box(0, 1, (2,))]))
    flat, right = FlatActions(own), {"a": 1, "b": (np.array([0.5, 1]),)}
    assert flat.flatten(right).tolist() == [0, 0, 1]
    for wrong in (
        {"a": 0}, {"a": 1.5}, {"a": np.nan}, {"b": (np.array([0.5]),)}, {"b": ()}, {"a": "x"}, {"c": 1},
        {"b": (np.array([0.5, 2]),)}, {"b": (np.array([0.5, np.nan]),)},
    ):
        with pytest.raises(UsageError, match="is not in"):
            flat.flatten({**right, **wrong})
    for wrong in ({"a": 1}, [1], None):
        with pytest.raises(UsageError, match="is not in"):
            flat.flatten(wrong)


@pytest.mark.parametrize(("space", "wrong"), [
    (gym.spaces.Discrete(3), (3, -1, 1.5, "1", None, [1], np.nan, 2**70)),
    (gym.spaces.MultiDiscrete([2, 3]), ([0, 3], [0, 0.5], [0], [[0, 0]], [0, np.nan])),
    (gym.spaces.MultiBinary(2), ([0, 2], [0, 0.5], [True], [-1, 0])),
    (gym.spaces.Box(-1, 1, (1,)), ([2], [np.nan], 1.0, ["1"])),
    (gym.spaces.Box(-np.inf, np.inf, (1,)), ([np.inf], [np.nan])),
    (ActionBox(1, (3,), 1), ([0, 0.5, 0], [0, 3, 0], [2, 0, 0], [0, 0, np.nan])),
], ids=str)  # fmt: skip
def test_what_is_recorded_is_what_was_done(space, wrong):
    for action in wrong:
        with pytest.raises(UsageError):
            as_recorded(space, action)
    space.seed(0)
    action = space.sample()
    kept = as_recorded(space, action)
    assert kept is not action and np.array_equal(kept, action) and space.contains(kept)


def test_a_vector_of_games_draws_whole_numbers():
    many = batch_space(ActionBox(2, (5,), 1), 3)
    many.seed(0)
    for _ in range(20):
        assert all(action in one for action, one in zip(many.sample(), many.spaces, strict=True))
    assert len({tuple(action) for action in many.sample()}) == 3


def test_a_box_with_limits_of_its_own():
    box = ActionBox(1, (3,), 2, low=[-1, 0], high=[1, np.inf], dtype=np.float64)
    assert copy.deepcopy(box) == box != ActionBox(1, (3,), 2, dtype=np.float64) and "inf" in repr(box)
    assert box == FlatActions(box).space and [0, 2, 0, 1e9] in box and [0, 2, 0, -1] not in box


@pytest.mark.parametrize("wrong", [dict(binary=-1), dict(categorical=(3, 0)), dict(continuous=1, unbounded=2)], ids=str)
def test_specs_that_can_not_be(wrong):
    with pytest.raises(UsageError, match="counts"):
        ActionSpec(**wrong)


OLD = [  # fields of old schemas, what they become
    ({"action_dtype": "int64", "action_shape": [], "action_count": 5}, ActionSpec(categorical=(5,))),
    ({"action_dtype": "float32", "action_shape": [2], "action_count": 0, "action_keys": 0, "action_choices": []},
     ActionSpec(continuous=2)),
    ({"action_dtype": "float32", "action_shape": [], "action_count": 0}, ActionSpec(continuous=1)),
    ({"action_dtype": "uint8", "action_shape": [24], "action_count": 0, "action_keys": 23, "action_choices": [121]},
     ActionSpec(binary=23, categorical=(121,))),
    ({"action_dtype": "int8", "action_shape": [2, 2], "action_keys": 4}, ActionSpec(binary=4)),
    ({"action_dtype": "int64", "action_shape": [2], "action_choices": [2, 3]}, ActionSpec(categorical=(2, 3))),
]  # fmt: skip


@pytest.mark.parametrize(("old", "spec"), OLD, ids=str)
def test_old_schemas_are_read(old, spec):
    schema = Schema.from_dict({"game": "x", **old})
    kept = schema.actions, schema.action_dtype, schema.action_shape
    assert kept == (spec, old["action_dtype"], tuple(old["action_shape"]))
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_a_schema_whose_shape_does_not_hold_its_actions():
    with pytest.raises(UsageError, match="can't hold 2 controls"):
        Schema(actions=ActionSpec(continuous=2), action_shape=(3,))
    assert Schema(actions=ActionSpec(continuous=2)).action_dtype == "float32"


@pytest.mark.parametrize("spec", [
    ActionSpec(categorical=(3,)), ActionSpec(binary=2), ActionSpec(continuous=2),
    ActionSpec(binary=2, categorical=(3, 4), continuous=1),
], ids=str)  # fmt: skip
def test_where_a_look_is_dear_none_is_taken(spec):
    """A tensor that has no numbers to look at, as one on a GPU has none without waiting for it."""
    action = torch.empty(2, 5, *spec.shape, device="meta")
    assert spec.vectors(action).shape == (2, 5, spec.size) and spec.vectors(action).device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        spec.check(action)


@pytest.mark.parametrize(("spec", "wrong", "said"), [
    (ActionSpec(categorical=(3,)), [[0, 3]], "a choice, goes from 0 to 3: known are the whole numbers from 0 to 2"),
    (ActionSpec(categorical=(3,)), [[0.5, 0]], "a choice, goes from 0 to 0.5"),
    (ActionSpec(binary=2), [[[0, 2]]], "number 1 of the actions, a key, goes from 2 to 2"),
    (ActionSpec(binary=2), [[[0, 1, 1]]], "actions of 3 numbers, known are 2: 2 keys"),
    (ActionSpec(binary=1, continuous=1), [[[1, float("nan")]]], "not a finite number"),
    (ActionSpec(binary=1, categorical=(2,)), [[[0, -1]]], "a choice, goes from -1 to -1"),
], ids=str)  # fmt: skip
def test_actions_of_another_kind_are_told_apart(spec, wrong, said):
    with pytest.raises(UsageError, match=said):
        spec.vectors(torch.tensor(wrong))
    with pytest.raises(UsageError, match=said):
        spec.check(torch.tensor(wrong))


def test_recorded_numbers_of_any_shape_are_read():
    """An old recording may hold them as a matrix, or a single one without an axis of its own."""
    assert ActionSpec(binary=4).vectors(torch.ones(1, 2, 2, 2)).tolist() == [[[1] * 4] * 2]
    assert ActionSpec(continuous=1).vectors(torch.tensor([[0.5, 2]])).tolist() == [[[0.5], [2]]]
    assert ActionSpec(categorical=(3,)).vectors(torch.tensor([[[2], [0]]])).tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_an_old_store_opens_and_is_gone_on_with(tmp_path):
    settings = {"image_size": (8, 8), "max_steps": 5}
    record("bonk", tmp_path, "random", steps=5, seed=1, settings=settings)
    file = tmp_path / "store.json"
    schema = Store.open(tmp_path).schema.to_dict()
    del schema["actions"]
    schema |= {"action_count": 11, "action_keys": 0, "action_choices": []}
    old = {"format": "metabonk store", "version": 1, "schema": schema}
    for other in tmp_path.glob("store*.json"):
        other.unlink()
    file.write_text(json.dumps(old))
    assert Store.open(tmp_path).schema.actions == ActionSpec(categorical=(11,))
    record("bonk", tmp_path, "random", steps=5, seed=2, settings=settings)
    store = Store.open(tmp_path)
    assert len(store.episodes) == 2 and store.read(store.episodes[1]).action.max() < 11


def test_a_row_never_rounds_an_action():
    schema = Schema(image_shape=(1, 1, 3), channels=0, actions=ActionSpec(categorical=(3,)))
    seen, info = {"image": np.zeros((1, 1, 3), np.uint8)}, {"clock": {"ticks": 0, "samples": 0}}
    assert to_step(schema, seen, info, 2).action == 2
    with pytest.raises(StoreError, match=r"action is 1\.5"):
        to_step(schema, seen, info, 1.5)


def test_a_game_takes_whole_numbers_only():
    game = make_game("bonk")
    game.reset(seed=0)
    with pytest.raises(UsageError, match=r"action 1\.5 is not one of"):
        game.step(1.5)
    game.step(np.int8(1))
    game.close()
