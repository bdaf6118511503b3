"""What judges audio-visual world models is right about a world that is known exactly, and sees each planted error."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mutants import mutant

from metabonk.core.errors import UsageError
from metabonk.dream.interface import WorldModel
from metabonk.measure import av_worlds as av
from metabonk.play.rooms import dry_ring
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig, Sequences
from metabonk.record.store import Store

RATE, CONTEXT, HORIZON = 16_000, 3, 4
LAMP = av.Lamp()


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def walks():
    return av.stroll(LAMP, 3, CONTEXT + HORIZON)


def judged(model, batch, **more) -> pd.DataFrame:
    return av.predict_steps(model, [batch], RATE, CONTEXT, HORIZON, **more)


def means(model, batch, modes=("fixed",), who="model", **more) -> pd.Series:
    found = judged(model, batch, modes=modes, **more)
    return found[found["who"] == who][[name for name in av.MEASURES if name in found]].mean()


@pytest.fixture(scope="module")
def found(walks):
    return judged(av.LampModel(LAMP), walks)


def test_the_world_itself_is_right(found, walks):
    assert len(found) == 2 * 4 * HORIZON * 3 and not found.isna().drop(columns=["reward_error", "pan_score"]).any(axis=None)
    for who in ("model", "reconstruction"):
        rows = found[found["who"] == who]
        assert (rows["psnr"] == 100).all() and np.allclose(rows[["lsd", "ild_error", "itd_error"]], 0, atol=1e-6)
    assert np.allclose(found[found["who"] == "model"]["reward_error"], 0, atol=1e-9)
    still = found[found["who"] == "copy last"].groupby("offset")["psnr"].mean()
    assert still.mean() < 60


def test_rows_by_hand(found, walks):
    """What copying and the mean are held against is the row at that offset, and the reward that belongs to the way to it."""
    offset, b, last = 3, 1, CONTEXT - 1
    which = (found["offset"] == offset) & (found["sequence"] == b)
    pick = lambda mode, who: found[which & (found["mode"] == mode) & (found["who"] == who)].iloc[0]  # noqa: E731
    image, reward = walks.image.numpy().astype(float), walks.reward.numpy().astype(float)
    error = ((image[b, last] - image[b, last + offset]) ** 2).mean()
    assert pick("fixed", "copy last")["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    error = ((image.mean((0, 1)).round() - image[b, last + offset]) ** 2).mean()
    assert pick("rollout", "mean")["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    earned = reward[b, last + 1 : last + offset + 1]
    for mode, came, times in (("fixed", earned.sum(), offset), ("rollout", earned[-1], 1)):
        assert pick(mode, "copy last")["reward_error"] == pytest.approx((times * reward[b, last] - came) ** 2)
        assert pick(mode, "mean")["reward_error"] == pytest.approx((times * reward.mean() - came) ** 2)
    assert np.isnan(pick("fixed", "reconstruction")["reward_error"])


def test_motions_are_turned_before_they_are_added(walks):
    right = means(av.LampModel(LAMP), walks)
    adds = mutant(av.LampModel, "torch.as_tensor(compose(whole, step))", "whole + step")
    wrong = means(adds(LAMP), walks)
    assert right["psnr"] == 100 and wrong["psnr"] < 90 and wrong["ild_error"] > 0.05 > right["ild_error"]
    assert wrong["reward_error"] > 1e-5 > right["reward_error"]


def test_each_jump_is_held_against_its_own_row(walks, monkeypatch):
    order = mutant(av._dreamed, "slice(k - 1, None, horizon)", "slice((k - 1) * 3, k * 3)")  # offsets first
    early = mutant(av._dreamed, "context : context + horizon", "context - 1 : context + horizon - 1")
    for wrong in (order, early):
        monkeypatch.setattr(av, "_dreamed", wrong)
        assert means(av.LampModel(LAMP), walks)["psnr"] < 90


class Heard(av.LampModel):
    """A model whose sound is changed."""

    def __init__(self, change, clock=0):
        super().__init__(LAMP)
        self.change, self.late = change, clock

    def decode(self, state):
        told = super().decode({**state, "clock": state["clock"] - self.late})
        return {**told, "audio": self.change(told["audio"])}


def test_swapped_ears_and_late_sound_are_seen(walks):
    swapped = means(Heard(lambda x: x.flip(1)), walks)
    late = means(Heard(lambda x: x, clock=1), walks)
    short = means(Heard(lambda x: x[..., :1000]), walks)  # what is missing is silence
    assert swapped["ild_error"] > 5 and swapped["pan_score"] == -1 and swapped["psnr"] == 100
    assert late["lsd"] > 0.5 and late["psnr"] == 100 and late["ild_error"] < 0.1
    assert short["lsd"] > 0.5 and short["ild_error"] < 0.5


def test_the_model_is_asked_step_by_step_from_its_own_predictions(walks):
    """In a rollout errors add up; in one jump they do not."""

    class Slips(av.LampModel):
        def jump(self, state, action, after=None, generator=None):
            return super().jump({**state, "pose": state["pose"] + torch.tensor([0, 0, 0.2]).double()}, action, after)

    found = judged(Slips(LAMP), walks)
    model = found[found["who"] == "model"].groupby(["mode", "offset"])["ild_error"].mean()
    assert model["rollout"][HORIZON] > 2 * model["fixed"][HORIZON]
    assert model["rollout"][1] == pytest.approx(model["fixed"][1])


def test_only_what_a_model_can_do(walks):
    class Steps(WorldModel):
        """A model without jumps."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.actions = inner, inner.actions
            for name in ("observe", "advance", "features", "reward", "continuation", "decode"):
                setattr(self, name, getattr(inner, name))

    model = Steps(av.LampModel(LAMP))
    assert set(judged(model, walks)["mode"]) == {"rollout"}
    with pytest.raises(UsageError, match="unknown way"):
        judged(model, walks, modes=["fixed"])
    for context, horizon in ((CONTEXT, HORIZON + 1), (0, 2), (2, 0)):
        with pytest.raises(UsageError, match="too short"):
            av.predict_steps(model, [walks], RATE, context, horizon)


