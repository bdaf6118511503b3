"""What happens to a run when something breaks: one clear line, nothing lost, and the same command goes on"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from toy_pipeline import OPEN, Toy, wait_for

from metabonk.core import places
from metabonk.core.errors import DiskFull, FolderError, FolderLocked, MissingLibrary, StageFailed
from metabonk.core.files import folder_lock, replacing
from metabonk.core.run import Run, differences, snapshot
from metabonk.pipeline.runner import end_orphan

WAITS = """import time
from pathlib import Path
folder = run.stage_folder("slow")
try:
    (folder / "began.txt").write_text("recorded")
    while not Path(gate).exists():
        time.sleep(0.02)
finally:
    (folder / "closed.txt").touch()
"""


@pytest.fixture
def toy(tmp_path) -> Toy:
    return Toy(tmp_path)


def slow(toy: Toy) -> Toy:
    "A stage that is done, and one that waits until a file opens its gate"
    toy.writer("first")
    toy.notebook("slow", f"gate: str = '{toy.folder / 'gate'}'  # wait for this file", OPEN + "print('hello')", WAITS)
    toy.pipeline("stages: [first, slow]")
    return toy


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---- stages that fail


def test_a_failing_stage_is_told_in_one_line(toy):
    toy.writer("first")
    toy.notebook("second", "", OPEN, "print('before')", "raise ValueError('bad news\\nand details')", "print('never')")
    toy.writer("third", "first")
    toy.pipeline("stages: [first, second, third]")
    with pytest.raises(StageFailed) as error:
        toy.run()
    message = one_line(error.value)
    assert "stage second failed in cell 5 with ValueError: bad news." in message and error.value.exit_status == 1
    executed = toy.run_folder / "notebooks/second.ipynb"
    assert str(executed) in message
    cells = [cell for cell in json.loads(executed.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4, 5, None]
    assert cells[3]["outputs"][0]["text"] == ["before\n"] and cells[4]["outputs"][0]["ename"] == "ValueError"
    manifest = toy.manifest()
    assert manifest["status"] == "failed" and "third" not in manifest["stages"]
    assert manifest["stages"]["second"]["error"]["cell"] == 5
    assert (toy.run_folder / "report.html").exists()
    assert list(toy.plan()) == ["second", "third"]


@pytest.mark.parametrize(
    "code, words",
    [
        ("import os\nos.kill(os.getpid(), 9)", "lost its kernel in cell 3: it was ended by SIGKILL, as the system"),
        ("import os\nos._exit(7)", "lost its kernel in cell 3: it ended by itself with exit status 7"),
        ("raise SystemExit(0)", "failed in cell 3 with SystemExit"),
    ],
)
def test_a_kernel_that_dies_is_told_as_such(toy, code, words):
    toy.notebook("dies", "", code, "print('never')")
    toy.pipeline("stages: [dies]")
    with pytest.raises(StageFailed) as error:
        toy.run()
    assert words in one_line(error.value)
    assert toy.manifest()["stages"]["dies"]["status"] == "failed"


def test_time_limits_end_the_kernel(toy):
    slow(toy)
    toy.pipeline("stages: [first, {notebook: slow, time_limit: 6}]")
    with pytest.raises(StageFailed) as error:
        toy.run()
    assert "stage slow took too long in cell 4: more than its time_limit of 6 s" in one_line(error.value)
    assert (toy.run_folder / "stages/slow/closed.txt").exists(), "the cell could tidy up"


def test_a_cell_that_does_not_listen_is_killed(toy):
    from metabonk.pipeline.execute import CellStopped, execute

    deaf = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nwhile True:\n    try:\n        time.sleep(9)\n"
    source = toy.notebook("deaf", "", deaf + "    except KeyboardInterrupt:\n        pass")
    with pytest.raises(CellStopped) as stopped:
        execute(source, toy.folder / "deaf.ipynb", timeout=1.0, grace=0.5, folder=toy.folder)
    assert (stopped.value.kind, stopped.value.cell) == ("timeout", 2)
    assert not psutil.pid_exists(int((toy.folder / "pid").read_text()))


# ---- a runner that is stopped


def begun(toy: Toy) -> "tuple[subprocess.Popen[str], psutil.Process]":
    "A runner whose second stage is in its last cell, and the kernel of that stage"
    runner = toy.start()
    wait_for((toy.run_folder / "stages/slow/began.txt").exists)
    return runner, psutil.Process(toy.manifest()["stages"]["slow"]["kernel"]["pid"])


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.whole), signal.SIGTERM], ids=lambda n: n.name)
def test_a_stopped_run_goes_on_at_its_stage(toy, number):
    slow(toy)
    runner, kernel = begun(toy)
    runner.send_signal(number)
    lines = runner.communicate(timeout=60)[1].splitlines()
    assert runner.returncode == 128 + number
    assert lines[-1].startswith(f"metabonk: stage slow was interrupted in cell 4 ({number.name}): run the same command again")
    assert not kernel.is_running()
    executed = json.loads((toy.run_folder / "notebooks/slow.ipynb").read_text())
    assert executed["cells"][3]["outputs"][0]["text"] == ["hello\n"], "what was executed is kept"
    assert (toy.run_folder / "stages/slow/closed.txt").exists(), "the cell could tidy up"
    assert toy.manifest()["status"] == "interrupted" and toy.plan() == {"slow": ["interrupted before"]}
    (toy.run_folder / "stages/slow/began.txt").unlink()

    runner, kernel = begun(toy)
    runner.kill()
    runner.communicate(timeout=60)
    assert toy.plan() == {"slow": ["killed before"]}
    (toy.folder / "gate").touch()
    assert toy.run().ran == ["slow"]
    assert not kernel.is_running() and toy.manifest()["status"] == "done" and toy.plan() == {}
    aside = sorted(path.name for path in toy.run_folder.glob("old/*-slow/artefacts/*"))
    # A killed runner's kernel may or may not come to tidy up.
    assert aside in (["began.txt", "closed.txt"], ["began.txt", "closed.txt", "closed.txt"]), "what both attempts left is in old/"


def test_the_kernel_of_a_killed_runner_is_ended():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    began = psutil.Process(child.pid).create_time()
    try:
        assert not end_orphan({"status": "done", "kernel": {"pid": child.pid, "began": began}})
        assert not end_orphan({"status": "running", "kernel": {"pid": child.pid, "began": began - 60}})
        assert child.poll() is None, "another process that has inherited the number is left alone"
        assert end_orphan({"status": "running", "kernel": {"pid": child.pid, "began": began}})
        assert not psutil.pid_exists(child.pid)
    finally:
        child.kill()
        child.wait()


# ---- folders


def test_one_runner_at_a_time(toy):
    toy.writer("first")
    toy.pipeline("stages: [first]")
    Run.open(toy.run_folder)
    before = (toy.run_folder / "manifest.json").read_bytes()
    with folder_lock(toy.run_folder):
        runner = toy.start()
        line = runner.communicate(timeout=60)[1].splitlines()[-1]
        assert runner.returncode == 1 and "is being written by another process" in line
        with pytest.raises(FolderLocked):
            toy.run()
    assert (toy.run_folder / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    "manifest, words", [('{"format": 99}', "has format 99"), ("{", "is damaged"), ("[]", "is damaged")]
)
def test_a_run_of_another_version_is_left_alone(toy, manifest, words):
    toy.writer("first")
    toy.pipeline("stages: [first]")
    toy.run_folder.mkdir()
    (toy.run_folder / "manifest.json").write_text(manifest)
    for dry_run in (False, True):
        with pytest.raises(FolderError, match=words) as error:
            toy.run(dry_run=dry_run)
        one_line(error.value)
    assert [path.name for path in toy.run_folder.iterdir()] == ["manifest.json"]
    assert (toy.run_folder / "manifest.json").read_text() == manifest


def test_a_folder_of_something_else_is_left_alone(toy):
    toy.writer("first")
    toy.pipeline("stages: [first]")
    with pytest.raises(FolderError, match="holds other things than a run"):
        toy.run(run=toy.folder)
    assert not (toy.folder / "manifest.json").exists()


def test_a_file_in_place_of_the_folder(toy):
    toy.writer("first")
    toy.pipeline("stages: [first]")
    toy.run_folder.touch()
    for place in (toy.run_folder, toy.run_folder / "below"):
        with pytest.raises(FolderError) as error:
            toy.run(run=place)
        assert str(place) in one_line(error.value)


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    "A file system in memory, or a skip where mounting is not allowed"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs to mount a file system, which only root may: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="no mount command")
def test_a_read_only_folder(toy):
    toy.writer("first")
    toy.pipeline("stages: [first]")
    with mounted(toy.run_folder, "ro"):
        with pytest.raises(FolderError) as error:
            toy.run()
        assert "Read-only file system" in one_line(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the read-only file system stands for it")
def test_a_folder_without_permission(toy):
    toy.writer("first")
    toy.pipeline("stages: [first]")
    toy.run_folder.mkdir(mode=0o555)
    with pytest.raises(FolderError, match="Permission denied"):
        toy.run()


@pytest.mark.skipif(not shutil.which("mount"), reason="no mount command")
@pytest.mark.parametrize("fill", ["artefact", "everything"])
def test_a_full_disk(toy, fill):
    toy.writer("first")
    amount = 3_000_000 if fill == "artefact" else 0
    code = f"(run.stage_folder('big') / 'noise').write_bytes(bytes({amount} or size))"
    toy.notebook("big", "size: int = 100  # bytes", OPEN, code, "1")
    toy.pipeline("stages: [first, big]")
    with mounted(toy.run_folder, "size=1m"):
        if fill == "everything":
            (toy.run_folder / ".filler").write_bytes(bytes(1_000_000))
            with contextlib.suppress(OSError), open(toy.run_folder / ".filler", "ab") as filler:
                while True:
                    filler.write(bytes(4096))
        with pytest.raises(DiskFull) as error:
            toy.run()
        assert "no space left on the disk" in one_line(error.value) and "free some" in str(error.value)
        if fill == "everything":
            (toy.run_folder / ".filler").unlink()
            assert toy.run().ran == ["first", "big"]
        else:
            assert (toy.run_folder / "stages/first/out.txt").read_text() == "1"
            shutil.rmtree(toy.run_folder / "stages/big")
            assert list(toy.plan()) == ["big"]


# ---- kernels


def test_a_missing_kernel_is_found_before_anything_starts(toy, monkeypatch):
    toy.writer("first")
    toy.notebook("second", "", "1", kernel="no-such-kernel")
    toy.pipeline("stages: [first, second]")
    with pytest.raises(MissingLibrary) as error:
        toy.run()
    assert "second.ipynb asks for the kernel 'no-such-kernel'" in one_line(error.value)
    assert not toy.run_folder.exists()
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == "ipykernel" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingLibrary, match="pip install ipykernel"):
        toy.run()
    assert not toy.run_folder.exists()


def test_the_kernel_is_this_interpreter(toy, monkeypatch):
    spec = toy.folder / "jupyter/kernels/python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(toy.folder / "jupyter"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    code = "import sys, shutil, metabonk\nprint(sys.executable, shutil.which('python'), metabonk.__file__, sep='|')"
    toy.notebook("who", "", code)
    toy.pipeline("stages: [who]")
    toy.run()
    executed = json.loads((toy.run_folder / "notebooks/who.ipynb").read_text())
    import metabonk

    found = executed["cells"][-1]["outputs"][0]["text"][0].strip().split("|")
    assert found == [sys.executable, str(Path(sys.executable).parent / "python"), metabonk.__file__]


def test_cells_for_people_are_not_run(toy):
    toy.notebook("shy", "", "#| eval: false\nraise RuntimeError('a window opened')", "print('fine')")
    toy.pipeline("stages: [shy]")
    assert toy.run().ran == ["shy"]


# ---- machines that are set up otherwise

PLAIN = {"PYTHONUNBUFFERED": "", "OMP_NUM_THREADS": "1"}


def shell(*command: str | Path, cwd: Path, **environment: str | None) -> "subprocess.CompletedProcess[str]":
    "A command in an environment of its own; `None` takes a variable out"
    changed = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **PLAIN, **environment}
    kept = {name: value for name, value in changed.items() if value is not None}
    return subprocess.run([*map(str, command)], cwd=cwd, env=kept, text=True, capture_output=True, timeout=120)


def metabonk(*arguments: str | Path, cwd: Path, **environment: str | None) -> "subprocess.CompletedProcess[str]":
    return shell(sys.executable, "-m", "metabonk.cli", *arguments, cwd=cwd, **environment)


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
          "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # may read all of it, write nothing  # fmt: skip
other_user = pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="only root becomes another user")


@other_user
def test_another_user_without_a_home_runs_a_stage_that_uses_librosa(toy):
    "The environment is root's, so librosa's compiled functions find no place beside it"
    toy.notebook("hear", "", OPEN, "import librosa\nlibrosa.filters.mel(sr=8000, n_fft=256, n_mels=8)")
    toy.pipeline("stages: [hear]")
    temporary = toy.folder / "tmp"
    temporary.mkdir()
    for folder in (toy.folder, temporary):
        folder.chmod(0o777)
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import toy_pipeline; toy_pipeline.main({str(toy.folder)!r})"
    given = {"HOME": None, "XDG_CACHE_HOME": None, "NUMBA_CACHE_DIR": None, "TMPDIR": str(temporary)}
    done = shell(*NOBODY, sys.executable, "-c", code, Path(__file__).parent, cwd=toy.folder, **given)
    assert "hear  done" in done.stderr, done.stderr
    assert (toy.run_folder / "manifest.json").stat().st_uid == 65534


def test_compiled_functions_get_a_private_folder_where_no_cache_is_writable(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "theirs"))
    places.compiled_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "theirs"), "what is writable stays"
    monkeypatch.setattr(places, "writable", lambda folder: False)
    places.compiled_cache()
    chosen = Path(os.environ["NUMBA_CACHE_DIR"])
    assert chosen.parent == tmp_path and chosen.stat().st_mode & 0o077 == 0
    chosen.chmod(0o777)  # whoever may write there could have our process run his code
    assert places.private_folder() != chosen
    (tmp_path / "elsewhere").mkdir()
    chosen.rmdir()
    chosen.symlink_to(tmp_path / "elsewhere")
    assert places.private_folder() != chosen


def test_others_can_read_what_a_run_made(toy):
    toy.writer("a")
    toy.pipeline("stages: [a]")
    before = os.umask(0o022)
    try:
        toy.run()
    finally:
        os.umask(before)
    made = [toy.run_folder, *toy.run_folder.rglob("*")]
    assert len(made) > 5
    closed = [path for path in made if not path.stat().st_mode & 0o004 and path.name != ".lock"]
    assert closed == []


def test_others_can_read_the_weights_of_a_model(tmp_path):
    with replacing(tmp_path / "model") as part:
        part.mkdir()
        save_file({"weight": torch.zeros(2)}, part / "model.safetensors")
    assert (tmp_path / "model/model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_long_temporary_folder_is_no_obstacle(toy, monkeypatch):
    long = toy.folder / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setenv("TMPDIR", str(long))
    listen = "from multiprocessing.connection import Listener\nListener(family='AF_UNIX').close()"
    toy.notebook("a", "", OPEN, listen)
    toy.pipeline("stages: [a]")
    assert toy.run().ran == ["a"]


def test_a_name_that_is_too_long_is_told_in_one_line(toy):
    toy.writer("a")
    toy.pipeline("stages: [a]")
    for dry_run in (False, True):
        with pytest.raises(FolderError, match="File name too long"):
            toy.run(run=toy.folder / ("x" * 300), dry_run=dry_run)


@pytest.mark.parametrize("name", ["[exp 1] 'bonk': \"red\" * ?", "Jäger\n 狼 {x} $(id) %41#a"])
def test_a_run_folder_may_have_any_name(toy, name):
    toy.writer("a")
    toy.writer("b", "a")
    toy.pipeline("stages: [a, b]")
    toy.run_folder = toy.folder / name
    outcome = toy.run()
    assert outcome.ran == ["a", "b"] and outcome.report.is_file() and toy.plan() == {}
    assert toy.run({"b.size": 2}).ran == ["b"]


def test_a_link_stands_for_what_it_leads_to(tmp_path):
    far, near = tmp_path / "far", tmp_path / "near"
    (far / "inner").mkdir(parents=True)
    near.mkdir()
    (far / "inner/a.npy").write_text("sound")
    (near / "store").symlink_to(far)
    (far / "back").symlink_to(near)
    (far / "inner/up").symlink_to(far)
    (near / "itself").symlink_to("itself")
    (near / "nowhere").symlink_to("gone")
    (near / "top").symlink_to(tmp_path)
    before = snapshot(near)
    assert list(before) == ["store/inner/a.npy"]
    (far / "inner/a.npy").write_text("noise")
    assert differences(before, snapshot(near, known=before)) == ["changed: store/inner/a.npy"]


def test_a_stage_moved_to_another_disk_is_still_done(toy):
    toy.writer("a")
    toy.pipeline("stages: [a]")
    toy.run()
    shutil.move(toy.run_folder / "stages/a", toy.folder / "far")
    (toy.run_folder / "stages/a").symlink_to(toy.folder / "far")
    assert toy.plan() == {}
    assert toy.run({"size": 2}).ran == ["a"]
    assert (toy.folder / "far/out.txt").read_text() == "1", "what was made before is kept"


def test_what_can_not_be_read_is_told(tmp_path, monkeypatch):
    "It is not taken for an empty folder, whose stage would run again"
    (tmp_path / "closed").mkdir()

    def closed(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", closed)
    with pytest.raises(FolderError, match="can't read .*Permission denied"):
        snapshot(tmp_path)


def test_a_run_killed_behind_its_last_stage_is_done(toy):
    toy.writer("a")
    toy.pipeline("stages: [a]")
    toy.run()
    run = Run.open(toy.run_folder)
    run.write({**run.read(), "status": "running"})
    report = toy.run_folder / "report.html"
    report.write_text("of an earlier moment")
    os.utime(report, ns=(1, 1))
    assert toy.run().ran == [] and toy.manifest()["status"] == "done"
    assert report.read_text() != "of an earlier moment"


# ---- terminals


def test_an_ascii_terminal_shows_what_it_can(toy):
    toy.notebook("a", "", OPEN, "print('höre')")
    toy.pipeline("title: Hören\nstages: [a]")
    ascii_ = {"LC_ALL": None, "LANG": "C", "PYTHONIOENCODING": "ascii"}
    done = metabonk("run", toy.file, "--run", toy.folder / "Wölfe", cwd=toy.folder, **ascii_)
    assert done.returncode == 0 and done.stdout.isascii() and "run folder" in done.stdout, done.stderr
    assert (toy.folder / "Wölfe/report.html").is_file()


def test_a_folder_whose_name_is_not_text_is_told_in_one_line(toy):
    "Where the locale has ASCII only, and where the name is not UTF-8"
    toy.writer("a")
    toy.pipeline("title: Hören\nstages: [a]")
    with pytest.raises(FolderError, match="is not text here"):
        toy.run(run=toy.folder / "W\udcff")
    ascii_ = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = metabonk("run", toy.file, "--run", "Wölfe", cwd=toy.folder, **ascii_)
    assert done.returncode == 1 and done.stderr.startswith("metabonk: ") and done.stderr.count("\n") == 1
    assert metabonk("run", toy.file, "--run", "wolves", cwd=toy.folder, **ascii_).returncode == 0


@pytest.mark.parametrize("arguments", [["games"], ["--help"], ["--version"]])
def test_a_full_device_is_told_in_one_line(tmp_path, arguments):
    line = f"{sys.executable} -m metabonk.cli {' '.join(arguments)} > /dev/full"
    done = shell("sh", "-c", line, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "metabonk: can't write the output (No space left on device)\n"


def test_a_reader_who_went_away_is_no_error(tmp_path):
    done = shell("bash", "-c", f"{sys.executable} -m metabonk.cli games | true; exit ${{PIPESTATUS[0]}}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_outputs_are_no_error(toy):
    toy.writer("a")
    toy.pipeline("stages: [a]")
    line = f"{sys.executable} -m metabonk.cli run {toy.file} --run {toy.run_folder} >&- 2>&-"
    assert shell("sh", "-c", line, cwd=toy.folder).returncode == 0
    assert toy.manifest()["status"] == "done"
