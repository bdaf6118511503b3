"""What the builds of all our cartridges share: pictures in text to tiles, tables to C, the compiler and its checks.

Needs Debian's `sdcc`, no Python package.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

GAMES = Path(__file__).resolve().parent
ROMS = GAMES.parent / "metabonk" / "play" / "roms"
SHARED = (GAMES / "crt0.s", GAMES / "console.h", GAMES / "keys.h")  # start of every ROM; the console: registers, buttons
FONT = GAMES / "font.txt"  # letters of every ROM
TOOLS = ("sdcc", "sdasgb", "makebin")
SHADES = {".": 0, ":": 1, "o": 2, "#": 3}  # also the order light to dark on a lit screen


class BuildError(Exception):
    """Something in the sources or the tools is wrong; the message says what."""


# --- pictures -----------------------------------------------------------------------------------------------------
def tile_bytes(rows: list[str], left: int, top: int) -> list[int]:
    """Sixteen bytes of the 8 x 8 tile at (left, top) of a picture in text."""
    out = []
    for y in range(top, top + 8):
        shades = [SHADES[c] for c in rows[y][left : left + 8]]
        out.append(sum((s & 1) << (7 - i) for i, s in enumerate(shades)))
        out.append(sum((s >> 1) << (7 - i) for i, s in enumerate(shades)))
    return out


def read_font(path: Path) -> list[int]:
    """64 tiles for the characters 32 to 95, from blocks of 5 x 7 glyphs side by side."""
    glyphs: dict[str, list[str]] = {}
    lines = [line for line in path.read_text().splitlines() if not line.startswith("//")]
    while any(line.strip() for line in lines):
        while not lines[0].strip():
            lines.pop(0)
        names, block, lines = lines[0].split(), lines[1:8], lines[8:]
        for i, name in enumerate(names):
            glyphs[name] = [row.split()[i] for row in block]
            if {len(row) for row in glyphs[name]} != {5}:
                raise BuildError(f"{path.name}: glyph {name} is not 5 wide")
    blank = ["." * 8] * 8
    out: list[int] = []
    for code in range(32, 96):
        glyph = glyphs.get(chr(code))
        out += tile_bytes(blank if glyph is None else [f".{row}.." for row in glyph] + ["." * 8], 0, 0)
    return out


def read_art(path: Path) -> tuple[list[int], dict[str, int]]:
    """All tiles from 64 on, and the number of the first tile of each picture."""
    data: list[int] = []
    names: dict[str, int] = {}
    for block in re.split(r"^@", path.read_text(), flags=re.M)[1:]:
        head, *rows = [line for line in block.splitlines() if line.strip() and not line.startswith("//")]
        kind, name = head.split()
        wide, tall = {"tile": (8, 8), "cell": (16, 16), "sprite": (16, 16), "half": (16, 32)}[kind]
        if len(rows) != tall or any(len(row) != wide for row in rows):
            raise BuildError(f"{path.name}: {name} must be {wide} x {tall}")
        across = [(x, y) for y in range(0, tall, 8) for x in range(0, wide, 8)]
        down = [(x, y) for b in range(0, tall, 16) for x in range(0, wide, 8) for y in (b, b + 8)]
        if kind in ("sprite", "half") and len(data) // 16 % 2:
            data += [0] * 16  # tall sprites start at an even tile
        names[name] = 64 + len(data) // 16
        for x, y in across if kind in ("tile", "cell") else down:
            data += tile_bytes(rows, x, y)
    if len(data) // 16 > 192:
        raise BuildError(f"{path.name}: {len(data) // 16} tiles, 192 fit")
    return data, names


# --- C tables -----------------------------------------------------------------------------------------------------
def pitch_table() -> list[int]:
    """Frequency registers of the pulse channels for C2 and the 71 semitones above it."""
    return [round(2048 - 131072 / (440 * 2 ** ((i - 33) / 12))) for i in range(72)]


def c_array(kind: str, name: str, values: list[int]) -> str:
    """One constant array in C."""
    lines = [", ".join(str(v) for v in values[i : i + 20]) for i in range(0, len(values), 20)]
    return f"const {kind} {name}[{len(values)}] = {{\n  " + ",\n  ".join(lines) + "\n};\n"


# --- build --------------------------------------------------------------------------------------------------------
def run(*command: str, cwd: Path) -> None:
    """Run one tool; its output goes into the error when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    warnings = [w for w in (done.stdout + done.stderr).splitlines() if "warning" in w]
    if warnings:
        print("\n".join(warnings), file=sys.stderr)


def build_rom(
    title: str,  # for the header
    folder: Path,  # where the C sources are
    sources: Sequence[str],  # their names, without ".c"
    made: Mapping[str, str],  # more files, made from other sources: name and content
    assembler: Sequence[str] = ("crt0",),  # names of what is assembled, without ".s"
) -> bytes:  # 32 KiB
    """Compile and link in a temporary folder."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise BuildError(f"{', '.join(missing)} not found: install Debian's sdcc (apt-get install sdcc)")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name in (*folder.glob("*.[ch]"), *SHARED):
            shutil.copy(name, work)
        for name, content in made.items():
            (work / name).write_text(content)
        for source in assembler:
            run("sdasgb", "-plosgff", "-o", f"{source}.rel", f"{source}.s", cwd=work)
        compiler = ("sdcc", "-msm83", "--opt-code-speed", "--max-allocs-per-node", "3000", "-c")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda source: run(*compiler, f"{source}.c", cwd=work), sources))
        parts = [f"{s}.rel" for s in (*assembler, *sources)]
        run("sdcc", "-msm83", "--no-std-crt0", "--code-loc", "0x200", "--data-loc", "0xC300", *parts, "-o", "game.ihx",
            cwd=work)
        used = check_areas((work / "game.map").read_text())
        run("makebin", "-Z", "-yN", "-yo", "2", "-yn", title, "game.ihx", "game.gb", cwd=work)
        rom = (work / "game.gb").read_bytes()
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


def command_line(about: str, files: Callable[[Path], dict[Path, bytes]]) -> int:
    """What a build script does: write the files that its sources give, or compare them with what is there."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROMS, help="folder for the ROM and what goes with it")
    parser.add_argument("--check", action="store_true", help="build, compare with what is there, write nothing")
    options = parser.parse_args()
    try:
        made = files(options.out)
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
    print(f"wrote {', '.join(path.name for path in made)}")
    return 0
