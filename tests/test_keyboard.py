"""A person at the keyboard: keys to actions, the machine's pace, and the whole of it in JupyterLab in a real browser"""

import asyncio
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import nbformat
import numpy as np
import pytest

from metabonk.core.errors import UsageError
from metabonk.play.keyboard import Keyboard, Pacer, Screen, action_buttons, buttons_of_name, choose, play, png
from metabonk.play.policies import ScriptedPolicy


class Toy:
    "The smallest game there is: grey pictures, 30 steps a second, 10 or 11 stereo samples each"

    def __init__(self, *names: str) -> None:
        self.name, self.action_names, self.sample_rate, self.clock_rate, self.ticks = "toy", list(names), 310, 30, 0

    def observe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        before, self.samples = self.ticks * 310 // 30, (self.ticks + 1) * 310 // 30
        self.ticks += 1
        clock = {"ticks": self.ticks, "samples": self.samples}
        return {"audio": np.ones((2, self.samples - before), np.int16)}, {"clock": clock, "seed": 0}

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.ticks = 0
        return self.observe()

    def step(self, action: int) -> tuple[Any, ...]:
        if not 0 <= action < len(self.action_names):
            raise UsageError(f"action {action} does not exist")
        observation, info = self.observe()
        return observation, 1.0, False, False, info

    def render(self) -> np.ndarray:
        return np.full((8, 10, 3), self.ticks % 256, np.uint8)


@pytest.fixture()
def game() -> Toy:
    return Toy("noop", "up", "down", "left", "right", "a", "right_a")


def test_actions_by_name() -> None:
    assert action_buttons(Toy("noop", "up", "upright", "downleftfire", "attack", "a_b")) == [
        (), ("up",), ("up", "right"), ("down", "left", "fire"), ("fire",), ("a", "b"),
    ]  # fmt: skip
    assert action_buttons(Toy("noop", "move_left", "turn_left", "weapon")) == [(), ("left",), ("2",), ("3",)]
    assert buttons_of_name("upward") is None
    with pytest.raises(UsageError, match="toy has no named actions"):
        Keyboard(Toy())


def test_the_most_of_what_is_pressed_and_the_latest_among_equals() -> None:
    actions = [(), ("left",), ("right",), ("a",), ("right", "a"), ("up", "a")]
    assert choose(["left", "right"], actions) == 2
    assert choose(["right", "left"], actions) == 1
    assert choose(["a", "up", "right"], actions) == 4
    assert choose(["a", "right", "up"], actions) == 5
    assert choose(["down"], actions) == 0
    assert choose(["down"], actions[1:]) is None


def test_a_tap_counts_once_and_a_held_key_always(game: Any) -> None:
    keyboard = Keyboard(game)

    def act() -> str:
        return game.action_names[keyboard(None, {})]

    keyboard.press("KeyX")
    keyboard.release("KeyX")
    assert [act(), act()] == ["a", "noop"]
    keyboard.press("ArrowLeft")
    keyboard.press("KeyQ")
    assert [act(), act()] == ["left", "left"]
    keyboard.screen.key("KeyA", True)  # the same button by another key
    keyboard.screen.key("ArrowLeft", False)
    assert act() == "left"
    keyboard.screen.key(None, False)
    assert act() == "noop"
    keyboard.press("ArrowUp")
    keyboard.reset(0)
    assert act() == "noop"


def test_other_keys(game: Any) -> None:
    keyboard = Keyboard(game, keys={"KeyJ": "a"})
    keyboard.press("KeyJ")
    assert game.action_names[keyboard(None, {})] == "a"
    with pytest.raises(UsageError, match="unknown button for key KeyJ 'aa'"):
        Keyboard(game, keys={"KeyJ": "aa"})


def test_pictures_arrive_as_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 256, (14, 17, 3), np.uint8)
    with av.open(io.BytesIO(png(image)), format="png_pipe") as file:
        frame = next(file.decode(video=0))
    np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), image)


def test_pace() -> None:
    pacer = Pacer(clock_rate=10, speed=2)
    assert pacer.wait(0, 7.0) == 0
    assert pacer.wait(20, 7.25) == 0.75
    assert pacer.wait(20, 8.125) == 0  # late: the next one is not late as well
    assert pacer.wait(30, 8.25) == 0.25
    assert pacer.wait(40, 20.0) == 0 and pacer.wait(50, 20.0) == 0.5  # a long pause is not made up for


