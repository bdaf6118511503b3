"""Measuring: intervals that keep their promise, episodes that anyone can repeat, dreams held against what came."""

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, play_episodes
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.core.seed import spawn_seeds
from metabonk.dream.interface import WorldModel
from metabonk.dream.token_model import TokenModel, TokenModelConfig
from metabonk.measure.evaluation import (
    compare,
    comparison_figure,
    evaluate,
    evaluation_seeds,
    play_episode,
    unit_scores,
)
from metabonk.measure.reality import (
    LiveReality,
    match_events,
    play_and_compare,
    reality_check,
    reality_figure,
    shuffle_weights,
    summarise,
)
from metabonk.measure.statistics import (
    Interval,
    as_scores,
    bootstrap_interval,
    bootstrap_samples,
    coverage,
    difference_interval,
    interquartile_mean,
    interval_figure,
    interval_table,
    interval_text,
    mean,
    mean_interval,
    probability_of_improvement,
    ratio_interval,
    score_table,
)
from metabonk.record.recording import episode_seeds
from metabonk.sense.logmel import LogMelConfig
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokens import TokenBatch, Tokenizers

GENERATOR = np.random.default_rng(5)
FEW, MANY = GENERATOR.normal(3, 1, 6), GENERATOR.normal(2, 1, 9)


# ---------------------------------------------------------------- statistics


def test_resampling_keeps_every_game_to_itself():
    scores = np.arange(12.0).reshape(4, 3)
    drawn = bootstrap_samples(scores, 500, np.random.default_rng(0))
    assert drawn.shape == (500, 4, 3)
    for game in range(3):
        assert set(np.unique(drawn[..., game])) == set(scores[:, game])
    same = (drawn[..., 0] + 1 == drawn[..., 1]).mean()  # games are drawn independently of each other
    assert 0.2 < same < 0.3


def test_the_seed_decides_the_bootstrap():
    assert mean_interval(FEW, seed=1) == mean_interval(FEW, seed=1) != mean_interval(FEW, seed=2)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_bootstrap_agrees_with_scipy(confidence):
    theirs = stats.bootstrap(
        [MANY], np.mean, n_resamples=20_000, method="percentile", confidence_level=confidence, rng=0
    ).confidence_interval
    ours = bootstrap_interval(mean, MANY, confidence=confidence, draws=20_000)
    assert abs(ours.low - theirs.low) < 0.03 and abs(ours.high - theirs.high) < 0.03


def test_student_agrees_with_scipy():
    def same(ours, theirs):
        assert np.allclose([ours.low, ours.high], theirs.confidence_interval(0.9))

    same(mean_interval(FEW, 0.9, method="t"), stats.ttest_1samp(FEW, 0))
    same(difference_interval(FEW, MANY, confidence=0.9, method="t"), stats.ttest_ind(FEW, MANY, equal_var=False))
    same(difference_interval(FEW, MANY[:6], True, 0.9, method="t"), stats.ttest_rel(FEW, MANY[:6]))


def test_student_over_games_is_the_interval_of_their_mean():
    scores = np.random.default_rng(0).normal([0, 10, 20], [1, 2, 3], (8, 3))
    ours = mean_interval(scores, method="t")
    error = (scores.var(0, ddof=1) / 8).sum() ** 0.5 / 3
    assert ours.estimate == pytest.approx(scores.mean())
    assert stats.t.ppf(0.975, 21) < (ours.high - ours.estimate) / error < stats.t.ppf(0.975, 7)


def test_games_of_different_height_do_not_widen_the_interval():
    "Stratified: that one game gives more points than another is not chance."
    generator = np.random.default_rng(0)
    flat = generator.normal(0, 1, (6, 2))
    raised = flat + [0, 1000]
    for method in ("bootstrap", "t"):
        a, b = mean_interval(flat, method=method), mean_interval(raised, method=method)
        assert (a.high - a.low) == pytest.approx(b.high - b.low)


