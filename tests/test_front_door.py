"""The front door: a game on a page of its own, in a real browser; who may knock, and what is kept when somebody leaves."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent
from metabonk.cli import main
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, UsageError, raised
from metabonk.core.run import Run, find_run
from metabonk.core.serving import own_page, where
from metabonk.dream.token_model import TokenModel, TokenModelConfig
from metabonk.measure.live import dream_of, player_of, share_run
from metabonk.play.bonk import ROM
from metabonk.play.game import make_game
from metabonk.play.page import read_message
from metabonk.play.profile import load_profile
from metabonk.record.recorder import record
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMelConfig, LogMelVoice
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokens import Tokenizers

pytestmark = pytest.mark.xdist_group("front door")
ROOT = Path(__file__).parents[1]


class Served:
    "A command that serves a page, in a process of its own"

    def __init__(self, *arguments: str, patience: float = 120.0) -> None:
        command = [sys.executable, "-m", "metabonk.cli", *arguments, "--port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process: Any = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.line = self.process.stdout.readline()
        assert self.line, self.process.communicate(timeout=20)[1]
        self.address = self.line.split()[0]
        self.port = int(re.findall(r":(\d+)/", self.address)[0])

    def say(self, line: str, until: str) -> str:
        "Type a line; the line of output in which this stands"
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        for told in self.process.stdout:
            if until in told:
                return str(told)
        raise AssertionError(self.process.communicate(timeout=20)[1])

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        "Status, output and errors after a signal"
        self.process.send_signal(number)
        told = self.process.communicate(timeout=60)
        return self.process.returncode, *told


@pytest.fixture()
def doors() -> Iterator[Any]:
    opened: list[Served] = []

    def another(*arguments: str) -> Served:
        opened.append(Served(*arguments))
        return opened[-1]

    yield another
    for door in opened:
        if door.process.poll() is None:
            door.process.kill()
            door.process.communicate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-background-networking"]
    for flag in [*flags, "window-size=1100,760", "autoplay-policy=user-gesture-required"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield made
    made.quit()


class Visitor:
    "A person in front of the browser"

    def __init__(self, browser: Any, address: str) -> None:
        from selenium.webdriver.common.by import By

        self.browser, self.css = browser, By.CSS_SELECTOR
        browser.get(address)
        self.wait(lambda b: self.colours() > 1)

    def wait(self, what: Any, seconds: int = 60) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, 0.02, ignored_exceptions=[Exception]).until(what)

    def chain(self) -> Any:
        from selenium.webdriver.common.action_chains import ActionChains

        return ActionChains(self.browser)

    def text(self, selector: str) -> str:
        return self.browser.find_element(self.css, selector).text

    def colours(self, which: int = 0) -> int:
        "How many different ones are on a canvas"
        script = """const c = document.querySelectorAll('canvas')[arguments[0]];
            return new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size"""
        return int(self.browser.execute_script(script, which))

    def play(self) -> None:
        self.browser.find_element(self.css, "canvas").click()
        self.wait(lambda b: "Esc" in self.text(".status"))

    def hold(self, *keys: str) -> None:
        for key in keys:
            self.chain().key_down(key).pause(0.6).key_up(key).pause(0.3).perform()

    def stop(self) -> None:
        self.browser.find_element(self.css, ".metabonk-screen button").click()

    def picture(self, name: str) -> None:
        if os.environ.get("METABONK_SCREENSHOT"):
            self.browser.save_screenshot(f"{os.environ['METABONK_SCREENSHOT']}.{name}.png")


def in_turn(names: list[str]) -> list[str]:
    "What was done in turn, without waiting"
    return [name for i, name in enumerate(names) if name != "noop" and (i == 0 or names[i - 1] != name)]


def recorded(store: Path) -> list[str]:
    "The actions of a store by name; the first row of an episode has none"
    opened = Store.open(store)
    episodes = [opened.read(episode) for episode in opened.episodes]
    names = opened.schema.action_names
    return [names[int(a)] for rows in episodes for a, first in zip(rows.action, rows.first, strict=True) if not first]


@pytest.mark.browser
def test_a_person_plays_and_is_recorded(browser: Any, doors: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    door = doors("play", "bonk", "--record", str(tmp_path / "me"))
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/  \(Ctrl-C ends it\)\n", door.line)
    visitor = Visitor(browser, door.address)
    assert "Click here" in visitor.text(".status") and visitor.text("h1") == "Bonk"
    notes = visitor.text("dl")
    assert all(word in notes for word in ("up_a", "badge (+20)", "Reward is what")), notes
    visitor.play()
    visitor.hold(Keys.ARROW_RIGHT, "x", Keys.ARROW_LEFT)
    visitor.picture("play")
    visitor.stop()
    out, err = door.process.communicate(timeout=60)
    assert door.process.returncode == 0 and not err, err
    done = recorded(tmp_path / "me")
    assert in_turn(done) == ["right", "a", "left"] and done.count("right") >= 3
    assert f"{len(done)} steps played" in out
    (episode,) = Store.open(tmp_path / "me").episodes
    assert episode.about["policy"] == "person" and episode.about["cut"]
    visitor.wait(lambda b: "ended" in visitor.text("#told"))
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [error for error in errors if "Content Security" in error or "Uncaught" in error], errors


@pytest.mark.browser
def test_nothing_is_lost_when_a_tab_closes_and_another_goes_on(browser: Any, doors: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    door = doors("play", "bonk", "--record", str(tmp_path / "me"))
    visitor = Visitor(browser, door.address)
    visitor.play()
    visitor.hold(Keys.ARROW_RIGHT)
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    Visitor(browser, door.address)  # takes over
    browser.switch_to.window(first)
    visitor.wait(lambda b: "another tab" in visitor.text("#told"))
    visitor.picture("elsewhere")
    visitor.browser.find_element(visitor.css, "#told button").click()
    visitor.wait(lambda b: "Click here" in visitor.text(".status") and not visitor.text("#told"))
    visitor.play()
    visitor.hold("x")
    browser.get("about:blank")
    deadline = time.monotonic() + 20
    while len(kept := recorded(tmp_path / "me")) < 5 or in_turn(kept) != ["right", "a"]:  # while the game still runs
        assert time.monotonic() < deadline, kept
        time.sleep(0.1)
    time.sleep(0.5)
    status, out, err = door.end()
    assert status == 130 and re.fullmatch(r"metabonk: stopped; \d+ steps more are in .*me\n", err), err
    assert in_turn(recorded(tmp_path / "me")) == ["right", "a"]
    assert len(recorded(tmp_path / "me")) - len(kept) <= 2, "an empty room plays on"
    browser.switch_to.window(browser.window_handles[-1])
    browser.close()
    browser.switch_to.window(first)


@pytest.mark.browser
def test_a_mouse_turns_and_shoots(browser: Any, doors: Any, tmp_path: Path) -> None:
    """Movements over the picture become classes of the camera, beside whatever keys are held."""
    pytest.importorskip("vizdoom")
    given = [part for word in ("mouse=20", "sample_rate=0") for part in ("--set", word)]
    door = doors("play", "doom:my_way_home", "--record", str(tmp_path / "me"), *given)
    visitor = Visitor(browser, door.address)
    assert "turn: mouse" in visitor.text(".legend")
    browser.execute_script("HTMLElement.prototype.requestPointerLock = () => { window.locked = true; }")  # to be able to stop
    visitor.play()
    assert browser.execute_script("return window.locked")
    canvas = browser.find_element(visitor.css, "canvas")
    moves = visitor.chain().move_to_element(canvas).pause(0.5).key_down("w")
    for right, down in ((60, 0), (0, 40), (-60, 0)):
        moves = moves.move_by_offset(right, down).pause(0.6)
    moves.key_up("w").pause(0.3).perform()
    visitor.picture("mouse")
    visitor.stop()
    door.process.communicate(timeout=60)
    store = Store.open(tmp_path / "me")
    action = np.concatenate([store.read(episode).action for episode in store.episodes])
    down, right = np.divmod(action[:, -1], 11)
    turned = np.flatnonzero((action[:, -1] != 60) & (action[:, 0] == 1))  # forward is held meanwhile
    first = [(int(np.sign(d - 5)), int(np.sign(r - 5))) for d, r in zip(down[turned], right[turned], strict=True)]
    in_order = [way for i, way in enumerate(first) if i == 0 or first[i - 1] != way]
    assert in_order == [(0, 1), (1, 0), (0, -1)], in_order
    assert not action[-1, 0] and not action[:, 1:3].any()


@pytest.mark.browser
def test_a_gamepad_presses_keys(browser: Any, doors: Any, tmp_path: Path) -> None:
    door = doors("play", "bonk", "--record", str(tmp_path / "me"))
    visitor = Visitor(browser, door.address)
    browser.execute_script("""window.pad = { buttons: [...Array(16)].map(() => ({ pressed: false })), axes: [0, 0] };
        navigator.getGamepads = () => [null, window.pad];
        window.dispatchEvent(new Event("gamepadconnected"));""")
    visitor.play()
    for change in ("pad.axes[0] = 1", "pad.buttons[0].pressed = true", "pad.axes[0] = 0", "pad.buttons[0].pressed = false"):
        browser.execute_script(change)
        time.sleep(0.6)
    visitor.stop()
    door.process.communicate(timeout=60)
    assert in_turn(recorded(tmp_path / "me")) == ["right", "right_a", "a"]


# ---- what a run has left


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A run of the main pipeline that has learned nothing"
    made = Run.open(tmp_path_factory.mktemp("runs") / "tiny")
    store = made.stage_folder("record") / "store"
    record("bonk", store, steps=40, policy="random", seed=0, settings={"ticks_per_step": 12, "max_steps": 20})
    torch.manual_seed(0)
    eyes = PictureTokenizer(PictureConfig(size=(64, 64), grid=(4, 4), codes=8))
    for weights in eyes.parameters():  # the layer that draws begins at zero, and would draw nothing
        if not weights.any():
            torch.nn.init.normal_(weights)
    ears = SoundTokenizer(SoundConfig(channels=2, frames=2, bands=8, tokens=2, codes=8))
    hearing = LogMelConfig(sample_rate=Store.open(store).schema.sample_rate, n_fft=2048, bands=8, frames_per_step=2)
    config = TokenModelConfig.preset("tiny", size="play", embed=32, units=16)
    model = TokenModel(config, Tokenizers(eyes, ears, hearing, "bonk"), ActionSpec(categorical=(11,)), step_samples=6583.5)
    model.eval().save(made.stage_folder("model") / "model")
    policy = ActorCritic(ActorCriticConfig.preset("tiny", units=16), model.feature_size, model.actions)
    Agent(model, policy).save(made.stage_folder("dream") / "agent")
    return made.folder


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.browser
def test_an_agent_is_watched_beside_what_it_expects(browser: Any, doors: Any, run: Path) -> None:
    before = files(run)
    door = doors("watch", str(run))
    visitor = Visitor(browser, door.address)
    assert visitor.text("h1") == "The agent of tiny"
    visitor.wait(lambda b: "it expects to earn next" in visitor.text("dl") and visitor.colours(1) > 1)
    assert "Episode 1" in visitor.text(".status") and "badge (+20)" in visitor.text("dl")
    visitor.picture("watch")
    visitor.stop()
    out, err = door.process.communicate(timeout=60)
    assert door.process.returncode == 0 and not err and "steps played" in out, err
    assert files(run) == before, "whoever watches changes nothing"


@pytest.mark.browser
def test_a_person_plays_in_the_dream_with_sound(browser: Any, doors: Any, run: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    before = files(run)
    door = doors("dream", str(run))
    visitor = Visitor(browser, door.address)
    assert "Nobody plays the game itself" in visitor.text("dl") and "right: Right/D" in visitor.text(".legend")
    browser.execute_script("""const start = AudioBufferSourceNode.prototype.start;
        window.heard = 0;
        AudioBufferSourceNode.prototype.start = function (...given) { window.heard += this.buffer.length;
            return start.apply(this, given); };""")
    visitor.play()
    visitor.hold(Keys.ARROW_RIGHT)
    visitor.wait(lambda b: b.execute_script("return window.heard") >= 3 * 6584)
    visitor.picture("dream")
    status, _, err = door.end()
    assert status == 130 and err == "metabonk: stopped\n", err
    assert files(run) == before


def test_what_a_run_has_not_left_is_one_line(run: Path, tmp_path: Path) -> None:
    bare = Run.open(tmp_path / "bare").folder
    other = Run.open(tmp_path / "other").folder
    (other / "manifest.json").write_text('{"format": 99, "stages": {}}')
    shutil.copytree(run, broken := tmp_path / "broken")
    (broken / "stages/model/model/model.json").write_text('{"format": "metabonk something else"}')
    for name, words in (
        ("nowhere", "there is no run in"), (str(bare), "has no model yet, which its stage model or dynamics leaves"),
        (str(other), "has format 99"), (str(broken), "holds no world model that can be played in"),
    ):  # fmt: skip
        assert words in str(raised(lambda name=name: dream_of(find_run(name)))), name
    assert "has no agent yet" in str(raised(player_of, find_run(bare)))


def test_a_dream_keeps_pace_and_its_sound_has_no_seams(run: Path) -> None:
    dream, _ = dream_of(find_run(run))
    assert dream.action_names[1] == "up" and dream.metadata["render_fps"] == pytest.approx(32768 / 6584)
    runs = []
    for _ in range(2):
        observation, _ = dream.reset(seed=3)
        runs.append(np.concatenate([observation["audio"], *(dream.step(4)[0]["audio"] for _ in range(4))], 1))
    assert np.array_equal(*runs) and runs[0].shape == (2, 5 * 6584)
    voice = LogMelVoice(LogMelConfig(sample_rate=16_000, n_fft=512, bands=16, frames_per_step=4), 1, 1600.0)
    tone = np.full((1, 4, 16), -4.0, np.float32)
    tone[..., 3] = 1.0
    sound = np.concatenate([voice(tone) for _ in range(12)], 1)[0].astype(float)
    steps = np.abs(np.diff(sound))
    seams = np.array([steps[k * 1600 - 1] for k in range(4, 12)])
    assert np.abs(sound[3200:]).mean() > 100 and seams.max() <= np.percentile(steps[3200:], 99.9)
    voice.reset()
    assert np.array_equal(voice(tone)[0], sound[:1600])


# ---- who may knock


def asked(address: str, **headers: str) -> int:
    "The status of a request"

    async def ask() -> int:
        try:
            return (await AsyncHTTPClient().fetch(HTTPRequest(address, headers=headers))).code
        except HTTPClientError as error:
            return error.code

    return asyncio.run(ask())


async def knock(port: int, origin: str | None, *messages: str | bytes, host: str = "") -> int:
    "How a WebSocket ends that says this: its close code, an HTTP status, or 0 if it stays open"
    headers = {**({"Origin": origin} if origin else {}), **({"Host": host} if host else {})}
    try:
        socket_ = await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{port}/live", headers=headers))
    except HTTPClientError as error:
        return error.code
    for message in messages:
        await socket_.write_message(message, isinstance(message, bytes))
    try:
        async with asyncio.timeout(0.7):
            while await socket_.read_message() is not None:
                pass
        return int(socket_.close_code or 0) or -1
    except TimeoutError:
        socket_.close()
        return 0


KEY = '{"kind": "key", "code": "ArrowRight", "down": true}'


def test_only_our_own_page_gets_in_and_only_keys(doors: Any, tmp_path: Path) -> None:
    door = doors("play", "bonk", "--record", str(tmp_path / "me"))
    assert asked(door.address) == 200 and asked(door.address, Host="evil.example") == 421
    assert asked(door.address + "etc/passwd") == 404
    own = f"http://127.0.0.1:{door.port}"

    async def all_of_them() -> dict[str, int]:
        return {
            "ours": await knock(door.port, own, '{"kind": "focus"}', KEY),
            "foreign page": await knock(door.port, "https://evil.example", KEY),
            "another port": await knock(door.port, f"http://127.0.0.1:{door.port + 1}", KEY),
            "no page": await knock(door.port, None, KEY),
            "foreign name": await knock(door.port, "http://evil.example", KEY, host="evil.example"),
            "garbage": await knock(door.port, own, "]["),
            "bytes": await knock(door.port, own, KEY.encode()),
            "another kind": await knock(door.port, own, '{"kind": "eval", "code": "1"}'),
            "too long": await knock(door.port, own, json.dumps({"kind": "key", "code": "x" * 600, "down": True})),
        }

    assert asyncio.run(all_of_them()) == {
        "ours": 0, "foreign page": 403, "another port": 403, "no page": 403, "foreign name": 421, "garbage": 1008,
        "bytes": 1008, "another kind": 1008, "too long": 1009,
    }  # fmt: skip
    status, _, err = door.end(signal.SIGTERM)
    assert status == 143 and "stopped by SIGTERM" in err and err.count("\n") == 1
    assert in_turn(recorded(tmp_path / "me")) == ["right"], "one of ours pressed, and nobody else"


# ---- a search, said in the shell while one plays


async def held(port: int, *keys: str) -> dict[str, Any]:
    "Hold each key for a moment; what stands beside the picture then"
    page = await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{port}/live", headers={"Origin": f"http://127.0.0.1:{port}"}))
    for key in keys:
        for message in ({"kind": "focus"}, {"kind": "key", "code": key, "down": True}):
            await page.write_message(json.dumps(message))
        notes: dict[str, Any] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while (told := await page.read_message()) is not None:
                    notes = json.loads(told).get("notes", notes) if isinstance(told, str) else notes
        await page.write_message(json.dumps({"kind": "key", "code": key, "down": False}))
    page.close()
    return notes


START = ("--set", "boot=noop 60, start 4, noop 60")


def test_addresses_are_found_in_the_shell_while_one_plays_on_the_page(doors: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    door = doors("profile", "new", str(ROM), "--output", str(mine), *START)
    count = int(door.say("", "candidates left").split()[0])
    for key, line in (("ArrowRight", "changed"), ("KeyZ", "mark"), ("ArrowLeft", "changed")):
        asyncio.run(held(door.port, key))
        fewer = int(door.say(line, "candidate").split()[0])
        assert 0 < fewer < count or line == "mark" and fewer <= count
        count = fewer
    assert "0xC022 u8" in door.say("name x 0xC022 u8", "x is")
    door.say("rised", "unknown word 'rised': did you mean 'rose'?")
    notes = asyncio.run(held(door.port, "ArrowRight"))
    assert notes["search"].startswith("unknown word") and int(notes["x"]) > 0
    out, err = door.process.communicate("done\n", timeout=60)
    assert door.process.returncode == 0 and not err and f"{mine} reads x=" in out, err
    with contextlib.closing(make_game(f"gameboy:{ROM}", profile=str(mine))) as game:
        assert set(game.reset(seed=0)[1]["probes"]) == {"x"} and "start" in game.action_names


@pytest.mark.browser
def test_what_was_found_stands_beside_the_picture_and_stop_writes_it(browser: Any, doors: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    mine = tmp_path / "mine.yaml"
    door = doors("profile", "new", str(ROM), "--output", str(mine), *START)
    visitor = Visitor(browser, door.address)
    assert visitor.text("h1") == "A search in bonk.gb" and "say in the shell" in visitor.text("dl")
    door.say("name x 0xC022 u8", "x is")
    visitor.play()
    visitor.hold(Keys.ARROW_RIGHT)
    shown = visitor.wait(lambda b: re.search(r"\nx\n(\d+)", visitor.text("dl")))
    visitor.hold(Keys.ARROW_RIGHT)
    visitor.wait(lambda b: shown[1] not in visitor.text("dl").splitlines())
    visitor.picture("search")
    visitor.stop()
    out, err = door.process.communicate(timeout=60)
    assert door.process.returncode == 0 and not err and f"{mine} reads x=" in out, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_stopped_keeps_its_names(number: int, doors: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    door = doors("profile", "new", str(ROM), "--output", str(mine), *START)
    door.say("name x 0xC022 u8", "x is")
    status, _, err = door.end(number)
    assert status == 128 + number and err.startswith("metabonk: stopped") and err.count("\n") == 1, err
    assert f"; {mine} reads x=" in err and load_profile(mine).table.keys() == {"x"}


def test_a_search_that_can_not_begin_or_finds_nothing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("title: mine")
    (tmp_path / "text.gb").write_text("no cartridge")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            ([str(ROM), "--port", port], f"can't listen on port {port}"),
            ([str(ROM), "--output", "there.yaml"], "there.yaml is there already: choose another name with --output"),
            ([str(ROM), "--output", "there.txt"], "let it end in .yaml"),
            ([str(ROM), "--output", "no/mine.yaml"], "there is no folder no"),
            ([str(ROM), "--set", "profile=bonk"], "leave --set profile out"),
            ([str(ROM), "--set", "tiks=1"], "unknown setting of gameboy 'tiks'"),
            (["text.gb"], "text.gb is no Game Boy ROM"),
            (["nowhere.gb"], "can't read the ROM nowhere.gb"),
            ([str(ROM)], "nothing got a name, so no profile is written"),
        ):
            with open(os.devnull) as nothing, monkeypatch.context() as typed:
                typed.setattr(sys, "stdin", nothing)
                assert main(["profile", "new", *arguments, *([] if "--port" in arguments else ["--port", "0"])]) in (1, 2)
            told = capsys.readouterr().err
            assert told.count("\n") == 1 and words in told, (arguments, told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.gb", "there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "title: mine"


@pytest.mark.parametrize(
    "message",
    ["", "null", "[]", "{}", '{"kind": []}', '{"kind": "key"}', '{"kind": "key", "code": "KeyX", "down": 1}',
     '{"kind": "key", "code": "KeyX", "down": true, "more": 1}', '{"kind": "seen", "number": -1, "scheduled": 0, "gaps": 0}',
     '{"kind": "seen", "number": true, "scheduled": 0, "gaps": 0}', "[" * 500, b'{"kind": "stop"}'],
)  # fmt: skip
def test_what_is_no_key_is_refused(message: str | bytes) -> None:
    with pytest.raises(UsageError, match="the page sent"):
        read_message(message)


def test_a_port_in_use_and_unknown_games_are_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, words in (
            (["play", "bonk", "--port", port], f"can't listen on port {port} of 127.0.0.1"),
            (["play", "bonkk", "--port", "0"], "did you mean 'bonk'"),
            (["play", "bonk", "--port", "0", "--set", "tiks=3"], "unknown setting of bonk 'tiks'"),
            (["play", "gym:CartPole-v1", "--port", "0", "--host", "no.such.host.invalid"], "can't listen"),
        ):
            command = [sys.executable, "-m", "metabonk.cli", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
            assert done.returncode == 2 and done.stderr.count("\n") == 1 and words in done.stderr, (arguments, done.stderr)
            assert not done.stdout


def test_over_ssh_the_address_comes_with_its_forwarding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert where("::1", 80) == "http://[::1]:80/  (Ctrl-C ends it)"
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.2 51000 10.0.0.9 22")
    monkeypatch.setenv("LOGNAME", "ada")
    assert where("127.0.0.1", 8001).endswith("ssh -L 8001:127.0.0.1:8001 ada@10.0.0.9)")
    assert "ssh" not in where("0.0.0.0", 8001), "whoever reaches it needs no tunnel"
    assert own_page("http://[::1]:8001", "[::1]:8001") and not own_page("null", "localhost") and not own_page("", "")


def test_a_shared_run_is_small_and_dreams_and_plays_the_same(run: Path, tmp_path: Path) -> None:
    shared = share_run(Run.open(run), tmp_path / "shared")
    assert len(Store.open(tmp_path / "shared/stages/record/store")) == 16, "eight rows of two episodes"
    kept = {str(path.relative_to(shared.folder)) for path in shared.folder.rglob("*") if path.is_file()}
    assert not [name for name in kept if not name.startswith(("manifest.json", "stages/play/agent/", "stages/record/store/"))]
    assert str(run) not in shared.manifest_path.read_text()
    dreams = []
    for each in (Run.open(run), shared):
        torch.manual_seed(0)  # what a model reads is drawn
        dreams.append(dream_of(each)[0])
    seen = [[dream.reset(seed=2)[0]["image"], *(dream.step(3)[0]["image"] for _ in range(3))] for dream in dreams]
    assert all((one == other).all() for one, other in zip(*seen, strict=True))
    one, other = (player_of(each).actor_critic.state_dict() for each in (Run.open(run), shared))
    assert all(value.equal(other[name]) for name, value in one.items())


def test_what_can_not_be_shared_says_why(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="holds a run already"):
        share_run(Run.open(run), run)
    with pytest.raises(FolderError, match="no agent yet"):
        share_run(Run.open(tmp_path / "empty"), tmp_path / "shared")
    with pytest.raises(FolderError, match="no episode of 500 rows"):
        share_run(Run.open(run), tmp_path / "shared", rows=500)