def test_play_without_a_browser(game: Any) -> None:
    sent: list[tuple[dict[str, Any], list[bytes]]] = []
    screen = Screen(rate=game.sample_rate)
    screen.send = lambda content, buffers: sent.append((content, buffers))
    policy = ScriptedPolicy("right 5, left", game.action_names)
    assert asyncio.run(play(game, policy, screen, steps=60, seed=3, speed=50)) == 60
    assert [content["number"] for content, _ in sent] == list(range(1, 61))
    assert screen.left_out == 20 and all(len(buffers) == (2 if i < 40 else 1) for i, (_, buffers) in enumerate(sent))
    samples = sum(len(buffers[0]) for _, buffers in sent) // 4
    assert samples == 60 * 310 // 30  # the reset and 59 steps; the last step's sound would come with the next
    assert screen.status == "The end."


def test_a_person_s_game_waits_for_the_person(game: Any) -> None:
    keyboard = Keyboard(game)

    async def session() -> tuple[bool, int]:
        task = asyncio.create_task(play(game, keyboard, speed=50))
        await asyncio.sleep(0.2)
        waiting = keyboard.screen.sent == 1 and not task.done()
        keyboard.screen.receive({"kind": "focus"})
        while keyboard.screen.sent < 10 and not task.done():
            await asyncio.sleep(0.01)
        keyboard.screen.receive({"kind": "blur"})
        await asyncio.sleep(0.1)
        stood = keyboard.screen.sent
        await asyncio.sleep(0.1)
        assert keyboard.screen.sent == stood
        keyboard.screen.receive({"kind": "stop"})
        return waiting, await task

    waiting, steps = asyncio.run(session())
    assert waiting and steps >= 9 and keyboard.screen.status == "Stopped."


def test_what_goes_wrong_is_on_the_screen(game: Any) -> None:
    screen = Screen()

    class Broken:
        def reset(self, seed: int) -> None: ...

        def __call__(self, observation: Any, info: Any) -> int:
            return 99

    with pytest.raises(UsageError):
        asyncio.run(play(game, Broken(), screen))
    assert screen.status.startswith("UsageError") and "99" in screen.status


def test_a_page_that_comes_late_gets_the_last_picture(monkeypatch) -> None:
    screen, sent = Screen(rate=310), []
    monkeypatch.setattr(screen, "send", lambda content, buffers: sent.append((content["number"], buffers)))
    screen.receive({"kind": "ready"})
    assert sent == [], "nothing was shown yet"
    picture = np.full((8, 10, 3), 7, np.uint8)
    screen.show(picture, np.ones((2, 3), np.int16))
    screen.receive({"kind": "ready"})
    assert sent[1] == (1, [b"", png(picture)]), "the picture again, its sound not"


# In JupyterLab, in a browser

SESSION = """
import asyncio, json
from metabonk.play.game import make_game
from metabonk.play.keyboard import Keyboard, play

game = GAME
keyboard, given, probes, step = Keyboard(game, keys=KEYS), [], [], game.step

def noted(action):
    "Remembers what was done, and what came of it"
    result = step(action)
    given.append(game.action_names[action])
    probes.append(result[-1]["probes"])
    return result

async def session():
    game.step = noted
    steps = await play(game, keyboard)
    screen = keyboard.screen
    told = dict(steps=steps, actions=given, probes=probes, sent=screen.sent, seen=screen.seen, scheduled=screen.scheduled)
    with open("told.json", "w") as file:
        json.dump(told, file)
"""
CELL = "from session import *\ntask = asyncio.create_task(session())\nkeyboard"
GAMES = {  # how each is made, and its keys
    "bonk": ("make_game('bonk', ticks_per_step=2)", "None"),
    "rooms": (
        "make_game('rooms', pattern='from_source', image_size=(128, 128), max_steps=None, "
        "actions=('noop', 'forward', 'left', 'right', 'stop'))",
        "{'Space': '4'}",
    ),
}
WATCHING = """
import asyncio
import torch
import torch.nn.functional as F
from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent
from metabonk.act.dual import DualAgent
from metabonk.act.goal_codes import GoalVocabulary
from metabonk.act.goals import Goals
from metabonk.act.planner import GraphPlanner
from metabonk.act.planner_loop import LoopConfig, PlannerLoop
from metabonk.act.watching import Watching
from metabonk.core.actions import ActionSpec
from metabonk.dream.interface import WorldModel
from metabonk.play.game import make_game
from metabonk.play.keyboard import play
from metabonk.play.profile import load_profile

class Eyes(WorldModel):
    feature_size, actions, game = 48, ActionSpec(categorical=(11,)), "bonk"

    def observe(self, context, state=None, every=False, generator=None):
        return {"seen": F.adaptive_avg_pool2d(context.image[:, -1].movedim(-1, 1).float() / 255, 4).flatten(1)}

    def features(self, state):
        return state["seen"]

bonk = Goals(load_profile("bonk"))
vocabulary = GoalVocabulary.of(bonk)
policy = ActorCritic(ActorCriticConfig(layers=1, goal_size=vocabulary.size), 48, Eyes.actions)
loops = lambda number: PlannerLoop(GraphPlanner(bonk), bonk, LoopConfig(latency_steps=10**6))
game = make_game("bonk", ticks_per_step=12)
keyboard = Watching(DualAgent(Agent(Eyes(), policy), vocabulary, bonk, loops), game)

async def session():
    await play(game, keyboard, seed=0)
"""
EARS = """const start = AudioBufferSourceNode.prototype.start;
    window.heard = [];
    AudioBufferSourceNode.prototype.start = function (...given) {
        const ears = [...Array(this.buffer.numberOfChannels).keys()].map((c) => this.buffer.getChannelData(c));
        const apart = Math.max(...ears[0].map((x, i) => Math.abs(x - ears.at(-1)[i])));
        window.heard.push([ears.length, apart]);
        return start.apply(this, given);
    };"""