@pytest.mark.parametrize("paired", [False, True])
def test_fieller_limits_solve_their_equation(paired):
    a, b = FEW + 5, MANY[:6] + 3
    ours = ratio_interval(a, b, paired, method="t")
    rho = ours.estimate
    assert rho == pytest.approx(a.mean() / b.mean()) and ours.low < rho < ours.high
    var_a, var_b = a.var(ddof=1) / 6, b.var(ddof=1) / 6
    cov = np.cov(a, b)[0, 1] / 6 if paired else 0.0
    nu = 5 if paired else (var_a + rho**2 * var_b) ** 2 / (var_a**2 / 5 + (rho**2 * var_b) ** 2 / 5)
    t = stats.t.ppf(0.975, nu)
    for limit in (ours.low, ours.high):
        error = (var_a - 2 * limit * cov + limit**2 * var_b) ** 0.5
        assert abs(a.mean() - limit * b.mean()) == pytest.approx(t * error)


@pytest.mark.parametrize("method", ["bootstrap", "t"])
def test_ratios_follow_scale_and_sign(method):
    plain = ratio_interval(FEW, MANY, method=method)
    larger, mirrored = ratio_interval(10 * FEW, MANY, method=method), ratio_interval(-FEW, -MANY, method=method)
    assert [larger.low, larger.high] == pytest.approx([10 * plain.low, 10 * plain.high])
    assert [mirrored.estimate, mirrored.low, mirrored.high] == pytest.approx([plain.estimate, plain.low, plain.high])


@pytest.mark.parametrize("method", ["bootstrap", "t"])
def test_a_ratio_to_what_may_be_zero_has_no_limits(method):
    around = np.array([-2.0, -1, 0, 1, 2.1])
    found = ratio_interval(FEW, around, method=method)
    assert (found.low, found.high) == (-np.inf, np.inf)
    none = ratio_interval(FEW, np.zeros(5), method=method)
    assert none.estimate == np.inf and none.high == np.inf
    assert np.isnan(ratio_interval(np.zeros(3), np.zeros(3), method=method).estimate)


def test_a_control_that_never_scores_leaves_a_lower_limit():
    found = ratio_interval([5.0, 6, 7, 5, 6], [0.0, 0, 1, 0, 0, 1, 0, 1])
    assert 5 < found.low < found.estimate and found.high == np.inf


def test_pairs_are_drawn_together():
    start = np.arange(20) * 10.0
    noise = np.random.default_rng(0).normal(1, 0.1, 20)
    paired, apart = difference_interval(start + noise, start, True), difference_interval(start + noise, start)
    assert paired.low > 0.9 and paired.high < 1.1 and apart.low < -20
    ratio = ratio_interval(2 * start, start, True)
    assert ratio.low == ratio.high == 2


def test_interquartile_mean_is_that_of_scipy():
    scores = np.random.default_rng(0).normal(size=(7, 3))
    assert interquartile_mean(scores) == stats.trim_mean(scores, 0.25, axis=None)
    assert interquartile_mean(as_scores([0, 1, 2, 3, 4, 5, 6, 700])) == 3.5


def test_probability_of_improvement_counts_ties_half():
    a, b = np.array([1.0, 2, 2, 5]), np.array([2.0, 2, 0])
    u = stats.mannwhitneyu(a, b).statistic
    assert probability_of_improvement(a[:, None], b[:, None]) == pytest.approx(u / 12)
    assert probability_of_improvement(a[:, None], a[:, None]) == 0.5


@pytest.mark.parametrize("method,least,most", [("bootstrap", 0.7, 0.92), ("t", 0.92, 0.98)])
def test_coverage_of_five_runs(method, least, most):
    def experiment(seed):
        return np.random.default_rng(seed).normal(4, 2, 5)

    assert least < coverage(lambda data: mean_interval(data, method=method, draws=300), experiment, 4.0, 600) < most


def test_coverage_finds_an_interval_that_breaks_its_promise():
    assert coverage(lambda data: Interval(0, -1, -0.5), lambda seed: seed, 0.0, 10) == 0


def test_many_runs_make_the_bootstrap_keep_its_promise():
    def experiment(seed):
        return np.random.default_rng(seed).gamma(2, 1, (60, 2))

    assert 0.92 < coverage(lambda data: mean_interval(data, draws=400), experiment, 2.0, 600) < 0.98


