"""Profiles: every kind of probe, every remembering function, every trap of Pokemon Red, and one clear line per mistake"""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest

from metabonk.core.errors import MetaBonkError, RomError, UsageError
from metabonk.core.text import parse_yaml
from metabonk.play import expressions as module
from metabonk.play.bonk import ROM
from metabonk.play.expressions import Probe, spans
from metabonk.play.game import make_game
from metabonk.play.guide import ProbeSearch, check_output, profile_text, prove
from metabonk.play.policies import make_policy
from metabonk.play.profile import Profile, ProfileState, compile_profile, load_profile, profile_for, profile_names
from metabonk.play.search import MemorySearch

BASE = """
title: A game
actions: {noop: [], a: [a], left_b: [left, b]}
probes: {x: 0xC000 u8, y: 0xC001 u8, n: 0xC002 u8, over: 0xC003 u8}
records:
  team: {count: n, most: 2, every: 4, same: [id], fields: {id: 0xC010 u8, hp: 0xC011 u16be}}
values: {moved: changed(x) or changed(y)}
terms: {best: 10 * best(x), still: -0.5 * (since(moved) > 1), plain: y}
milestones: {far: x >= 9}
ends: over == 1
names: {x: {0: home}}
"""


class Memory:
    "64 KiB, and how often it was read"

    def __init__(self) -> None:
        self.bytes, self.reads = bytearray(0x10000), 0

    def __call__(self, address: int, length: int) -> bytes:
        self.reads += 1
        return bytes(self.bytes[address : address + length])

    def put(self, address: int, *values: int) -> None:
        self.bytes[address : address + len(values)] = bytes(values)


def make(text: str = BASE, **weights: float) -> Profile:
    return compile_profile(parse_yaml(text, "game.yaml"), "game", "game.yaml", weights)


def values(expression: str, xs: list[int], extra: str = "") -> list[float]:
    "What an expression gives while x takes these values (y follows one step behind)"
    content = {"title": "t", "probes": {"x": "0xC000 u8", "y": "0xC001 u8"}, "values": {"v": expression}}
    state, out, before = compile_profile(content, "t", "t.yaml").start(), [], 0
    for x in xs:
        state.terms({"x": x, "y": before})
        out.append(state.values["v"])
        before = x
    return out


@pytest.mark.parametrize(
    ("kind", "stored", "value"),
    [
        ("u8", "ff", 255), ("s8", "ff", -1), ("s8", "7f", 127), ("u16le", "0102", 0x201), ("u16be", "0102", 0x102),
        ("s16le", "feff", -2), ("s16be", "fffe", -2), ("u24le", "010203", 0x30201), ("u24be", "010203", 0x10203),
        ("s24be", "fffffd", -3), ("s24le", "fdffff", -3), ("s32be", "fffffffe", -2),
        ("u32le", "01000080", 0x80000001), ("s32le", "01000080", 0x80000001 - 2**32),
        ("u32be", "80000001", 0x80000001), ("bit0", "fe", 0), ("bit7", "80", 1), ("bcd1", "42", 42),
        ("bcd3", "123456", 123456), ("bcd4", "99999999", 99999999), ("popcount3", "0180ff", 10),
    ],
)  # fmt: skip
def test_every_kind_of_probe(kind: str, stored: str, value: int) -> None:
    memory = Memory()
    memory.put(0xC100, *bytes.fromhex(stored))
    made = compile_profile({"title": "t", "probes": {"other": "0xC0FF u8", "v": f"0xC100 {kind}"}}, "t", "t.yaml")
    assert made.probes(memory)["v"] == value
    assert Probe(0xC100, kind).size == len(stored) // 2


def test_every_kind_is_tested() -> None:
    tested = {row[0] for mark in test_every_kind_of_probe.pytestmark for row in mark.args[1]}  # type: ignore[attr-defined]
    assert tested >= {kind for kind in module.KINDS if not kind.startswith(("bit", "bcd"))}


