"""The site: complete, whole in its links, alone on its network, and at work in a real browser."""

import ast
import base64
import http.client
import json
import re
import shutil
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
import yaml

from metabonk.core.errors import FolderError, MetaBonkError, UsageError
from metabonk.core.serving import own_name
from metabonk.pipeline.links import check_site, references
from metabonk.pipeline.reference import all_symbols, module_symbols
from metabonk.pipeline.render import Media, output_markdown, pandoc_html, render_notebook, self_contained_page
from metabonk.pipeline.site import PartHandler, SiteServer, build_site, page_address, read_book, serve_site

pytestmark = pytest.mark.xdist_group("site")
node = nbformat.v4
ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------- a whole site, and a small book to break


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """A copy of what the site is made from, so that it stays as it is while the tests look at it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("settings.ini", "_quarto.yml", "LICENSE", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, copy)
    for name in ("nbs", "metabonk"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.tmp"))
    return copy


@pytest.fixture(scope="session")
def site(root, tmp_path_factory) -> Path:
    """The site of this checkout, built once."""
    return build_site(tmp_path_factory.mktemp("built") / "site", root=root, builder="pandoc")


def public_names(root: Path, notebook: Path) -> tuple[str, list[str]]:
    """The module of a notebook, and everything in its `__all__` that it defines itself."""
    source = "\n".join(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "code")
    exported = re.search(r"^#\| default_exp (\S+)", source, re.M)
    if not exported:
        return "", []
    text = (root / "metabonk" / (exported[1].replace(".", "/") + ".py")).read_text()
    statements = ast.parse(text).body
    public = next(ast.literal_eval(s.value) for s in statements if isinstance(s, ast.Assign))
    imported = {a.asname or a.name for s in statements if isinstance(s, (ast.Import, ast.ImportFrom)) for a in s.names}
    return exported[1], [name for name in public if name not in imported]


KERNEL = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}


def write_notebook(path: Path, *cells: nbformat.NotebookNode) -> None:
    """A notebook as ours are."""
    nbformat.write(node.new_notebook(cells=list(cells), metadata=KERNEL), path)


@pytest.fixture
def book(tmp_path) -> Path:
    """A checkout of two notebooks and one module."""
    (tmp_path / "nbs/play").mkdir(parents=True)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nbranch = trunk\n")
    settings = {
        "title": "Small",
        "description": "A small book",
        "site-url": "https://example.org/small",
        "repo-url": "https://example.org/repo",
        "navbar": {"left": [{"text": "Tape", "href": "play/12_tape.ipynb"}]},
        "sidebar": {"contents": ["index.ipynb", {"section": "Play", "contents": "play/*.ipynb"}]},
    }
    (tmp_path / "_quarto.yml").write_text(yaml.safe_dump({"website": settings}))
    (tmp_path / "metabonk/play").mkdir(parents=True)
    (tmp_path / "metabonk/play/tape.py").write_text(
        "__all__ = ['Tape']\nclass Tape:\n    'A strip'\n    def cut(\n        self,\n"
        "        at: float = 1.5,  # where, in seconds\n    ) -> 'Tape':  # the first part\n        'Shorten it'\n"
    )
    text = "# Small\n\n> A small book\n\nUse `Tape.cut`, see [it](play/12_tape.ipynb#how)."
    write_notebook(tmp_path / "nbs/index.ipynb", node.new_markdown_cell(text))
    text = "# Tape\n\n> Sound on a strip\n\n## How\n\nIt turns, at $v = 19$ cm/s."
    exported = node.new_code_cell("#| default_exp play.tape")
    write_notebook(tmp_path / "nbs/play/12_tape.ipynb", node.new_markdown_cell(text), exported)
    return tmp_path


# ---------------------------------------------------------------- what can be read off the files


def test_every_link_and_anchor_resolves_and_nothing_comes_from_elsewhere(site):
    assert check_site(site) == []


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ('<a href="nowhere.html">x</a>', "nowhere.html is not there"),
        ('<a href="../index.html#nobody">x</a>', "names an anchor that is not there"),
        ('<a href="#nobody">x</a>', "names an anchor that is not there"),
        ('<img src="https://pixel.example.org/1.png">', "from elsewhere"),
        ('<script src="//cdn.example.org/x.js"></script>', "from elsewhere"),
        ("<style>@import 'https://example.org/f.css';</style>", "from elsewhere"),
        ('<i id="twice"></i><i id="twice"></i>', "occurs twice"),
    ],
)
def test_planted_mistakes_are_found(book, planted, said):
    "Negative controls of the check."
    site = build_site(root=book, builder="pandoc")
    page = site / "play/tape.html"
    page.write_text(page.read_text().replace("</article>", planted + "</article>"))
    problems = check_site(site)
    assert len(problems) == 1 and problems[0].startswith("play/tape.html") and said in problems[0]


def test_every_notebook_has_a_page_without_its_number(root, site):
    notebooks = [p.relative_to(root / "nbs").as_posix() for p in (root / "nbs").rglob("*.ipynb") if ".ipynb_" not in str(p)]
    pages = {p.relative_to(site).as_posix() for p in site.rglob("*.html")}
    assert pages == {page_address(name) for name in notebooks} | {"404.html"}
    assert not [page for page in pages if re.search(r"(^|/)\d+_", page)]


def test_every_public_name_has_its_entry(root, site):
    missing = []
    for notebook in sorted((root / "nbs").rglob("*.ipynb")):
        module, names = public_names(root, notebook)
        if module:
            address = page_address(notebook.relative_to(root / "nbs").as_posix())
            anchors = references((site / address).read_text()).anchors
            missing += [f"{module}.{name}" for name in names if name not in anchors and not name.startswith("_")]
    assert missing == []


def test_search_knows_every_page_and_every_public_name(root, site):
    text = (site / "assets/search.js").read_text()
    entries = json.loads(text.removeprefix("window.searchIndex=").removesuffix(";"))
    addresses = {entry[0] for entry in entries}
    assert addresses >= {p.relative_to(site).as_posix() for p in site.rglob("*.html")} - {"404.html"}
    symbols = {entry[2] for entry in entries if entry[1] == "symbol"}
    for notebook in (root / "nbs").rglob("*.ipynb"):
        module, names = public_names(root, notebook)
        assert {name for name in names if not name.startswith("_")} <= symbols, module


def test_names_in_back_ticks_link_across_chapters(site):
    links = references((site / "play/game.html").read_text()).links
    assert "../core/errors.html#UsageError" in links


def test_media_are_files_and_pages_are_light(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert max(map(len, re.findall(r'src="data:[^"]*"', text)), default=0) < 8192, page
        assert len(text) < 2_000_000, page


def test_every_page_describes_itself_and_speaks_a_language(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert re.search(r'<meta name="description" content="[^"]{8,}"', text), page
        assert '<html lang="en"' in text and text.count("<h1") == 1 and "<main" in text, page


def test_licences_of_fonts_and_search_go_with_them(site):
    assert "SIL OPEN FONT LICENSE" in (site / "assets/OFL.txt").read_text()
    assert {p.name for p in (site / "assets").glob("*.woff2")} >= {"math.woff2", "text.woff2"}
    assert "MIT licence" in (site / "assets/minisearch.js").read_text()[:200]


# ---------------------------------------------------------------- the two builders


def test_small_book_links_methods_notebooks_and_sources(book):
    site = build_site(root=book, builder="pandoc")
    assert check_site(site) == []
    front, tape = (site / "index.html").read_text(), (site / "play/tape.html").read_text()
    assert 'href="play/tape.html#Tape.cut"' in front and 'href="play/tape.html#how"' in front
    assert "where, in seconds" in tape and "the first part" in tape and "<code>1.5</code>" in tape
    assert "https://example.org/repo/blob/trunk/metabonk/play/tape.py#L2" in tape and "<math" in tape


def fake_quarto(folder: Path, script: str) -> None:
    """A program called quarto."""
    folder.mkdir()
    program = folder / "quarto"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)


def test_quarto_is_taken_where_it_is_installed_with_the_same_navigation(book, tmp_path, monkeypatch):
    fake_quarto(tmp_path / "bin", "mkdir _site && cp -r _quarto.yml assets $(find . -name '*.qmd' -printf '%P ') _site/")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    made = build_site(root=book)
    settings = yaml.safe_load((made / "_quarto.yml").read_text())["website"]
    assert settings["title"] == read_book(book).title
    assert settings["sidebar"]["contents"] == ["index.qmd", {"section": "Play", "contents": ["play/tape.qmd"]}]
    assert settings["navbar"]["left"] == [{"text": "Tape", "href": "play/tape.qmd"}]
    assert "[`Tape.cut`](play/tape.html#Tape.cut)" in (made / "index.qmd").read_text()


def test_what_quarto_says_is_passed_on_and_the_old_site_stays(book, tmp_path, monkeypatch):
    old = build_site(root=book, builder="pandoc")
    fake_quarto(tmp_path / "bin", "echo 'no theme called cosmo' >&2; exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(MetaBonkError, match="status 3: no theme called cosmo"):
        build_site(root=book)
    assert check_site(old) == [] and not list(book.glob(".site-*"))


def test_executing_first_gives_fresh_outputs_and_changes_no_file(book):
    path = book / "nbs/play/12_tape.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells += [node.new_code_cell("21 * 2"), node.new_code_cell("#| eval: false\n1 / 0")]
    nbformat.write(notebook, path)
    before = path.read_bytes()
    site = build_site(root=book, builder="pandoc", execute=True)
    assert ">42</pre>" in (site / "play/tape.html").read_text() and path.read_bytes() == before


# ---------------------------------------------------------------- bad input


def test_a_mistyped_entry_names_the_nearest_notebook(book):
    text = (book / "_quarto.yml").read_text()
    (book / "_quarto.yml").write_text(text.replace("href: play/12_tape.ipynb", "href: play/12_tap.ipynb"))
    with pytest.raises(UsageError, match="did you mean 'play/12_tape.ipynb'"):
        build_site(root=book)


def test_a_notebook_in_no_chapter_is_named(book):
    (book / "nbs/lost").mkdir()
    shutil.copy(book / "nbs/play/12_tape.ipynb", book / "nbs/lost/50_cat.ipynb")
    with pytest.raises(UsageError, match="lost/50_cat.ipynb"):
        build_site(root=book)


def test_a_folder_with_something_else_is_not_touched(book, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(FolderError, match="something other than a site"):
        build_site("thesis", root=book, builder="pandoc")
    assert (tmp_path / "thesis/chapter.txt").read_text() == "years of work" and not list(book.glob(".site-*"))


def test_unknown_builder_and_missing_checkout(book, tmp_path):
    with pytest.raises(UsageError, match="did you mean 'pandoc'"):
        build_site(root=book, builder="pandok")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FolderError, match="_quarto.yml"):
        build_site(root=tmp_path / "empty")


def test_a_port_that_is_taken_is_told_in_one_line(site, served):
    with pytest.raises(UsageError, match="choose another"):
        serve_site(site, int(served.rsplit(":", 1)[1].strip("/")))


def test_parts_of_files_are_served(served):
    request = urllib.request.Request(served + "assets/site.css", headers={"Range": "bytes=3-6"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 206 and answer.headers["Content-Range"].startswith("bytes 3-6/") and len(answer.read()) == 4
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(served + "assets/site.css", headers={"Range": "bytes=99999999-"}))


@pytest.fixture
def small(tmp_path) -> Iterator[tuple[Path, SiteServer]]:
    """A folder of one page beside a secret, and its server."""
    folder = tmp_path / "site"
    (folder / "media").mkdir(parents=True)
    (folder / "index.html").write_text("page")
    (tmp_path / "secret.txt").write_text("secret")
    with SiteServer(folder, 0) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield folder, server
        server.shutdown()


def ask(server: SiteServer, path: str = "/", host: str | None = "localhost", **headers: str) -> tuple[int, bytes]:
    """Status and body of a request whose path is sent as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in {**({} if host is None else {"Host": host}), **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.5", "", None])
def test_a_foreign_name_is_refused(small, host):
    assert ask(small[1], host=host)[0] == 421
    assert ask(small[1], host=host, Range="bytes=0-1")[0] == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]:80", "LocalHost"])
