"""`metabonk doctor`: what is missing is found, said with its remedy, and counts only where the default pipeline needs it"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metabonk.cli import main
from metabonk.core import places
from metabonk.pipeline import doctor
from metabonk.pipeline.doctor import Finding, examine, ready, report


@pytest.fixture(scope="module")
def found() -> list[Finding]:
    return examine()


def one(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_where_the_tests_run_the_default_pipeline_does_too(found, capsys, monkeypatch):
    assert ready(found), report(found)
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("ready for metabonk run pipelines/metabonk.yaml") and "Traceback" not in said
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] and {row["name"] for row in told["findings"]} == {finding.name for finding in found}


def test_everything_that_was_asked_for_is_looked_at(found):
    names = {finding.name for finding in found}
    assert {"cores", "memory", "current folder", "home folder", "temporary folder", "folder for sockets", "compiled functions",
            "disk of this folder", "libraries", "Pandoc", "Quarto", "browser", "fonts", "OpenAL", "sdcc", "C compiler", "ffmpeg",
            "video for MP4", "vizdoom [doom]", "minatar [minatar]", "ray [fleet]", "torchrl [judge]"} <= names  # fmt: skip
    assert any(name.startswith("GPU") for name in names)
    assert not any(finding.name.startswith("check of") for finding in found)


def test_what_is_missing_says_what_for_and_what_to_do(found):
    for finding in found:
        if not finding.there:
            assert finding.need and finding.mend
            assert finding.need in str(finding) and finding.mend in str(finding)


def test_a_missing_library_is_named_and_the_status_is_1(monkeypatch, capsys):
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == "librosa":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "numpy" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    findings = list(doctor._libraries())
    assert not ready(findings) and one(findings, "librosa").found == "not installed"
    assert "pip install 'librosa" in str(one(findings, "librosa"))
    assert one(findings, "numpy").found.startswith("0.1, where numpy>=2")
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    assert main(["doctor"]) == 1
    assert "not ready: librosa, " in capsys.readouterr().out.replace("numpy, librosa", "librosa, numpy")


def test_what_only_some_need_does_not_count(monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    findings = list(doctor._programs())
    assert ready(findings)
    lacking = {finding.name for finding in findings if not finding.there}
    assert {"OpenAL", "browser", "sdcc", "Quarto", "fonts"} <= lacking and "Pandoc" not in lacking


def test_folders_that_can_not_be_written_are_found(monkeypatch):
    monkeypatch.setattr(doctor, "writable", lambda folder, make=True: False)
    monkeypatch.setattr(places, "writable", lambda folder, make=True: False)
    findings = list(doctor._folders())
    assert not ready(findings)
    lacking = {finding.name for finding in findings if not finding.there}
    assert {"current folder", "home folder", "temporary folder", "folder for sockets", "compiled functions"} <= lacking


def test_a_full_disk_counts(monkeypatch):
    usage: Any = type("Usage", (), {"free": 2**20})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert not one(list(doctor._folders()), "disk of this folder").there and not ready(list(doctor._folders()))


def test_a_check_that_fails_is_a_finding():
    def _sound():
        yield Finding("seen", "computer", True)
        raise RuntimeError("no driver")

    first, second = doctor._tried(_sound)
    assert first.there and not second.there and second.found == "RuntimeError: no driver" and not ready([second])


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root becomes another user")
def test_another_user_without_a_home_is_told(tmp_path):
    tmp_path.chmod(0o777)
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
             "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # may read all of it, write nothing  # fmt: skip
    hidden = {"HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR"}
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    path = {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([*other, sys.executable, "-m", "metabonk.cli", "doctor", "--json"], cwd=tmp_path, text=True,
                          env={**kept, **path}, capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lacking = {row["name"] for row in json.loads(done.stdout)["findings"] if not row["there"]}
    assert {"home folder", "compiled functions"} <= lacking and "current folder" not in lacking
