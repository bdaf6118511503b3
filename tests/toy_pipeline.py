"""A small project for the tests of the runner: stage notebooks, a pipeline file, an empty package and a run folder"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metabonk.core.errors import MetaBonkError
from metabonk.pipeline.resume import PlannedStage
from metabonk.pipeline.runner import Outcome, run_pipeline

RUN = 'run: str = "runs/demo"  # the run folder\n'
OPEN = "from metabonk.core.run import Run\nrun = Run.open(run)\n"


def cell(source: str, kind: str = "code", *tags: str) -> dict[str, Any]:
    extra: dict[str, Any] = {"outputs": [], "execution_count": None} if kind == "code" else {}
    return {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)} if tags else {}, **extra}


class Toy:
    def __init__(self, folder: Path) -> None:
        self.folder, self.stages, self.run_folder = folder, folder / "nbs/stages", folder / "run"
        self.package, self.file = folder / "package", folder / "pipelines/toy.yaml"
        for place in (self.stages, self.package, self.file.parent):
            place.mkdir(parents=True, exist_ok=True)

    def notebook(self, name: str, parameters: str, *sources: str, kernel: str = "python3") -> Path:
        head = [cell(f"# {name.title()}", "markdown"), cell(RUN + parameters, "code", "parameters")]
        cells = [*head, *map(cell, sources)]
        spec = {"name": kernel, "display_name": kernel, "language": "python"}
        content = {"cells": cells, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 4}
        path = self.stages / f"{name}.ipynb"
        path.write_text(json.dumps(content))
        return path

    def writer(self, name: str, *needs: str, parameters: str = "size: int = 1  # how much") -> Path:
        "A stage that writes one file, from the files of the stages it needs"
        reads = " + ".join(["str(size)", *(f"(run.input_folder('{need}') / 'out.txt').read_text()" for need in needs)])
        return self.notebook(name, parameters, OPEN, f"(run.stage_folder('{name}') / 'out.txt').write_text({reads})")

    def pipeline(self, text: str) -> None:
        self.file.write_text(text)

    def diamond(self) -> None:
        self.writer("a")
        self.writer("b", "a")
        self.writer("c", "a", parameters="width: int = 1  # how wide\nsize: int = 1  # how much")
        self.writer("d", "b", "c")
        self.pipeline("stages: [a, {notebook: b}, {notebook: c, needs: [a]}, {notebook: d, needs: [b, c]}]")

    def run(self, overrides: dict[str, Any] | None = None, **options: Any) -> Outcome:
        given = {"run": self.run_folder, "package": self.package, "progress": False, **options}
        return run_pipeline(self.file, overrides, **given)

    def steps(self, **overrides: Any) -> list[PlannedStage]:
        "The plan"
        return self.run(overrides, dry_run=True).steps

    def plan(self, **overrides: Any) -> dict[str, list[str]]:
        "The stages that would run, and why"
        return {step.stage.name: step.reasons for step in self.steps(**overrides) if step.reasons}

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.run_folder / "manifest.json").read_text())

    def start(self) -> "subprocess.Popen[str]":
        "A runner in a process of its own"
        root = Path(__file__).parents[1]
        path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
        code = "import sys, toy_pipeline; sys.exit(toy_pipeline.main(sys.argv[1]))"
        command = [sys.executable, "-c", code, str(self.folder)]
        return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})


def main(folder: str) -> int:
    "What the command line does with an error"
    try:
        Toy(Path(folder)).run(progress=True)
    except MetaBonkError as error:
        print(f"metabonk: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    "The first true value of `condition`"
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value