def test_neighbours_are_read_together() -> None:
    memory = Memory()
    make().probes(memory)
    assert memory.reads == 1
    probes = {"a": Probe(0, "u16le"), "b": Probe(2, "u8"), "c": Probe(100, "u8"), "inside": Probe(0, "u8")}
    assert spans(probes) == [(0, 3), (100, 1)]
    assert spans(probes, gap=97) == [(0, 101)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("was(x)", [5, 5, 7, 2, 2]), ("gain(x)", [0, 2, 0, 0, 7]), ("loss(x)", [0, 0, 5, 0, 0]),
        ("changed(x)", [0, 1, 1, 0, 1]), ("best(x)", [0, 2, 0, 0, 2]), ("new(x)", [0, 1, 1, 0, 1]),
        ("new(x, y)", [0, 1, 1, 1, 1]), ("since(x == 7)", [0, 0, 1, 2, 3]), ("since(x == 99)", [0, 1, 2, 3, 4]),
        ("popcount(x)", [2, 3, 1, 1, 2]), ("bit(x, 1)", [0, 1, 1, 1, 0]), ("min(x, y)", [0, 5, 2, 2, 2]),
        ("max(x, y, 6)", [6, 7, 7, 6, 9]), ("abs(y - x)", [5, 2, 5, 0, 7]), ("x / 0", [0] * 5), ("x % (y - y)", [0] * 5),
        ("x in (2, 9)", [0, 0, 1, 1, 1]), ("x not in (2,)", [1, 1, 0, 0, 1]), ("1 < x <= 5", [1, 0, 1, 1, 0]),
        ("3 if x > 5 else -1", [-1, 3, -1, -1, 3]), ("not x & 1", [0, 0, 1, 1, 0]), ("x > 5 and was(x) == 5", [0, 1, 0, 0, 0]),
    ],
)  # fmt: skip
def test_functions(expression: str, expected: list[float]) -> None:
    assert values(expression, [5, 7, 2, 2, 9]) == expected


def test_memory_is_kept_whatever_stands_to_the_left() -> None:
    assert values("x > 3 and new(y)", [0, 1, 0, 4, 4]) == [0, 0, 0, 0, 1]  # y was 1 while x > 3 was false


def test_the_first_step_pays_nothing_and_later_ones_the_weights() -> None:
    state = make(still=-2.0).start()
    probes = {"x": 3, "y": 7, "n": 0, "over": 0} | {f"team_{i}_{f}": 0 for i in (1, 2) for f in ("id", "hp")}
    assert state.terms(probes) == {"best": 0, "still": 0, "plain": 0}
    assert state.terms(probes) == {"best": 0, "still": 0, "plain": 7}
    assert state.terms({**probes, "x": 9, "over": 1})["best"] == 60
    assert state.ended and state.milestones_reached == {"far": 2}
    assert state.terms(probes)["still"] == 0
    state.terms(probes)
    assert state.terms(probes)["still"] == -2 and state.milestones_reached == {"far": 2} and not state.ended


@pytest.mark.parametrize(
    ("expression", "kind"), [("x > 3", int), ("x / 2", float), ("was(v)", float), ("1.5 if x else 2", float), ("since(x)", int)]
)
def test_a_value_is_of_one_type_in_every_step(expression: str, kind: type) -> None:
    content = {"title": "t", "values": {"v": "x / 4", "w": expression}}
    state = compile_profile({**content, "probes": {"x": "0x0 u8"}}, "t", "t.yaml").start()
    for x in (0, 2, 4, 5):
        state.terms({"x": x})
        assert type(state.values["w"]) is kind


def test_a_copied_state_goes_its_own_way_with_the_same_profile() -> None:
    state = make().start()
    zero = dict.fromkeys(state.profile.table, 0)
    state.terms(zero)
    other = copy.deepcopy(state)
    assert other.profile is state.profile
    assert state.terms({**zero, "x": 5})["best"] == other.terms({**zero, "x": 5})["best"] == 50


def test_two_episodes_share_nothing() -> None:
    made = make()
    zero = dict.fromkeys(made.table, 0)
    one, two = made.start(), made.start()
    for state in (one, two):
        state.terms(zero)
        assert state.terms({**zero, "x": 5})["best"] == 50


