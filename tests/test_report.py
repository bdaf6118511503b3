"""The page of a run: what it says, and that it opens from a file without a network"""

import json
import re
import shutil
from html import unescape
from pathlib import Path

import pytest
from toy_pipeline import OPEN, Toy, wait_for

from metabonk.core.errors import StageFailed
from metabonk.core.run import Run
from metabonk.pipeline.report import write_report

pytestmark = pytest.mark.xdist_group("report")
FIGURE = """import plotly.graph_objects as go
go.Figure(go.Scatter(y=[1, 3, 2]), layout=dict(title="Loudness </script>", height=300))"""
SOUND = """import math
from IPython.display import Audio
Audio([math.sin(step / 4) for step in range(4000)], rate=8000)"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Toy:
    toy = Toy(tmp_path_factory.mktemp("report"))
    toy.notebook("record", "game: str = 'bonk'  # which game\nsteps: int = 2  # how many", OPEN, SOUND)
    toy.notebook("look", "game: str = 'bonk'  # which game\nbroken: bool = False  # for this test", FIGURE,
                 "if broken:\n    raise ValueError('<b>no</b> sound')\nprint('& all is well')", "print('last')")
    toy.pipeline("title: Toy <run>\nstages: [record, look]")
    toy.run()
    shutil.copytree(toy.run_folder, toy.folder / "finished")
    with pytest.raises(StageFailed):
        toy.run({"look.broken": True})
    return toy


def words(page: str) -> str:
    "The text of a page, without its code and scripts"
    body = page[page.index("<main") : page.index("</main>")]
    return " ".join(unescape(re.sub(r"<script.*?</script>|<[^>]+>", " ", body, flags=re.S)).split())


def test_the_report_of_a_finished_run(toy):
    text = words((toy.folder / "finished/report.html").read_text())
    for said in ("Toy <run>", "Finished", "record done", "look done", "game 'bonk' record, look", "steps 2 record",
                 "Python", "& all is well",
                 "parameter value default meaning game 'bonk' which game"):
        assert said in text, said
    assert "failed" not in text
    assert text.index("& all is well") < text.rindex("How it ran") < text.index("record done"), "the answer comes first"


def test_the_report_of_a_failed_run_begins_with_the_error(toy):
    text = words((toy.run_folder / "report.html").read_text())
    assert "Stage look failed in cell 4 ValueError: <b>no</b> sound" in text
    assert text.index("Stage look failed") < text.index("record done")
    assert "look failed" in text and "Cell that was not run" in text and "broken True look" in text
    assert "broken True False for this test" in text, "a value stands beside the default that it replaces"


def test_stages_that_were_not_reached_are_not_told_of(toy):
    run = Run(shutil.copytree(toy.folder / "finished", toy.folder / "pending"))
    manifest = run.read()
    manifest["stages"]["record"] |= {"status": "failed", "error": {"cell": 3, "name": "ValueError", "message": "x"}}
    run.write({**manifest, "status": "failed", "pending": ["look"]})
    text = words(write_report(run).read_text())
    assert "look not run" in text and "& all is well" not in text


def test_every_link_of_the_report_leads_somewhere(toy):
    for folder in ("finished", "run"):
        page = (toy.folder / folder / "report.html").read_text()
        anchors = re.findall(r'\bid="([^"]+)"', page)
        links = re.findall(r'href="#([^"]+)"', page)
        assert links and set(links) <= set(anchors)
        assert not re.search(r'(?:src|href)="(?!#|data:)', page.split("<script")[0])


@pytest.mark.browser
@pytest.mark.parametrize("folder", ["finished", "run"])
def test_the_report_opens_without_a_network(toy, folder):
    selenium = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("needs Chromium and its driver")
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                 "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1100,1400"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    page = Path(toy.folder, folder, "report.html").resolve()
    try:
        chrome.get(page.as_uri())
        drawn = "return document.querySelectorAll('.plotly-figure svg').length"
        wait_for(lambda: chrome.execute_script(drawn))
        assert chrome.execute_script("return document.querySelector('audio').duration") == pytest.approx(0.5)
        folds = "return [...document.querySelectorAll('details')].filter(d => d.querySelector('pre')).map(d => d.open)"
        assert chrome.execute_script(folds).count(True) == (1 if folder == "run" else 0), "only what failed is unfolded"
        assert [entry for entry in chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
        events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        asked = {event["request"]["url"] for event in sent}
        assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.as_uri()}
        chrome.set_window_size(500, 900)
        wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not chrome.execute_script(wide), "the page fits a narrow window"
    finally:
        chrome.quit()
