import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, Player
from metabonk.act.curiosity import AudioCuriosity, Curiosity, CuriosityConfig, Explorer, ExplorerLearner, Plan2Explore
from metabonk.act.dreaming import DreamConfig
from metabonk.act.rounds import Rounds
from metabonk.core.config import Config
from metabonk.core.errors import UsageError, unknown
from metabonk.core.files import disk_errors
from metabonk.core.seed import seed_everything, spawn_seeds
from metabonk.core.training import Learner, TrainConfig, fit
from metabonk.dream.interface import WorldModel
from metabonk.nn.actions import ActionChoice
from metabonk.nn.noise import Generators, uniform
from metabonk.record.recorder import record, share_out
from metabonk.record.store import Store
from metabonk.sense.tokens import Tokenizers

class StickyEpsilon(Player):
    "A player that leaves a share of its steps to chance, and holds what chance has chosen"

    name = "curious"

    def __init__(
        self,
        player: Player,  # who decides the rest
        share: float = 0.3,  # of steps that are random, 0 to 1
        mean_steps: float = 8.0,  # how long a random action is held, on average
    ):
        if not 0 <= share <= 1 or mean_steps < 1:
            raise UsageError(f"the share of random steps is from 0 to 1, and they last 1 step at least, not {share}, {mean_steps}")
        self.player, self.share, self.mean_steps = player, share, mean_steps
        self.begins = share / (mean_steps * (1 - share) + share)  # p
        super().__init__(player.model, player.make_senses, player.greedy, player.game)

    @torch.no_grad()
    def decide(
        self,
        senses: Any,  # for as many games
        observations: Sequence[Mapping[str, Any]],  # of each game
        actions: Sequence[Any],  # that led there; not looked at where an episode begins
        first: Sequence[bool],  # games in which an episode begins
        state: Any = None,  # as this gave it for the last observations
        generator: Generators = None,  # where chance comes from: one for all games, one for each, or PyTorch's own
    ) -> tuple[Any, Tensor]:  # its state after these observations; action vectors (games, actions)
        "One step of several games at once"
        inner, wanders, held = state if state is not None else (None, None, None)
        inner, vectors = self.player.decide(senses, observations, actions, first, inner, generator)
        spec = self.model.actions
        chance = uniform((len(first), 2), vectors, generator)
        anything = ActionChoice(vectors.new_zeros(len(first), spec.outputs), spec).sample(generator)
        if wanders is None:
            wanders, held = torch.zeros_like(chance[:, 0], dtype=torch.bool), anything
        goes_on = wanders & ~torch.tensor(first, device=vectors.device) & (chance[:, 0] * self.mean_steps >= 1)
        begins = ~goes_on & (chance[:, 1] < self.begins)
        held = torch.where(begins[:, None], anything, held)
        wanders = goes_on | begins
        return (inner, wanders, held), torch.where(wanders[:, None], held, vectors)

def make_explorer(
    model: WorldModel,  # any
    latent_size: int,  # numbers in the latent that the model names; in its features if it names none
    tokenizers: Tokenizers | None = None,  # with whose ears it hears; without them sound is left out
    config: CuriosityConfig | None = None,  # sizes; "tiny" if not given
    pays: Mapping[str, str] | None = None,  # of "latent" and "sound": "disagreement" or "error"; both by disagreement if not given
) -> Explorer:  # untrained
    "What an explorer of a model is paid for"
    config, pays = config or CuriosityConfig.preset("tiny"), pays or {"latent": "disagreement", "sound": "disagreement"}
    for name in pays:
        if name not in ("latent", "sound"):
            raise unknown("curiosity", name, ("latent", "sound"))
    F, A, kinds = model.feature_size, model.actions.size, dict[str, Curiosity]()
    if "latent" in pays:
        kinds["latent"] = Plan2Explore(config.change(bonus=pays["latent"]), F, A, latent_size, model.latent)
    if "sound" in pays and tokenizers is not None and tokenizers.sound is not None:
        book: Any = tokenizers.sound.quantizer.codebook
        tokens = tokenizers.sizes["audio"][0]
        kinds["sound"] = AudioCuriosity(config.change(bonus=pays["sound"]), F, A, book.reshape(-1, book.shape[-1]), tokens)
    if not kinds:
        raise UsageError("there is nothing to be curious about: this game is silent, so add 'latent' to what pays")
    return Explorer(kinds)

@dataclass(frozen=True)
class CuriousUpdates:
    "What is learned before a round: the model from all that was recorded, then ensembles and policy in its dreams"

    begin: Callable[[Path, Path, int], Any]  # store of the first round, folder, seed -> a model of it, not trained yet
    load: Callable[[Path], Any]  # folder -> the model that its own `save` wrote there
    data: Callable[[Any, Path], Any]  # model, store -> what `fit` takes; makes whatever cache it reads longer
    learner: Callable[[Any], Learner]  # model -> what trains it
    explorer: Callable[[Any], Explorer]  # model -> what pays, untrained: `make_explorer`
    first: TrainConfig = TrainConfig.preset("tiny", steps=500)  # of the model, on the first round
    model: TrainConfig = TrainConfig.preset("tiny", steps=200)  # of the model, before each further one
    policy: TrainConfig = TrainConfig.preset("tiny", steps=150)  # of ensembles and policy, before each
    dreams: DreamConfig = DreamConfig.preset("tiny", replay=0.0)  # that the policy learns in
    actor: ActorCriticConfig = ActorCriticConfig.preset("tiny", entropy=3e-3)  # who plays


