"""Exploration: what is left to chance, what pays, rounds of recording, and what an interruption costs."""

import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mutants import mutant
from safetensors.torch import load_file, save_file
from torch import nn

from metabonk.act import exploration
from metabonk.act.agent import Player
from metabonk.act.curiosity import CuriosityConfig
from metabonk.act.exploration import CuriousUpdates, Exploration, ExplorationConfig, StickyEpsilon, make_explorer
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, UsageError
from metabonk.core.learner import Learner, TrainConfig
from metabonk.dream.interface import WorldModel
from metabonk.measure.coverage import covered, picture_cells, sound_cells
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import ExperienceData, SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMelConfig
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokens import Tokenizers


class Firm(Player):
    """Always the first of five buttons."""

    def decide(self, senses, observations, actions, first, state=None, generator=None):
        return (state or 0) + 1, torch.eye(5)[:1].expand(len(first), 5)


def press(player, steps=300, games=40, ends=()):
    """Buttons (steps, games), and whether each was chance."""
    state, pressed, random, generator = None, [], [], torch.Generator().manual_seed(1)
    for step in range(steps):
        state, vectors = player.decide(None, [{}] * games, [None] * games, [step == 0 or step in ends] * games, state, generator)
        pressed.append(vectors.argmax(-1).tolist())
        random.append(state[1].tolist())
    return np.array(pressed), np.array(random)


def sticky(share, mean_steps=8.0):
    buttons = SimpleNamespace(
        actions=ActionSpec(categorical=(5,)), game="", senses=lambda games: None, parameters=lambda: iter(())
    )
    return StickyEpsilon(Firm(buttons), share, mean_steps)


def share_of_chance(share):
    return press(sticky(share))[1][60:].mean()  # from where the long run begins


def test_the_share_of_random_steps_is_what_was_asked_for(monkeypatch):
    "Negative control: a stretch that begins with the probability of the share itself."
    assert share_of_chance(0.0) == 0 and share_of_chance(1.0) == 1
    assert abs(share_of_chance(0.3) - 0.3) < 0.05
    wrong = mutant(StickyEpsilon.__init__, "share / (mean_steps * (1 - share) + share)", "share")
    monkeypatch.setattr(StickyEpsilon, "__init__", wrong)
    assert share_of_chance(0.3) > 0.6


def test_chance_holds_on_and_its_actions_are_all_alike():
    pressed, random = press(sticky(0.5, 5.0))
    assert (pressed[~random] == 0).all()
    both = random[1:] & random[:-1]
    changes = (np.diff(pressed, axis=0) != 0)[both].mean()
    begins = 0.5 / (5 * 0.5 + 0.5)  # of another stretch, right after one has ended
    assert abs(changes - begins / 5 * 4 / 5 / (1 - (1 - begins) / 5)) < 0.01
    counts = np.bincount(pressed[random], minlength=5) / random.sum()
    assert abs(counts - 0.2).max() < 0.06


def test_an_episode_begins_without_what_the_last_one_held():
    player = sticky(0.5, 1000.0)
    _, random = press(player)
    _, cut = press(player, ends=range(0, 300, 10))
    assert random[150:].mean() > 2 * cut[150:].mean() > 0


def test_games_side_by_side_have_chances_of_their_own():
    _, random = press(sticky(0.3, 1.0), games=4)
    assert np.abs(np.corrcoef(random.T) - np.eye(4)).max() < 0.3


def test_bad_shares_and_kinds_are_told():
    for share, steps in ((-0.1, 8), (1.1, 8), (0.3, 0.5)):
        with pytest.raises(UsageError, match="share of random steps"):
            sticky(share, steps)
    with pytest.raises(UsageError, match="smell"):
        make_explorer(Glance(), 4, pays={"smell": "error"})
    with pytest.raises(UsageError, match="silent"):
        make_explorer(Glance(), 4, pays={"sound": "error"})
    with pytest.raises(UsageError, match="rounds"):
        ExplorationConfig(rounds=5, steps=4)


def test_each_curiosity_pays_in_its_own_currency():
    logmel = LogMelConfig.preset("tiny")
    shape = {"channels": 2, "frames": logmel.frames_per_step, "bands": logmel.bands, "tokens": logmel.frames_per_step}
    tokenizers = Tokenizers(None, SoundTokenizer(SoundConfig.preset("tiny", **shape)), logmel, "bonk")
    explorer = make_explorer(Glance(), 4, tokenizers, CuriosityConfig(units=8))
    paid = {name: each.config.bonus for name, each in explorer.curiosities.items()}
    assert paid == {"latent": "disagreement", "sound": "error"}
    width = tokenizers.sound.quantizer.codebook.shape[-1]
    assert explorer.curiosities["sound"].target_size == tokenizers.sizes["audio"][0] * width
    assert explorer.curiosities["latent"].target_size == 4
    assert list(make_explorer(Glance(), 4, tokenizers, pays={"sound": "disagreement"}).curiosities) == ["sound"]
    assert list(make_explorer(Glance(), 4).curiosities) == ["latent"]  # no ears


