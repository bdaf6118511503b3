"""Build Bonk: `python games/bonk/build.py`.

Turns the readable sources beside this file (memory map, pictures, tunes, maps, C) into the ROM and its symbol
file, and writes both to `metabonk/play/roms/`. Needs Debian's `sdcc`, no Python package. The same sources give the
same bytes.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROMS = HERE.parents[1] / "metabonk" / "play" / "roms"
TOOLS = ("sdcc", "sdasgb", "makebin")
SOURCES = ("video", "sound", "play", "main")
SHADES = {".": 0, ":": 1, "o": 2, "#": 3}  # also the order light to dark on a lit screen
CELLS = ".#OSLGK"  # index = number of the cell kind in memory
NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


class BuildError(Exception):
    """Something in the sources or the tools is wrong; the message says what."""


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
def tile_bytes(rows: list[str], left: int, top: int) -> list[int]:
    """Sixteen bytes of the 8 x 8 tile at (left, top) of a picture in text."""
    out = []
    for y in range(top, top + 8):
        shades = [SHADES[c] for c in rows[y][left : left + 8]]
        out.append(sum((s & 1) << (7 - i) for i, s in enumerate(shades)))
        out.append(sum((s >> 1) << (7 - i) for i, s in enumerate(shades)))
    return out


def read_font() -> list[int]:
    """64 tiles for the characters 32 to 95, from blocks of 5 x 7 glyphs side by side."""
    glyphs: dict[str, list[str]] = {}
    lines = [line for line in (HERE / "font.txt").read_text().splitlines() if not line.startswith("//")]
    while any(line.strip() for line in lines):
        while not lines[0].strip():
            lines.pop(0)
        names, block, lines = lines[0].split(), lines[1:8], lines[8:]
        for i, name in enumerate(names):
            glyphs[name] = [row.split()[i] for row in block]
            if {len(row) for row in glyphs[name]} != {5}:
                raise BuildError(f"font.txt: glyph {name} is not 5 wide")
    blank = ["." * 8] * 8
    out: list[int] = []
    for code in range(32, 96):
        glyph = glyphs.get(chr(code))
        out += tile_bytes(blank if glyph is None else [f".{row}.." for row in glyph] + ["." * 8], 0, 0)
    return out


def read_art() -> tuple[list[int], dict[str, int]]:
    """All tiles from 64 on, and the number of the first tile of each picture."""
    data: list[int] = []
    names: dict[str, int] = {}
    for block in re.split(r"^@", (HERE / "art.txt").read_text(), flags=re.M)[1:]:
        head, *rows = [line for line in block.splitlines() if line.strip() and not line.startswith("//")]
        kind, name = head.split()
        wide, tall = {"tile": (8, 8), "cell": (16, 16), "sprite": (16, 16), "half": (16, 32)}[kind]
        if len(rows) != tall or any(len(row) != wide for row in rows):
            raise BuildError(f"art.txt: {name} must be {wide} x {tall}")
        across = [(x, y) for y in range(0, tall, 8) for x in range(0, wide, 8)]
        down = [(x, y) for b in range(0, tall, 16) for x in range(0, wide, 8) for y in (b, b + 8)]
        if kind in ("sprite", "half") and len(data) // 16 % 2:
            data += [0] * 16  # tall sprites start at an even tile
        names[name] = 64 + len(data) // 16
        for x, y in across if kind in ("tile", "cell") else down:
            data += tile_bytes(rows, x, y)
    if len(data) // 16 > 192:
        raise BuildError(f"art.txt: {len(data) // 16} tiles, 192 fit")
    return data, names


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


def pitch_table() -> list[int]:
    """Frequency registers of the pulse channels for C2 and the 71 semitones above it."""
    return [round(2048 - 131072 / (440 * 2 ** ((i - 33) / 12))) for i in range(72)]


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
def c_array(kind: str, name: str, values: list[int]) -> str:
    """One constant array in C."""
    lines = [", ".join(str(v) for v in values[i : i + 20]) for i in range(0, len(values), 20)]
    return f"const {kind} {name}[{len(values)}] = {{\n  " + ",\n  ".join(lines) + "\n};\n"


def tables() -> tuple[str, str]:
    """Header and source of everything that is data: pictures, tunes, maps."""
    font, (art, names), tunes, screens = read_font(), read_art(), read_tunes(), read_world()
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
def run(*command: str, cwd: Path) -> None:
    """Run one tool; its output goes into the error when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    warnings = [w for w in (done.stdout + done.stderr).splitlines() if "warning" in w]
    if warnings:
        print("\n".join(warnings), file=sys.stderr)


