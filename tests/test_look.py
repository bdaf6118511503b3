"""What is shown is what was recorded, at its time, in a page that needs nothing else."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from shutil import which

import av
import numpy as np
import pytest

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import StoreError
from metabonk.record.browse import episode_figure, store_table, view_figure
from metabonk.record.experience import Schema, Steps
from metabonk.record.look import View, envelope, episode_player, magma, player_html, png_uri, spectrogram, view
from metabonk.record.recorder import record
from metabonk.record.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Bonk, two short episodes."""
    folder = tmp_path_factory.mktemp("look") / "bonk"
    record("bonk", folder, steps=160, games=2, seed=3)
    return Store.open(folder)


def toy_view(count: int = 50, channels: int = 2, box: bool = False) -> View:
    """A stretch whose numbers are easy to predict: one reward, one beep, at row 20."""
    rate = 8_000 * bool(channels)
    length = np.full(count, 400 * bool(channels))
    sound = np.zeros((channels, 400 * count * bool(channels)), np.int16)
    if count > 20 and channels:
        sound[:, 20 * 400 : 21 * 400] = 8_000 * np.sign(np.sin(np.arange(400)))
    action = np.linspace(0, 1, 2 * count).reshape(count, 2).astype(np.float32) if box else np.arange(count) // 10 % 3
    no = np.zeros(count, bool)
    image = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 12 * 10 * 3, 1).reshape(count, 12, 10, 3) * 5
    kind = {"actions": ActionSpec(continuous=2)}
    if not box:
        kind = {"actions": ActionSpec(categorical=(3,)), "action_names": ("<b>", "&", "c")}
    schema = Schema(
        game="toy <script>", image_shape=(12, 10, 3), channels=channels, sample_rate=rate, clock_rate=20.0,
        probes={"level</script>": "int64", "still": "int64"}, terms={"game": "float64"}, **kind,
    )  # fmt: skip
    reward = np.where(np.arange(count) == 20, 2.5, 0.0)
    steps = Steps(
        image, sound, length, action, reward, no, no, np.arange(count) == 0, np.arange(1, count + 1), np.cumsum(length),
        {"level</script>": np.arange(count) // 25, "still": np.ones(count, np.int64)}, {"game": reward},
    )  # fmt: skip
    return View(schema, steps, 0, np.arange(count + 1) / 20, "toy <script>alert(1)</script>")


def parts(page: str) -> tuple[dict, bytes]:
    """The data and the film inside a player."""
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
    return data, base64.b64decode(re.search(r'src="data:video/webm;base64,([^"]+)"', page)[1])


class Strict(HTMLParser):
    """Every element that is opened is closed, in order."""

    empty = ("img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in self.empty:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", [{}, {"channels": 1}, {"channels": 0}, {"box": True}, {"count": 1}, {"count": 2}])
def test_any_game_can_be_shown(kind: dict) -> None:
    """Mono, stereo and silent games, numbered and continuous actions, a single row."""
    at = toy_view(**kind)
    page = player_html(at)
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    data, film = parts(page)
    assert len(data["time"]) == len(at.steps)
    with av.open(io.BytesIO(film)) as opened:
        assert [len(opened.streams.video), len(opened.streams.audio)] == [1, int(at.schema.channels > 0)]
        assert sum(1 for _ in opened.decode(video=0)) == len(at.steps)
    assert ("spectrogram" in page) == at.heard
    assert view_figure(at).to_json()


def test_names_are_not_code() -> None:
    """What a game or a profile is called can't break out of the page."""
    page = player_html(toy_view())
    assert "<script>alert" not in page and "&lt;script&gt;" in page and "<dt>still" not in page
    assert page.count("<script") == page.count("</script>") == 2


def test_the_page_asks_no_network(store: Store) -> None:
    """Nothing is loaded from anywhere: all that is referred to is in the page."""
    page = episode_player(store, 0).data
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "http" not in re.sub(r'base64,[^"]+', "", page)


def test_values_stand_at_their_rows(store: Store) -> None:
    """Times, actions, rewards and probes of the player are those of the store."""
    steps = store.read(store.episodes[0])
    data, _ = parts(episode_player(store, 0, start=5, stop=60).data)
    edges = steps.tick / store.schema.clock_rate
    assert data["start"] == 5 and data["action"] == steps.action[5:60].tolist()
    assert np.allclose(np.array(data["time"]) + data["origin"], edges[5:60], atol=1e-4)
    assert np.isclose(data["origin"], edges[4], atol=1e-4)
    assert np.allclose(data["values"]["reward"], steps.reward[5:60])
    shown = [name for name in data["values"] if name in steps.probes]
    assert shown and all(data["values"][name] == steps.probes[name][5:60].tolist() for name in shown)


def test_the_beep_is_under_the_reward() -> None:
    """In the figure, the loud columns of sound and spectrogram lie in the step that earned the reward."""
    at = toy_view()
    low, high = envelope(at.steps.audio[0], 500)
    loud = np.flatnonzero(high > 0.1) / 500 * 2.5
    pitch = spectrogram(at.steps.audio, 8_000, columns=500).max(axis=0)
    heard = np.flatnonzero(pitch > 128) / (len(pitch) - 1) * 2.5
    assert loud.min() >= 1.0 and loud.max() <= 1.05
    assert heard.min() >= 0.96 and heard.max() <= 1.09
    bar = next(trace for trace in view_figure(at).data if trace.type == "bar")
    assert bar.x.tolist() == [1.05] and bar.y.tolist() == [2.5]


def test_envelope_and_spectrogram_of_little() -> None:
    """No samples, one sample, silence."""
    assert envelope(np.zeros(0, np.int16), 10)[0].tolist() == [0]
    assert envelope(np.array([5], np.int16), 10)[1].tolist() == [5 / 32768]
    assert not spectrogram(np.zeros((2, 900), np.int16), 8_000).any()
    assert spectrogram(np.ones((1, 3), np.int16), 8_000).shape[0] == 48


def test_figures_stay_small(store: Store) -> None:
    """Whatever the length."""
    assert len(episode_figure(store, 0).to_json()) < 150_000
    assert len(view_figure(toy_view(3_000)).to_json()) < 150_000


def test_what_is_not_there(store: Store) -> None:
    """Episodes and rows that do not exist are told."""
    with pytest.raises(StoreError, match="holds 2"):
        view(store, 2)
    with pytest.raises(StoreError, match="has 81"):
        view(store, 0, 81)
    assert len(view(store, -1, -10).steps) == 10


def test_the_table(store: Store, tmp_path: Path) -> None:
    """Its sums are the store's; several policies get a line each and one for all."""
    table = store_table(store)
    line = table.loc["sticky_random"]
    assert (line["episodes"], line["steps"]) == (2, 160)
    assert line["minutes"] == round(162 * 4 * 70_224 / 4_194_304 / 60, 2)
    assert line["best return"] == max(episode.reward for episode in store.episodes)
    record("minatar:breakout", tmp_path / "s", "random", steps=10)
    record("minatar:breakout", tmp_path / "s", "sticky_random", steps=20)
    table = store_table(Store.open(tmp_path / "s"))
    assert table["steps"].to_dict() == {"random": 10, "sticky_random": 20, "all": 30} and "sound none" in table.columns.name
    empty = Store.create(tmp_path / "empty", Schema(game="toy"))
    assert store_table(empty)["steps"].tolist() == [0]


@pytest.mark.browser
@pytest.mark.skipif(not (which("chromium") and which("chromedriver")), reason="no Chromium and driver")
def test_it_plays(store: Store, tmp_path: Path) -> None:
    """In a real browser: it plays, the cursor follows, slider, keys and clicks go where they should, twice on a page."""
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    page = tmp_path / "page.html"
    pages = episode_player(store, 0).data + episode_player(store, 1).data
    page.write_text(f'<!doctype html><meta charset="utf-8"><body>{pages}</body>')
    options = webdriver.ChromeOptions()
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "autoplay-policy=no-user-gesture-required", "mute-audio"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options) as browser:
        browser.set_window_size(900, 1500)
        browser.get(page.as_uri())
        wait = WebDriverWait(browser, 30)
        players = browser.find_elements(By.CLASS_NAME, "mb-player")
        assert len(players) == 2 and all(player.get_attribute("data-ready") for player in players)
        box = players[0]
        video, slider, cursor = (box.find_element(By.CSS_SELECTOR, name) for name in ("video", ".mb-slider", ".mb-cursor"))

        def told(name: str) -> str:
            return box.find_element(By.CSS_SELECTOR, f'dd[data-name="{name}"]').text

        wait.until(lambda _: browser.execute_script("return arguments[0].readyState", video) >= 2)
        assert told("step") == "0" and told("time") == "0.067 s"
        box.find_element(By.CLASS_NAME, "mb-play").click()
        wait.until(lambda _: int(told("step")) >= 5)
        box.find_element(By.CLASS_NAME, "mb-play").click()
        assert cursor.get_attribute("style") != "left: 0%;"
        slider.send_keys(Keys.HOME, *[Keys.ARROW_RIGHT] * 7)
        wait.until(lambda _: told("step") == "7")
        assert told("time") == f"{8 * 4 * 70_224 / 4_194_304:.3f} s" and "step 7" in slider.get_attribute("aria-valuetext")
        lanes = box.find_element(By.CLASS_NAME, "mb-lanes")
        ActionChains(browser).move_to_element(lanes).click().perform()
        wait.until(lambda _: abs(int(told("step")) - 40) <= 1)
        assert abs(browser.execute_script("return arguments[0].currentTime", video) - 81 * 4 * 70_224 / 4_194_304 / 2) < 0.05
        assert players[1].find_element(By.CSS_SELECTOR, 'dd[data-name="step"]').text == "0"
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_pictures_inside_a_page_have_their_colours() -> None:
    """With a palette or without, not square, so that rows and columns would be told apart."""
    numbers = np.random.default_rng(0).integers(0, 256, (5, 9)).astype(np.uint8)
    for address in (png_uri(numbers, magma()), png_uri(magma()[numbers])):
        kind, _, text = address.partition(";base64,")
        assert kind == "data:image/png"
        with av.open(io.BytesIO(base64.b64decode(text)), format="png_pipe") as file:
            assert np.array_equal(next(file.decode(video=0)).to_ndarray(format="rgb24"), magma()[numbers])
    assert magma()[0].sum() < 10 and magma()[255].sum() > 600
