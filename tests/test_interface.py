"""The interface of world models is all that is used of them: declared attributes, small protocols, and nothing by name."""

import ast
import copy
from pathlib import Path

import gymnasium as gym
import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.utils.env_checker import check_env
from mutants import mutant
from torch import nn

from metabonk.act import curiosity
from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.act.finetune import FineTune, FineTuneConfig, ShortUpdates
from metabonk.act.objectives import PMPO
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.checks import CHECKS, check_world_model
from metabonk.dream.dynamics import DynamicsConfig, ShortcutModel
from metabonk.dream.interface import (
    DreamEnv,
    DreamVector,
    LogMelPredictor,
    Saveable,
    TokenPredictor,
    WorldModel,
    imagine,
    open_loop_rollout,
    pick_states,
)
from metabonk.dream.recurrent import RecurrentModel
from metabonk.dream.rssm import RSSMConfig
from metabonk.dream.token_model import TokenModel
from metabonk.measure.dreams import dream_video, free_dream_video
from metabonk.measure.moments import Moments, predict
from metabonk.measure.reality import LiveReality, play_and_compare, reality_check
from metabonk.nn.actions import ActionChoice
from metabonk.nn.distributions import Categorical
from metabonk.nn.noise import make_generators, uniform
from metabonk.record.cache import Cache
from metabonk.record.recorder import record
from metabonk.record.sampling import ExperienceData, SequenceConfig
from metabonk.record.store import Store

PACKAGE = Path(__file__).parent.parent / "metabonk"
SETTINGS = {"image_size": (32, 32), "sample_rate": 24000, "max_steps": 12}
PROTOCOLS = ("token_logits", "render", "logmel", "step_samples", "save", "load")