def test_a_table_that_is_not_set_up_has_no_rows() -> None:
    text = BASE.replace("plain: y", "hurt: -1 * loss(team.hp), rows: count(team.hp), most: max(team.hp)")
    state, memory = make(text).start(), Memory()
    memory.put(0xC010, 1, 0, 50, 0, 2, 0, 60)
    memory.put(0xC002, 255)
    state.step(memory)
    memory.put(0xC012, 0)
    assert state.step(memory)[1] | {"still": 0} == {"best": 0, "still": 0, "hurt": 0, "rows": 0, "most": 0}
    memory.put(0xC002, 2)
    assert state.step(memory)[1]["rows"] == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("x >= 9", "z >= 9", "milestone 'far', column 1: unknown probe 'z'"),
        ("10 * best(x)", "10 * loss(team.ph)", "term 'best', column 11: unknown field 'team.ph': did you mean 'team.hp'"),
        ("10 * best(x)", "10 * bets(x)", "unknown function 'bets': did you mean 'best'"),
        ("10 * best(x)", "10 * best(", "term 'best', column"),
        ("10 * best(x)", "best(team.hp)", "best() takes numbers"),
        ("10 * best(x)", "'best(x, y)'", "best() takes 1 number"),
        ("10 * best(x)", "bit(x)", "bit() takes 2 numbers"),
        ("10 * best(x)", "sum(x)", "sum() takes one field of a table"),
        ("10 * best(x)", "team.hp * 2", "is a column of numbers"),
        ("10 * best(x)", "2 ** 999999", "is not allowed"),
        ("10 * best(x)", "x << 9", "is not allowed"),
        ("10 * best(x)", "x.__class__", "is a column of numbers"),
        ("10 * best(x)", "'(lambda: 1)()'", "is not allowed"),
        ("10 * best(x)", "x in y", "after 'in' a list"),
        ("10 * best(x)", "best(x=1)", "is not allowed"),
        ("10 * best(x)", "[1, 2]", "must be an expression"),
        ("changed(x)", "was(later)", "unknown probe 'later'"),
        ("0xC000 u8", "C000 u8", "probe 'x' is 'C000 u8': write an address and a type"),
        ("0xC000 u8", "0xC000", "probe 'x' is 0xC000: write an address and a type"),
        ("0xC000 u8", "0xC000 u9", "unknown type 'u9': did you mean 'u8'"),
        ("0xC000 u8", "0xFFFF u16le", "0xFFFF is a bad address for 2 bytes"),
        ("0xC000 u8", "0xC000 popcount0", "unknown type 'popcount0'"),
        ("{x: 0xC000 u8", "{new: 0xC000 u8", "probe 'new' is the name of a function"),
        ("{x: 0xC000 u8", "{X: 0xC000 u8", "probe 'X': a name is lower-case"),
        ("{x: 0xC000 u8", "{true: 0xC000 u8", "probe True: a name is lower-case"),
        ("{x: 0xC000 u8", "{x: 0xC009 u8, x: 0xC000 u8", "line 4: not YAML: 'x' is there twice"),
        ("{moved:", "{y:", "value 'y': the name is there twice"),
        ("{x: 0xC000 u8", "{x: 0xC000 u8, team_1_hp: 0xC004 u8", "probe 'team_1_hp': the name is there twice"),
        ("[left, b]", "[lfet, b]", "action 'left_b': unknown button 'lfet': did you mean 'left'"),
        ("[left, b]", "[left, right]", "holds left and right, which the pad can't"),
        ("[left, b]", "b", "action 'left_b' must be a list of buttons"),
        ("count: n", "count: m", "table 'team': count: unknown probe 'm'"),
        ("most: 2", "most: two", "most and every must be whole numbers"),
        ("most: 2", "mots: 2", "table 'team': unknown entry 'mots': did you mean 'most'"),
        ("same: [id]", "same: [ip]", "table 'team': same: unknown field 'ip'"),
        ("0xC010 u8", "0xFFFE u8", "row 2 of field 'id': 0x10002 is a bad address"),
        ("names: {x", "names: {z", "names: unknown probe 'z'"),
        ("title: A game", "titel: A game", "unknown section 'titel': did you mean 'title'"),
        ("title: A game", "notes: A game", "needs a line 'title: ...'"),
        ("title: A game", "title: A game\nmachine: gamebuoy", "unknown machine 'gamebuoy': did you mean 'gameboy'"),
        ("title: A game", "title: A game\nrom: {sha1: abc}", "sha1 'abc' must be 40 hexadecimal digits"),
        ("title: A game", "title: A game\nrom: {md5: abc}", "rom: unknown entry 'md5'"),
        ("terms: {", "terms: [1]\nnames2: {", "section 'terms' must hold lines"),
        ("title: A game", "title: [A game", "not YAML"),
        ("title: A game", "\ttitle: A game", "not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert BASE.count(old) == 1
    path = tmp_path / "game.yaml"
    path.write_text(BASE.replace(old, new), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert said in message and str(path) in message and "\n" not in message


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown profile 'pokemon_rde': did you mean 'pokemon_red'"):
        load_profile("pokemon_rde")
    (tmp_path / "mine.yaml").write_text(BASE)
    assert load_profile(tmp_path / "mine.yaml").name == "mine"
    with pytest.raises(UsageError, match=r"there is no profile .*mien\.yaml: is .*mine\.yaml meant\?"):
        load_profile(tmp_path / "mien.yaml")
    with pytest.raises(UsageError, match="there is no profile"):
        load_profile(tmp_path / "nowhere" / "x.yaml")
    for content in (b"\xff\xfe\x00", b"- a list", b"", b"just words"):
        (tmp_path / "mine.yaml").write_bytes(content)
        with pytest.raises(UsageError, match=r"mine\.yaml"):
            load_profile(tmp_path / "mine.yaml")
    with pytest.raises(UsageError, match="unknown reward term of game 'bets': did you mean 'best'"):
        make(bets=1.0)


def test_a_profile_like_another_takes_all_but_its_rom(tmp_path: Path) -> None:
    path = tmp_path / "blue.yaml"
    path.write_text("title: Another\nlike: pokemon_red\nterms: {badge: best(popcount(badges))}\n")
    like, red = load_profile(path), load_profile("pokemon_red")
    assert (like.table, like.milestones, like.labels) == (red.table, red.milestones, red.labels)
    assert like.weights == {"badge": 1.0} and (like.rom_title, like.rom_sha1) == (None, None)
    for named, said in (("pokemon_rde", "did you mean 'pokemon_red'"), ("course", "itself like pokemon_red"), ("[a]", "unknown")):
        path.write_text(f"title: Another\nlike: {named}\n")
        with pytest.raises(UsageError, match=said):
            load_profile(path)


def test_what_ships_loads() -> None:
    assert {"generic", "pokemon_red"} <= set(profile_names())
    for name in profile_names():
        made = load_profile(name)
        state, memory = made.start(), Memory()
        for fill in (0, 255, 0):  # memory before and during a boot must stop nobody
            memory.bytes[:] = bytes([fill]) * 0x10000
            state.step(memory)
        assert set(made.weights) == set(state.step(memory)[1])
        assert made.action_names[0] == "noop"


# Pokemon Red. Addresses are written out: a test that asked the profile for them would agree with any mistake in it.


class Red:
    "A game in the middle, as memory"

    def __init__(self) -> None:
        self.memory = Memory()
        self.state: ProfileState = load_profile("pokemon_red").start()
        self.put(0xD163, 2)
        self.member(0, 176, 20, 1000, 0x1111)
        self.member(1, 36, 30, 2000, 0x2222)
        self.memory.put(0xD35E, 1)
        assert self.step() == {}

    def put(self, address: int, *values: int) -> None:
        self.memory.put(address, *values)

    def member(self, i: int, species: int, hp: int, xp: int, genes: int, max_hp: int = 40) -> None:
        self.put(0xD164 + i, species)
        for address, value, size in ((0xD16C, hp, 2), (0xD179, xp, 3), (0xD186, genes, 2), (0xD18D, max_hp, 2)):
            self.put(address + 44 * i, *value.to_bytes(size, "big"))

    def step(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in self.state.step(self.memory)[1].items() if value}


STUCK = {"stuck": -0.001}


@pytest.mark.parametrize(
    ("probe", "address", "stored", "value"),
    [
        ("badges", 0xD356, "81", 0x81), ("map", 0xD35E, "0c", 12), ("y", 0xD361, "07", 7), ("x", 0xD362, "05", 5),
        ("party_count", 0xD163, "03", 3), ("party_6_species", 0xD169, "99", 0x99), ("party_1_hp", 0xD16C, "012c", 300),
        ("party_2_hp", 0xD198, "0102", 258), ("party_1_xp", 0xD179, "010203", 66051), ("party_6_xp", 0xD255, "00ffff", 65535),
        ("party_1_level", 0xD18C, "64", 100), ("party_1_max_hp", 0xD18D, "0102", 258), ("party_6_max_hp", 0xD269, "0102", 258),
        ("species_owned", 0xD2F7, "ff" * 19, 152), ("species_owned", 0xD309, "01", 1), ("species_owned", 0xD30A, "ff", 0),
        ("species_seen", 0xD30A, "ff" * 19, 152), ("species_seen", 0xD31C, "80", 1), ("in_battle", 0xD057, "ff", 255),
        ("battle_result", 0xCF0B, "02", 2), ("opponent_level", 0xCFF3, "0a", 10), ("opponent_hp", 0xCFE6, "0102", 258),
        ("opponent_max_hp", 0xCFF4, "0102", 258), ("dialog", 0xCFC4, "fe", 0), ("dialog", 0xCFC4, "01", 1),
        ("money", 0xD347, "012345", 12345), ("events", 0xD747, "ff" * 320, 2560), ("events", 0xD886, "80", 1),
        ("events", 0xD887, "ff", 0), ("bag_count", 0xD31D, "02", 2), ("bag_1_item", 0xD31E, "04", 4),
        ("bag_1_quantity", 0xD31F, "05", 5), ("bag_20_quantity", 0xD345, "63", 99), ("facing", 0xC109, "0c", 12),
        ("music", 0xD35B, "ba", 186), ("sound_1", 0xC026, "01", 1), ("sound_8", 0xC02D, "02", 2),
        ("sound_new", 0xC0EE, "b6", 182),
    ],
)  # fmt: skip
def test_red_addresses(probe: str, address: int, stored: str, value: int) -> None:
    memory = Memory()
    memory.put(address, *bytes.fromhex(stored))
    assert load_profile("pokemon_red").probes(memory)[probe] == value


@pytest.mark.parametrize(
    ("kind", "result", "hp", "won"),
    [
        (1, 0, 0, True), (2, 0, 0, True), (1, 0, 9, False), (1, 2, 9, False),
        (1, 2, 0, False), (2, 1, 9, False), (0xFF, 0, 0, False),
    ],
)  # fmt: skip
def test_red_a_win_is_a_win(kind: int, result: int, hp: int, won: bool) -> None:
    red = Red()
    red.put(0xCFE6, 0, 9)
    red.put(0xD057, kind)
    assert red.step() == STUCK
    red.put(0xCFE6, 0, hp)
    assert red.step() == STUCK
    red.put(0xD057, 0)
    red.put(0xCF0B, result)
    assert red.step() == ({"battle": 1} if won else STUCK)
    assert red.step() == STUCK


def test_red_a_battle_lost_by_way_of_ff() -> None:
    red = Red()
    for value in (2, 0xFF, 0):
        red.put(0xD057, value)
        assert red.step() == STUCK


def test_red_only_wounds_cost() -> None:
    red = Red()
    red.member(0, 176, 8, 1000, 0x1111)
    red.member(1, 36, 40, 2000, 0x2222)
    assert red.step() == {"hp": -0.6, **STUCK}  # 12 lost; the other's 10 healed do not count against it
    red.member(0, 176, 20, 1000, 0x1111)
    assert red.step() == STUCK  # healing pays nothing
    red.member(0, 176, 21, 1010, 0x1111, max_hp=60)
    assert red.step() == {"xp": 0.1}  # a new maximum is no wound, though 21 of 60 is less than 20 of 40


def test_red_the_order_of_the_party_is_nothing() -> None:
    red = Red()
    red.member(0, 36, 30, 2000, 0x2222)
    red.member(1, 176, 20, 1000, 0x1111)
    assert red.step() == STUCK
    red.member(0, 36, 29, 2100, 0x2222)
    assert red.step() == {"hp": -0.05, "xp": 1.0}


def test_red_order_told_by_species_alone() -> None:
    red = Red()
    red.put(0xD186, 0, 0)
    red.put(0xD1B2, 0, 0)
    red.step()
    red.member(0, 36, 30, 2000, 0)
    red.member(1, 176, 20, 1000, 0)
    assert red.step() == STUCK


def test_red_coming_and_going() -> None:
    red = Red()
    red.member(2, 99, 5, 90_000, 0x3333)
    red.put(0xD163, 3)
    assert red.step() == STUCK  # its experience was earned elsewhere
    red.member(0, 36, 30, 2000, 0x2222)
    red.member(1, 99, 5, 90_000, 0x3333)
    red.put(0xD163, 2)
    assert red.step() == STUCK  # the first was put away; the rest moved up
    red.put(0xD163, 0)
    assert red.step() == STUCK


def test_red_an_evolution_is_no_wound() -> None:
    red = Red()
    red.member(0, 177, 18, 1100, 0x1111)
    assert red.step() == STUCK


def test_red_collections_count_once() -> None:
    red = Red()
    red.put(0xD309, 0x80)
    assert red.step() == {"species": 2}
    red.put(0xD356, 0b101)
    assert red.step() == {"badge": 20}
    saved = bytes(red.memory.bytes)
    red.memory.bytes[:] = bytes(0x10000)
    red.step()
    red.memory.bytes[:] = saved
    assert red.step() == STUCK
    assert {"boulder_badge", "thunder_badge"} <= set(red.state.milestones_reached)
    assert "cascade_badge" not in red.state.milestones_reached


def test_red_maps_and_the_stuck_counter() -> None:
    red = Red()
    for place, paid in ((1, STUCK), (12, {"map": 0.5}), (1, STUCK), (12, STUCK), (0, {"map": 0.5})):
        red.put(0xD35E, place)
        assert red.step() == paid
    for steps in range(1, 4):
        assert red.step() == STUCK
        assert red.state.values["steps_without_progress"] == steps


def test_red_weights_are_those_asked_for_and_can_be_changed() -> None:
    wanted = {"badge": 10, "species": 2, "map": 0.5, "battle": 1, "xp": 0.01, "hp": -0.05, "stuck": -0.001}
    assert load_profile("pokemon_red").weights == wanted
    assert load_profile("pokemon_red", {"map": 3}).weights == {**wanted, "map": 3}


@pytest.mark.parametrize(
    ("title", "said"),
    [
        (b"POKEMON BLUE", "'POKEMON BLUE'.*not Pokemon Red"),
        (b"POKEMON RED", "another version of it"),
        (b"TETRIS", "'TETRIS'.*ea9bcae617fdf159b045185467ae58b2e4a48b9a.*generic"),
    ],
)
def test_red_only_the_right_cartridge(title: bytes, said: str) -> None:
    rom = bytearray(0x8000)
    rom[0x134 : 0x134 + len(title)] = title
    with pytest.raises(RomError, match=said):
        load_profile("pokemon_red").check_rom(bytes(rom), "mine.gb")
    load_profile("generic").check_rom(bytes(rom))


def test_the_header_chooses_the_profile() -> None:
    rom = bytearray(0x8000)
    assert profile_for(bytes(rom)) == "generic"
    rom[0x134:0x13F] = b"POKEMON RED"
    assert profile_for(bytes(rom)) == "pokemon_red"


def test_red_a_stub_is_no_rom() -> None:
    with pytest.raises(RomError, match="too few"):
        load_profile("pokemon_red").check_rom(b"abc", "mine.gb")


# ---------------------------------------------------------------- finding addresses


def searched(memory: Memory, **options) -> MemorySearch:
    "A search of a game whose machine has this memory"
    machine = SimpleNamespace(read=memory)
    return MemorySearch(SimpleNamespace(unwrapped=SimpleNamespace(machine=machine)), **options)


@pytest.mark.parametrize(
    ("kind", "before", "after", "by"),
    [
        ("u8", [200], [203], 3),
        ("u16le", [0xFF, 0x01], [0x01, 0x02], 2),  # 511 to 513: no single byte rose by 2
        ("u16be", [0x01, 0xFF], [0x02, 0x01], 2),
        ("bcd1", [0x19], [0x21], 2),
        ("bcd2", [0x01, 0x99], [0x02, 0x01], 2),
    ],
)
def test_a_search_finds_each_kind_of_number_by_how_it_rose(kind, before, after, by):
    memory = Memory()
    memory.put(0xC100, 7, 0, *before, 0, 9)
    search = searched(memory)
    memory.put(0xC102, *after)
    assert search.rose(by) >= 1 and f"0xC102 {kind}" in search.table().probe.tolist()
    probe = Probe.parse(f"0xC102 {kind}", "x")
    read = eval(probe.source("block", 0), {"block": bytes(after), "from_bytes": int.from_bytes})
    assert search.table().set_index("probe").value[f"0xC102 {kind}"] == read  # it means what a profile means


def test_each_look_compares_with_the_look_before_and_only_takes_away():
    memory = Memory()
    search = searched(memory, kinds=["u8"])
    memory.put(0xC010, 5, 5, 5)
    assert search.changed() == 3
    memory.put(0xC010, 6, 4, 5)
    memory.put(0xC020, 1)  # changed now, but not before
    assert search.changed() == 2 and search.same() == 2
    memory.put(0xC010, 7, 3)
    assert search.rose() == 1 and search.fell() == 0
    search = searched(memory, kinds=["u8"])
    assert search.is_now(3) == 1 and search.table().probe.tolist() == ["0xC011 u8"]


def test_what_is_no_decimal_number_is_no_candidate_and_mistakes_are_one_line():
    memory = Memory()
    memory.put(0xC000, 0x1A)
    search = searched(memory, kinds=["bcd1"], stop=0xC002)
    assert search.same() == 1
    with pytest.raises(UsageError, match="did you mean 'u16le'"):
        searched(memory, kinds=["u16l"])
    with pytest.raises(UsageError, match="start below stop"):
        searched(memory, start=0xD000, stop=0xC000)


# ---------------------------------------------------------------- a guided search


def answers(memory: Memory, *said: str) -> list[str]:
    "What a finder says to each line; `memory.put` stands between them as `put ADDRESS VALUE`"
    finder = ProbeSearch(SimpleNamespace(unwrapped=SimpleNamespace(machine=SimpleNamespace(read=memory))))
    told = []
    for line in said:
        if line.startswith("put "):
            memory.put(*(int(number, 16) for number in line.split()[1:]))
            continue
        try:
            told.append(finder.say(line))
        except UsageError as error:
            told.append(f"! {error}")
    return [*told, str(finder.live())]


def test_a_found_number_gets_a_name_and_is_read_live_from_then_on():
    told = answers(Memory(), "put C100 9", "mark", "put C100 12", "Rose 9", "list", "name score u8", "put C100 20", "")
    assert told[1].startswith("3 candidates left")  # alone, and as the lower of two bytes in each order
    assert "0xC100 u8 = 18" in told[2] and told[3] == "score is 0xC100 u8"
    assert told[4] == "40960 candidates left" and told[5] == "{'score': 32}"


def test_the_simplest_type_of_one_address_is_taken_and_the_others_are_told():
    memory = Memory()
    memory.put(0xC000, 1)  # the first address: no pair begins before it
    told = answers(memory, "mark", "put C000 2", "rose", "name score", "forget score", "undo", "name score u16le")
    assert told[1].splitlines()[1:] == ["0xC000 u8 = 2", "0xC000 u16le = 2", "0xC000 u16be = 512", "0xC000 bcd1 = 2",
                                        "0xC000 bcd2 = 200"]  # fmt: skip
    more = "u16le, u16be, bcd1, bcd2 would fit as well: forget score, undo, and name score with that"
    assert told[2] == f"score is 0xC000 u8; {more}"
    assert told[3] == "score was 0xC000 u8" and told[4] == told[1] and told[5] == "score is 0xC000 u16le"


def test_undo_again_and_a_look_that_leaves_nothing():
    told = answers(Memory(), "undo", "put C100 5", "changed", "put C100 6", "is 99", "rose", "undo", "undo", "again", "undo")
    changed = told[1]
    assert told[0] == "! there is no look to take back" and changed == "8 candidates left"
    assert told[2] == "! no candidate did that, so the look is taken back: 8 are left as before"
    assert told[3] == changed and told[4] == changed and told[5] == told[6] == told[7] == "40960 candidates left"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("rised", "unknown word 'rised': did you mean 'rose'?"),
        ("is", "is is used like this: is 12"),
        ("is 1 2", "is is used like this"),
        ("same 3", "same is used like this"),
        ("rose 1.5", "rose: the number must be int, not 1.5"),
        ("fell [", "fell: not YAML"),
        ("name", "name is used like this"),
        ("name gain", "the name of a function"),
        ("name 9lives", "a name is lower-case letters"),
        ("name x", "8192 addresses are left: look again, or choose one, such as name x 0xC000 u8"),
        ("name x u7", "nothing that is left is 'u7'"),
        ("name x 0xC100 u7", "unknown type 'u7'"),
        ("name x 0xFFFF u16le", "bad address"),
        ("forget x", "unknown name 'x'"),
        ("undo 3", "undo is used like this"),
        ("\x1b[2J", "unknown word"),
    ],
)
def test_words_that_say_nothing_are_one_line_and_change_nothing(line, said):
    first, left, live = answers(Memory(), line, "")
    assert first.startswith("! ") and said in first and "\n" not in first
    assert left == "40960 candidates left" and live == "{}"