def test_its_own_names_are_served(small, host):
    assert ask(small[1], host=host) == (200, b"page")


def test_on_another_address_any_address_is_its_own_and_foreign_names_are_not():
    assert own_name("192.168.1.7:8000", "0.0.0.0") and own_name("localhost", "0.0.0.0")
    assert not own_name("evil.example", "0.0.0.0")


@pytest.mark.parametrize("path", ["/%00", "/index.html%00", "/../secret.txt", "/%2e%2e/secret.txt", "/media/", "/" + "x" * 300,
                                  "/..%2fsecret.txt", "//secret.txt", "/link.txt", "/folder/secret.txt"])
@pytest.mark.parametrize("part", [{}, {"Range": "bytes=0-3"}])
def test_nothing_outside_the_folder_is_served_and_nothing_breaks(small, capfd, path, part):
    folder, server = small
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "folder").symlink_to(folder.parent)
    assert ask(server, path, **part)[0] == 404
    assert ask(server) == (200, b"page")
    assert capfd.readouterr().err == ""


def test_a_link_inside_the_folder_is_served(small):
    (small[0] / "again.html").symlink_to("index.html")
    assert ask(small[1], "/again.html") == (200, b"page")


def test_endless_numbers_in_a_range_are_no_part(small, capfd):
    assert ask(small[1], Range=f"bytes={'9' * 5000}-") == (200, b"page")
    assert capfd.readouterr().err == ""