def test_rows_of_a_new_episode_do_not_count(walks):
    first = walks.first.clone()
    first[1, CONTEXT + 1] = True  # sequence 1 ends after one predicted row
    found = judged(av.LampModel(LAMP), replace(walks, first=first), modes=["fixed"])
    counts = found[found["who"] == "model"].groupby("sequence")["offset"].max()
    assert counts.tolist() == [HORIZON, 1, HORIZON]


def test_intervals_are_over_episodes():
    generator = np.random.default_rng(0)
    rows = []
    for episode in range(6):
        for who, level in (("model", 3.0), ("copy last", 2.0)):
            for sequence in range(4):
                row = {"mode": "fixed", "who": who, "offset": 1, "batch": 0, "episode": episode, "sequence": sequence}
                rows.append({**row, "psnr": level + episode, "lsd": np.nan if episode else generator.random()})
    table = av.steps_table(pd.DataFrame(rows), method="t").set_index(["measure", "who"])
    row = table.loc[("psnr", "model")]
    assert row["episodes"] == 6 and row["value"] == 5.5 and row["high"] - row["low"] > 3
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx([1, 1, 1])
    assert table.loc[("lsd", "model"), "episodes"] == 1 and np.isnan(table.loc[("lsd", "model"), "low"])
    assert np.isnan(table.loc[("psnr", "copy last"), "difference"])
    figure = av.steps_figure(table.reset_index(), "fixed", ["psnr", "ssim"])
    assert [trace.name for trace in figure.data] == ["model", "copy last"]
    with pytest.raises(UsageError, match="no ssim"):
        av.steps_figure(table.reset_index(), "fixed", ["ssim"])