@pytest.mark.parametrize(
    "wrong,message",
    [
        (lambda: mean_interval([1.0]), "at least 2"),
        (lambda: mean_interval([]), "at least 2"),
        (lambda: mean_interval([1.0, np.nan]), "run 1"),
        (lambda: mean_interval(np.zeros((2, 2, 2))), r"\(2, 2, 2\)"),
        (lambda: mean_interval(FEW, 95), "0.95"),
        (lambda: mean_interval(FEW, 1.0, method="t"), "0.95"),
        (lambda: difference_interval(FEW, MANY, True), "same runs"),
        (lambda: ratio_interval(FEW, MANY, True, method="t"), "same runs"),
        (lambda: score_table({}), "no scores"),
        (lambda: score_table({"agent": FEW, "random": MANY}, "randm"), "did you mean 'random'"),
    ],
)
def test_what_carries_no_interval_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        wrong()


def test_table_and_figure():
    table = score_table({"agent": FEW, "other": FEW - 1, "random": MANY}, method="t")
    assert list(table.index) == ["agent", "other", "random"] and table[("runs", "")].tolist() == [6, 6, 9]
    assert table.loc["agent", ("minus random", "estimate")] == pytest.approx(FEW.mean() - MANY.mean())
    assert table.loc["random"][["minus random", "times random", "beats random"]].isna().all()
    assert "minus random" not in score_table({"agent": FEW, "random": MANY}, control="")
    figure = interval_figure({"agent": FEW, "random": MANY}, method="t")
    bar = figure.data[1]
    interval = mean_interval(FEW, method="t")
    assert bar.x[0] + bar.error_x.array[0] == pytest.approx(interval.high)
    assert bar.x[0] - bar.error_x.arrayminus[0] == pytest.approx(interval.low)
    told = interval_figure({"known": Interval(2.0, 1.0, 4.0), "one run": [3.0]}, mark=2.5)
    assert [list(trace.x) for trace in told.data] == [[], [2.0], [3.0]], "one run is a dot without an interval"
    assert told.data[1].error_x.array[0] == 2.0 and told.layout.shapes[0].x0 == 2.5 and not figure.layout.shapes
    wide = interval_figure(pd.DataFrame({"a": FEW, "b": FEW})).layout
    assert wide.yaxis.tickvals == (0, 1) and wide.yaxis.range == (1.6, -0.4) and wide.height == 210, "a line a column"


def test_intervals_as_text():
    interval = mean_interval(FEW, method="t")
    assert interval_text(FEW, 1) == f"{interval.estimate:.1f} [{interval.low:.1f}, {interval.high:.1f}]" == f"{interval:.1f}"
    assert interval_text(FEW) != interval_text(FEW, method="bootstrap")
    assert interval_text([2.0], 1) == interval_text([2.0, 2.0], 1) == "2.0" and interval_text([np.nan]) == ""
    assert interval_text([*FEW, np.nan], 1) == f"{interval:.1f} (6 of 7 runs)"
    runs = pd.DataFrame({"b": FEW, "a": FEW - 1})
    table = interval_table({"score": runs, "minus a": {"b": runs["b"] - runs["a"]}}, 0)
    assert table.index.tolist() == ["b", "a"] and table["minus a"].tolist() == ["1", ""]
    assert table.loc["b", "score"] == f"{interval:.0f}" and f"{interval}" == str(interval)


# ---------------------------------------------------------------- evaluation


class Luck(gym.Env):
    "A game in which the reset's seed decides what every step is worth, and how long it lasts"

    name, action_names = "luck", ["wait", "push"]
    action_space, observation_space = gym.spaces.Discrete(2), gym.spaces.Discrete(1)

    def reset(self, *, seed=None, options=None):
        self.worth, self.left = seed % 7, 3 + seed % 5
        return 0, self._info(0)

    def _info(self, action):
        terms = {"luck": float(self.worth), "push": 0.5 * action}
        return {"terms": terms, "probes": {"left": self.left}, "clock": {}}

    def step(self, action):
        self.left -= 1
        info = self._info(action)
        return 0, sum(info["terms"].values()), self.left == 0, False, info


