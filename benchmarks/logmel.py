"""Log-mel of a minute of game sound, ours against librosa's, one thread each, best of several in one run.

python benchmarks/logmel.py
"""

import time

import librosa
import numpy as np
import torch

from metabonk.sense.logmel import LogMel, LogMelConfig

torch.set_num_threads(1)
config = LogMelConfig.preset("small")
lengths = torch.full((900,), 1_600)  # 60 s at 24 kHz, steps of four ticks
sound = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, int(lengths.sum()))).astype(np.float32))
logmel = LogMel(config)
hop = 1_600 // config.frames_per_step
padded = np.pad(sound[0].numpy(), (config.n_fft, 0))[hop:]


def theirs() -> np.ndarray:
    """The same frames by librosa."""
    power = librosa.feature.melspectrogram(
        y=padded, sr=config.sample_rate, n_fft=config.n_fft, hop_length=hop, center=False,
        n_mels=config.bands, fmin=config.f_min,
    )  # fmt: skip
    return librosa.power_to_db(power, amin=config.floor, top_db=None).T / 10


def best(function, *arguments, rounds: int = 15) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


with torch.inference_mode():
    ours = logmel(sound, lengths)[:, 0].flatten(0, 1).numpy()
    difference = np.abs(ours - theirs()[: len(ours)]).max()
    a, b = best(logmel, sound, lengths), best(theirs)
print(f"librosa {b * 1e3:.1f} ms, ours {a * 1e3:.1f} ms: {b / a:.2f} times as fast; largest difference {difference:.1e}")