def asked_by_name(source: str) -> list[str]:
    """Calls that fetch something from a model, or from a part of one, by its name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "vars") and node.args:
            thing = ast.unparse(node.args[0])
            if any(word in thing for word in ("model", "latents", "tokenizer", "encoder", "rssm")):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", sorted((*PACKAGE.glob("act/*.py"), *PACKAGE.glob("measure/*.py"))), ids=lambda p: p.stem)
def test_nothing_is_fetched_from_a_model_by_name(path):
    assert asked_by_name(path.read_text()) == []


def test_what_is_fetched_by_name_is_found():
    "Negative control."
    assert asked_by_name('getattr(self.model, "look", None)\nhasattr(model, "x")\ngetattr(batch, "episode")') == [
        "getattr(self.model, 'look', None)", "hasattr(model, 'x')",
    ]  # fmt: skip


class Strict(WorldModel):
    """Sees how bright a quarter of the picture is; notes whatever is asked of it and is not declared."""

    feature_size, actions, game = 4, ActionSpec(categorical=(11,)), "bonk"
    allowed = {*dir(WorldModel), *WorldModel.__annotations__, "training", "asked", "weight", "__dict__"}
    asked: set[str] = set()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def __getattribute__(self, name):
        if name not in Strict.allowed and not name.startswith("_"):
            if name not in PROTOCOLS:
                Strict.asked.add(name)
            raise AttributeError(name)
        return super().__getattribute__(name)

    def observe(self, context, state=None, every=False, generator=None):
        seen = context.image.float().mean((-3, -2, -1))[..., None].expand(*context.first.shape, 4) / 255
        return {"seen": seen.flatten(0, 1) if every else seen[:, -1]}

    def advance(self, state, action, generator=None):
        return {"seen": 0.9 * state["seen"] + 0.1 * action[:, :4]}

    def features(self, state):
        return self.weight * state["seen"]

    def reward(self, features):
        return features.mean(-1)

    def continuation(self, features):
        return features[..., 0].sigmoid()

    def decode(self, state):
        shade = (255 * state["seen"][:, :1, None, None]).clamp(0, 255).to(torch.uint8)
        return {"image": shade.expand(-1, 32, 32, 3), "audio": torch.zeros(len(shade), 2, 1600, dtype=torch.int16)}


class Kept(Strict):
    """The same, and it can be saved."""

    allowed = Strict.allowed

    def __getattribute__(self, name):
        return nn.Module.__getattribute__(self, name) if name in ("save", "load") else super().__getattribute__(name)

    def save(self, folder):
        folder.mkdir()

    @classmethod
    def load(cls, folder):
        return cls()


@pytest.fixture
def recorded(tmp_path):
    record("bonk", tmp_path / "store", "random", episodes=3, settings=SETTINGS)
    data = ExperienceData(tmp_path / "store", SequenceConfig(length=8, batch_size=4))
    data.prepare_data()
    data.setup("fit")
    return tmp_path / "store", next(iter(data.train_dataloader()))


def test_a_model_with_nothing_but_what_is_declared_serves_everyone(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(Strict, "asked", set())
    (store, batch), model = recorded, Strict()
    agent = ActorCritic(ActorCriticConfig(units=8), 4, model.actions)
    states = model.observe(batch, every=True)
    imagine(model, agent.policy, states, 2)
    open_loop_rollout(model, pick_states(states, slice(0, 4)), model.actions.vectors(batch.action[:, :2]))
    env = DreamVector(model, states, 2)
    env.reset(seed=0)
    env.step(env.action_space.sample())
    DreamEnv(model, states).reset(seed=0)
    free_dream_video(model, agent.policy, pick_states(states, slice(0, 1)), 2, sample_rate=24000)
    dream_video(model, batch, batch, 3, 2, sample_rate=24000)
    reality_check(model, batch, 3, 2)
    predict(model, Moments(batch, np.full(4, "random")), 1)
    play_and_compare(Agent(model, agent), "bonk", settings=SETTINGS, live=LiveReality(model))
    DreamLearner(model, agent, DreamConfig(horizon=2)).losses(batch)
    explorer = curiosity.Explorer({"bright": curiosity.Plan2Explore(curiosity.CuriosityConfig(units=8), 4, 11, 4, latent="")})
    curiosity.ExplorerLearner(model, explorer, agent, DreamConfig(horizon=2, replay=0.0)).losses(batch)
    short = ShortUpdates(lambda store: ExperienceData(store, SequenceConfig(length=8, batch_size=2)),
                         policy=TrainConfig.preset("tiny", steps=2), dreams=DreamConfig(horizon=2))  # fmt: skip
    tune = FineTune(Agent(Kept(), agent), "bonk", store, tmp_path / "tuning", short, FineTuneConfig(rounds=1, episodes=1),
                    SETTINGS)  # fmt: skip
    assert len(tune.run()) == 2
    assert not Strict.asked, f"used, but declared nowhere in the interface: {sorted(Strict.asked)}"


def test_what_is_not_declared_is_noticed(monkeypatch):
    "Negative control."
    monkeypatch.setattr(Strict, "asked", set())
    with pytest.raises(AttributeError):
        Strict().tokenizers  # noqa: B018
    assert Strict.asked == {"tokenizers"}


def test_a_model_that_cannot_be_saved_says_so(tmp_path):
    model = Strict()
    agent = Agent(model, ActorCritic(ActorCriticConfig(units=8), 4, model.actions))
    with pytest.raises(UsageError, match="save"):
        agent.save(tmp_path / "agent")
    with pytest.raises(UsageError, match="load"):
        FineTune(agent, "bonk", tmp_path / "store", tmp_path / "tuning", lambda *_: None)
    assert not list(tmp_path.iterdir())


def test_the_models_have_what_their_protocols_say():
    for kind, has in ((TokenModel, (TokenPredictor, Saveable)), (ShortcutModel, (Saveable,)), (Strict, ())):
        assert [p for p in (TokenPredictor, Saveable) if issubclass(kind, p)] == list(has)
    assert {"render", "logmel"} <= set(dir(TokenModel)) and not isinstance(Strict(), LogMelPredictor)


# Chance

SETTERS = ("torch.manual_seed", "torch.set_rng_state", "torch.random.fork_rng", "torch.cuda.set_rng_state", "torch.seed")
MAY = {"core/seed.py", "core/checkpoints.py", "sense/alignment.py"}  # a seed, a resumed training, a control


def test_nobody_sets_the_global_random_generator():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found |= {str(path.relative_to(PACKAGE)): set(calls) & set(SETTERS)} if set(calls) & set(SETTERS) else {}
    assert set(found) == MAY, found


def small_models():
    """A recurrent model and a transformer, with states to begin in and actions to follow."""
    torch.manual_seed(0)
    spec = ActionSpec(categorical=(3,))
    for kind in ("categorical", "gumbel", "gaussian"):
        rssm = RecurrentModel(RSSMConfig(kind=kind), nn.Identity(), 4, {}, spec).eval()
        yield kind, rssm, {name: torch.randn(4, *x.shape[1:]) for name, x in rssm.rssm.initial(1).items()}
    code = CausalTokenizerConfig(size=(8, 8), patch=4, latents=2, bottleneck=3, width=16, layers=2, heads=2)
    config = DynamicsConfig(width=16, layers=2, heads=2, kv_heads=1, context=4, units=8)
    model = ShortcutModel(CausalTokenizer(code), spec, config).eval()
    yield "shortcut", model, model.start(4)


@pytest.mark.parametrize("which", range(4), ids=["categorical", "gumbel", "gaussian", "shortcut"])
def test_a_dream_beside_others_goes_as_it_would_go_alone(which):
    _, model, starts = list(small_models())[which]
    policy = lambda features: Categorical(torch.zeros(len(features), 3))  # noqa: E731
    together = imagine(model, policy, starts, 3, generator=make_generators([5, 6, 7, 8], torch.device("cpu")))
    for row, seed in enumerate((5, 6, 7, 8)):
        start = pick_states(starts, slice(row, row + 1))
        alone = imagine(model, policy, start, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(alone.action[0], together.action[row])
        torch.testing.assert_close(alone.features[0], together.features[row], atol=1e-4, rtol=1e-4)
    other = imagine(model, policy, starts, 3, generator=make_generators([9, 10, 11, 12], torch.device("cpu")))
    assert not torch.allclose(other.features[:, 1:], together.features[:, 1:])  # negative control: chance matters


@pytest.mark.parametrize("which", range(4), ids=["categorical", "gumbel", "gaussian", "shortcut"])
def test_dreaming_with_a_generator_leaves_the_global_one_alone(which):
    _, model, starts = list(small_models())[which]
    policy = lambda features: ActionChoice(torch.zeros(len(features), 2), ActionSpec(continuous=1))  # noqa: E731
    before = torch.get_rng_state()
    policy(torch.zeros(4, 1)).sample(torch.Generator().manual_seed(0))
    open_loop_rollout(model, starts, F.one_hot(torch.ones(4, 2, dtype=torch.long), 3).float(), generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)
    open_loop_rollout(model, starts, F.one_hot(torch.ones(4, 2, dtype=torch.long), 3).float())
    assert not torch.equal(torch.get_rng_state(), before)  # negative control: without one it is drawn from


# Modules are where PyTorch finds them


def hidden_modules(module):
    """Modules in lists, tuples, dictionaries and plain attributes of a module, where PyTorch does not look."""
    found = []
    for part in module.modules():
        known = {id(m) for m in module.modules()}
        for name, value in vars(part).items():
            if name in ("_modules", "_parameters", "_buffers") or name.startswith("_forward") or isinstance(value, L.Trainer):
                continue
            values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else [value]
            found += [f"{type(part).__name__}.{name}" for v in values if isinstance(v, nn.Module) and id(v) not in known]
    return found


def test_no_module_is_hidden():
    model, spec = Strict(), ActionSpec(categorical=(11,))
    agent = ActorCritic(ActorCriticConfig(units=8), 4, spec)
    network = nn.Conv2d(3, 4, 3)
    tokenizer = CausalTokenizer(CausalTokenizerConfig(size=(8, 8), patch=4, width=16, layers=2, heads=2), network)
    learners = [DreamLearner(model, agent), DreamLearner(model, agent, DreamConfig(replay=0.0), objective=PMPO(agent)), tokenizer,
                *(each for _, each, _ in small_models())]  # fmt: skip
    assert [hidden for learner in learners for hidden in hidden_modules(learner)] == []
    assert dict(learners[0].named_modules())["model"] is model and dict(tokenizer.named_modules())["perceptual"] is network
    holder = nn.Module()
    holder.kept = [network]
    assert hidden_modules(holder) == ["Module.kept"]  # negative control


def test_the_model_of_a_dream_is_given_back_as_it_was(recorded, tmp_path):
    model = Strict()
    agent = ActorCritic(ActorCriticConfig(units=8), 4, model.actions)
    before = model.weight.detach().clone()
    data = ExperienceData(recorded[0], SequenceConfig(length=8, batch_size=2))
    fit(DreamLearner(model, agent, DreamConfig(horizon=2)), data, tmp_path / "t", TrainConfig.preset("tiny", steps=2))
    assert torch.equal(model.weight, before) and model.weight.requires_grad and not model.training
    held = torch.load(tmp_path / "t/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith("model.") for name in held) and any(name.startswith("actor_critic.") for name in held)


def test_a_copy_of_a_captured_model_steps_with_its_own_weights():
    _, model, starts = next(small_models())
    model.capture()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    action, generator = F.one_hot(torch.ones(4, dtype=torch.long), 3).float(), torch.Generator()
    mine, theirs = (m.advance(starts, action, generator.manual_seed(0))["deter"] for m in (model, other))
    assert not torch.allclose(mine, theirs)
    torch.testing.assert_close(theirs, type(other).advance(other, starts, action)["deter"])


# Dreams as games


class Counter(WorldModel):
    """A state is a number, an action adds to it."""

    feature_size, actions = 1, ActionSpec(categorical=(3,))

    def features(self, state):
        return state["sum"].float()[:, None]

    def reward(self, features):
        return features[..., 0]

    def continuation(self, features):
        return (features[..., 0] < 5).float()

    def decode(self, state):
        count = len(state["sum"])
        return {"image": torch.zeros(count, 4, 4, 3, dtype=torch.uint8), "audio": torch.zeros(count, 1, 8, dtype=torch.int16)}


class Drunk(Counter):
    """Walks on by chance, too."""

    def advance(self, state, action, generator=None):
        return {"sum": state["sum"] + action.argmax(-1) + uniform((len(action),), state["sum"], generator)}


@pytest.mark.parametrize("which", range(5), ids=["counter", "categorical", "gumbel", "gaussian", "shortcut"])
def test_dreams_at_once_are_the_dreams_one_by_one(which):
    model, starts = (Drunk(), {"sum": torch.tensor([0.0, 1, 2])}) if not which else list(small_models())[which - 1][1:]
    seeds, actions = [5, 6, 7], np.random.default_rng(0).integers(0, 3, (9, 3))
    together = DreamVector(model, starts, 3, max_steps=3, ends_below=0.4)
    assert together.metadata["autoreset_mode"] == gym.vector.AutoresetMode.NEXT_STEP
    seen = [together.reset(seed=seeds)[1]["features"]]
    told = []
    for row in actions:
        observation, reward, ended, cut, info = together.step(row)
        assert together.observation_space.contains(observation) and reward.shape == ended.shape == cut.shape == (3,)
        seen.append(info["features"])
        told.append((reward, ended, cut))
    for place, seed in enumerate(seeds):
        alone, begins = DreamEnv(model, starts, max_steps=3, ends_below=0.4), False
        np.testing.assert_allclose(alone.reset(seed=seed)[1]["features"], seen[0][place], atol=1e-4)
        for t, row in enumerate(actions):
            if begins:  # whoever plays one game begins anew by hand
                info, reward, ended, cut = alone.reset()[1], 0.0, False, False
            else:
                _, reward, ended, cut, info = alone.step(int(row[place]))
            np.testing.assert_allclose(info["features"], seen[t + 1][place], atol=1e-4)
            assert (ended, cut) == (told[t][1][place], told[t][2][place])
            assert reward == pytest.approx(told[t][0][place], abs=1e-4)
            begins = ended or cut
    assert sum(cut.sum() for _, _, cut in told) > 0
    other = DreamVector(model, starts, 3)
    assert not np.allclose(other.reset(seed=[8, 9, 10])[1]["features"], seen[0]) or \
        not np.allclose(other.step(actions[0])[4]["features"], seen[1])  # negative control: seeds matter


@pytest.mark.parametrize(("old", "new"), [
    ("self.generators[i].set_state(chance)", "pass"), ("action, self.generators)", "action, self.generators[0])"),
    ("goes_on[before], reward[before] = 1.0, 0.0", "pass"), ("self._begin(before)", "pass"),
], ids=["draws before it begins", "one chance for all", "paid for beginning", "never begins"])  # fmt: skip
def test_dreams_that_disturb_each_other_are_caught(old, new, monkeypatch):
    "Negative controls."
    monkeypatch.setattr(DreamVector, "step", mutant(DreamVector.step, old, new))
    with pytest.raises(AssertionError):
        test_dreams_at_once_are_the_dreams_one_by_one(0)


def test_dreams_are_a_gymnasium_vector():
    starts = {"sum": torch.tensor([0.0, 1.0])}
    check_env(DreamEnv(Drunk(), starts), skip_render_check=True)
    dreams = gym.wrappers.vector.RecordEpisodeStatistics(DreamVector(Drunk(), starts, 4, max_steps=3))
    runs = []
    for _ in range(2):
        dreams.action_space.seed(0)
        observation, _ = dreams.reset(seed=3)
        assert dreams.observation_space.contains(observation) and observation["image"].shape == (4, 4, 4, 3)
        runs.append([dreams.step(dreams.action_space.sample())[1:] for _ in range(8)])
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(*runs, strict=True))
    assert any("episode" in step[3] for step in runs[0]) and len({float(x) for step in runs[0] for x in step[0]}) > 8
    unseeded = DreamVector(Drunk(), starts, 2)
    unseeded.reset(options={"start": 0})
    assert len(set(unseeded.step([0, 0])[1].tolist())) == 2  # places differ without a seed, too


def test_what_no_dream_can_do_is_said():
    starts = {"sum": torch.tensor([0.0, 1.0])}
    dreams = DreamVector(Drunk(), starts, 2)
    for wrong in (lambda: DreamVector(Drunk(), starts, 0), lambda: dreams.reset(seed=[1]), lambda: dreams.step([1]),
                  lambda: dreams.step([1, 3]), lambda: dreams.reset(options={"start": 2})):  # fmt: skip
        with pytest.raises(UsageError):
            wrong()


# ---------------------------------------------------------------- the checker of world models


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    record("bonk", folder, "random", episodes=2, settings=SETTINGS)
    return Cache.build(Store.open(folder)).gather([[(0, 8)], [(13, 21)]]).torch()


class Walker(Strict):
    """Remembers brightness with some noise: all that a right model may do."""

    def observe(self, context, state=None, every=False, generator=None):
        before = torch.zeros(len(context.first), 4) if state is None else state["seen"]
        rows = []
        for t in range(context.first.shape[1]):
            bright = context.image[:, t].float().mean((-3, -2, -1))[:, None] / 255
            before = 0.5 * before * ~context.first[:, t, None] + bright
            rows.append(before)
        return {"seen": torch.stack(rows, 1).flatten(0, 1) if every else before}

    def advance(self, state, action, generator=None):
        noise = uniform((len(action), 4), state["seen"], generator)
        return {"seen": 0.9 * state["seen"] + 0.1 * action[:, :4] + 0.01 * noise}


def forgets_nothing(self, context, state=None, every=False, generator=None):
    context = copy.copy(context)
    context.first = context.first & False
    return Walker.observe(self, context, state, every, generator)


def sees_ahead(self, context, state=None, every=False, generator=None):
    states = Walker.observe(self, context, state, every, generator)
    return {"seen": states["seen"] + context.reward.mean()}


def too_few(self, context, state=None, every=False, generator=None):
    return Walker.observe(self, context, state, False, generator)


def in_place(self, state, action, generator=None):
    state["seen"] *= 0.9
    return Walker.advance(self, state, action, generator)


def together(self, state, action, generator=None):
    after = Walker.advance(self, state, action, generator)
    return {"seen": after["seen"] - after["seen"].mean(0)}


def by_chance(self, state, action, generator=None):
    return {"seen": state["seen"] + torch.rand_like(state["seen"])}


def narrower(self, state, action, generator=None):
    return {"seen": Walker.advance(self, state, action, generator)["seen"].double()}


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({}, set()),
        ({"observe": forgets_nothing}, {"an episode forgets the last"}),
        ({"observe": sees_ahead}, {"no row sees the next"}),
        ({"observe": too_few}, {"a row a sequence"}),
        ({"advance": in_place}, {"a step changes nothing in place"}),
        ({"advance": together}, {"sequences are read alone"}),
        ({"advance": by_chance}, {"chance is handed down"}),
        ({"advance": narrower}, {"a step keeps the shape"}),
        ({"feature_size": 0}, {"sizes"}),
        ({"continuation": lambda self, features: features[..., 0] + 2}, {"judgements"}),
        ({"decode": lambda self, state: {"image": torch.zeros(len(state["seen"]), 3, 8, 8)}}, {"observations"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_checker_finds_each_planted_mistake(rows, planted, found):
    model = type("Planted", (Walker,), {**planted, "allowed": {*Walker.allowed, *planted}})()
    table = check_world_model(model, rows)
    wrong = set(table.index[table.result != "fine"])
    assert found <= wrong and bool(found) == bool(wrong), table.result.to_dict()
    assert len(table) == len(CHECKS)


def test_the_checker_tells_of_an_exception_and_goes_on(rows):
    model = type("Broken", (Walker,), {"decode": lambda self, state: state["nothing"]})()
    assert check_world_model(model, rows).result["observations"] == "KeyError: 'nothing'"
