"""Where a hero is said to be: found where he is, not found where he is not, and no dream that stays still beats persistence."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from metabonk.act.dual import goals_of
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import RomError, UsageError
from metabonk.dream.interface import WorldModel
from metabonk.measure.movers import (
    Finder,
    by_episode,
    check_movers,
    learn_probe,
    mover_figure,
    movers_of,
    places_of,
    sequences_of,
)
from metabonk.play.bonk import ROM
from metabonk.play.game import make_game
from metabonk.play.profile import Mover, compile_profile, load_profile
from metabonk.record.experience import Columns, Schema
from metabonk.record.recording import profile_of, recording_schema

MOVER = Mover(x="x", y="y", within=(64, 64), size=(12, 12), room="room")
WAYS = torch.tensor([[4.0, 0.0], [0.0, 4.0], [-4.0, 0.0], [0.0, -4.0]])
FLOORS = torch.tensor([90, 20])


def square(place: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Pictures (N, 32, 32, 3) of a square of six pixels before the floors of two rooms; the second has a pillar."""
    image = FLOORS[room][:, None, None, None].expand(-1, 32, 32, 3).to(torch.uint8).clone()
    image[room == 1, 14:18, 14:18] = 200
    for picture, (x, y) in zip(image, (place / 2).round().long().tolist(), strict=True):
        picture[max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = 240
    return image


@dataclass
class WalkBatch(Columns):
    """What the models read."""

    image: Any
    action: Any


class Walk:
    """A recording: each episode is a walk in one of two rooms."""

    def __init__(self, episodes: int, seed: int, rows: int = 40):
        generator, n = np.random.default_rng(seed), rows * episodes
        kinds = [(name, "int64") for name in ("episode", "step", "action")] + [(f"probes/{p}", "f4") for p in ("x", "y", "room")]
        self.table = np.zeros(n, kinds)
        self.table["episode"], self.table["step"] = np.arange(n) // rows, np.arange(n) % rows
        self.table["action"], place = generator.integers(4, size=n), np.zeros(2)
        self.table["probes/room"] = self.table["episode"] % 2
        for row in self.table:
            place = generator.uniform(16, 48, 2) if row["step"] == 0 else np.clip(place + WAYS[row["action"]].numpy(), 12, 52)
            row["probes/x"], row["probes/y"] = place
        place, room = places_of(self, MOVER)
        self.image = square(place, room).numpy()

    def gather(self, places: Any) -> WalkBatch:
        """Sequences, one run of rows each."""
        spans = [runs[0] for runs in places]
        return WalkBatch(*(np.stack([column[a:b] for a, b in spans]) for column in (self.image, self.table["action"])))


class Walker(WorldModel):
    """Knows where the square is, and where its steps lead."""

    actions, moves, shows = ActionSpec(categorical=(4,)), True, True

    def __init__(self, finder: Finder):
        super().__init__()
        self.finder = finder

    def observe(self, context, state=None, every=False, generator=None):
        place, _, room = self.finder.find(context.image[:, -1])
        return {"place": place, "room": room}

    def advance(self, state, action, generator=None):
        return {**state, "place": (state["place"] + (action @ WAYS if self.moves else 0)).clamp(12, 52)}

    def features(self, state):
        return torch.cat([state["place"], state["room"][:, None].float()], 1)

    def decode(self, state):
        image = square(state["place"], state["room"])
        return {"image": image if self.shows else self.finder.rooms[state["room"]].round().to(torch.uint8)}

    def reward(self, features):
        return features[..., 0] * 0

    continuation = reward


class Statue(Walker):
    """Has not learned that anything moves."""

    moves = False


class Ghost(Walker):
    """Knows where the square is and shows the empty room, as the likeliest token of every place does."""

    shows = False


@pytest.fixture(scope="module")
def walks() -> tuple[Walk, Walk, Finder]:
    """A recording to learn from, a held-out one, and what finds the square."""
    seen = Walk(12, seed=0)
    return seen, Walk(16, seed=1), Finder.learn(seen.image, *places_of(seen, MOVER), MOVER)


def measured(walks, kind: type[Walker]) -> Any:
    seen, held, finder = walks
    model = kind(finder)
    return check_movers(model, held, held, finder, learn_probe(model, seen, seen, MOVER, every=2), context=4, ahead=(1, 5, 15))


def mean(check: Any, what: str, far: int, column: str) -> float:
    return float(check.rows.query("what == @what and ahead == @far")[column].mean())


def test_the_square_is_found_where_it_is_and_an_empty_room_holds_none(walks):
    _, held, finder = walks
    image, (place, room) = torch.from_numpy(held.image), places_of(held, MOVER)
    found, strength, where = finder.find(image)
    assert (strength > 0.5).all() and (where == room).all()
    assert (found - place).norm(dim=-1).mean() < 1.5
    empty = finder.rooms[room].round().to(torch.uint8)
    assert (finder.find(empty)[1] < 0.05).all()
    for share, there in ((0.3, False), (0.8, True)):
        faint = (image.float() * share + empty * (1 - share)).round().to(torch.uint8)
        assert ((finder.find(faint)[1] > 0.5) == there).float().mean() > 0.98


@pytest.mark.parametrize("by", [(3, 0), (0, -2)])
def test_the_error_of_shifted_pictures_is_the_shift(walks, by):
    _, held, finder = walks
    place, room = places_of(held, MOVER)
    middle = ((place - 32).abs() < 12).all(1) & (room == 0)
    image = torch.from_numpy(held.image)[middle]
    plain, moved = (finder.find(picture)[0] - place[middle] for picture in (image, image.roll(by, (2, 1))))
    assert ((moved - plain).mean(0) - 2 * torch.tensor(by)).abs().max() < 0.2  # two of our units are a pixel


def test_a_dream_that_moves_is_nearer_than_staying_and_than_other_actions(walks):
    check = measured(walks, Walker)
    for far in (1, 5, 15):
        assert mean(check, "dream", far, "there") == mean(check, "dream", far, "near") == 1
        for column in ("off", "probe"):
            dream, stays, other = (mean(check, what, far, column) for what in ("dream", "stays", "other actions"))
            assert dream + 1 < stays and dream + 1 < other, (column, far)
    assert mean(check, "read", 0, "probe") < 1.5


def test_a_dream_that_stays_still_does_not_beat_persistence(walks):
    check = measured(walks, Statue)
    for far in (1, 5, 15):
        for column in ("off", "near"):
            assert mean(check, "dream", far, column) == pytest.approx(mean(check, "stays", far, column), abs=0.4)
            assert mean(check, "dream", far, column) == pytest.approx(mean(check, "other actions", far, column), abs=0.4)


def test_a_model_that_shows_empty_rooms_has_nobody_in_them_whatever_its_state_knows(walks):
    check = measured(walks, Ghost)
    for what, far in (("read", 0), ("dream", 1), ("dream", 15)):
        assert mean(check, what, far, "there") == 0 and mean(check, what, far, "probe") < 3
        assert check.rows.query("what == @what and ahead == @far").off.isna().all()
    assert mean(check, "game", 0, "there") == 1
    table = by_episode(check.rows)
    assert table.loc[("read", 0), "off, px"] == "" and table.loc[("read", 0), "hero there"].high == 0
    assert mover_figure(check).data[0].z.shape == (2 * 36, 4 * 36, 3)


def test_sequences_stay_in_their_episode(walks):
    held = walks[1]
    spans = sequences_of(held, 30, every=5)
    assert len(spans) == 16 * 3 and all(len(set(held.table["episode"][a:b])) == 1 and b - a == 30 for a, b in spans)
    assert len(sequences_of(held, 30, every=1, most=20)) <= 20
    with pytest.raises(UsageError, match="no episode has 41 rows"):
        sequences_of(held, 41)


def test_a_cartridge_that_only_its_path_finds_has_its_movers_too():
    path = f"gameboy:{ROM}"
    game = make_game(path, profile="bonk")
    schema = recording_schema(game, game.reset(seed=0)[1])
    game.close()
    assert schema.game not in ("bonk", path) and movers_of(schema, path) == load_profile("bonk").movers
    assert profile_of(schema, path).name == "bonk" and goals_of(schema, path).places
    with pytest.raises(RomError):
        movers_of(schema)


def test_a_profile_says_what_moves():
    assert load_profile("bonk").movers == {"hero": Mover("x", "y", (160, 144), (16, 16), "screen")}
    assert movers_of(Schema(probes={})) == {}
    content = {"title": "A game", "probes": {"x": "0xC022 u8", "y": "0xC023 u8"}}
    line = {"x": "x", "y": "y", "within": [160, 144], "size": [16, 16]}
    whole = compile_profile({**content, "movers": {"ball": line}}, "game", "game.yaml")
    assert whole.movers["ball"].room == "" and whole.fingerprint == compile_profile(content, "game", "game.yaml").fingerprint
    wrong = {
        "no 'within'": {"x": "x", "y": "y", "size": [1, 1]}, "unknown probe 'z'": {**line, "x": "z"},
        "unknown entry 'width'": {**line, "width": 3}, "at least 1": {**line, "size": [0, 16]},
        "must be": {**line, "size": "large"},
    }  # fmt: skip
    for words, spec in wrong.items():
        with pytest.raises(UsageError, match=words):
            compile_profile({**content, "movers": {"ball": spec}}, "game", "game.yaml")