class Counting:
    "Counts what it was asked, in this copy"

    def __init__(self):
        self.seeds, self.asked = [], 0

    def reset(self, seed):
        self.seeds.append(seed)

    def __call__(self, observation, info):
        self.asked += 1
        return 1


def test_an_episode_is_summed_up():
    row = play_episode(Luck(), Counting(), seed=13)
    assert row == {
        "return": 6 * (6 + 0.5), "length": 6, "terminated": True, "truncated": False,
        "terms/luck": 36.0, "terms/push": 3.0, "probes/left": 0,
    }  # fmt: skip
    cut = play_episode(Luck(), Counting(), seed=13, max_steps=2)
    assert cut["length"] == 2 and cut["truncated"] and not cut["terminated"] and cut["probes/left"] == 4


def test_seeds_depend_on_nothing_but_seed_and_number():
    policy = Counting()
    few, many = evaluate(Luck(), policy, 3, seed=4), evaluate(Luck(), "random", 8, seed=4)
    assert few[["seed", "policy_seed"]].equals(many[["seed", "policy_seed"]][:3])
    assert policy.seeds == few["policy_seed"].tolist() == [evaluation_seeds(4, k)[1] for k in range(3)]
    assert set(few["seed"]).isdisjoint(evaluate(Luck(), "random", 3, seed=5)["seed"])
    assert few["seed"].tolist() == [number >> 1 for number in spawn_seeds(4, 3)]  # as act.agent.play_episodes has them
    assert set(many["seed"]).isdisjoint({episode_seeds(4, stream, k)[0] for stream in range(9) for k in range(9)})
    assert few["policy"].unique() == ["Counting"] and evaluate(Luck(), policy, 1, name="mine")["policy"].item() == "mine"


def test_how_many_play_at_once_changes_nothing():
    settings = {"image_size": (16, 16), "max_steps": 25}
    alone = evaluate("bonk", "sticky_random", 3, seed=2, settings=settings)
    assert alone["length"].eq(25).all() and "milestones/first_coin" in alone and alone["probes/frame"].gt(0).all()
    for parallel in ("threads", "processes"):
        pd.testing.assert_frame_equal(alone, evaluate("bonk", "sticky_random", 3, 2, settings, 2, parallel))


def test_policies_share_nothing():
    policy = Counting()
    evaluate("bonk", policy, 3, settings={"image_size": (16, 16)}, games=3, max_steps=2)
    assert policy.asked == 0  # copies played


def test_unknown_games_and_policies_and_what_cannot_travel():
    class Local(Counting):
        "Can't be pickled: nothing finds its class again"

    for wrong, message in [
        (lambda: evaluate("bonkk"), "bonk"),
        (lambda: evaluate("bonk", "randm"), "did you mean 'random'"),
        (lambda: evaluate("bonk", episodes=0), "at least 1"),
        (lambda: evaluate(Luck(), games=2), "name"),
        (lambda: evaluate("bonk", games=2, parallel="process"), "processes"),  # type: ignore[arg-type]
        (lambda: evaluate("bonk", Local(), games=2, parallel="processes"), "threads"),
    ]:
        with pytest.raises(Exception, match=message):
            wrong()


def test_same_starts_are_pairs():
    lucky = evaluate(Luck(), Counting(), 12, seed=1)
    noop = evaluate(Luck(), "noop", 12, seed=1)
    table = compare({"push": lucky, "noop": noop})
    per_step = (lucky["return"] - noop["return"]) / lucky["length"]
    assert np.allclose(per_step, 0.5)
    assert table.loc["push", ("minus noop", "low")] > 0  # far smaller than what starts differ by
    other = evaluate(Luck(), "noop", 12, seed=2)
    assert unit_scores({"a": lucky, "b": noop})[2] and not unit_scores({"a": lucky, "b": other})[2]
    apart = compare({"push": lucky, "noop": other})
    width, wider = (t.loc["push", ("minus noop", "high")] - t.loc["push", ("minus noop", "low")] for t in (table, apart))
    assert wider > 3 * width
    assert len(comparison_figure({"push": lucky, "noop": noop}).data) == 4