def test_films_and_other_ears(walks):
    batch = av.stroll(LAMP, 2, 14, seed=3)
    sync = av.film_sync(av.LampModel(LAMP), batch, CONTEXT, 11)
    model, real = (sync[sync["who"] == who].drop(columns="who").reset_index(drop=True) for who in ("model", "real"))
    pd.testing.assert_frame_equal(model, real)

    class Late(av.LampModel):
        def decode(self, state):
            return {**super().decode(state), "audio": LAMP.listen(state["pose"], state["clock"] - 1)}

    dry = LAMP.hum[batch.step % 64][:, :, None]
    for model_of, lag in ((av.LampModel, 0), (Late, 1)):
        lags = av.film_sync(model_of(LAMP), batch, CONTEXT, 11, dry).groupby("who")["sound_lag"].unique()
        assert lags["model"].tolist() == [lag] and lags["real"].tolist() == [0]
    late = av.film_sync(Late(LAMP), batch, CONTEXT, 11)
    assert late["sound_lag"].isna().all()
    assert not np.allclose(late[late["who"] == "model"]["av_correlation"], model["av_correlation"], atol=0.05)

    class Echo(av.LampModel):
        def observe(self, context, state=None, every=False, generator=None):
            sound = torch.as_tensor(context.step_audio()[0])[:, -1]
            return {**super().observe(context), "sound": sound}

        def decode(self, state):
            return {**super().decode(state), "audio": state["sound"]}

    assert (av.sound_swap(Echo(LAMP), walks, CONTEXT)["audio"] > 0.1).all()
    assert not av.sound_swap(av.LampModel(LAMP), walks, CONTEXT).to_numpy().any()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A store of rooms, and 16 rows of it, four times."""
    folder = tmp_path_factory.mktemp("rooms")
    settings = {"image_size": (16, 16), "scenes": 3, "empty": True}
    record("rooms", folder / "store", "walks", steps=150, seed=3, settings=settings)
    store = Store.open(folder / "store")
    return store, Sequences(Cache.build(store, folder / "cache"), 16).batch(SequenceConfig(batch_size=4), 0)


def test_the_ring_of_recorded_rooms_is_known(home, monkeypatch):
    """A sound that is recorded a step late is seen, and so is a ring of another moment."""
    store, batch = home
    dry, sound = av.dry_sound(store, batch), batch.step_audio()[0]
    assert dry.shape == (4, 16, 1, 2400)
    lags = lambda sound, dry: [av.sound_lag(one, own) for one, own in zip(sound, dry, strict=True)]  # noqa: E731
    assert np.median(lags(sound, dry)) == 0
    assert np.median(lags(sound[:, :-1], dry[:, 1:])) == 1, "what a row should have had came with the next"
    monkeypatch.setattr(av, "dry_ring", mutant(dry_ring, "rung + sample", "2_400 + rung + sample"))
    assert np.median(lags(sound, av.dry_sound(store, batch))) != 0


def test_the_ring_is_not_made_up(home):
    store, batch = home
    assert av.dry_sound(store, replace(batch, episode=None)) is None
    other = SimpleNamespace(schema=store.schema.change(game="bonk"), episodes=store.episodes)
    unknown = SimpleNamespace(schema=store.schema, episodes=SimpleNamespace(find=lambda _: SimpleNamespace(about={})))
    ring = getattr(av.dry_sound, "__wrapped__", av.dry_sound)  # without the check of types: the stores are stand-ins
    assert ring(other, batch) is None and ring(unknown, batch) is None


def test_runs_are_compared_in_pairs():
    luck = [0.0, 1.0, 2.0, 3.0, 4.0]
    gains = [0.10, 0.12, 0.08, 0.11, 0.09]
    runs = [{"variant": "joint", "seed": s, "audio": 5 + luck[s] - gains[s]} for s in (4, 2, 0, 1, 3)]
    runs = pd.DataFrame(runs + [{"variant": "factorised", "seed": s, "audio": 5 + luck[s]} for s in range(5)])
    row = av.paired_table(runs, ["audio"], "factorised").loc[("audio", "joint")]
    half = 2.776 * np.std(gains, ddof=1) / 5**0.5
    assert row["difference"] == pytest.approx(-0.1) and row["seeds"] == 5
    assert row["difference_high"] == pytest.approx(-0.1 + half, abs=1e-4)
    fewer = av.paired_table(runs[1:], ["audio"], "factorised").loc[("audio", "joint")]  # seed 4 has no partner
    assert fewer["seeds"] == 4 and fewer["difference"] == pytest.approx(-(sum(gains) - gains[4]) / 4)
    unpaired = mutant(av._interval, "both[:, 1], True", "both[:, 1], False")
    apart = unpaired(runs["audio"][:5].reset_index(drop=True), runs["audio"][5:].reset_index(drop=True), 0.95, "t")
    assert apart["difference_high"] > 0
    for table, what in ((runs.drop(columns="seed"), "columns seed"), (pd.concat([runs, runs[:1]]), "twice")):
        with pytest.raises(UsageError, match=what):
            av.paired_table(table, ["audio"], "factorised")
    with pytest.raises(UsageError, match="unknown variant"):
        av.paired_table(runs, ["audio"], "shared")