def build_rom() -> bytes:
    """Compile and link in a temporary folder; returns the ROM's 32 KiB."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise BuildError(f"{', '.join(missing)} not found: install Debian's sdcc (apt-get install sdcc)")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        header, data = tables()
        declarations, addresses = memory_sources(memory_map())
        (work / "memory.h").write_text(declarations)
        (work / "memory.s").write_text(addresses)
        (work / "tables.h").write_text(header)
        (work / "tables.c").write_text(data)
        for name in ("bonk.h", "crt0.s", *(f"{s}.c" for s in SOURCES)):
            shutil.copy(HERE / name, work / name)
        for source in ("crt0", "memory"):
            run("sdasgb", "-plosgff", "-o", f"{source}.rel", f"{source}.s", cwd=work)
        compiler = ("sdcc", "-msm83", "--opt-code-speed", "--max-allocs-per-node", "3000", "-c")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda source: run(*compiler, f"{source}.c", cwd=work), (*SOURCES, "tables")))
        parts = [f"{s}.rel" for s in ("crt0", "memory", *SOURCES, "tables")]
        run("sdcc", "-msm83", "--no-std-crt0", "--code-loc", "0x200", "--data-loc", "0xC300", *parts, "-o", "bonk.ihx",
            cwd=work)
        used = check_areas((work / "bonk.map").read_text())
        run("makebin", "-Z", "-yN", "-yo", "2", "-yn", "BONK", "bonk.ihx", "bonk.gb", cwd=work)
        rom = (work / "bonk.gb").read_bytes()
    print(f"{used} of 32256 bytes of code and data used")
    return check_rom(rom)


def check_areas(link_map: str) -> int:
    """The link map must show code within 32 KiB and no initialised variables (crt0 only clears memory)."""
    sizes: dict[str, int] = {}
    for name, size in re.findall(r"^(_\w+)\s+[0-9A-F]{8}\s+([0-9A-F]{8})", link_map, flags=re.M):
        sizes[name] = max(sizes.get(name, 0), int(size, 16))
    if sizes.get("_INITIALIZED"):
        raise BuildError("a static variable has an initial value: crt0 only clears memory, set it in code")
    code = sum(sizes.get(a, 0) for a in ("_CODE", "_HOME", "_GSINIT", "_GSFINAL"))
    if code > 0x8000 - 0x200:
        raise BuildError(f"{code} bytes of code and data do not fit")
    return code


def check_rom(rom: bytes) -> bytes:
    """Size, empty logo area and header checksum."""
    if len(rom) != 0x8000 or any(rom[0x104:0x134]):
        raise BuildError("the ROM must have 32 KiB and an empty logo area")
    check = 0
    for byte in rom[0x134:0x14D]:
        check = (check - byte - 1) & 0xFF
    if rom[0x14D] != check:
        raise BuildError("makebin wrote a wrong header checksum")
    return rom


def readme_with_map() -> str:
    """README.md with the memory table between its two marks made anew."""
    text = (HERE / "README.md").read_text()
    return re.sub(r"(<!-- memory map -->\n).*(<!-- end -->)", lambda m: m[1] + memory_table(memory_map()) + m[2], text,
                  flags=re.S)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROMS, help="folder for bonk.gb and bonk.sym")
    parser.add_argument("--check", action="store_true", help="build, compare with what is there, write nothing")
    options = parser.parse_args()
    try:
        made = {options.out / "bonk.gb": build_rom(), options.out / "bonk.sym": symbol_file(memory_map()).encode(),
                HERE / "README.md": readme_with_map().encode()}
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    if options.check:
        stale = [str(path) for path, data in made.items() if not path.exists() or path.read_bytes() != data]
        print("up to date" if not stale else f"not up to date: {', '.join(stale)}")
        return bool(stale)
    options.out.mkdir(parents=True, exist_ok=True)
    for path, data in made.items():
        path.write_bytes(data)
    print(f"wrote {options.out / 'bonk.gb'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