def test_runs_are_the_unit_where_there_are_runs():
    frame = pd.DataFrame({"run": [0, 0, 1, 1, 2, 2], "seed": [1, 2] * 3, "return": [1.0, 3, 4, 6, 7, 9]})
    scores, unit, paired = unit_scores({"a": frame, "b": frame})
    assert scores["a"].tolist() == [2, 5, 8] and unit == "runs" and not paired
    assert compare({"a": frame, "b": frame})[("runs", "")].tolist() == [3, 3]
    with pytest.raises(UsageError, match="'run' in b"):
        compare({"a": frame, "b": frame.drop(columns="run")})
    with pytest.raises(UsageError, match="did you mean 'return'"):
        compare({"a": frame}, "retrun")


# ---------------------------------------------------------------- dreams beside reality

PLACES = 6


@dataclass
class Tokens:
    "As a batch of tokens is: columns (B, T, ...), cut and converted all at once"

    image: Any
    audio: Any
    action: Any
    reward: Any
    terminated: Any
    first: Any

    @property
    def shape(self):
        return tuple(self.reward.shape[:2])

    def map(self, function):
        return replace(self, **{name: None if column is None else function(column) for name, column in vars(self).items()})

    def numpy(self):
        return self.map(np.asarray)

    def to(self, device):
        return self


def walks(sequences=16, rows=30, seed=0, end=None):
    "A ring of places with a bell at place 0; with `end`, coming to that place ends the episode and a new one begins"
    generator = torch.Generator().manual_seed(seed)
    action = torch.randint(2, (sequences, rows), generator=generator)
    place = torch.zeros(sequences, rows, dtype=torch.long)
    place[:, 0] = torch.randint(PLACES, (sequences,), generator=generator)
    first = torch.zeros(sequences, rows, dtype=torch.bool)
    first[:, 0] = True
    for t in range(1, rows):
        first[:, t] = place[:, t - 1] == end if end is not None else False
        action[:, t] *= ~first[:, t]
        place[:, t] = torch.where(first[:, t], 0, (place[:, t - 1] + action[:, t]) % PLACES)
    rang = (place == 0) & (action == 1) & ~first
    over = place == end if end is not None else torch.zeros_like(first)
    return Tokens(F.one_hot(place, PLACES), rang.long()[..., None], action, rang.float(), over, first)


class Walker(WorldModel):
    "Knows the ring; `late` reads each action a step late, `invents` rings at every place from there on"

    def __init__(self, end=None, late=False, invents=PLACES):
        super().__init__()
        self.end, self.late, self.invents = end, late, invents
        self.feature_size, self.actions = PLACES + 1, ActionSpec(categorical=(2,))
        self.scale = torch.nn.Parameter(torch.linspace(1, 2, 8))

    def observe(self, context, state=None, every=False, generator=None):
        assert not self.training
        place = context.image[:, -1].argmax(-1)
        return {"place": place, "rang": context.audio[:, -1, 0], "before": torch.zeros_like(place)}

    def advance(self, state, action, generator=None):
        now = action.argmax(-1)
        steps = state["before"] if self.late else now
        place = (state["place"] + steps) % PLACES
        rang = ((place == 0) | (place >= self.invents)) & (steps == 1)
        return {"place": place, "rang": rang.long(), "before": now}

    def features(self, state):
        return torch.cat([F.one_hot(state["place"], PLACES), state["rang"][:, None]], -1).float()

    def reward(self, features):
        return features[..., -1]

    def continuation(self, features):
        over = features[..., self.end] if self.end is not None else torch.zeros(features.shape[:-1])
        return 1 - over

    def token_logits(self, features):
        return {
            "image": torch.stack([0.5 - features[..., :-1], features[..., :-1] - 0.5], -1),
            "audio": torch.stack([0.5 - features[..., -1:], features[..., -1:] - 0.5], -1),
        }


