"""Whether the measures of listening find what was planted, and nothing where nothing is."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.dream.fusion import TokenEncoder
from metabonk.measure import listening
from metabonk.measure.listening import (
    Attribution,
    attribute,
    attribution_figure,
    attribution_map,
    audio_swap,
    audio_swap_figure,
    audio_swap_table,
    code_figure,
    code_rows,
    code_use,
    codes_tell,
    codes_verdict,
    cue_conflict,
    cue_conflict_claims,
    cue_conflict_figure,
    cue_conflict_table,
)
from metabonk.measure.moments import Moments, RowKinds, every_row, find_moments, predict
from metabonk.measure.reality import shuffle_weights
from metabonk.record.experience import Schema, Steps
from metabonk.record.segments import SEGMENT
from metabonk.record.store import Store
from metabonk.sense.alignment import roc_auc
from metabonk.sense.tokens import TokenBatch

SIZES = {"image": (4, 5), "audio": (3, 7)}
PLACE, DING = 1, 6  # the token of sound that tells of a reward
BURST = 4  # the code that tells of it in the picture, in token 2


class _Same(nn.Module):
    """Latents without chance: the state is what the posterior says."""

    def mean(self, raw: Tensor) -> Tensor:
        """The numbers themselves."""
        return raw


class _Memory(nn.Module):
    """A memory that keeps the row before; the latent is this row."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.latents = size, _Same()

    def initial(self, batch: int) -> dict[str, Tensor]:
        """Zeros."""
        return {"deter": torch.zeros(batch, self.size), "stoch": torch.zeros(batch, self.size)}

    def cell(self, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
        """The row before."""
        return stoch

    def posterior(self, x: Tensor) -> Tensor:
        """This row."""
        return x[..., self.size :]


class Encoder(nn.Module):
    """One-hot tokens of both senses, end to end; hidden senses are zeros."""

    def embed(self, batch: Any) -> dict[str, Tensor]:
        """A vector for each token."""
        found = {}
        for name, (tokens, codes) in SIZES.items():
            value = getattr(batch, name)
            shape = (*batch.first.shape, tokens, codes)
            found[name] = torch.zeros(shape) if value is None else nn.functional.one_hot(value, codes).float()
        return found

    def fuse(self, vectors: dict[str, Tensor]) -> Tensor:
        """One row."""
        return torch.cat([vectors[name].flatten(-2) for name in SIZES], -1)


class Planted(nn.Module):
    """A model whose reward is known: a smooth function of one token of sound, of one of the picture, or of both."""

    def __init__(self, ears: float = 0.0, eyes: float = 0.0, past: float = 0.0):
        super().__init__()
        self.encoder, self.actions = Encoder(), ActionSpec(categorical=(3,))
        size = sum(tokens * codes for tokens, codes in SIZES.values())
        self.rssm = _Memory(size)
        self.weight = nn.Parameter(torch.zeros(2 * size))
        at = 4 * 5 + PLACE * 7 + DING
        with torch.no_grad():
            self.weight[size + at], self.weight[size + 2 * 5 + BURST], self.weight[at] = ears, eyes, past

    def features(self, state: dict[str, Tensor]) -> Tensor:
        """Row before and row."""
        return torch.cat([state["deter"], state["stoch"]], -1)

    def vectors(self, action: Tensor) -> Tensor:
        """One-hot."""
        return self.actions.vectors(action)

    def reward(self, features: Tensor) -> Tensor:
        """Above a half where the weights sum to more than 2."""
        return torch.sigmoid(4 * (features @ self.weight - 2))

    def observe(self, context: Any, state: Any = None, every: bool = False, generator: Any = None) -> dict[str, Tensor]:
        """The states of all rows."""
        now = self.encoder.fuse(self.encoder.embed(context))
        before = torch.cat([torch.zeros_like(now[:, :1]), now[:, :-1]], 1) * ~context.first[..., None]
        states = {"deter": before, "stoch": now}
        return {name: value.flatten(0, 1) if every else value[:, -1] for name, value in states.items()}


def world(games: int = 12, rows: int = 60, seed: int = 0, decoys: bool = True) -> tuple[TokenBatch, np.ndarray]:
    """Rows with music (codes 0 to 3), dings (6, with a burst), decoys (6 without) and thuds (5)."""
    generator = np.random.default_rng(seed)
    kinds = ["ding", "decoy" if decoys else "music", "effect", "music"]
    kind = generator.choice(kinds, size=(games, rows), p=[0.1, 0.1, 0.1, 0.7])
    audio, image = generator.integers(4, size=(games, rows, 3)), generator.integers(4, size=(games, rows, 4))
    audio[..., PLACE] = np.select([np.isin(kind, ["ding", "decoy"]), kind == "effect"], [DING, 5], audio[..., PLACE])
    image[..., 2] = np.where(kind == "ding", BURST, image[..., 2])
    first = np.zeros((games, rows), bool)
    first[:, 0] = True
    episode, step = np.indices((games, rows))
    batch = TokenBatch(
        image=image, audio=audio, action=generator.integers(3, size=(games, rows)), reward=(kind == "ding").astype(np.float32),
        terminated=first & False, truncated=first & False, first=first, episode=episode, step=step,
    )  # fmt: skip
    return batch, kind


@pytest.fixture
def moments() -> Moments:
    """Moments of every kind."""
    batch, kind = world()
    return find_moments([batch], lambda some: kind[some.episode, some.step], context=5, count=24)


ears, eyes, agreement = Planted(ears=4.0), Planted(eyes=4.0), Planted(ears=1.5, eyes=1.5)


def test_attribution_is_complete_and_lands_on_the_planted_token(moments: Moments) -> None:
    """All that the model predicts of a ding is owed to one token; of the picture's model, nothing to the sound."""
    found = attribute(ears, moments, back=2)
    assert np.abs(found.gap).max() < 1e-3
    dings = found.values["audio"][found.kind == "ding"]  # (N, rows, tokens)
    np.testing.assert_allclose(dings[:, -1, PLACE], (found.predicted - found.reference)[found.kind == "ding"], atol=1e-3)
    assert np.abs(np.delete(dings.reshape(len(dings), -1), 2 * 3 + PLACE, 1)).max() < 1e-4
    assert found.by_code("ding").index[0] == DING and np.abs(found.values["image"]).max() < 1e-6
    blind = attribute(eyes, moments, back=2)
    assert np.abs(blind.values["audio"]).max() < 1e-6 and blind.by_kind().loc["ding", "image"] > 0.9
    assert found.by_kind().loc["music", "audio high"] < 0.01


def test_attribution_looks_back(moments: Moments) -> None:
    """A reward for the row before is found one row before, and told to lie there."""
    found = attribute(Planted(past=4.0), moments, back=2)
    size = np.abs(found.values["audio"]).sum((0, 2))
    assert found.lags[size.argmax()] == 1 and size[0] < 1e-6 and size[2] < 1e-6
    assert np.abs(found.gap).max() < 1e-3


def test_gradient_times_input_misses_what_integrated_gradients_find(moments: Moments) -> None:
    """Where the prediction is saturated the gradient is gone: the reason for the line from the baseline."""
    crude, whole = (attribute(ears, moments, method=method) for method in ("gradient", "integrated"))
    dings = crude.kind == "ding"
    assert np.abs(crude.gap[dings]).min() > 0.5 > 0.01 > np.abs(whole.gap[dings]).max()


def test_random_rows_and_scrambled_weights_have_no_favourite(moments: Moments) -> None:
    """The controls: random rows hold few dings; a scrambled model does not find the ding."""
    found = attribute(ears, moments)
    assert found.by_kind().loc["random", "audio"] < 0.4 * found.by_kind().loc["ding", "audio"]
    other = shuffle_weights(ears)
    assert torch.equal(other.weight.sort().values, ears.weight.sort().values) and not torch.equal(other.weight, ears.weight)
    control = attribute(other, moments).values["audio"][found.kind == "ding"]
    assert np.abs(control[:, -1, PLACE]).max() < 0.1 < found.values["audio"][found.kind == "ding"][:, -1, PLACE].min()


def test_moments_know_what_came_after() -> None:
    """With `after`, the reward of the next row counts, and the row can be told apart from the moment."""
    batch, kind = world(seed=3)
    label = lambda some: kind[some.episode, some.step]  # noqa: E731
    late = find_moments([batch], label, context=5, after=1, count=24)
    assert late.rows.reward.shape[1] == 7
    assert (late.rows.reward[late.kind == "ding", -2] == 1).all()
    delayed = predict(Planted(past=4.0), late)
    assert delayed[late.kind == "ding"].min() > 0.9
    found = attribute(Planted(past=4.0), late, back=1)
    assert found.lags.tolist() == [1, 0, -1]
    told = np.abs(found.values["audio"][found.kind == "ding"]).sum((0, 2))
    assert found.lags[told.argmax()] == 0
    moved = audio_swap_table(audio_swap(Planted(past=4.0), late, draws=1))
    assert moved.loc[("ding", "from music"), "change high"] < -0.3


def test_moments_are_drawn_once_and_stay_in_their_episode() -> None:
    """Rows that come twice count once; a window never takes its last row from another episode."""
    batch, kind = world(games=2)
    label = lambda some: kind[some.episode, some.step]  # noqa: E731
    twice = find_moments([batch, batch], label, context=5, count=1000, random=False)
    once = find_moments([batch], label, context=5, count=1000, random=False)
    assert twice.counts == once.counts == pd.Series(kind[:, 5:].ravel()).value_counts().to_dict()
    batch.episode[0, 30:] = 7
    crossing = find_moments([batch], lambda some: np.full(some.episode.shape, "music"), 5, after=1, count=1000, random=False)
    assert (crossing.rows.episode[:, -1] == crossing.rows.episode[:, -2]).all()
    assert len(crossing) == 2 * 54 - 1
    with pytest.raises(UsageError, match="rows before it"):
        find_moments([batch], lambda some: np.full(some.episode.shape, "music"), context=60)
    with pytest.raises(UsageError, match="decoi.*did you mean 'decoy'"):
        once.pick("decoi")


def test_exchange_fools_ears_and_not_eyes(moments: Moments) -> None:
    """Music for the ding and back moves the model that listens, by all it has; nothing moves the one that looks."""
    table = audio_swap_table(audio_swap(ears, moments, draws=1))
    assert table.loc[("ding", "from music"), "change"] < -0.99 and table.loc[("music", "from ding"), "change"] > 0.99
    for control in (("ding", "from another ding"), ("music", "from another music")):
        assert abs(table.loc[control, "change"]) < 1e-6
    assert np.abs(audio_swap_table(audio_swap(eyes, moments, draws=1))["change"]).max() < 1e-6


def test_exchange_gives_another_sound_to_the_last_row_alone(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier rows and the given moments stay as they are; nobody gets its own sound as that of another."""
    moments.rows.audio[:, :, 0] = torch.arange(len(moments))[:, None]  # every moment known by its first token
    before, seen = moments.rows.audio.clone(), []
    monkeypatch.setattr(listening, "predict", lambda model, some, *rest: (seen.append(some), np.zeros(len(some)))[1])
    audio_swap(None, moments)
    assert torch.equal(before, moments.rows.audio) and len(seen) == 6
    for own, *others in (seen[:3], seen[3:]):
        for other in others:
            assert torch.equal(other.rows.audio[:, :-1], own.rows.audio[:, :-1])
            assert other.rows.audio[:, -1, 0].ne(own.rows.audio[:, -1, 0]).all()
            assert torch.equal(other.rows.image, own.rows.image)


def test_codes_are_sorted_by_use() -> None:
    """Dings and thuds have codes of their own, the notes are shared; turned labels know nothing."""
    batch, kind = world(games=12)
    rows = code_rows([batch, batch], lambda some: kind[some.episode, some.step])
    assert len(rows) == kind.size and rows[["episode", "step"]].duplicated().sum() == 0
    use = code_use(rows, 9)
    assert use.loc[[5, 6], "used by"].tolist() == ["effects"] * 2 and (use.loc[[0, 1, 2, 3], "used by"] == "both").all()
    assert use.loc[[7, 8], "used by"].tolist() == ["neither"] * 2
    assert use.loc[DING, "effects"] == pytest.approx(rows[PLACE][rows.kind.isin(listening.EFFECTS)].eq(DING).mean(), abs=1e-6)
    told = codes_tell(rows, 9)
    assert told["roc_auc"] > 0.95 and told["turned low"] < 0.5 < told["turned high"] < 0.75
    shuffled = rows.assign(kind=np.random.default_rng(5).permutation(rows["kind"]))
    assert not (code_use(shuffled, 9)["used by"].isin(["effects", "music"])).any()


@pytest.mark.parametrize("own", [0, 1, 5])
@pytest.mark.parametrize("auc", [0.4, 0.9])
def test_the_verdict_on_codes_agrees_with_the_counts(own: int, auc: float) -> None:
    """Whatever the counts are, "has words" is said only where some are effects' own and other rows bear it out."""
    use = pd.DataFrame({"used by": ["music"] * 7 + ["both"] * 3 + ["effects"] * own})
    verdict = codes_verdict(use, {"roc_auc": auc, "turned high": 0.6})
    assert ("has words" in verdict) == (own > 0 and auc > 0.6)
    assert ("no word" in verdict) == (own == 0)
    assert ("does not hold" in verdict) == (own > 0 and auc < 0.6)


def test_a_hum_that_lasts_is_background(tmp_path: Path) -> None:
    """In the dark a hidden coin hums all the time: rows with the hum are calm ones, and a ding in them is an effect."""
    hum = np.array([3, 3, 3, 3, 3, 1, 0, 3, 3, 3, 3, 3])
    steps = _steps(reward=[0] * 12, coins=[0] * 12, decoys=[0] * 12, sfx=hum, noise=[0] * 12, loud=[1] * 12)
    store = Store.create(tmp_path / "store", Schema())
    wanted = ["", "music", "music", "music", "", "effect", "", "music", "music", "music", "music", "music"]
    assert RowKinds(store, span=1).of(steps).tolist() == wanted
    deaf_to_hums = RowKinds(store, span=1, effects={"sfx": (0,), "noise": (0,)})
    assert "music" not in deaf_to_hums.of(steps)  # negative control


def test_log_odds_by_hand() -> None:
    """delta is the difference of the log-odds with the prior's rows added."""
    there = np.array([[1], [1], [0], [0], [0], [1]], np.float32)
    effects, music = np.array([1, 1, 1, 0, 0, 0], bool), np.array([0, 0, 0, 1, 1, 1], bool)
    delta, z = listening._odds(there, effects, music, 2.0)
    assert delta[0] == pytest.approx(np.log((2 + 1) / (1 + 1)) - np.log((1 + 1) / (2 + 1)), abs=1e-6)
    statistic = 2 * (2 * np.log(2 / 1.5) + np.log(1 / 1.5) + np.log(1 / 1.5) + 2 * np.log(2 / 1.5))
    assert z[0] == pytest.approx(np.sqrt(statistic), abs=1e-6)


def test_turned_labels_stay_in_their_episode() -> None:
    """A turn is a rotation of each episode, never the identity."""
    rows = pd.DataFrame({"episode": [0] * 5 + [1] * 4})
    for seed in range(20):
        order = listening._turned(rows, np.random.default_rng(seed))
        assert sorted(order[:5]) == [0, 1, 2, 3, 4] and sorted(order[5:]) == [5, 6, 7, 8]
        assert set(np.diff(order[:5])) <= {1, -4} and order[0] != 0 and order[5] != 5


def test_roc_auc_is_the_chance_of_the_right_order() -> None:
    """Against counting pairs, ties as halves."""
    values, positive = np.array([3.0, 1, 2, 2, 5]), np.array([True, False, True, False, True])
    pairs = [(a > b) + 0.5 * (a == b) for a in values[positive] for b in values[~positive]]
    assert roc_auc(values, positive) == pytest.approx(np.mean(pairs))


def test_consensus_wins_only_where_both_senses_are_needed(moments: Moments) -> None:
    """The claims hold for the model that wants both, and fail for the one that only listens."""
    told = cue_conflict(Planted(ears=2.6, eyes=2.0), moments, draws=1)
    fooled = cue_conflict(ears, moments, draws=1)
    assert not cue_conflict_claims(fooled)["holds"].any()
    assert cue_conflict_table(fooled).loc["both", "roc_auc"] == pytest.approx(0.5)
    assert not cue_conflict_claims(told)["holds"].any()  # it adds up its senses: the ears alone are enough

    class Doubtful(Planted):
        def reward(self, features: Tensor) -> Tensor:
            """A ding is believed unless the picture is there and shows no burst."""
            size = self.rssm.size
            now = features[..., size:]
            heard, burst, seen = now[..., 4 * 5 + PLACE * 7 + DING], now[..., 2 * 5 + BURST], now[..., : 4 * 5].sum(-1) > 0
            return heard * torch.where(seen, burst, torch.full_like(burst, 0.5)) + 0 * self.weight.sum()

    wise = cue_conflict(Doubtful(), moments, draws=1)
    assert cue_conflict_claims(wise)["holds"].all()
    table = cue_conflict_table(wise)
    assert table.loc["both", "roc_auc"] == 1.0 and table.loc["sound only", "roc_auc"] == pytest.approx(0.5)
    assert table.loc["both", "shuffled high"] < 0.8
    assert table.loc["both", ["ding", "decoy", "music"]].tolist() == [1, 0, 0] and table.loc["sound only", "decoy"] == 0.5


def test_figures_show_what_was_measured(moments: Moments) -> None:
    """Bars are the means of the tables; figures stay small."""
    found = attribute(ears, moments)
    bars = attribution_figure({"planted": found, "eyes": attribute(eyes, moments)})
    audio = next(trace for trace in bars.data if trace.name == "audio")
    np.testing.assert_allclose(audio.y, found.by_kind()["audio"])
    swapped = audio_swap(ears, moments, draws=1)
    shown = {bar.x[0]: bar.y[0] for bar in audio_swap_figure({"planted": swapped}).data}
    assert shown["at ding:<br>from music"] == pytest.approx(audio_swap_table(swapped).loc[("ding", "from music"), "predicted"])
    batch, kind = world()
    use = code_use(code_rows([batch], lambda some: kind[some.episode, some.step]), 7)
    conflict = cue_conflict(ears, moments, draws=1)
    figures = [bars, attribution_map(found), code_figure(use), cue_conflict_figure({"planted": conflict})]
    assert all(0 < len(figure.to_json()) < 150_000 for figure in figures)


def _steps(**columns: Any) -> Steps:
    rows = len(columns["reward"])
    probes = {name: np.array(columns.pop(name)) for name in ("sfx", "noise", "coins", "decoys") if name in columns}
    loud = np.array(columns["loud"])
    audio = np.concatenate([np.resize([100 * value, -100 * value], 10) for value in loud]).astype(np.int16)[None]
    zeros = np.zeros(rows, bool)
    return Steps(
        image=np.zeros((rows, 1, 1, 3), np.uint8), audio=audio, audio_length=np.full(rows, 10), action=np.zeros(rows, np.int64),
        reward=np.array(columns["reward"], float), terminated=zeros, truncated=zeros, first=np.arange(rows) == 0,
        tick=np.arange(rows), sample=np.arange(rows), probes=probes,
    )  # fmt: skip


def test_kinds_of_rows(tmp_path: Path) -> None:
    """Each kind by hand; rows beside an event are no calm ones."""
    kinds = RowKinds(Store.create(tmp_path / "store", Schema()), span=1)
    steps = _steps(
        reward=[0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0],
        coins=[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        decoys=[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1],
        sfx=[0, 0, 0, 1, 1, 1, 1, 0, 4, 4, 0, 0, 0],
        noise=[0] * 13,
        loud=[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    )
    wanted = ["", "music", "", "ding", "", "", "decoy", "", "reward", "", "", "silence", "silence"]
    assert kinds.of(steps).tolist() == wanted
    plain = _steps(reward=[0, 0, 0, 1, 0, 0], loud=[1, 1, 1, 1, 1, 1])
    assert kinds.of(plain).tolist() == ["", "calm", "", "reward", "", "calm"]


def test_every_row_of_a_cache_comes() -> None:
    """In windows that stay in an episode's stretch, each row at least once, with the overlap asked for."""

    class Fake:
        segments = np.array([
            (0, 0, 0, 7, 0, 0, 0), (1, 0, 7, 6, 0, 7, 20), (0, 0, 13, 3, 1, 0, 26),
            (0, 0, 20, 4, 2, 5, 40), (0, 0, 30, 2, 2, 12, 60),
        ], SEGMENT)  # fmt: skip

        def gather(self, places: Any) -> Any:
            return [np.concatenate([np.arange(a, b) for a, b in runs]) for runs in places]

    batches = list(every_row(Fake(), length=6, overlap=2, batch_size=2))
    assert all(len({len(rows) for rows in batch}) == 1 and len(batch) <= 2 for batch in batches)
    windows = [rows.tolist() for batch in batches for rows in batch]
    one = [[0, 1, 2, 3, 4, 5], [4, 5, 6, 20, 21, 22], [20, 21, 22, 23, 24, 25]]
    assert windows == [*one, [26, 27, 28], [40, 41, 42, 43], [60, 61]]
    with pytest.raises(UsageError, match="overlap"):
        list(every_row(Fake(), length=4, overlap=4))


def test_bad_questions_are_told(moments: Moments) -> None:
    """One line each."""
    with pytest.raises(UsageError, match="back=9"):
        attribute(ears, moments, back=9)
    with pytest.raises(UsageError, match="integratd.*did you mean 'integrated'"):
        attribute(ears, moments, method="integratd")
    music = moments.pick("music")
    with pytest.raises(UsageError, match="ding or reward"):
        audio_swap(ears, music)
    with pytest.raises(UsageError, match="codes=3"):
        batch, kind = world()
        code_use(code_rows([batch], lambda some: kind[some.episode, some.step]), 3)
    with pytest.raises(UsageError, match="no batches"):
        code_rows([], lambda some: some)


def test_a_real_encoder_and_a_hidden_picture(moments: Moments) -> None:
    """The token encoder fits; without a picture all attribution is the sound's, and training mode comes back."""
    from metabonk.dream.recurrent import RecurrentModel
    from metabonk.dream.rssm import RSSMConfig

    torch.manual_seed(0)
    config = RSSMConfig(deter=32, hidden=16, latents=4, classes=4)
    encoder = TokenEncoder(SIZES, embed=16, width=4, dropout={"image": 0.9})
    model = RecurrentModel(config, encoder, 16, {}, actions=ActionSpec(categorical=(3,))).train()
    with torch.no_grad():
        model.reward_head[-1].weight.normal_(0, 0.01)
    found = attribute(model, moments, steps=64)
    assert isinstance(found, Attribution) and set(found.values) == {"image", "audio"}
    assert np.abs(found.gap).max() < 0.02 * np.abs(found.predicted - found.reference).max()
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    rows = moments.rows
    blind = Moments(TokenBatch(**{**vars(rows), "image": None}), moments.kind)
    assert set(attribute(model, blind, steps=4).values) == {"audio"}
    before = torch.random.get_rng_state()
    one, two = predict(model, moments, draws=2), predict(model, moments, draws=2)
    assert np.array_equal(one, two) and torch.equal(before, torch.random.get_rng_state())