@pytest.fixture()
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"]
    for flag in [*flags, "window-size=1200,1000"]:
        options.add_argument(f"--{flag}")
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    if os.environ.get("METABONK_SCREENSHOT"):
        made.save_screenshot(os.environ["METABONK_SCREENSHOT"] + ".last.png")
    made.quit()


@pytest.fixture(params=["bonk"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, root: Path) -> Iterator[str]:
    "The address of a JupyterLab that serves a notebook with one cell, in which a game is played"
    session = WATCHING if request.param == "watching" else SESSION
    for name, text in zip(("GAME", "KEYS"), GAMES.get(request.param, ()), strict=False):
        session = session.replace(name, text)
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=kernel), tmp_path / "player.ipynb")
    (tmp_path / "session.py").write_text(session)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    folders["PYTHONPATH"] = str(root)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}", "--ServerApp.open_browser=False"]
    command += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **folders}, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1800):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api", timeout=10):
                break
            assert server.poll() is None, (tmp_path / "lab.log").read_text()
            time.sleep(0.1)
        yield f"{address}/lab/tree/player.ipynb?reset"
    finally:
        server.terminate()
        server.wait(20)


class Page:
    "A notebook in a browser, whose one cell is run: a game that waits for a person"

    def __init__(self, browser: Any, lab: str, size: tuple[int, int], status: str = "Click here") -> None:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        self.browser, self.css, self.size = browser, By.CSS_SELECTOR, size
        browser.get(lab)
        self.wait(lambda b: "Idle" in b.find_element(self.css, "#jp-main-statusbar").text)  # the kernel is connected
        self.wait(lambda b: b.find_element(self.css, ".jp-Notebook .jp-CodeCell .jp-InputPrompt").click() is None)
        self.chain().key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        self.wait(lambda b: b.find_element(self.css, ".metabonk-screen, .jp-OutputArea-output[data-mime-type*='error']"))
        self.screen = browser.find_element(self.css, ".metabonk-screen")
        self.wait(lambda b: status in self.status() and self.colours() > 1)  # the first picture is there
        browser.execute_script("arguments[0].scrollIntoView({block: 'end'})", self.screen)
        browser.execute_script(EARS)
        self.screen.find_element(self.css, "canvas").click()
        self.wait(lambda b: "Esc" in self.status())

    def wait(self, what: Any, seconds: int = 180) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, ignored_exceptions=[Exception]).until(what)

    def chain(self) -> Any:
        from selenium.webdriver.common.action_chains import ActionChains

        return ActionChains(self.browser)

    def status(self) -> str:
        return self.screen.find_element(self.css, ".status").text

    def colours(self) -> int:
        "How many different ones are on the canvas; 0 if it has another size"
        script = """const c = arguments[0].querySelector('canvas');
            const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
            return new Set(d).size * (c.width === arguments[1] && c.height === arguments[2])"""
        return int(self.browser.execute_script(script, self.screen, *self.size))

    def hold(self, *keys: str) -> None:
        for key in keys:
            self.chain().key_down(key).pause(0.5).key_up(key).pause(0.2).perform()
        if os.environ.get("METABONK_SCREENSHOT"):
            self.browser.save_screenshot(os.environ["METABONK_SCREENSHOT"])

    def stop(self, told: Path) -> dict[str, Any]:
        "Press Stop, and read what the session tells"
        self.screen.find_element(self.css, "button").click()
        self.wait(lambda b: told.is_file() and told.stat().st_size > 0, 20)
        return json.loads(told.read_text())