def test_matching_is_the_largest_there_is():
    generator = np.random.default_rng(0)
    for _ in range(200):
        predicted, real = generator.random(14) < generator.random(), generator.random(14) < generator.random()
        slack = int(generator.integers(3))
        found, met = match_events(predicted, real, slack)
        near = np.abs(np.arange(14)[:, None] - np.arange(14)) <= slack
        best = (maximum_bipartite_matching(csr_matrix(near & predicted[:, None] & real)) >= 0).sum()
        assert found.sum() == met.sum() == best
        assert not (found & ~predicted).any() and not (met & ~real).any()


def test_a_model_that_is_right_is_found_right():
    table = reality_check(Walker(), walks(), context=3, horizon=12)
    mine = table[table.who == "model"]
    assert len(mine) == 13 and mine.rows.eq(16).all()
    right = mine[["image", "image_changed", "audio", "audio_changed", "precision", "recall"]].stack()
    assert right.dropna().eq(1).all() and right.notna().sum() > 13 * 5
    assert mine[["reward_error", "continuation_error", "hallucinated", "missed"]].lt(1e-6).all().all()
    still = table[table.who == "repeat last"].set_index("ahead")
    assert still.image[0] == 1 and still.image_changed[1:].eq(0).all() and still.image[12] < 0.9
    few = summarise(table)
    assert few.loc["model", "precision"] == 1 > few.loc["mismatched", "precision"]
    assert few.loc["shuffled", "image"] == 1  # its one parameter does nothing
    assert len(reality_figure(table).data) == 5 * 4


def test_an_action_read_a_step_late_is_found():
    "Negative control: the row convention got wrong by one."
    mine = summarise(reality_check(Walker(late=True), walks(), context=3, horizon=12)).loc["model"]
    assert mine.image < 0.95 and mine.image_changed < 0.8


def test_invented_rewards_are_counted_as_such():
    few = summarise(reality_check(Walker(invents=3), walks(), context=3, horizon=12)).loc["model"]
    assert few.missed == 0 and few.hallucinated > 0 and few.recall == 1
    assert few.predicted_rewards == few.rewards + few.hallucinated
    assert few.precision == pytest.approx(few.rewards / few.predicted_rewards) and few.audio < 1 and few.image == 1


def test_what_comes_behind_the_horizon_is_no_hallucination():
    "A reward that is dreamed one step early, in the last row, finds its partner behind it."
    batch = walks(1, 8)
    batch.action[:] = 1
    places = (torch.arange(8) + PLACES - 5) % PLACES  # the bell rings in row 5
    image, rang = F.one_hot(places, PLACES)[None], (places == 0)[None]
    batch = replace(batch, image=image, audio=rang.long()[..., None], reward=rang.float())

    class Early(Walker):
        def advance(self, state, action, generator=None):
            state = super().advance(state, action)
            return state | {"rang": (state["place"] == PLACES - 1).long()}

    def invented(rows, slack=1):
        return summarise(reality_check(Early(), batch.map(lambda c: c[:, :rows]), 2, 3, slack=slack)).loc["model", "hallucinated"]

    assert invented(8) == 0 and invented(8, slack=0) == 1 and invented(5) == 1  # without row 5 nobody can know


def test_rows_of_the_next_episode_do_not_count():
    batch = walks(64, 20, end=4)
    table = reality_check(Walker(end=4), batch, context=2, horizon=15).query("who == 'model'").set_index("ahead")
    assert table.rows.is_monotonic_decreasing and table.rows[15] < 32
    assert table[["image", "audio"]].stack().dropna().eq(1).all() and table.continuation_error.max() < 1e-6
    assert table.ends.sum() > 20 and table.false_ends.sum() == table.missed_ends.sum() == 0
    blind = summarise(reality_check(Walker(), batch, context=2, horizon=15)).loc["model"]
    assert blind.missed_ends == blind.ends > 0 and blind.continuation_error > 0


