"""What this computer has, what would not work on it, and how to mend that: `metabonk doctor`"""

import ctypes.util
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import metabonk
from metabonk.core.errors import MetaBonkError
from metabonk.core.places import socket_folder, usable_cache, writable

__all__ = ["Finding", "examine", "ready", "report", "as_json"]

_extras = {
    "doom": "games doom:SCENARIO",
    "minatar": "games minatar:GAME",
    "retro": "games retro:GAME",
    "fleet": "recording on many computers",
    "autoencoder": "image latents by a user's own Stable Diffusion autoencoder",
    "perceptual": "distances of pictures in the features of EfficientNet-Lite0",
    "judge": "some benchmarks, which compare with it",
}  # what each extra of settings.ini is for; dev has these and the tools of developers


@dataclass(frozen=True)
class Finding:
    "One thing that was looked for"

    name: str  # what it is
    group: str  # computer, folders, libraries, programs, extras
    there: bool  # whether it is there and works
    found: str = ""  # version, size or place; what is wrong where it does not work
    need: str = ""  # what would not work without it
    mend: str = ""  # what to do
    required: bool = False  # whether the default pipeline needs it

    def __str__(self) -> str:
        mark = "ok" if self.there else "MISSING" if self.required else "no"
        line = f"  {mark:9}{self.name:22}{self.found}".rstrip()
        return line if self.there else f"{line}\n{'':11}for  {self.need}\n{'':11}do   {self.mend}"


def examine() -> list[Finding]:  # in order of their groups; takes a few seconds, as PyTorch is asked for its GPU
    "Look for everything; a check that fails is itself a finding"
    found: list[Finding] = []
    for check in (_computer, _gpu, _folders, _libraries, _media, _programs, _extra_libraries):
        found += _tried(check)
    return found


def ready(
    findings: list[Finding],  # from `examine`
) -> bool:  # whether the default pipeline can run
    "Is everything there that the default pipeline needs?"
    return all(finding.there for finding in findings if finding.required)


def report(
    findings: list[Finding],  # from `examine`
) -> str:  # for a terminal; ASCII unless a path is not
    "What was found, group by group, and the verdict"
    lines, group = [], ""
    for finding in findings:
        lines += [] if finding.group == group else ["", finding.group]
        group = finding.group
        lines.append(str(finding))
    lacking = [finding.name for finding in findings if finding.required and not finding.there]
    verdict = f"not ready: {', '.join(lacking)}" if lacking else "ready for metabonk run pipelines/metabonk.yaml"
    return "\n".join([f"MetaBonk {metabonk.__version__}", *lines, "", verdict])


def as_json(
    findings: list[Finding],  # from `examine`
) -> dict[str, Any]:  # plain values
    "The same for a program"
    return {"metabonk": metabonk.__version__, "ready": ready(findings), "findings": [asdict(one) for one in findings]}