class Glance(WorldModel):
    """Sees how bright four rows of the picture are, and learns how bright they will be."""

    feature_size, actions, game = 4, ActionSpec(categorical=(11,)), "bonk"
    countdown = 0  # readings until a signal comes; 0: none comes

    def __init__(self):
        super().__init__()
        self.next = nn.Linear(4 + 11, 4)

    def look(self, batch):
        return batch.image.float().mean((-1, -2)).unflatten(-1, (4, -1)).mean(-1) / 255  # (B, T, 4)

    def observe(self, context, state=None, every=False, generator=None):
        if len(context.first) == 1 and Glance.countdown:
            Glance.countdown -= 1
            if not Glance.countdown:
                signal.raise_signal(signal.SIGTERM)
        seen = self.look(context)
        return {"seen": seen.flatten(0, 1) if every else seen[:, -1]}

    def advance(self, state, action, generator=None):
        return {"seen": state["seen"] + self.next(torch.cat([state["seen"], action], -1))}

    def features(self, state):
        return state["seen"]

    def reward(self, features):
        return torch.zeros_like(features[..., 0])

    def continuation(self, features):
        return torch.ones_like(features[..., 0])

    def save(self, folder):
        folder.mkdir()
        save_file(self.state_dict(), folder / "glance.safetensors")

    @classmethod
    def load(cls, folder):
        model = cls()
        model.load_state_dict(load_file(folder / "glance.safetensors"))
        return model


class GlanceLearner(Learner):
    countdown = 0  # batches until Ctrl-C; 0: none comes

    def __init__(self, model):
        super().__init__()
        self.model, self.scales = model, {"next": 1.0}

    def losses(self, batch):
        if GlanceLearner.countdown:
            GlanceLearner.countdown -= 1
            if not GlanceLearner.countdown:
                signal.raise_signal(signal.SIGINT)
        seen, action = self.model.look(batch), self.model.actions.vectors(batch.action)
        came = self.model.advance({"seen": seen[:, :-1]}, action[:, 1:])["seen"]
        return {"next": (came - seen[:, 1:]).square().mean(-1) * ~batch.first[:, 1:]}


BEGUN: list[int] = []


def begin(store, folder, seed):
    BEGUN.append(seed)
    torch.manual_seed(seed)
    return Glance()


UPDATES = CuriousUpdates(
    begin=begin, load=Glance.load, learner=GlanceLearner,
    data=lambda model, store: ExperienceData(store, SequenceConfig(length=4, batch_size=4)),
    explorer=lambda model: make_explorer(model, 4, config=CuriosityConfig(members=3, units=8)),
    first=TrainConfig.preset("tiny", steps=6), model=TrainConfig.preset("tiny", steps=4),
    policy=TrainConfig.preset("tiny", steps=3),
)  # fmt: skip
PLAN = ExplorationConfig(rounds=3, steps=60, random=0.3, seed=4)
SETTINGS = {"ticks_per_step": 2, "max_steps": 15, "image_size": (16, 16)}


