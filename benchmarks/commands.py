"""How long the commands take that people wait for: `metabonk --help`, and the site from nothing.

python benchmarks/commands.py
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def seconds(*arguments: str, rounds: int = 1) -> float:
    """Wall time of the fastest of several calls of the interpreter."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


bare = seconds("-c", "pass", rounds=10)
command = seconds("-m", "metabonk.cli", "--help", rounds=10)
print(f"metabonk --help      {command:6.2f} s   {command / bare:.1f} times a bare interpreter (limit 1 s)")
with tempfile.TemporaryDirectory() as folder:
    pages = ROOT / "_proc" / "pages"
    if pages.exists():  # nothing may be taken from before
        pages.rename(Path(folder) / "pages")
    site = seconds("-m", "metabonk.cli", "site", "--output", f"{folder}/site")
    print(f"site from nothing    {site:6.2f} s   (limit 120 s)")
    again = seconds("-m", "metabonk.cli", "site", "--output", f"{folder}/site")
    print(f"site, nothing new    {again:6.2f} s")