def pressed(told: dict[str, Any]) -> list[str]:
    "What was done in turn, without waiting"
    runs = [name for i, name in enumerate(told["actions"]) if i == 0 or told["actions"][i - 1] != name]
    return [name for name in runs if name != "noop"]


@pytest.mark.browser
def test_playing_in_jupyterlab(browser: Any, lab: str, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Page(browser, lab, (160, 144))
    cells = len(browser.find_elements(page.css, ".jp-Cell"))
    page.hold(Keys.ARROW_RIGHT, "x", Keys.ARROW_LEFT)
    page.chain().send_keys("a").pause(1.0).perform()  # would insert a cell, if JupyterLab saw it
    page.chain().send_keys(Keys.ESCAPE).perform()
    page.wait(lambda b: "Click here" in page.status())
    assert len(browser.find_elements(page.css, ".jp-Cell")) == cells
    told = page.stop(tmp_path / "told.json")
    assert pressed(told) == ["right", "a", "left", "left"], "the A key is a second left arrow"
    assert told["actions"].count("right") >= 5
    assert told["steps"] == len(told["actions"]) >= 20
    assert told["seen"] >= 8 and told["sent"] >= told["steps"]
    assert told["scheduled"] > 4 * 1000  # samples handed to the browser's sound


@pytest.mark.whole
@pytest.mark.browser
@pytest.mark.parametrize("lab", ["rooms"], indirect=True)
def test_a_home_is_walked_through_with_eyes_shut(browser: Any, lab: str, tmp_path: Path) -> None:
    """The telephone rings within a metre: turn, stop there, and walk on in the next home, by two ears that differ."""
    from selenium.webdriver.common.keys import Keys

    page = Page(browser, lab, (128, 128))
    browser.execute_script("arguments[0].querySelector('canvas').style.visibility = 'hidden'", page.screen)
    page.hold(Keys.ARROW_LEFT, Keys.ARROW_RIGHT, Keys.SPACE, Keys.ARROW_UP)
    page.wait(lambda b: len(b.execute_script("return window.heard")) >= 8)
    heard, told = np.array(browser.execute_script("return window.heard")), page.stop(tmp_path / "told.json")
    assert (heard[:, 0] == 2).all() and (heard[:, 1] > 1e-3).any(), "one sound for both ears"
    assert list(dict.fromkeys(pressed(told))) == ["left", "right", "stop", "forward"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in told["actions"]}
    for name, probes in zip(told["actions"], told["probes"], strict=True):
        found[name].append(probes)
    assert found["stop"][0]["success"] == 1
    assert all(p["realised_turn"] > 0 for p in found["left"]) and all(p["realised_turn"] < 0 for p in found["right"])
    assert all(p["commanded_x"] > 0.1 and (p["realised_x"] > 0.1 or p["collided"]) for p in found["forward"])


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("lab", ["watching"], indirect=True)
def test_a_goal_is_typed_beside_a_dual_agent_at_play(browser: Any, lab: str) -> None:
    """Words become the goal that stands under the picture, as text, while the game goes on."""
    from selenium.webdriver.common.keys import Keys

    page = Page(browser, lab, (160, 144), "Episode 1")
    line = browser.find_element(page.css, ".jp-OutputArea input[type='text']")
    for words, goal in (("cellar", "goal: place cellar"), ("go <b>home</b>", "goal: go <b>home</b>")):
        line.send_keys(words + Keys.ENTER)
        page.wait(lambda b, goal=goal: goal in [each.text for each in b.find_elements(page.css, ".widget-label")])
    page.wait(lambda b: "because: asked by person" in [each.text for each in b.find_elements(page.css, ".widget-label")])
    if os.environ.get("METABONK_SCREENSHOT"):
        browser.save_screenshot(os.environ["METABONK_SCREENSHOT"])
    page.screen.find_element(page.css, "button").click()
    page.wait(lambda b: page.status() == "Stopped.")
