import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from metabonk.act.agent import Agent, play_episodes
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.rounds import Rounds
from metabonk.core.config import Config
from metabonk.core.errors import UsageError
from metabonk.core.files import disk_errors, write_atomic
from metabonk.core.seed import spawn_seeds
from metabonk.core.training import Learner, TrainConfig, fit
from metabonk.dream.interface import Saveable
from metabonk.record.store import Store

@dataclass(frozen=True)
class FineTuneConfig(Config):
    "How many rounds, and how much is played in one"

    rounds: int = 10  # after round 0, in which the agent only plays
    episodes: int = 10  # played to their end, recorded, and judged by in each round
    games: int = 10  # of these, played at once
    seed: int = 0  # of all that is played

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {"rounds": 10},
        "small": {"rounds": 20, "episodes": 20},
        "paper": {"rounds": 50, "episodes": 50},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("episodes", "games"):
            if getattr(self, name) < 1:
                raise UsageError(f"FineTuneConfig.{name} must be at least 1, not {getattr(self, name)}")
        if self.rounds < 0:
            raise UsageError(f"FineTuneConfig.rounds can't be below 0, as {self.rounds} is")

@dataclass(frozen=True)
class ShortUpdates:
    "Some steps of the world model, then some of the policy in its dreams"

    data: Callable[[Path], Any]  # store -> what `fit` takes; makes whatever cache it reads longer
    learner: Callable[[Any], Learner] | None = None  # model -> what trains it; the model stays as it is if not given
    model: TrainConfig = TrainConfig.preset("tiny", steps=100)  # how long, how fast
    policy: TrainConfig = TrainConfig.preset("tiny", steps=100)  # the same for the policy
    dreams: DreamConfig = DreamConfig.preset("tiny")  # that the policy learns in

    def __call__(
        self,
        agent: Agent,  # changed in place
        store: Path,  # with all that was recorded so far
        folder: Path,  # for logs and checkpoints of this round
    ) -> None:
        "Learn from the store"
        if self.learner is not None:
            fit(self.learner(agent.model), self.data(store), folder / "model", self.model)
        fit(DreamLearner(agent.model, agent.actor_critic, self.dreams), self.data(store), folder / "policy", self.policy)

class FineTune(Rounds):
    "Rounds of learning and playing; interrupted, it goes on with the round that was not finished"

    kind, file, marks = "fine-tuning", "finetune.json", ("round-000/agent",)

    def __init__(
        self,
        agent: Agent,  # who plays and learns
        game: str,  # a name for `make_game`
        store: str | Path,  # where its steps join what was recorded before
        folder: str | Path,  # for what comes of it
        update: Callable[[Agent, Path, Path], None],  # agent, store, folder of the round -> learns in place: `ShortUpdates`
        config: FineTuneConfig | None = None,  # the defaults if not given
        settings: Mapping[str, Any] | None = None,  # for `make_game`: those of the recording
        compare: Callable[[Agent, Path], Mapping[str, float]] | None = None,  # agent, store -> numbers for the table
        load_model: Callable[[Path], Any] | None = None,  # the `load` of the model's class if not given
    ):
        self.agent, self.game, self.store = agent, game, Path(store)
        self.update, self.compare, self.settings = update, compare, dict(settings or {})
        self.config = config or FineTuneConfig()
        same = {name: value for name, value in self.config.to_dict().items() if name not in ("rounds", "games")}
        about = {"game": game, **same}
        super().__init__(folder, self.config.rounds + 1, about)
        if load_model is None:
            if not isinstance(agent.model, Saveable):
                raise UsageError(f"{type(agent.model).__name__} has no `load`: give FineTune what loads it as load_model")
            load_model = agent.model.load
        self.load_model = load_model

    @property
    def best(self) -> int:  # the earliest of the best rounds
        "The round with the highest real score"
        return max(self.rows, key=lambda row: (row["score"], -row["round"]))["round"]

    @property
    def best_agent(self) -> Path:  # for `Agent.load`
        "Folder of the agent with the highest real score"
        return self._agent(self.best)

    def prepare(self) -> None:
        "Take up the agent of the last finished round, or one that has learned since, but not played yet"
        if not self.rows:
            return
        last = len(self.rows) if self._agent(len(self.rows)).exists() else len(self.rows) - 1
        loaded = Agent.load(self._agent(last), self.load_model, senses=self.agent.make_senses)
        loaded.model.to(self.agent.device)
        loaded.actor_critic.to(self.agent.device)
        self.agent = loaded

    def play(
        self,
        number: int,  # of the round; in round 0 nothing is learned
    ) -> dict[str, Any]:  # score, steps, and what `compare` gave
        "Learn, then play, record and score"
        if number and not self._agent(number).exists():
            self.update(self.agent, self.store, self.place(number))
        with disk_errors(self.folder):
            self.agent.save(self._agent(number))
        about = {"round": number, "tuning": self.folder.name}
        there: Any = Store.open(self.store).episodes if Store.exists(self.store) else ()
        begun_before = sum(about.items() <= episode.about.items() for episode in there)  # an interrupted round plays other ones
        config, seed = self.config, spawn_seeds(self.config.seed, number + 1)[-1] + begun_before
        played = play_episodes(self.agent, self.game, config.episodes, seed, config.games, self.settings, self.store, about)
        compared = dict(self.compare(self.agent, self.store)) if self.compare else {}
        write_atomic(self.place(number) / "episodes.csv", played.to_csv(index=False))
        before = self.rows[-1]["steps"] if self.rows else 0
        return {"score": float(played["return"].mean()), "steps": before + int(played["length"].sum()), **compared}

    def tidy(
        self,
        number: int,  # of the round that has just been noted
    ) -> None:
        "Keep the best agent and the last to go on from, and no checkpoints"
        for old in range(number):
            if old != self.best:
                shutil.rmtree(self._agent(old), ignore_errors=True)
        for checkpoints in self.place(number).glob("*/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)

    def _agent(self, number: int) -> Path:
        return self.place(number) / "agent"