def test_a_model_with_one_sense_or_none():
    deaf = replace(walks(), audio=None)

    class Deaf(Walker):
        def observe(self, context, state=None, every=False, generator=None):
            return super().observe(replace(context, audio=torch.zeros(16, 1, 1, dtype=torch.long)))

    table = reality_check(Deaf(), deaf, 3, 5)
    assert "image" in table and "audio" not in table
    assert len(reality_figure(table).data) == 4 * 4

    class Wordless(Walker):
        token_logits = None

    assert summarise(reality_check(Wordless(), walks(), 3, 5)).loc["model", "recall"] == 1


def test_checking_leaves_no_traces():
    model, batch = Walker().train(), walks()
    before, state = model.scale.clone(), torch.get_rng_state()
    reality_check(model, [batch, batch], 3, 5)
    assert model.training and torch.equal(model.scale, before) and torch.equal(torch.get_rng_state(), state)
    stirred = shuffle_weights(model)
    assert torch.equal(stirred.scale.sort().values, before.sort().values) and not torch.equal(stirred.scale, before)


@pytest.mark.parametrize(
    "wrong,message",
    [
        (lambda: reality_check(Walker(), walks(rows=10), 4, 8), "12 rows or more"),
        (lambda: reality_check(Walker(), walks(), 0, 8), "too short|9 rows"),
        (lambda: reality_check(Walker(), [], 4, 8), "no batches"),
        (lambda: reality_figure(reality_check(Walker(), walks(), 3, 5), ["imge"]), "did you mean 'image'"),
        (lambda: LiveReality(Walker()).table(), "nothing was played"),
        (lambda: LiveReality(Walker()).add(None, walks(1, 1), 0.0, False), "reset"),
    ],
)
def test_what_cannot_be_compared_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        wrong()


class Ring(gym.Env):
    "The ring as a game"

    action_space, observation_space = gym.spaces.Discrete(2), gym.spaces.Discrete(PLACES)

    def reset(self, *, seed=None, options=None):
        self.place, self.steps = seed % PLACES, 0
        return self._seen(0), {}

    def _seen(self, rang):
        return {"image": np.array(self.place), "audio": np.array(rang)}

    def step(self, action):
        self.place = (self.place + action) % PLACES
        self.steps += 1
        rang = int(self.place == 0 and action == 1)
        return self._seen(rang), float(rang), False, self.steps == 30, {}


class RingSenses:
    def reset(self, game=None):
        pass

    def __call__(self, observation):
        place, rang = (torch.as_tensor(np.array(observation[name]))[:, None] for name in ("image", "audio"))  # (games, 1)
        no = torch.zeros(1, 1, dtype=torch.bool)
        return Tokens(F.one_hot(place, PLACES), rang[..., None], None, torch.zeros(1, 1), no, no)


class RingAgent:
    "Plays by chance, and expects what its model says"

    def __init__(self, model):
        self.model = model.eval()

    def make_senses(self, games):
        return RingSenses()

    def reset(self, seed):
        self.generator, self.rows = np.random.default_rng(seed), RingSenses()

    def __call__(self, observation, info):
        seen = {name: value[None] for name, value in observation.items()}
        self.action, self.state = int(self.generator.integers(2)), self.model.observe(self.rows(seen))
        return self.action

    def predict(self):
        state = self.model.advance(self.state, F.one_hot(torch.tensor([self.action]), 2).float())
        features = self.model.features(state)

        class Expected:
            reward, continuation = float(self.model.reward(features)), float(self.model.continuation(features))

        Expected.features = features
        return Expected


def test_live_play_beside_what_was_expected():
    right = play_and_compare(RingAgent(Walker()), Ring(), episodes=3)
    few = right.summary()
    assert few.steps == 90 and few.episodes == 3 and few.rewards > 3
    assert (few[["image", "image_changed", "audio", "audio_changed", "precision", "recall"]] == 1).all()
    assert few.image_repeat_last < 0.9 and few.reward_error == 0 and few.continuation_error < 1e-6
    invents = play_and_compare(RingAgent(Walker(invents=3)), Ring(), episodes=3)
    assert invents.table()["reward"].equals(right.table()["reward"])  # asking an agent does not change its play
    assert invents.summary().hallucinated == invents.table().hallucinated.sum() > 0
    assert play_and_compare(RingAgent(Walker()), Ring(), 1, max_steps=4, live=right).summary().steps == 94


