"""What the runner costs where nothing has to be done

    python benchmarks/runner.py

A pipeline of eight stages over a store of a thousand files is executed once; then a second run, which finds everything
done, is measured in a process of its own, from its start to its end. The same process importing nothing but Python's
own modules is the yardstick.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STAGES, FILES, REPEATS = 8, 1000, 5


def notebook(path: Path, *sources: str) -> None:
    "A stage notebook; the first cell is its parameters"
    cells = [{"cell_type": "code", "source": source, "metadata": {"tags": [] if number else ["parameters"]},
              "outputs": [], "execution_count": None} for number, source in enumerate(sources)]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 4}
    path.write_text(json.dumps(content))


def project(folder: Path) -> Path:
    "A pipeline whose first stage writes many files and whose others write one"
    parameters = 'run: str = "runs/demo"  # the run folder'
    for number in range(STAGES):
        count = FILES if number == 0 else 1
        code = (f"from metabonk.core.run import Run\nfolder = Run.open(run).stage_folder('s{number}')\n"
                f"for i in range({count}):\n    (folder / str(i)).write_bytes(bytes(10_000))")
        notebook(folder / f"s{number}.ipynb", parameters, code)
    file = folder / "bench.yaml"
    file.write_text(f"notebooks: .\nstages: [{', '.join(f's{number}' for number in range(STAGES))}]\n")
    return file


def measure(code: str) -> float:
    "The median time of a Python process that runs `code`, in seconds"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    "Print a line a measurement"
    sys.path.insert(0, str(ROOT))
    from metabonk.pipeline.runner import run_pipeline

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call = f"run_pipeline({str(project(folder))!r}, run={str(folder / 'run')!r}, progress=False"
        start = time.perf_counter()
        first = eval(f"{call})", {"run_pipeline": run_pipeline})
        print(f"first run, {len(first.ran)} stages, {FILES + STAGES - 1} files: {time.perf_counter() - start:.2f} s")
        load = "from metabonk.pipeline.runner import run_pipeline"
        bare = measure("import json, pathlib")
        for what, code in {
            "import of the runner": load,
            "dry run of a finished run": f"{load}; assert not any(s.reasons for s in {call}, dry_run=True).steps)",
            "no-op resume of a finished run": f"{load}; assert {call}).ran == []",
        }.items():
            took = measure(code)
            print(f"{what}: {took:.2f} s, {took / bare:.1f} times a bare Python process")


if __name__ == "__main__":
    main()
