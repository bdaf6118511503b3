"""How soon a game is there, how soon it answers a key, how fast a dream is: with a browser, on this computer.

python benchmarks/front_door.py             (the page of `metabonk play bonk`)
python benchmarks/front_door.py runs/NAME   (the dream of a run, too)
"""

import re
import shutil
import statistics
import subprocess
import sys
import time

KEY = """const done = arguments[1], canvas = document.querySelector('canvas'), root = canvas.closest('.metabonk-screen');
const look = () => canvas.getContext('2d').getImageData(0, 60, canvas.width, 20).data.join();  // where only the hero moves
const press = (kind) => root.dispatchEvent(new KeyboardEvent(kind, { code: arguments[0], bubbles: true }));
const before = look(), began = performance.now();
press('keydown');
const wait = () => {
  if (look() === before) return requestAnimationFrame(wait);
  press('keyup');
  done(performance.now() - began);
};
requestAnimationFrame(wait);"""


def page() -> tuple[float, list[float]]:
    """Seconds from the command to the first picture, and milliseconds from a key to a changed one."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    began = time.perf_counter()
    alone = ["--set", "opponents=0", "--set", "chargers=0"]  # nothing but the hero moves
    command = [sys.executable, "-m", "metabonk.cli", "play", "bonk", "--port", "0", *alone]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        browser.get(re.findall(r"http\S+", server.stdout.readline())[0])
        while not browser.execute_script("return (document.querySelector('canvas')?.width ?? 300) !== 300"):
            time.sleep(0.005)
        first = time.perf_counter() - began
        browser.find_element("css selector", "canvas").click()
        time.sleep(1)
        answers = []
        for number in range(20):
            answers.append(browser.execute_async_script(KEY, "ArrowRight" if number % 2 else "ArrowLeft"))
            time.sleep(0.5)  # the hero comes to rest
        return first, answers
    finally:
        server.terminate()
        server.wait(20)
        browser.quit()


def dream(run: str) -> None:
    """Steps a second of a dream with sound, and of the search that finds each step's sound alone."""
    from metabonk.core.device import one_thread
    from metabonk.core.run import find_run
    from metabonk.measure.live import dream_of

    one_thread()
    game, _ = dream_of(find_run(run))
    for name, voices in (("joined", game.dream.voices), ("each step alone", [])):
        game.dream.voices = voices
        game.reset(seed=0)
        times, work = [], []
        for number in range(20):
            began, worked = time.perf_counter(), time.process_time()
            game.step(number % len(game.action_names))
            times.append(time.perf_counter() - began)
            work.append(time.process_time() - worked)
        wall, cpu = statistics.median(times), statistics.median(work)
        print(f"dream, sound {name:16} {1 / wall:6.1f} steps/s ({1e3 * wall:.0f} ms; {1e3 * cpu:.0f} ms of work)")


first, answers = page()
print(f"metabonk play bonk    {first:6.2f} s to the first picture (limit 3 s)")
print(f"key to picture        {statistics.median(answers):6.0f} ms (limit 80 ms)")
if len(sys.argv) > 1:
    dream(sys.argv[1])