def test_a_server_is_on_loopback_unless_asked_otherwise(small, tmp_path):
    assert small[1].server_address[0] == "127.0.0.1"
    with SiteServer(tmp_path, 0, "0.0.0.0") as server:
        assert server.server_address[0] == "0.0.0.0"
    for port, host in ((99999, "127.0.0.1"), (0, "no such name")):
        with pytest.raises(UsageError, match="can't listen"):
            SiteServer(tmp_path, port, host)


# ---------------------------------------------------------------- every kind of output


def shown(data: dict, **kind: str) -> str:
    """The HTML of an output."""
    output = node.new_output("display_data", data) if data else node.new_output(**kind)
    return pandoc_html(output_markdown(output, Media()))


PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"text/plain": "a < b"}, "a &lt; b</pre>"),
        ({"text/html": "<b>bold</b>", "text/plain": "stand-in"}, "<b>bold</b>"),
        ({"image/png": PIXEL}, f'<img src="data:image/png;base64,{PIXEL}" alt='),
        ({"image/svg+xml": "<svg/>"}, 'src="data:image/svg+xml;base64,'),
        ({"video/mp4": PIXEL}, '<video class="output" controls'),
        ({"audio/wav": PIXEL}, '<audio class="output" controls'),
        ({"text/markdown": "*said*"}, "<em>said</em>"),
        ({"text/latex": "$$x^2$$"}, "<msup>"),
        ({"application/json": {"a": 1}}, '"a": 1'),
        ({"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "IntSlider(3)"}, "IntSlider(3)"),
        ({"application/vnd.plotly.v1+json": {"data": [], "layout": {"height": 99}}}, 'style="height:99px"'),
        ({"application/vnd.plotly.v1+json": {"data": [], "layout": {"width": 700}}}, 'style="height:380px;max-width:700px"'),
        ({"text/html": '<video controls src="x"></video>'}, 'aria-label="Player"'),
        ({"application/x-unheard-of": "?"}, ""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_output_of_every_kind(data, expected):
    assert expected in shown(data)


def test_streams_and_errors():
    bar = shown({}, output_type="stream", name="stderr", text="begun\rdone\n")
    assert "done" in bar and "begun" not in bar
    error = shown({}, output_type="error", ename="ValueError", evalue="bad", traceback=["\x1b[31mline 1\x1b[0m"])
    assert "ValueError: bad" in error and "line 1" in error and "\x1b" not in error


def test_fences_inside_outputs_do_not_end_them():
    assert "<i>```</i>" in shown({"text/html": "<p>\n```\n</p><i>```</i>"})


def test_a_figure_can_not_end_its_script():
    figure = go.Figure().update_layout(title="</script><script>alert(1)</script>")
    made = shown({"application/vnd.plotly.v1+json": json.loads(figure.to_json())})
    assert made.count("</script>") == 1


def test_parameters_of_a_stage_are_a_table_and_hidden_cells_hidden():
    cell = node.new_code_cell("steps: int = 2_000  # how many", metadata={"tags": ["parameters"]})
    hidden = node.new_code_cell("#| hide\nsecret = 1", outputs=[node.new_output("stream", text="secret")])
    body = render_notebook(node.new_notebook(cells=[cell, hidden])).body
    assert "<code>2_000</code>" in body and "how many" in body and "secret" not in body


def test_prefix_keeps_two_notebooks_apart_on_one_page():
    one = node.new_notebook(cells=[node.new_markdown_cell("## Same\n\nSee [it](#same)."), node.new_code_cell("x = 1\ny = 2")])
    bodies = [render_notebook(one, prefix=prefix).body for prefix in ("a-", "b-")]
    assert references("".join(bodies)).doubles == [] and 'href="#a-same"' in bodies[0]
    assert references(bodies[0] + bodies[0]).doubles  # a control: without prefixes they clash


def test_module_symbols_keep_each_comment_with_its_parameter():
    source = (
        "def f(\n    a: int,  # first\n    *rest: str,  # others\n    b: float = 1.5,  # second\n) -> str:  # text\n    'Do'\n"
        "async def g(): 'Wait'\nLIMIT = 3  # most\n_no = 1\n"
    )
    f, g, limit = all_symbols(module_symbols(source))
    assert [(p.name, p.type, p.default, p.comment) for p in f.parameters] == [
        ("a", "int", None, "first"), ("*rest", "str", None, "others"), ("b", "float", "1.5", "second"),
    ]  # fmt: skip
    assert f.returns.comment == "text" and g.doc == "Wait" and (limit.kind, limit.doc) == ("constant", "most")


# ---------------------------------------------------------------- in a browser


class Handler(PartHandler):
    """Serves a site as its host would: a lost address gets 404.html."""

    def send_error(self, code, *rest, **more):
        lost = Path(self.directory) / "404.html"
        if code != 404 or not lost.exists() or "." in self.path.rsplit("/", 1)[-1]:
            return super().send_error(code, *rest, **more)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(lost.read_bytes())


@pytest.fixture(scope="session")
def served(site) -> Iterator[str]:
    """The site's address on this computer."""
    with SiteServer(site, 0, handler=Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


DRAWN = "return [...document.querySelectorAll('.plotly-figure')].every(f => f.querySelector('.main-svg'))"


class Browser:
    """A headless Chromium that says what went wrong on a page, and what it asked for."""

    def __init__(self, program: str, driver: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking",
                     "disable-component-update", "no-first-run", "mute-audio"):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(service=Service(driver), options=options)
        self.driver.set_script_timeout(30)

    def screen(self, width: int) -> None:
        """Show the page on a screen of this width."""
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, address: str, width: int = 1280, dark: bool = False) -> None:
        """Open a page, on a screen of this width."""
        self.screen(width)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(address)

    def run(self, script: str, *values):
        """What a script returns."""
        return self.driver.execute_script(script, *values)

    def wait(self, script: str, seconds: float = 15.0):
        """What a script returns, as soon as that is something."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never came true: {script}")

    def troubles(self, home: str) -> list[str]:
        """Errors of the console, and requests to anywhere but `home`, since the last call."""
        said = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        asked = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(message["params"]["request"]["url"])
        asked += self.run("return performance.getEntriesByType('resource').map(e => e.name)")
        strange = sorted({a for a in asked if not a.startswith((home, "data:", "blob:", "about:", "chrome"))})
        return said + [f"asked for {address}" for address in strange]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One browser for all tests; they are skipped where there is none."""
    pytest.importorskip("selenium")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium with its driver: install the packages chromium and chromium-driver")
    made = Browser(program, driver)
    yield made
    made.driver.quit()


def addresses(site: Path) -> list[str]:
    """Every page, the first one first."""
    return sorted((p.relative_to(site).as_posix() for p in site.rglob("*.html")), key=lambda a: (a != "index.html", a))


def pages_with(site: Path, mark: str) -> list[str]:
    """The pages whose HTML has `mark`."""
    return [address for address in addresses(site) if mark in (site / address).read_text()]


@pytest.fixture(scope="session")
def visits(browser, site, served) -> dict[str, dict]:
    """What each page said when it was opened, and how wide it is on a phone."""
    found = {}
    browser.open(served)
    browser.troubles(served)
    for address in addresses(site):
        browser.open(served + address)
        if 'class="plotly-figure"' in (site / address).read_text():
            browser.wait(DRAWN)
        found[address] = {"troubles": browser.troubles(served)}
        browser.screen(390)
        found[address]["width"] = browser.run("return document.documentElement.scrollWidth")
    return found


@pytest.mark.browser
def test_no_page_complains_or_asks_for_anything_from_elsewhere(visits):
    assert {address: visit["troubles"] for address, visit in visits.items() if visit["troubles"]} == {}


@pytest.mark.browser
def test_no_page_is_wider_than_a_phone(visits):
    assert {address: visit["width"] for address, visit in visits.items() if visit["width"] > 390} == {}


@pytest.mark.browser
def test_too_wide_a_page_would_be_found(browser, served):
    "Negative control: a table without a frame."
    browser.open(served + "core/errors.html", width=390)
    browser.run("document.querySelector('article').insertAdjacentHTML('beforeend', '<div style=\"width: 900px\">wide</div>')")
    assert browser.run("return document.documentElement.scrollWidth") > 390


@pytest.mark.browser
@pytest.mark.parametrize("policy", [True, False], ids=["forbidden by the page's policy", "without a policy"])
def test_a_planted_request_is_caught(browser, site, served, policy):
    "Negative control: one page asks another server for a picture."
    text = (site / "core/errors.html").read_text()
    planted = text.replace("</article>", '<img src="http://localhost:9/pixel.png" alt=""></article>')
    if not policy:
        planted = re.sub(r"<meta http-equiv[^>]*>", "", planted)
    (site / "core/planted.html").write_text(planted)
    try:
        browser.troubles(served)
        browser.open(served + "core/planted.html")
        time.sleep(0.3)
        assert any("localhost:9/pixel.png" in trouble for trouble in browser.troubles(served))
    finally:
        (site / "core/planted.html").unlink()


SEARCH = """
const input = document.querySelector("dialog.search input");
input.value = arguments[0];
input.dispatchEvent(new Event("input"));
return [...document.querySelectorAll("dialog.search [role=option] b")].map(b => b.textContent);
"""


@pytest.mark.browser
def test_search_by_keyboard_finds_a_symbol_and_enter_goes_there(browser, served):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def keys(*given):
        ActionChains(browser.driver).send_keys(*given).perform()

    browser.open(served + "core/errors.html")
    keys("/")
    browser.wait("return document.querySelector('dialog.search').open && !!window.siteSearch")
    keys("write_atomic")
    first = "return document.querySelector('dialog.search [aria-selected=true] b')?.textContent"
    assert browser.wait(first) == "write_atomic"
    keys(Keys.ARROW_DOWN)
    assert browser.run(first) != "write_atomic"
    keys(Keys.ARROW_UP, Keys.ENTER)
    browser.wait("return location.pathname.endsWith('/core/files.html') && location.hash === '#write_atomic'")
    assert browser.run("return document.querySelector(':target').id") == "write_atomic"


@pytest.mark.browser
def test_search_ranks_names_first_and_says_when_there_is_nothing(browser, served):
    browser.open(served)
    browser.run("document.querySelector('.find').click()")
    browser.wait("return !!window.siteSearch")
    assert browser.run(SEARCH, "disk full")[0] == "DiskFull" or browser.run(SEARCH, "DiskFull")[0] == "DiskFull"
    assert browser.run(SEARCH, "config")[0] == "Config"
    assert browser.run(SEARCH, "two words fingerprint")[:1] != ["Config"]
    assert browser.run(SEARCH, "fingerpr")[0] == browser.run(SEARCH, "fimgerprints")[0] == "Fingerprints"  # prefix, typo
    assert browser.run(SEARCH, "fingerprints qqqq")[0] == "Fingerprints"  # one word of two
    assert browser.run(SEARCH, "qqqq") == []
    assert "qqqq" in browser.run("return document.querySelector('dialog.search .nothing').textContent")


# What users ask, and the pages that answer: one of them must be among the first three.
QUESTIONS = {
    "getting started": "tutorial/ten_minutes.html",
    "record my own game": "howto/gameboy.html",
    "record my own films": "howto/own_recordings.html",
    "train atari": "howto/atari.html",
    "find address in memory": "howto/find_addresses.html",
    "write a profile": "howto/find_addresses.html",
    "play by hand": "howto/play_by_hand.html",
    "use a gamepad": "howto/play_by_hand.html",
    "resume an interrupted run": "howto/resume.html",
    "clean up old runs": "howto/resume.html",
    "export to minari": "howto/plain_pytorch.html",
    "pytorch dataset": "howto/plain_pytorch.html",
    "watch the agent": "howto/watch_and_dream.html",
    "enter the dream": "howto/watch_and_dream.html",
    "use my own world model": "howto/own_world_model.html",
    "agent learns nothing": "howto/nothing_learned.html",
    "pokemon": "howto/pokemon_red.html",
    "language model as planner": "act/language_planner.html",
    "command line options": "reference/commands.html",
    "run on a gpu": "howto/presets.html",
    "record on many computers": "howto/many_computers.html",
    "how long does it take": "howto/presets.html",
    "play with keybord": "howto/play_by_hand.html",
}


@pytest.mark.browser
def test_questions_of_users_find_their_pages_among_the_first_three(browser, site, served):
    browser.open(served)
    browser.run("document.querySelector('.find').click()")
    browser.wait("return !!window.siteSearch")
    ask = "return arguments[0].map(question => siteSearch(question).slice(0, 3).map(hit => hit.entry[0].split('#')[0]))"
    found = dict(zip(QUESTIONS, browser.run(ask, list(QUESTIONS)), strict=True))
    assert {question: hits for question, hits in found.items() if QUESTIONS[question] not in hits} == {}
    assert "howto/own_recordings.html" not in browser.run(ask, ["qubits"])[0]  # a control: nothing is always first


@pytest.mark.browser
def test_a_link_to_a_method_opens_its_fold(browser, site, served):
    address = next(a for a in pages_with(site, '<details class="members">'))
    anchor = re.search(r'<details class="members">.*?<h4[^>]*id="([^"]+)"', (site / address).read_text(), re.S)[1]
    browser.open(f"{served}{address}#{anchor}")
    assert browser.wait("return document.querySelector(':target')?.closest('details').open")


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true }), known = new Map();
const rgb = colour => {
  if (!known.has(colour)) {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    known.set(colour, [...canvas.getImageData(0, 0, 1, 1).data]);
  }
  return known.get(colour);
};
const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
const ground = element => {
  for (; element; element = element.parentElement) {
    const colour = rgb(getComputedStyle(element).backgroundColor);
    if (colour[3] > 250) return colour;
  }
  return [255, 255, 255];
};
const poor = new Set();
for (const element of document.querySelectorAll("h1, h2, p, li, td, th, code, pre, pre span, a, summary, small, button")) {
  if (!element.textContent.trim() || !element.getClientRects().length || element.closest(".mb-player")) continue;
  const a = light(rgb(getComputedStyle(element).color)), b = light(ground(element));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)} ${element.textContent.slice(0, 30)}`);
}
return [...poor];
"""


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_is_legible(browser, site, served, dark):
    "Contrast of at least 4.5 to 1 (WCAG AA), on pages with everything there is."
    marks = ['class="listen"', 'class="callout', 'class="dataframe"', 'class="plotly-figure"', 'class="members"', 'class="output']
    for address in sorted({page for mark in marks for page in pages_with(site, mark)[:1]}):
        browser.open(served + address, dark=dark)
        assert browser.run(CONTRAST) == [], address


@pytest.mark.browser
def test_poor_contrast_would_be_found(browser, served):
    "Negative control: grey on white."
    browser.open(served)
    browser.run("document.querySelector('article p').style.color = '#aaa'")
    assert browser.run(CONTRAST)


@pytest.mark.browser
def test_theme_follows_the_system_until_it_is_chosen_and_is_remembered(browser, served):
    paper = "return getComputedStyle(document.body).backgroundColor"
    browser.open(served, dark=False)
    light = browser.run(paper)
    browser.open(served, dark=True)
    dark = browser.run(paper)
    assert light != dark
    browser.run("document.querySelector('[data-theme-switch]').click()")  # from system to light
    assert browser.run(paper) == light
    browser.open(served + "core/errors.html", dark=True)
    assert browser.run(paper) == light
    browser.run("localStorage.clear()")


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_figures_are_drawn_in_the_colours_of_the_page(browser, site, served, dark):
    pages = pages_with(site, 'class="plotly-figure"')
    assert pages, "no notebook has a plotly figure"
    browser.open(served + pages[-1], dark=dark)
    assert browser.wait(DRAWN)
    font = "return document.querySelector('.plotly-figure').layout.template.layout.font.color"
    assert browser.run(font) == browser.run("return getComputedStyle(document.body).color")


@pytest.mark.browser
def test_formulas_are_set_in_their_font(browser, site, served):
    pages = pages_with(site, "<math")
    assert pages, "no notebook has a formula"
    browser.open(served + pages[0])
    assert browser.wait("return document.fonts.check('16px \"Book Math\"')")
    assert browser.run("return document.querySelector('math').getBoundingClientRect().width") > 4


MEDIA = """
const done = arguments[arguments.length - 1];
const media = [...document.querySelectorAll("audio, video")];
Promise.all(media.map(m => new Promise(ok => {
  if (m.readyState >= 1) return ok(m.duration);
  m.addEventListener("loadedmetadata", () => ok(m.duration)); m.addEventListener("error", () => ok(0)); m.load();
}))).then(done);
"""


@pytest.mark.browser
def test_sounds_and_videos_load(browser, site, served):
    pages = sorted({*pages_with(site, "<audio"), *pages_with(site, "<video")})
    assert "index.html" in pages, "the first page has no video"
    for address in pages:
        browser.open(served + address)
        durations = browser.driver.execute_async_script(MEDIA)
        assert durations and all(duration is None or duration > 0 for duration in durations), address


@pytest.mark.browser
def test_a_film_can_be_moved_through_and_its_line_follows(browser, served):
    browser.open(served)
    browser.wait("return document.querySelector('.listen video').readyState >= 1")
    browser.run("const film = document.querySelector('.listen video'); film.currentTime = film.duration / 2")
    place = "return parseFloat(document.querySelector('.listen u').style.left)"
    assert 40 < browser.wait(place) < 60


@pytest.mark.browser
def test_first_page_shows_on_one_screen_what_the_thing_does(browser, served):
    browser.open(served)
    lowest = "return Math.max(...[...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect().bottom))"
    assert browser.run(lowest, "article .subtitle, article pre.sourceCode.sh, article video") <= 800


@pytest.mark.browser
def test_menu_of_chapters_on_a_phone(browser, served):
    browser.open(served + "core/errors.html", width=390)
    visible = "return document.querySelector('.chapters').getClientRects().length > 0"
    assert not browser.run(visible)
    browser.run("document.querySelector('.menu').click()")
    assert browser.run(visible) and browser.run("return document.querySelector('.menu').ariaExpanded") == "true"


@pytest.mark.browser
def test_first_key_offers_to_skip_to_the_text(browser, served):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser.open(served + "core/errors.html")
    ActionChains(browser.driver).send_keys(Keys.TAB).perform()
    assert browser.run("return document.activeElement.className") == "skip"
    unnamed = """return [...document.querySelectorAll("button, input, a, video, audio, iframe, nav, dialog")].filter(e =>
      !(e.textContent.trim() || e.ariaLabel || e.title || e.labels?.length)).map(e => e.outerHTML.slice(0, 80))"""
    assert browser.run(unnamed) == []


@pytest.mark.browser
def test_lost_address_deep_in_the_site_still_looks_like_the_site(browser, served):
    browser.open(served + "no/such/page/at/all")
    assert browser.run("return document.querySelector('h1').textContent") == "No such page"
    assert browser.run("return document.styleSheets[0].cssRules.length") > 50
    assert browser.run("return document.querySelector('.brand').href") == served + "index.html"


@pytest.mark.browser
def test_site_works_from_a_disk(browser, site):
    browser.open((site / "core/errors.html").as_uri())
    browser.run("document.querySelector('.find').click()")
    browser.wait("return !!window.siteSearch")
    assert browser.run(SEARCH, "write_atomic")[0] == "write_atomic"


@pytest.mark.browser
def test_report_opens_from_a_disk_with_everything_inside(browser, tmp_path):
    figure = json.loads(go.Figure(go.Scatter(y=[1, 3, 2])).to_json())
    script = "<p id='mark'>before</p><script>document.getElementById('mark').textContent = 'after'</script>"
    thief = "<img alt='' src='http://localhost:9/pixel.png'>"
    cells = [
        node.new_code_cell("figure", outputs=[node.new_output("display_data", {"application/vnd.plotly.v1+json": figure})]),
        node.new_code_cell("player", outputs=[node.new_output("display_data", {"text/html": script})]),
        node.new_markdown_cell("A formula: $x^2$"),
    ]
    body = render_notebook(node.new_notebook(cells=cells)).body
    (tmp_path / "report.html").write_text(self_contained_page("Report", [("One", body)]))
    home = (tmp_path / "report.html").as_uri()
    browser.open("about:blank")
    browser.troubles("about:")
    browser.open(home)
    browser.wait("return document.querySelector('.plotly-figure .main-svg')")
    assert browser.run("return document.getElementById('mark').textContent") == "after"
    assert browser.troubles(home) == []
    (tmp_path / "report.html").write_text(self_contained_page("Report", [("One", thief)]))
    browser.open(home)
    assert any("Content Security Policy" in trouble for trouble in browser.troubles(home))
