"""One store, one game: a cartridge, profile or state of the same name and another content is refused"""

from pathlib import Path

import pytest

from metabonk.core.errors import StoreError
from metabonk.core.text import read_yaml
from metabonk.play.game import make_game
from metabonk.play.gameboy_files import tiny_rom
from metabonk.play.profile import PROFILES, compile_profile
from metabonk.record.experience import Schema
from metabonk.record.recorder import record
from metabonk.record.store import Store

PROFILE = "title: Mine\nprobes: {coins: 0xC000 u8}\nterms: {coin: gain(coins)}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    "A folder with a cartridge, a profile, and a state of the cartridge"
    (tmp_path / "game.gb").write_bytes(tiny_rom(title="RED"))
    (tmp_path / "mine.yaml").write_text(PROFILE)
    game = make_game(f"gameboy:{tmp_path / 'game.gb'}")
    game.reset(seed=1)
    game.write_state(tmp_path / "start.state")
    game.step(0)
    game.write_state(tmp_path / "later.state")
    game.close()
    return tmp_path


def play(folder: Path, **settings: object) -> Store:
    record(f"gameboy:{folder / 'game.gb'}", folder / "store", steps=4, settings=settings)
    return Store.open(folder / "store")


def refused(folder: Path, **settings: object) -> str:
    before = len(Store.open(folder / "store"))
    with pytest.raises(StoreError) as error:
        play(folder, **settings)
    assert len(Store.open(folder / "store")) == before
    return str(error.value)


def test_another_cartridge_of_the_same_name(folder: Path) -> None:
    files = play(folder).schema.files
    assert set(files) == {"cartridge", "profile"} and len(files["cartridge"]) == 64
    (folder / "game.gb").write_bytes(tiny_rom(b"\x00\x18\xfe", title="RED"))
    assert "another cartridge" in refused(folder)


def test_a_cartridge_moved_is_the_same(folder: Path) -> None:
    play(folder)
    (folder / "near").mkdir()
    (folder / "game.gb").rename(folder / "near/game.gb")
    record(f"gameboy:{folder / 'near/game.gb'}", folder / "store", steps=4)


def test_a_profile_that_was_edited(folder: Path) -> None:
    play(folder, profile=str(folder / "mine.yaml"))
    (folder / "mine.yaml").write_text(PROFILE.replace("gain", "loss"))
    assert "profile" in refused(folder, profile=str(folder / "mine.yaml"))


def test_a_profile_that_comes_along_counts_by_its_content(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "ours").mkdir()
    monkeypatch.setattr("metabonk.play.profile.PROFILES", folder / "ours")
    (folder / "ours/mine.yaml").write_text(PROFILE)
    play(folder, profile="mine")
    (folder / "ours/mine.yaml").write_text(PROFILE.replace("Mine", "Other"))
    play(folder, profile="mine")  # its title decides nothing
    (folder / "ours/mine.yaml").write_text(PROFILE.replace("gain", "loss"))
    assert "another profile" in refused(folder, profile="mine")


def test_a_state_of_another_moment(folder: Path) -> None:
    play(folder, state=str(folder / "start.state"))
    (folder / "start.state").write_bytes((folder / "later.state").read_bytes())
    assert "start.state@" in refused(folder, state=str(folder / "start.state"))


def test_older_recordings_know_no_contents() -> None:
    older = Schema.from_dict({name: value for name, value in Schema().to_dict().items() if name != "files"})
    newer = Schema(files={"cartridge": "0" * 64})
    assert older.differences(newer) == newer.differences(older) == []
    assert newer.differences(Schema(files={"cartridge": "1" * 64, "profile": "2" * 64})) != []


def test_every_profile_has_its_own_fingerprint() -> None:
    found = [compile_profile(read_yaml(path), path.stem, str(path)).fingerprint for path in PROFILES.glob("*.yaml")]
    assert len(set(found)) == len(found) > 1
