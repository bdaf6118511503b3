"""Shapes and types of every public function are checked while tests run."""

import os
from pathlib import Path

# Before torch is imported: there are as many workers as cores, and threads of their own would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook  # noqa: E402

ROOT = Path(__file__).parent.parent

# Before anything of ours is imported: beartype holds each call against its annotations, jaxtyping its shapes.
# Not in the fleet, whose functions travel to other processes: what checks them can't.
_files = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "metabonk").rglob("[!_]*.py"))
_hook = install_import_hook(
    [name for path in _files if (name := ".".join(path.parts)) != "metabonk.record.fleet"], "checked.typechecker"
)

import pytest  # noqa: E402

os.environ.setdefault("PYTHONPATH", str(ROOT))  # kernels and subprocesses import this checkout


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Building the site takes minutes: what asks for it runs with whole pipelines."""
    for item in items:
        if "site" in getattr(item, "fixturenames", ()):
            item.add_marker("whole")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout under test."""
    return ROOT