def _tried(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    "The findings of a check; what it raises is one more"
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        name = check.__name__.strip("_").replace("_", " ")
        said = f"{type(error).__name__}: {error}"[:200]
        needed = check is not _extra_libraries  # who can't be asked can't be relied on
        found.append(Finding(f"check of {name}", "computer", False, said, "this report", "report this line", needed))
    return found


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _computer() -> Iterator[Finding]:
    import psutil

    python, least = platform.python_version(), (3, 11)
    yield Finding("system", "computer", True, f"{platform.platform()}, {platform.machine()}")
    there = tuple(map(int, platform.python_version_tuple()[:2])) >= least
    yield Finding("Python", "computer", there, python, "everything", "install Python 3.11 or later", True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "computer", True, str(cores))
    memory = psutil.virtual_memory()
    said = f"{_size(memory.available)} of {_size(memory.total)} are free"
    need = "a run of the default pipeline beside other programs"
    yield Finding("memory", "computer", memory.available > 2 * 2**30, said, need, "end other programs")


def _gpu() -> Iterator[Finding]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        about = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU cuda:{index}", "computer", True, f"{about.name}, {_size(about.total_memory)}")
    if not count:
        built = f"PyTorch {torch.__version__} finds none"
        need = "the presets small and paper in reasonable time; tiny runs on the CPU"
        mend = "install a driver, and a build of PyTorch for it (https://pytorch.org/get-started)"
        yield Finding("GPU", "computer", False, built, need, mend)


def _folders() -> Iterator[Finding]:
    here, temporary = Path.cwd(), Path(tempfile.gettempdir())
    run = "go to a folder of yours, or name one: --run FOLDER"
    yield Finding("current folder", "folders", writable(here), str(here), "runs and stores", run, True)
    home = Path(os.path.expanduser("~"))
    yield Finding("home folder", "folders", writable(home, make=False), str(home), "caches of libraries between runs",
                  "set HOME to a folder of yours; without one, caches are made in the temporary folder")
    yield Finding("temporary folder", "folders", writable(temporary), str(temporary), "builds and videos",
                  "set TMPDIR to a writable folder", True)
    try:
        yield Finding("folder for sockets", "folders", True, str(socket_folder()))
    except MetaBonkError as error:
        yield Finding("folder for sockets", "folders", False, str(error), "stages, which run in kernels",
                      "set TMPDIR to a writable folder with a short path", True)
    cache = usable_cache()
    yield Finding("compiled functions", "folders", cache is not None, str(cache or "no writable cache"),
                  "a quick first use of librosa; they are kept in the temporary folder",
                  "set NUMBA_CACHE_DIR to a writable folder")
    for name, folder in (("disk of this folder", here), ("disk of temporaries", temporary)):
        free = shutil.disk_usage(folder).free
        yield Finding(name, "folders", free > 2**30, f"{_size(free)} free", "a run of the default pipeline with room",
                      "free some space", required=free < 2**28)


def _requirements() -> Iterator[tuple[str, str, str]]:
    "Name, whole requirement and extra (empty for what is always needed) of each library"
    for line in importlib.metadata.requires("metabonk") or ():
        text, _, marker = line.partition(";")
        name = re.match(r"[\w.-]+", text)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", marker)
        if name:
            yield name[0], text.strip(), extra[1] if extra else ""


def _version(name: str, requirement: str) -> tuple[bool, str]:
    "Whether a library is there in a version that will do, and which one that is"
    from packaging.requirements import Requirement

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False, "not installed"
    fits = Requirement(requirement).specifier.contains(version, prereleases=True)
    return fits, version if fits else f"{version}, where {requirement} is needed"


def _libraries() -> Iterator[Finding]:
    own = [(name, requirement) for name, requirement, extra in _requirements() if not extra]
    wrong = {}
    for name, requirement in own:
        fits, said = _version(name, requirement)
        if not fits:
            wrong[name] = said
            yield Finding(name, "libraries", False, said, "the default pipeline", f"pip install '{requirement}'", True)
    yield Finding("libraries", "libraries", not wrong, f"{len(own) - len(wrong)} of {len(own)} as they should be",
                  "the default pipeline", "pip install -c constraints.txt -e .", True)


def _media() -> Iterator[Finding]:
    import av

    for name, codec, need, required in (
        ("video for MP4", "libx264", "videos of recordings and reports", True),
        ("sound for MP4", "aac", "videos of recordings and reports", True),
        ("video for WebM", "libvpx-vp9", "videos in the format webm", False),
        ("sound for WebM", "libopus", "videos in the format webm", False),
    ):
        there = codec in av.codecs_available
        said = f"{codec} in PyAV {av.__version__}" if there else f"PyAV {av.__version__} has no {codec}"
        yield Finding(name, "programs", there, said, need, "pip install --only-binary :all: av", required)


def _which(*names: str) -> str:
    "The first of these programs that is there"
    return next(filter(None, map(shutil.which, names)), "")


def _programs() -> Iterator[Finding]:
    try:
        import pypandoc

        pandoc = f"{pypandoc.get_pandoc_version()} in {pypandoc.get_pandoc_path()}"
    except (ImportError, OSError):
        pandoc = ""
    yield Finding("Pandoc", "programs", bool(pandoc), pandoc, "reports and the site", "pip install pypandoc_binary", True)
    quarto = _which("quarto")
    yield Finding("Quarto", "programs", bool(quarto), quarto, "the site in Quarto's look; Pandoc builds it too",
                  "https://quarto.org/docs/get-started")
    browser = _which("chromium", "chromium-browser", "google-chrome")
    yield Finding("browser", "programs", bool(browser), browser, "tests of the site", "apt install chromium")
    driver = _which("chromedriver")
    yield Finding("browser's driver", "programs", bool(driver), driver, "tests of the site", "apt install chromium-driver")
    listed = subprocess.run([_which("fc-list")], capture_output=True, text=True).stdout if _which("fc-list") else ""
    yield Finding("fonts", "programs", bool(listed), f"{len(listed.splitlines())} files" if listed else "",
                  "text in pictures that a browser takes; pages bring their own", "apt install fonts-dejavu-core")
    openal = ctypes.util.find_library("openal")
    yield Finding("OpenAL", "programs", bool(openal), openal or "", "the sound of Doom", "apt install libopenal1")
    for name, program, need, mend in (
        ("sdcc", "sdcc", "building the ROM of Bonk from its source; it comes built", "apt install sdcc"),
        ("C compiler", "cc", "libraries that come without a build for this computer", "apt install build-essential"),
        ("git", "git", "the hooks of `metabonk hooks`", "apt install git"),
        ("ffmpeg", "ffmpeg", "working on films by hand; PyAV makes and reads ours", "apt install ffmpeg"),
    ):
        place = _which(program)
        yield Finding(name, "programs", bool(place), place, need, mend)


def _extra_libraries() -> Iterator[Finding]:
    for name, requirement, extra in _requirements():
        if extra and extra != "dev":
            fits, said = _version(name, requirement)
            yield Finding(f"{name} [{extra}]", "extras", fits, said, _extras.get(extra, f"the extra {extra}"),
                          f"pip install 'metabonk[{extra}]'")
    tools = [(name, requirement) for name, requirement, extra in _requirements() if extra == "dev"]
    lacking = [name for name, requirement in tools if not _version(name, requirement)[0]]
    said = f"{len(tools) - len(lacking)} of {len(tools)}" + (f", not {', '.join(lacking)}" if lacking else "")
    yield Finding("developers' tools", "extras", not lacking, said, "the tests", "pip install -c constraints.txt -e '.[dev]'")