def exploration_in(folder, **changes):
    return Exploration("bonk", folder / "store", folder / "explorer", UPDATES, PLAN.change(**changes), SETTINGS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An exploration that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    done = exploration_in(folder)
    done.run()
    return folder, done


def rows_of(folder):
    return Cache.build(Store.open(folder / "store"))


def same_rows(one, other):
    a, b = rows_of(one), rows_of(other)
    return len(a) == len(b) and (a.table["action"] == b.table["action"]).all() and (a.image == b.image).all()


def weights(done):
    parts = (done.agent.model, done.agent.actor_critic, done.explorer)
    return torch.cat([t.detach().flatten().float() for part in parts for t in part.state_dict().values()])


def test_rounds_make_one_store_that_tells_who_played(whole):
    folder, done = whole
    store = Store.open(folder / "store")
    assert done.table["steps"].tolist() == [20, 40, 60] and len(store) - len(store.episodes) == 60
    assert {(e.about["exploration"], e.about["policy"]) for e in store.episodes} == {
        (0, "sticky_random"), (1, "curious"), (2, "curious")
    }  # fmt: skip
    assert not store.verify()
    left = sorted(path.relative_to(folder / "explorer").as_posix() for path in (folder / "explorer").rglob("agent.json"))
    assert left == ["round-002/agent/agent.json"] and not list((folder / "explorer").rglob("checkpoints"))


def test_a_seed_repeats_it_and_another_does_not(whole, tmp_path):
    again, other = exploration_in(tmp_path / "again"), exploration_in(tmp_path / "other", seed=5)
    again.run()
    other.run()
    assert same_rows(whole[0], tmp_path / "again") and weights(again).equal(weights(whole[1]))
    assert not same_rows(whole[0], tmp_path / "other")


@pytest.mark.parametrize("batch", [3, 8])  # of the first learning, of the second
def test_a_training_that_was_stopped_goes_on_to_the_same_end(whole, tmp_path, monkeypatch, batch):
    monkeypatch.setattr(GlanceLearner, "countdown", batch)
    BEGUN.clear()
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        exploration_in(tmp_path).run()
    assert GlanceLearner.countdown == 0
    done = exploration_in(tmp_path)
    done.run()
    assert weights(done).equal(weights(whole[1])) and same_rows(whole[0], tmp_path)
    assert len(BEGUN) == (2 if batch < 6 else 1)


def test_a_recording_that_was_stopped_records_what_is_missing(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Glance, "countdown", 7)
    with pytest.raises(BaseException) as stopped:
        exploration_in(tmp_path).run()
    assert isinstance(stopped.value, KeyboardInterrupt | SystemExit)
    short = Store.open(tmp_path / "store")
    assert 20 < len(short) - len(short.episodes) < 40
    done = exploration_in(tmp_path)
    assert done.run()["steps"].tolist() == [20, 40, 60]
    store = Store.open(tmp_path / "store")
    rounds = [e.about["exploration"] for e in store.episodes for _ in range(e.rows - 1)]
    assert [rounds.count(number) for number in range(3)] == [20, 20, 20] and not store.verify()


def test_what_was_stopped_is_not_built_on(whole, tmp_path, monkeypatch):
    "Negative control: without the check, a policy learns in the dreams of a model that was left half trained."
    monkeypatch.setattr(exploration, "_whole", lambda learner: None)
    monkeypatch.setattr(GlanceLearner, "countdown", 3)
    done = exploration_in(tmp_path)
    done.run()
    assert done.table["steps"].tolist() == [20, 40, 60]  # as if nothing were missing
    assert not weights(done).equal(weights(whole[1]))


def test_a_damaged_explorer_is_told(whole, tmp_path):
    shutil.copytree(whole[0] / "explorer", tmp_path / "explorer")
    path = tmp_path / "explorer/round-002/explorer.safetensors"
    for write in (lambda: path.write_bytes(b"no weights"), lambda: save_file({"x": torch.zeros(1)}, path), path.unlink):
        write()
        with pytest.raises(FolderError, match="can't be read"):
            exploration_in(tmp_path).run()


def test_coverage_counts_what_is_different(tmp_path):
    for policy in ("noop", "random"):
        record("bonk", tmp_path / policy, policy, steps=40, settings={**SETTINGS, "ticks_per_step": 12})
    still, moving = (covered(tmp_path / policy, {"screen": 1, "x": 16, "y": 16}) for policy in ("noop", "random"))
    assert (moving.iloc[-1] > still.iloc[-1]).all() and list(moving) == ["places", "pictures", "sounds"]
    assert (moving.diff().iloc[1:] >= 0).all().all() and (moving.iloc[0] == 1).all()
    table = Cache.build(Store.open(tmp_path / "random")).table
    visited = {(int(r["probes/screen"]), int(r["probes/x"]) // 16, int(r["probes/y"]) // 16) for r in table}
    assert len(visited) == moving["places"].iloc[-1]
    with pytest.raises(UsageError, match="room"):
        covered(tmp_path / "noop", {"room": 1})


def test_cells_are_coarse():
    picture = np.random.default_rng(0).integers(256, size=(1, 21, 33, 3), dtype=np.uint8)
    cells = picture_cells(picture, 4, 8)
    down, right = [0, 5, 10, 15, 21], [0, 8, 16, 24, 33]
    for i in range(4):
        for j in range(4):
            mean = picture[0, down[i] : down[i + 1], right[j] : right[j + 1]].mean()
            assert cells[0, 4 * i + j] == int(mean / 32)
    frames = np.zeros((2, 1, 1, 6))
    frames[1, ..., 3] = 1.6
    assert sound_cells(frames, 3).tolist() == [[0, 0, 0], [0, 1, 0]]
