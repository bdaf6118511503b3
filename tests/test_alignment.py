"""Alignment: what belongs together is found, what does not is not, and the measures tell the difference"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score

from metabonk.core.errors import StoreError, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.logs import read_log
from metabonk.core.training import fit
from metabonk.record.experience import Schema, Step
from metabonk.record.recorder import record
from metabonk.record.store import Store
from metabonk.sense.alignment import (
    Alignment,
    AlignmentConfig,
    AlignmentData,
    bootstrap_episodes,
    d_prime,
    discriminant,
    event_rows,
    event_scores,
    from_music,
    info_nce,
    retrieval,
    roc_auc,
    separation,
    separation_figure,
    untrained,
)
from metabonk.sense.logmel import LogMel, LogMelConfig

SCHEMA = Schema(game="flash", image_shape=(16, 16, 3), channels=1, sample_rate=4000, clock_rate=60.0, probes={"hit": "int64"})
LOGMEL = LogMelConfig(sample_rate=4000, n_fft=128, bands=8, frames_per_step=2)
CONFIG = AlignmentConfig(
    size=(16, 16), channels=1, frames=2, bands=8, clip=2, gap=3, moments=8, stretches=4, width=16, dimension=8
)  # fmt: skip


def flashes(seed: int, length: int = 60) -> list[Step]:
    """The whole picture lights up when it bangs; a random hum goes on all the time"""
    rng, rows, time = np.random.default_rng(seed), [], np.arange(66) / 4000
    for t in range(length):
        hit = bool(rng.random() < 0.3)
        image = np.full((16, 16, 3), 220 if hit else 40, np.uint8)
        hum = np.sin(2 * np.pi * rng.choice([300, 450, 700]) * time) * 3000
        audio = (hum + hit * rng.normal(size=66) * 6000).clip(-32768, 32767).astype(np.int16)[None]
        rows.append(Step(image, audio, np.array(0), 0.0, False, t == length - 1, t == 0, t, 0, {"hit": int(hit)}))
    return rows


def store_of(path: Path, episodes: int = 10, length: int = 60, chunk_steps: int = 1000) -> Store:
    store = Store.create(path, SCHEMA, exist_ok=True)
    with store.writer(chunk_steps) as writer:
        for episode in range(episodes):
            for row in flashes(episode, length):
                writer.add(row)
    return store


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Alignment, AlignmentData]:
    folder = tmp_path_factory.mktemp("alignment")
    store = store_of(folder / "store")
    torch.manual_seed(0)
    network = Alignment(CONFIG)
    fit(network, AlignmentData(store.path, CONFIG, LOGMEL), folder / "fit", TrainConfig(steps=60, lr=3e-3, warmup=5))
    return network, AlignmentData(store.path, CONFIG, LOGMEL)


def test_the_loss_by_hand() -> None:
    rng = torch.Generator().manual_seed(0)
    seen, heard = (torch.nn.functional.normalize(torch.randn(5, 3, generator=rng), dim=-1) for _ in range(2))
    s = (seen @ heard.T / 0.2).double()
    by_hand = -sum(
        (s[i, i] - s[i].exp().sum().log() + s[i, i] - s[:, i].exp().sum().log()) / 10 for i in range(5)
    )  # fmt: skip
    torch.testing.assert_close(info_nce(seen, heard, 0.2).double(), by_hand, rtol=1e-5, atol=1e-6)
    nothing = torch.ones(5, 3) / 3**0.5
    assert info_nce(nothing, nothing, 0.2).item() == pytest.approx(np.log(5))
    assert info_nce(seen, seen, 0.02) < info_nce(seen, heard, 0.02)


def test_it_learns_what_belongs_together(trained: tuple[Alignment, AlignmentData]) -> None:
    network, data = trained
    found = retrieval(network, data, candidates=8, batches=12).set_index(["network", "candidates"])
    for kind in ("same episode", "any episode"):
        assert found["top1_low"]["aligned", kind] > 1 / 8
        assert found["top1"]["aligned", kind] > 1.5 * found["top1"]["untrained", kind]
        low, high = found["top1_low"]["shuffled pairs", kind], found["top1_high"]["shuffled pairs", kind]
        assert low < found["top1"]["aligned", kind] and low <= 0.2 and high < found["top1_high"]["aligned", kind]
    assert (found["top1_chance"] == 1 / 8).all() and (found["top5_chance"] == 5 / 8).all()


def test_nothing_is_learned_from_shuffled_pairs(trained: tuple[Alignment, AlignmentData], tmp_path: Path) -> None:
    _, data = trained
    torch.manual_seed(0)
    network = Alignment(CONFIG.change(shuffled=True))
    training = TrainConfig(steps=60, lr=3e-3, warmup=5)
    fit(network, AlignmentData(data.store, CONFIG, LOGMEL), tmp_path, training)
    learned = read_log(data.store.parent / "fit")["loss"].iloc[-1]
    assert read_log(tmp_path)["loss"].iloc[-1] > np.log(32) - 0.2 > learned


def test_events_stand_out(trained: tuple[Alignment, AlignmentData]) -> None:
    network, data = trained
    scores = event_scores(network, data, probes=("hit",), quiet=0)
    told = separation(scores, draws=100).set_index("network")
    assert told["d_prime"]["aligned"] > told["d_prime"]["untrained"] and told["auc"]["aligned"] > 0.9
    assert told["gain"]["log-mel"] == 0
    assert (told["d_prime_low"] <= told["d_prime"]).all() and (told["d_prime"] <= told["d_prime_high"]).all()
    shuffled = scores.assign(event=np.random.default_rng(0).permutation(scores["event"]))
    assert abs(separation(shuffled, draws=10).set_index("network")["auc"]["aligned"] - 0.5) < 0.1
    held = set(data.episodes(True))
    assert set(scores["episode"]) <= held and held.isdisjoint(data.episodes(False))
    assert len(separation_figure(scores).data) == 6


def test_clips_are_those_of_the_recording(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", episodes=3, length=40, chunk_steps=7)
    data = AlignmentData(store.path, CONFIG, LOGMEL, validation=0.0)
    data.prepare_data()
    data.setup()
    ears = LogMel(LOGMEL)
    whole = {e.number: store.read(e) for e in store.episodes}
    frames = {n: ears(torch.from_numpy(s.audio), torch.from_numpy(s.audio_length)) for n, s in whole.items()}
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (32, 2, 16, 16, 3) and batch.sound.shape == (32, 2, 1, 2, 8)
    step = data.open().cache.table["step"]
    for i in range(32):
        number, last = int(batch.episode[i]), int(step[batch.row[i]])
        np.testing.assert_array_equal(batch.image[i].numpy(), whole[number].image[last - 1 : last + 1])
        torch.testing.assert_close(batch.sound[i], frames[number][last - 1 : last + 1], rtol=0, atol=1e-6)
    assert [int(row) for row in batch.row[:8]] == list(range(int(batch.row[0]), int(batch.row[0]) + 24, 3))
    last_rows = data.open().last_rows(np.array(sorted(whole)))
    assert (step[last_rows] >= 1).all() and len(last_rows) == 3 * 39


def test_measures_against_judges() -> None:
    rng = np.random.default_rng(0)
    event = rng.random(200) < 0.4
    score = rng.normal(size=200).round(1) + event
    assert roc_auc(score, event) == pytest.approx(roc_auc_score(event, score))
    assert d_prime(score * 3 + 1, event) == pytest.approx(d_prime(score, event))
    assert d_prime(np.where(event, 2.0, 0.0) + np.tile([1.0, -1.0], 100), np.arange(200) < 100) != 0
    assert np.isnan(roc_auc(score, np.ones(200, bool))) and np.isnan(d_prime(score, np.zeros(200, bool)))
    x = rng.normal(size=(200, 4)) + event[:, None] * np.array([1.0, 0, -2, 0])
    judge = LinearDiscriminantAnalysis(solver="lsqr").fit(x, event).coef_[0]
    mine = discriminant(x, event, 0.0)
    assert np.dot(judge, mine) / np.linalg.norm(judge) / np.linalg.norm(mine) == pytest.approx(1, abs=1e-6)
    music = rng.normal(size=(50, 4))
    near = np.sort(np.linalg.norm(x[:, None] - music, axis=-1), 1)[:, :5].mean(1)
    np.testing.assert_allclose(from_music(x, music), near, rtol=1e-6)


def test_the_interval_is_over_episodes() -> None:
    rng = np.random.default_rng(0)
    same = {i: np.full(100, rng.normal()) for i in range(8)}  # a hundred times the same: eight observations
    value, low, high = bootstrap_episodes(same, lambda parts: np.mean(np.concatenate(parts)))
    spread = np.std([part[0] for part in same.values()]) / 8**0.5
    assert low < value < high and high - low == pytest.approx(2 * 1.96 * spread, rel=0.25)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"size": (32, 32)}, "size is .32, 32., .* .16, 16."),
        ({"channels": 2}, "channels is 2, .* 1"),
        ({"frames": 4}, "frames is 4"),
        ({"bands": 16}, "bands is 16"),
    ],
)
def test_other_shapes_are_told(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    store = store_of(tmp_path / "store", episodes=1, length=5)
    with pytest.raises(UsageError, match=told):
        AlignmentData(store.path, CONFIG.change(**change), LOGMEL)


def test_bad_input_is_told(tmp_path: Path) -> None:
    silent = Store.create(tmp_path / "silent", SCHEMA.change(channels=0, sample_rate=0))
    with pytest.raises(UsageError, match="has no sound"):
        AlignmentData(silent.path, CONFIG, LOGMEL)
    store = store_of(tmp_path / "store", episodes=4, length=12)
    with pytest.raises(UsageError, match="8000 Hz"):
        AlignmentData(store.path, CONFIG, LOGMEL.change(sample_rate=8000))
    data = AlignmentData(store.path, CONFIG, LOGMEL)
    data.prepare_data()
    with pytest.raises(StoreError, match="no 23 rows follow one another"):
        data.setup()
    with pytest.raises(StoreError, match="are needed: record more"):
        retrieval(Alignment(CONFIG), AlignmentData(store.path, CONFIG, LOGMEL, validation=0.9), candidates=60)
    with pytest.raises(StoreError, match="held out"):
        AlignmentData(store.path, CONFIG, LOGMEL, validation=0.0).episodes(True)
    with pytest.raises(UsageError, match="sfx.*Known: hit"):
        event_scores(Alignment(CONFIG), data)
    with pytest.raises(UsageError, match="overlap"):
        CONFIG.change(gap=1)
    with pytest.raises(UsageError, match="at least 2"):
        CONFIG.change(moments=1, stretches=1)


def test_controls_leave_the_random_state_alone() -> None:
    torch.manual_seed(5)
    network = Alignment(CONFIG)
    state = torch.get_rng_state()
    control = untrained(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert any((a != b).any() for a, b in zip(network.parameters(), control.parameters(), strict=True))
    for preset in ("tiny", "small", "paper"):
        config = AlignmentConfig.preset(preset, size=(36, 50))
        image = torch.zeros(2, 4, 36, 50, 3, dtype=torch.uint8)
        sound = torch.zeros(2, 4, 2, 4, config.bands)
        seen, heard = Alignment(config).encode_image(image), Alignment(config).encode_audio(sound)
        assert seen.shape == heard.shape == (2, config.dimension)
        torch.testing.assert_close(seen.norm(dim=-1), torch.ones(2))


def test_bonk_tells_its_events(tmp_path: Path) -> None:
    record("bonk", tmp_path / "store", episodes=2, seed=1, settings={"image_size": (64, 64), "max_steps": 80})
    store = Store.open(tmp_path / "store")
    config = AlignmentConfig.preset("tiny")
    logmel = LogMelConfig.preset("tiny", sample_rate=store.schema.sample_rate)
    data = AlignmentData(store.path, config, logmel, validation=0.0)
    data.prepare_data()
    data.setup()
    cache = data.open()
    event = event_rows(cache.cache)
    assert 0.02 < event.mean() < 0.9
    batch = next(iter(data.train_dataloader()))
    assert batch.image.shape == (64, 4, 64, 64, 3)
    loss = Alignment(config).losses(batch)["contrast"]
    loss.backward()
    assert loss.item() == pytest.approx(np.log(64), abs=0.5)
