"""Build Bonk: `python games/bonk/build.py`.

Turns the readable sources beside this file (memory map, pictures, tunes, maps, C) into the ROM and its symbol
file, and writes both to `metabonk/play/roms/`. Needs Debian's `sdcc`, no Python package. The same sources give the
same bytes.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from cartridge import FONT, BuildError, build_rom, c_array, command_line, pitch_table, read_art, read_font  # noqa: E402

SOURCES = ("video", "sound", "play", "main")
CELLS = ".#OSLGK"  # index = number of the cell kind in memory
NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


# --- memory map ---------------------------------------------------------------------------------------------------
def memory_map() -> list[tuple[int, str, str, str]]:
    """Rows (address, type, name, meaning) of `memory.txt`, checked for overlaps."""
    rows, free = [], 0xC000
    for number, line in enumerate((HERE / "memory.txt").read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        address, kind, name, meaning = line.split(None, 3)
        start = int(address, 16)
        if start < free:
            raise BuildError(f"memory.txt line {number}: {name} at {address} overlaps the entry before it")
        free = start + size_of(kind)
        rows.append((start, kind, name, meaning))
    return rows


def size_of(kind: str) -> int:
    """Bytes of one entry of the memory map."""
    return int(kind[6:]) if kind.startswith("bytes:") else int(kind[1:]) // 8


def memory_sources(rows: list[tuple[int, str, str, str]]) -> tuple[str, str]:
    """C declarations and assembler addresses: settings keep their name, state is called `g_name`."""
    head, code = ["/* made by build.py from memory.txt */"], ["        .module memory"]
    for address, kind, name, _ in rows:
        full = name if name.startswith("set_") else f"g_{name}"
        volatile = "volatile " if name.startswith("set_") or name in ("phase", "music_tick", "late") else ""
        what = f"u8 {full}[{size_of(kind)}]" if kind.startswith("bytes:") else f"{volatile}{kind} {full}"
        head.append(f"extern {what};")
        code += [f"        .globl _{full}", f"_{full} == 0x{address:04X}"]
    return "\n".join(head) + "\n", "\n".join(code) + "\n"


def symbol_file(rows: list[tuple[int, str, str, str]]) -> str:
    """`00:ADDRESS name` lines; a comment above each says type and meaning."""
    lines = ["; Bonk: addresses of settings and state (made by games/bonk/build.py)"]
    for address, kind, name, meaning in rows:
        lines += [f"; {kind} {meaning}", f"00:{address:04X} {name}"]
    return "\n".join(lines) + "\n"


def memory_table(rows: list[tuple[int, str, str, str]]) -> str:
    """The memory map as a Markdown table for README.md."""
    lines = ["| address | type | name | meaning |", "|---|---|---|---|"]
    lines += [f"| `{address:04X}` | {kind} | `{name}` | {meaning} |" for address, kind, name, meaning in rows]
    return "\n".join(lines) + "\n"


# --- pictures -----------------------------------------------------------------------------------------------------
# --- tunes --------------------------------------------------------------------------------------------------------
def note_number(text: str) -> int:
    """Number of a note: 2 for C2, one more a semitone; 0 holds, 1 rests."""
    if text in (".", "-"):
        return 0 if text == "." else 1
    return 2 + NOTES.index(text[:-1]) + 12 * (int(text[-1]) - 2)


def read_tunes() -> list[dict]:
    """Tunes of `tunes.txt`: tempo in frames a step, duty, lead and bass as note numbers."""
    tunes: list[dict] = []
    for line in (HERE / "tunes.txt").read_text().splitlines():
        words = line.split()
        if not words or words[0].startswith("//"):
            continue
        if words[0] == "tune":
            tunes.append({"name": words[1], "lead": [], "bass": [], **{w.split("=")[0]: w.split("=")[1] for w in words[2:]}})
        else:
            tunes[-1][words[0]] += [note_number(w) for w in words[1:] if w != "|"]
    for tune in tunes:
        if len(tune["lead"]) != len(tune["bass"]) or not 1 <= len(tune["lead"]) <= 128:
            raise BuildError(f"tunes.txt: {tune['name']} has {len(tune['lead'])} lead and {len(tune['bass'])} bass steps")
    return tunes


# --- maps ---------------------------------------------------------------------------------------------------------
def read_world() -> list[dict]:
    """The nine screens of `world.txt`: cells, coin spots, opponents, flags, name and sign."""
    screens = []
    for block in re.split(r"^@", (HERE / "world.txt").read_text(), flags=re.M)[1:]:
        lines = [line.rstrip() for line in block.splitlines() if line.strip() and not line.startswith("//")]
        head = lines[0].split()
        rows, sign = lines[1:9], [line[1:].strip() for line in lines[9:] if line.startswith(">")]
        if len(rows) != 8 or any(len(row) != 10 for row in rows):
            raise BuildError(f"world.txt: screen {head[0]} must be 10 x 8 cells")
        if any(len(line) > 18 for line in sign) or len(sign) > 4:
            raise BuildError(f"world.txt: the sign of screen {head[0]} has more than 4 lines of 18 letters")
        flat = "".join(rows)
        coins = [i for i, c in enumerate(flat) if c == "c"]
        actors = [(i, "-bhB".index(c)) for i, c in enumerate(flat) if c in "bhB"]
        if len(coins) > 8 or len(actors) > 4:
            raise BuildError(f"world.txt: screen {head[0]} has more than 8 coins or 4 opponents")
        cells = [CELLS.index(c) if c in CELLS else 0 for c in flat]
        screens.append({"cells": cells, "coins": coins, "actors": actors, "sign": sign,
                        "dark": "dark" in head, "chargers": "chargers" in head})
    if len(screens) != 9:
        raise BuildError(f"world.txt: {len(screens)} screens, nine are needed")
    return screens


# --- C tables -----------------------------------------------------------------------------------------------------
def tables() -> tuple[str, str]:
    """Header and source of everything that is data: pictures, tunes, maps."""
    font, (art, names), tunes, screens = read_font(FONT), read_art(HERE / "art.txt"), read_tunes(), read_world()
    head = ["/* made by build.py */", *(f"#define T_{name.upper()} {tile}" for name, tile in names.items())]
    arrays: list[tuple[str, str, list[int]]] = [
        ("u8", "tile_data", font + art),
        ("u16", "pitches", pitch_table()),
        ("u8", "tune_tempo", [int(t["tempo"]) for t in tunes]),
        ("u8", "tune_duty", [int(t["duty"]) << 6 for t in tunes]),
        ("u8", "tune_loud", [int(t["loud"], 16) for t in tunes]),
        ("u8", "tune_length", [len(t["lead"]) for t in tunes]),
    ]
    offsets: list[int] = []
    notes: list[int] = []
    for tune in tunes:
        offsets.append(len(notes))
        notes += [v for pair in zip(tune["lead"], tune["bass"], strict=True) for v in pair]
    arrays += [("u16", "tune_start", offsets), ("u8", "tune_notes", notes)]
    arrays += [
        ("u8", "world_cells", [v for s in screens for v in s["cells"]]),
        ("u8", "world_coins", [v for s in screens for v in (s["coins"] + [255] * 8)[:8]]),
        ("u8", "world_coin_count", [len(s["coins"]) for s in screens]),
        ("u8", "world_actors", [v for s in screens for a in (s["actors"] + [(0, 0)] * 4)[:4] for v in a]),
        ("u8", "world_dark", [int(s["dark"]) for s in screens]),
        ("u8", "world_chargers", [int(s["chargers"]) for s in screens]),
        ("char", "world_signs", [ord(c) for s in screens for c in "".join(f" {x:<19}" for x in (s["sign"] + [""] * 4)[:4])]),
    ]
    head += [f"extern const {kind} {name}[{len(values)}];" for kind, name, values in arrays]
    return "\n".join(head) + "\n", '#include "bonk.h"\n' + "".join(c_array(*a) for a in arrays)


# --- build --------------------------------------------------------------------------------------------------------
def readme_with_map() -> str:
    """README.md with the memory table between its two marks made anew."""
    text = (HERE / "README.md").read_text()
    return re.sub(r"(<!-- memory map -->\n).*(<!-- end -->)", lambda m: m[1] + memory_table(memory_map()) + m[2], text,
                  flags=re.S)


def files(out: Path) -> dict[Path, bytes]:
    """Everything that is built, and where it lies."""
    header, data = tables()
    declarations, addresses = memory_sources(memory_map())
    made = {"memory.h": declarations, "memory.s": addresses, "tables.h": header, "tables.c": data}
    rom = build_rom("BONK", HERE, (*SOURCES, "tables"), made, ("crt0", "memory"))
    return {out / "bonk.gb": rom, out / "bonk.sym": symbol_file(memory_map()).encode(),
            HERE / "README.md": readme_with_map().encode()}


if __name__ == "__main__":
    sys.exit(command_line(__doc__, files))
