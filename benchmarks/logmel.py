"""Log-mel of 64 seconds of game sound, ours against librosa's, on one thread

    python benchmarks/logmel.py [--rounds 25]

The sound's steps are equally long, so that librosa can compute the same frames; ours takes no advantage of it. The two
take turns, and each round compares one call with the other's next to it. What counts is the median of these ratios, in
processor time, which other programs on the computer disturb less than time by the clock.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before librosa's and torch's libraries start their threads

import librosa  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from metabonk.sense.logmel import LogMel, LogMelConfig  # noqa: E402

SECONDS, STEP = 64, 1_600  # samples a step: four ticks of a Game Boy at 24 kHz


def seconds(function: Callable[[], object]) -> float:
    "Processor time of one call"
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    "Measure and tell"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    config = LogMelConfig.preset("small")
    logmel, hop = LogMel(config), STEP // config.frames_per_step
    lengths = torch.full((SECONDS * config.sample_rate // STEP,), STEP)
    noise = np.random.default_rng(0).normal(0, 0.1, (1, int(lengths.sum()))).astype(np.float32)
    sound, padded = torch.from_numpy(noise), np.pad(noise[0], (config.n_fft, 0))[hop:]

    def ours() -> np.ndarray:
        return logmel(sound, lengths)[:, 0].flatten(0, 1).numpy()

    def theirs() -> np.ndarray:
        power = librosa.feature.melspectrogram(
            y=padded, sr=config.sample_rate, n_fft=config.n_fft, hop_length=hop, center=False,
            n_mels=config.bands, fmin=config.f_min,
        )  # fmt: skip
        return librosa.power_to_db(power, amin=config.floor, top_db=None).T / 10

    with torch.inference_mode():
        frames = ours()
        difference = np.abs(frames - theirs()[: len(frames)]).max()
        a, b = np.array([(seconds(ours), seconds(theirs)) for _ in range(rounds)]).T
    said = [f"{name} {np.median(x) * 1e3:.1f} ms (best {x.min() * 1e3:.1f})" for name, x in (("librosa", b), ("ours", a))]
    times = ", ".join(said)
    low, middle, high = np.quantile(b / a, [0.1, 0.5, 0.9])
    print(f"{times}: ours is {middle:.2f} times as fast (80 % of rounds between {low:.2f} and {high:.2f})")
    print(f"largest difference between their frames: {difference:.1e}")


if __name__ == "__main__":
    main()