def test_where_a_profile_can_be_written(tmp_path):
    check_output(tmp_path / "mine.yaml")
    (tmp_path / "mine.yaml").write_text("title: mine")
    for name, said in (("mine.yaml", "is there already"), ("mine.txt", "end in .yaml"), ("no/mine.yaml", "no folder")):
        with pytest.raises(UsageError, match=said):
            check_output(tmp_path / name)


def test_the_coins_of_bonk_are_found_by_words_alone(tmp_path):
    cartridge = {"boot": "noop 60, start 4, noop 60", "profile": "bonk"}
    game = make_game(f"gameboy:{ROM}", **cartridge)
    observation, info = game.reset(seed=0)
    player = make_policy("scripted", game, seed=0)
    finder, coins = ProbeSearch(game), 0
    for _ in range(40):  # looks
        for _ in range(60):
            observation, *_, info = game.step(player(observation, info))
            if info["probes"]["coins"] != coins:  # what a person sees
                break
        said = finder.say(f"rose {info['probes']['coins'] - coins}" if info["probes"]["coins"] > coins else "same")
        coins = info["probes"]["coins"]
        if said.startswith("3 "):
            break
    assert finder.say("name coins u16le") == "coins is 0xC03A u16le", said
    assert finder.named["coins"] == load_profile("bonk").table["coins"] and finder.live() == {"coins": coins} and coins
    mine = tmp_path / "mine.yaml"
    actions = {name: game.profile.actions[name] for name in game.action_names}
    mine.write_text(profile_text(game.machine.rom, actions, finder.named))
    assert load_profile(mine).actions == load_profile("bonk").actions
    assert prove(game, finder.named, ROM, mine) == {"coins": coins}
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(mine.read_text().replace("0xC03A", "0xC022"))
    with pytest.raises(MetaBonkError, match=f"reads {{'coins': .*}}, and the one that was played {{'coins': {coins}}}"):
        prove(game, finder.named, ROM, wrong)
    game.close()
