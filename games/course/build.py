"""Build the course: `python games/course/build.py`.

Turns the readable sources beside this file (maps, pictures, C) into the ROM, `metabonk/play/roms/course.gb`, and puts
the maps beside it. Needs Debian's `sdcc`, no Python package. The same sources give the same bytes.
"""

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from cartridge import FONT, BuildError, build_rom, c_array, command_line, pitch_table, read_art, read_font  # noqa: E402

SOURCES = ("screen", "sound", "fight", "main", "tables")
CELLS = " .#T,DSPB"  # index = number of the cell, in the order of the pictures
CELL_NAMES = ("FLOOR", "WALL", "TREE", "GRASS", "DOOR", "SIGN", "PERSON", "BOX")
NEEDS = ("none", "member", "badge")
ACTS = {"talk": 0, "gift": 2, "balls": 1, "heal": 0, "gym": 3}  # name: how many numbers it takes


def read_world() -> dict[str, list[Any]]:
    """Rows of `world.txt`: places, cells, doors, talks, texts."""
    world: dict[str, list[Any]] = {"places": [], "cells": [], "doors": [], "talks": [], "texts": []}
    for block in re.split(r"^@", (HERE / "world.txt").read_text(), flags=re.M)[1:]:
        head, *lines = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith("//")]
        number, *options = head.split()
        told = dict(option.split("=") for option in options)
        rows = lines[:9]
        if any(len(row) != 10 or not set(row) <= set(CELLS) for row in rows):
            raise BuildError(f"world.txt: map {number} must be 10 x 9 cells of {CELLS}")
        wild = [int(n) for n in told.get("wild", "0,0,0").split(",")]
        world["places"].append([int(number), int(told["tune"]), *wild])
        world["cells"] += [CELLS.index(c) for row in rows for c in row]
        for line in lines[9:]:
            if line.startswith("door"):
                world["doors"].append(read_door(int(number), rows, line, world["texts"]))
            else:
                world["talks"].append(read_talk(int(number), len(world["talks"]), line, world["texts"]))
    return world


def text_number(text: str, texts: list[str]) -> int:
    """Number of a text; new ones are added."""
    if any(len(line) > 19 for line in text.split("|")) or text.count("|") > 3:
        raise BuildError(f"world.txt: {text!r} has more than 4 lines of 19 letters")
    if text not in texts:
        texts.append(text)
    return texts.index(text)


def read_door(number: int, rows: list[str], line: str, texts: list[str]) -> list[int]:
    """`door x,y -> map x,y [need text]` as numbers."""
    match = re.fullmatch(r"door (\d),(\d) -> (\d+) (\d),(\d)(?: (member|badge) (.+))?", line)
    if not match or rows[int(match[2])][int(match[1])] != "D":
        raise BuildError(f"world.txt: map {number}: {line!r} is no door")
    x, y, to, to_x, to_y = (int(n) for n in match.groups()[:5])
    return [number, x, y, to, to_x, to_y, NEEDS.index(match[6] or "none"), text_number(match[7] or "", texts)]


def read_talk(number: int, event: int, line: str, texts: list[str]) -> list[int]:
    """`at x,y ACT numbers TEXT` as numbers; every talk has an event bit of its own."""
    match = re.fullmatch(r"at (\d),(\d) (\w+) (.+)", line)
    if not match or match[3] not in ACTS:
        raise BuildError(f"world.txt: map {number}: {line!r} is not understood")
    *numbers, text = match[4].split(" ", ACTS[match[3]])
    values = [int(n) for n in numbers] + [0] * (3 - len(numbers))
    return [number, int(match[1]), int(match[2]), list(ACTS).index(match[3]), *values, event, text_number(text, texts)]


def rows_in_c(kind: str, name: str, rows: list[list[int]]) -> str:
    """A constant array of structures."""
    return f"const {kind} {name}[{len(rows)}] = {{\n" + "".join(f"  {{{', '.join(map(str, row))}}},\n" for row in rows) + "};\n"


def tables() -> tuple[str, str]:
    """Header and source of everything that is data."""
    font, (art, names), world = read_font(FONT), read_art(HERE / "art.txt"), read_world()
    header = [
        "/* made by build.py */",
        *(f"#define T_{name.upper()} {tile}" for name, tile in names.items()),
        f"#define TILE_BYTES {len(font + art)}",
        f"enum {{ {', '.join(f'CELL_{name} = {i}' for i, name in enumerate(CELL_NAMES, 1))} }};",
        f"enum {{ {', '.join(f'NEED_{name.upper()}' for name in NEEDS)} }};",
        f"enum {{ {', '.join(f'ACT_{name.upper()}' for name in ACTS)} }};",
        f"#define DOORS {len(world['doors'])}",
        f"#define TALKS {len(world['talks'])}",
        "typedef struct { u8 id, tune, wild_a, wild_b, level; } Place;",
        "typedef struct { u8 map, x, y, to, to_x, to_y, need, text; } Door;",
        "typedef struct { u8 map, x, y, act, a, b, c, event, text; } Talk;",
        "extern const u8 tile_data[], map_cells[];",
        "extern const u16 pitches[];",
        "extern const Place places[];",
        "extern const Door doors[];",
        "extern const Talk talks[];",
        "extern const char *const texts[];",
    ]
    source = '#include "course.h"\n' + c_array("u8", "tile_data", font + art) + c_array("u16", "pitches", pitch_table())
    source += c_array("u8", "map_cells", world["cells"])
    for kind, name in (("Place", "places"), ("Door", "doors"), ("Talk", "talks")):
        source += rows_in_c(kind, name, world[name])
    source += "const char *const texts[] = {\n" + "".join(f'  "{text}",\n' for text in world["texts"]) + "};\n"
    return "\n".join(header) + "\n", source


def files(out: Path) -> dict[Path, bytes]:
    """Everything that is built, and where it lies."""
    header, source = tables()
    rom = build_rom("COURSE", HERE, SOURCES, {"tables.h": header, "tables.c": source})
    return {out / "course.gb": rom, out / "course.txt": (HERE / "world.txt").read_bytes()}


if __name__ == "__main__":
    sys.exit(command_line(__doc__, files))