def test_live_and_recorded_agree_on_one_step_ahead():
    model, batch = Walker(late=True).eval(), walks(1, 9, seed=3)
    live = LiveReality(model)
    live.reset(batch.map(lambda column: column[:, :1]))
    counts = []
    for t in range(1, 9):
        here = reality_check(model, batch.map(lambda column, t=t: column[:, : t + 1]), t, 1)
        counts.append(here.query("who == 'model' and ahead == 1")["image"].item())
        state = model.advance(model.observe(batch.map(lambda c, t=t: c[:, :t])), F.one_hot(batch.action[:, t], 2).float())

        class Expected:
            features, reward, continuation = model.features(state), 0.0, 1.0

        live.add(Expected, batch.map(lambda c, t=t: c[:, t : t + 1]), float(batch.reward[0, t]), False)
    assert live.summary()["image"] == pytest.approx(np.mean(counts)) and np.mean(counts) < 1


# ---------------------------------------------------------------- the real ones


@pytest.fixture(scope="module")
def bonk_agent():
    "Everything that Bonk needs, and nothing of it trained"
    torch.manual_seed(0)
    eyes = PictureTokenizer(PictureConfig.preset("tiny", size=(32, 32), grid=(4, 4)))
    ears = SoundTokenizer(SoundConfig.preset("tiny", channels=2, frames=4, tokens=4, bands=16))
    logmel = LogMelConfig.preset("tiny", sample_rate=24000, bands=16, frames_per_step=4)
    model = TokenModel(TokenModelConfig.preset("tiny"), Tokenizers(eyes, ears, logmel, "bonk"),
                       ActionSpec(categorical=(11,)))
    policy = ActorCritic(ActorCriticConfig.preset("tiny"), model.feature_size, model.actions)
    return Agent(model, policy)


SMALL = {"image_size": (32, 32), "sample_rate": 24000}


def test_an_agent_is_evaluated_like_anyone(bonk_agent):
    alone = evaluate("bonk", bonk_agent, 2, settings=SMALL, max_steps=6)
    assert alone["policy"].unique() == ["agent"]
    pd.testing.assert_frame_equal(alone, evaluate("bonk", bonk_agent, 2, settings=SMALL, games=2, max_steps=6))
    random_play = evaluate("bonk", "random", 2, settings=SMALL, max_steps=6)
    assert unit_scores({"agent": alone, "random": random_play})[2]
    together = play_episodes(bonk_agent, "bonk", 2, settings={**SMALL, "max_steps": 6})
    assert unit_scores({"agent": together, "random": random_play})[2]
    with pytest.raises(UsageError, match="image_size"):
        evaluate("bonk", bonk_agent, 2)


def test_an_agent_beside_what_it_expected(bonk_agent):
    live = play_and_compare(bonk_agent, "bonk", 1, settings=SMALL, max_steps=8)
    few = live.summary()
    assert few.steps == 8 and {"image", "image_repeat_last", "audio", "audio_repeat_last"} <= set(few.index)
    watched = live.table()["reward"].sum()
    assert watched == evaluate("bonk", bonk_agent, 1, settings=SMALL, max_steps=8)["return"].item()


def test_a_token_model_is_checked(bonk_agent):
    model, generator = bonk_agent.model, torch.Generator().manual_seed(0)
    no = torch.zeros(3, 12, dtype=torch.bool)
    sizes = model.tokenizers.sizes
    tokens = {name: torch.randint(codes, (3, 12, count), generator=generator) for name, (count, codes) in sizes.items()}
    action = torch.randint(11, (3, 12), generator=generator)
    batch = TokenBatch(**tokens, action=action, reward=torch.zeros(3, 12), terminated=no, truncated=no, first=no)
    table = reality_check(model, batch.numpy(), 4, 6)
    assert set(table.who) == {"model", "shuffled", "repeat last", "mismatched"} and len(table) == 4 * 7
    again = reality_check(model, batch, 4, 6)
    pd.testing.assert_frame_equal(table, again)
    assert table[["image", "audio", "reward_error", "continuation_error"]].notna().all().all()
