"""Kernels forked from a warm process: how they end is told, nothing is left running, nothing leaks between them."""

import os
import select
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from metabonk.pipeline import kernels
from metabonk.pipeline.execute import CellStopped, execute, kernel_environment

pytestmark = pytest.mark.skipif(not kernels.warm_kernels, reason="kernels are forked on Linux only")


def notebook(path, *sources):
    """A notebook of code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def shown(done):
    """What the last cell of an executed notebook returned."""
    return done.cells[-1].outputs[0]["data"]["text/plain"]


def test_a_second_kernel_finds_imports_and_nothing_else(tmp_path):
    source = notebook(tmp_path / "a.ipynb", "import sys  # metabonk\nfound = 'lightning' in sys.modules\nimport os",
                      "import numpy\nos.environ['LEFT'] = sys.left = 'behind'",
                      "found, numpy.random.random(), hasattr(sys, 'left') and os.environ['LEFT']")  # fmt: skip
    kernels._server = None
    first, second, third = (eval(shown(execute(source))) for _ in range(3))
    assert (first[0], second[0], third[0]) == (False, True, True)
    assert second[1] != third[1], "generators of two kernels begin alike"
    source = notebook(tmp_path / "b.ipynb", "import os, sys", "hasattr(sys, 'left'), 'LEFT' in os.environ")
    assert shown(execute(source)) == "(False, False)"


def test_a_notebook_that_uses_nothing_of_ours_waits_for_no_import(tmp_path):
    kernels._server = None
    source = notebook(tmp_path / "a.ipynb", "import sys", "'torch' in sys.modules")
    assert [shown(execute(source)) for _ in range(2)] == ["False", "False"]


@pytest.mark.parametrize("ending, told", [("os._exit(7)", "exit status 7"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
def test_a_kernel_that_dies_says_how(tmp_path, ending, told):
    with pytest.raises(CellStopped, match=told) as stopped:
        execute(notebook(tmp_path / "a.ipynb", f"import os\n{ending}"))
    assert stopped.value.kind == "died"


def test_environment_and_folder_are_those_of_the_call(tmp_path, monkeypatch):
    source = notebook(tmp_path / "a.ipynb", "import os", "os.environ.get('COLOUR'), os.getcwd()")
    for colour in ("red", "blue"):
        monkeypatch.setenv("COLOUR", colour)
        assert eval(shown(execute(source, folder=tmp_path))) == (colour, str(tmp_path))


def test_variables_that_are_read_at_the_start_get_a_new_server():
    environment = kernel_environment()
    server = kernels.kernel_server(environment)
    assert kernels.kernel_server({**environment, "COLOUR": "red"}) is server
    other = kernels.kernel_server({**environment, "OMP_NUM_THREADS": "3"})
    assert other is not server and server.process.returncode == 0
    other.process.kill()
    other.process.wait()
    assert kernels.kernel_server({**environment, "OMP_NUM_THREADS": "3"}) is not other, "a dead server was asked again"


def test_nothing_outlives_whoever_asked(tmp_path):
    pid_file = tmp_path / "pid"
    cell = f"import os, time\nopen({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    source = notebook(tmp_path / "a.ipynb", cell)
    code = f"from metabonk.pipeline.execute import execute; execute({str(source)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=kernel_environment(), start_new_session=True)
    deadline = time.monotonic() + 120
    while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    kernel = psutil.Process(int(pid_file.read_text()))
    around = [kernel, kernel.parent(), kernel.parent().parent()]  # the kernel, who waits for it, the server
    assert len({p.pid for p in around} | {process.pid, os.getpid()}) == 5
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(around, timeout=30)
    assert not alive


def test_a_forked_kernel_answers_like_a_process():
    server = kernels.KernelServer(kernel_environment())
    ours, theirs = os.pipe()
    kernel = server.start(["kernel", "--version"], kernel_environment(), os.getcwd(), (theirs, theirs), False)
    os.close(theirs)
    assert kernel.wait(60) == 0 and kernel.poll() == 0
    assert select.select([ours], [], [], 1)[0] and os.read(ours, 100).strip()
    os.close(ours)
    kernel = server.start(["kernel"], kernel_environment(), os.getcwd(), (2, 2), False)
    assert kernel.poll() is None
    kernel.terminate()
    assert kernel.wait(60) == -signal.SIGTERM
    server.close()
    with pytest.raises(OSError):
        server.start(["kernel"], kernel_environment(), os.getcwd(), (2, 2), False)