@dataclass(frozen=True)
class ExplorationConfig(Config):
    "How much is recorded, in how many rounds, and how much of it is left to chance"

    rounds: int = 4  # the first, of random play, among them
    steps: int = 6_000  # to record, over all rounds
    random: float = 0.3  # share of random steps in the rounds of the explorer
    mean_steps: float = 8.0  # how long a random action is held, on average
    games: int = 1  # how many games play at once
    seed: int = 0  # everything random follows from it

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": {}, "small": {"rounds": 10, "steps": 100_000}, "paper": {"rounds": 50, "steps": 1_000_000},
    }  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rounds <= self.steps or self.games < 1:
            raise UsageError(f"there are rounds, each has a step at least, and somebody plays: {self}")

class Exploration(Rounds):
    "A recording in rounds: random play, then an explorer that learns between them"

    kind, file = "exploration", "exploration.json"

    def __init__(
        self,
        game: str | gym.Env,  # a name for `make_game`, or a game that is made already
        store: str | Path,  # where all that is played is recorded
        folder: str | Path,  # for what is learned
        updates: CuriousUpdates,  # what is learned before a round
        config: ExplorationConfig | None = None,  # the defaults if not given
        settings: Mapping[str, Any] | None = None,  # for `make_game`, where the game has to be made
        compare: Callable[[Path], Mapping[str, Any]] | None = None,  # store -> values for the table
    ):
        self.game, self.store, self.updates, self.settings = game, Path(store), updates, dict(settings or {})
        self.config, self.compare = config or ExplorationConfig(), compare
        self.agent: Agent | None = None  # none before the first round is learned from
        self.explorer: Explorer | None = None
        about = {"game": game if isinstance(game, str) else game.unwrapped.name, **self.config.to_dict()}
        super().__init__(folder, self.config.rounds, about)
        self.seeds = spawn_seeds(self.config.seed, 2 * self.count)  # to play and to learn in each round

    def prepare(self) -> None:
        "Take up who played the last finished round, or has learned since, but not played yet"
        number = len(self.rows) if self._learned(len(self.rows)) else len(self.rows) - 1
        if number > 0:
            self.agent = Agent.load(self.place(number) / "agent", self.updates.load)
            self.explorer = self.updates.explorer(self.agent.model)
            self.explorer.load_state_dict(load_file(self.place(number) / "explorer.safetensors"))

    def play(
        self,
        number: int,  # of the round; the first is random play
    ) -> dict[str, Any]:  # policy, steps and episodes so far, and what `compare` gave
        "Learn, then record"
        policy: Any = "sticky_random"
        if number:
            if not self._learned(number):
                self.learn(number)
            assert self.agent is not None
            policy = StickyEpsilon(self.agent, self.config.random, self.config.mean_steps)
        about, steps = {"exploration": number}, share_out(self.config.steps, self.count)[number]
        begun = Store.exists(self.store) and any(e.about.get("exploration") == number for e in Store.open(self.store).episodes)
        done = record(
            self.game, self.store, policy, steps, seed=self.seeds[number] >> 1, games=self.config.games,
            settings=self.settings, about=about, resume=begun,
        )  # fmt: skip
        row = {"policy": "curious" if number else "sticky_random", "steps": done.total_steps, "episodes": done.total_episodes}
        return {**row, **(dict(self.compare(self.store)) if self.compare else {})}

    def learn(
        self,
        number: int,  # of the round that is to be played
    ) -> None:
        "Model, ensembles and policy learn from all that was recorded"
        updates, place, seed = self.updates, self.place(number), self.seeds[self.count + number]
        place.mkdir(parents=True, exist_ok=True)
        if self.agent is None or self.explorer is None:
            model = updates.begin(self.store, place, seed)
            seed_everything(seed)
            self.agent = Agent(model, ActorCritic(updates.actor, model.feature_size, model.actions))
            self.explorer = updates.explorer(model)
        model, training = self.agent.model, updates.first if number == 1 else updates.model
        _whole(fit(updates.learner(model), updates.data(model, self.store), place / "model", training.change(seed=seed)))
        curious = ExplorerLearner(model, self.explorer, self.agent.actor_critic, updates.dreams)
        _whole(fit(curious, updates.data(model, self.store), place / "policy", updates.policy.change(seed=seed)))
        with disk_errors(self.folder):
            save_file(self.explorer.state_dict(), place / "explorer.safetensors")
            self.agent.save(place / "agent")  # last: by it a learned round is known

    def tidy(
        self,
        number: int,  # of the round that has just been noted
    ) -> None:
        "Keep the last explorer, and no checkpoints"
        if number > 1:
            shutil.rmtree(self.place(number - 1) / "agent", ignore_errors=True)
            (self.place(number - 1) / "explorer.safetensors").unlink(missing_ok=True)
        for checkpoints in self.place(number).glob("**/checkpoints"):
            shutil.rmtree(checkpoints, ignore_errors=True)

    def _learned(self, number: int) -> bool:
        return (self.place(number) / "agent").exists()


def _whole(learner: Learner) -> None:
    "`KeyboardInterrupt` if the training was stopped before its last step: nothing that follows may be built on it"
    if learner.stopped:
        raise KeyboardInterrupt(f"training stopped at step {learner.steps_done} ({learner.stopped}); it can be gone on with")
