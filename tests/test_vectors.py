"""Numbers that a game observes, from the game through the recording into a world model, and back to the game"""

import dataclasses
import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, RawSenses
from metabonk.core.errors import UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.training import fit
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig, CausalTokenizerLearner
from metabonk.dream.clips import Clip, ClipData
from metabonk.dream.codes import CodeData
from metabonk.dream.dynamics import DynamicsConfig, DynamicsLearner, ShortcutModel
from metabonk.dream.interface import DreamEnv, DreamVector, imagine, pick_states
from metabonk.dream.shortcut import ShortcutConfig
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.measure.clips import restored
from metabonk.nn.distributions import symlog
from metabonk.play.game import make_game
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.tokens import TokenBatch, TokenData, Tokenizers

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("vectors")]
GAME, SETTINGS = "gym:CartPole-v1", {"image_size": (8, 8)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A world model of the cart, the batch that it has seen last, and its first and last losses"
    folder = tmp_path_factory.mktemp("cart")
    record(GAME, folder / "s", steps=400, seed=1, settings=SETTINGS)
    torch.manual_seed(0)
    eyes = PictureTokenizer(PictureConfig(size=(8, 8), grid=(2, 2), codes=4))
    tokenizers = Tokenizers(eyes, None, None, GAME)
    data = TokenData(folder / "s", tokenizers, SequenceConfig(length=8, batch_size=16))
    data.prepare_data()
    data.setup()
    schema = Store.open(folder / "s").schema
    config = TokenModelConfig(size="tiny", embed=32, units=32, vector=schema.vector)
    model = TokenModel(config, tokenizers, schema.actions, game=schema.game)
    batch = next(iter(data.train_dataloader()))
    before = model.losses(batch)[0]["vector"].mean()
    fit(WorldModelLearner(model), data, folder / "t", TrainConfig(steps=150, lr=3e-3, warmup=10))
    return model.eval(), batch, float(before), folder


def error(model, batch, read=None):
    "How far off the numbers are, where the model reads those of `read`"
    with torch.no_grad():
        features = model.features(model.read(read or batch))
    return float(model.decoders["vector"].loss(features, batch).mean())


def change(batch, **columns):
    return TokenBatch(**{**vars(batch), **columns})


def test_a_world_model_learns_the_numbers_that_it_reads(trained):
    model, batch, before, _ = trained
    assert batch.vector.shape == (16, 8, 4) and model.vector_size == 4
    after = error(model, batch)
    assert after < 0.5 * before
    shuffled = change(batch, vector=batch.vector.flip(0))
    assert error(model, shuffled, read=batch) > 1.5 * after  # those of other sequences are not expected
    assert error(model, batch, read=shuffled) > 1.25 * after  # and what is read is what counts
    assert error(model, batch, read=change(batch, vector=None)) > 1.1 * after


def test_gradients_reach_what_reads_the_numbers(trained):
    model, batch, _, _ = trained
    model.total(model.losses(batch)[0]).backward()
    grads = [parameter.grad.abs().sum() for parameter in model.encoder.numbers.parameters()]
    assert len(grads) > 4 and all(grad > 0 for grad in grads)
    model.zero_grad()


def test_the_loss_is_half_the_squared_error_of_symlogs(trained):
    model, batch, _, _ = trained
    features = torch.randn(16, 8, model.feature_size)
    head = model.decoders["vector"]
    wanted = ((head.trunk(features) - symlog(batch.vector)) ** 2).sum(-1) / 2
    assert torch.allclose(head.loss(features, batch), wanted)
    assert torch.allclose(symlog(model.numbers(features)), head.trunk(features), atol=1e-4)


def test_an_agent_plays_and_dreams_with_numbers(trained):
    model, _, _, _ = trained
    agent = Agent(model, ActorCritic(ActorCriticConfig.preset("tiny"), model.feature_size, model.actions))
    game = make_game(GAME, **SETTINGS)
    agent.check(game)
    observation, info = game.reset(seed=5)
    for _ in range(4):
        observation, *_, info = game.step(agent(observation, info))
    state, heard = agent.state, []

    def senses(seen):
        heard.append(agent.senses(seen))
        return heard[-1]

    for factor in (1, 9):
        seen = {**observation, "vector": factor * observation["vector"]}
        agent.decide(senses, [seen], [0], [False], state)
    rows = heard[0]
    assert (rows.vector.numpy() == observation["vector"]).all() and rows.vector.shape == (1, 1, 4)
    assert not torch.allclose(model.encoder(rows), model.encoder(heard[1]))
    dream = imagine(model, agent.actor_critic.policy, state, 3, keep_states=True)
    assert model.numbers(dream.features).shape == (1, 4, 4)
    with pytest.raises(UsageError, match="observes 0 numbers, the agent reads 4"):
        agent.check(make_game(GAME, **SETTINGS, vector=False))
    with pytest.raises(UsageError, match="a vector of 3 numbers"):
        model.read(change(rows, vector=rows.vector[..., :3]))
    together = {"image": observation["image"][None], "audio": [observation["audio"]], "vector": observation["vector"][None]}
    raw = RawSenses(1)(together)
    assert raw.vector.shape == (1, 1, 4)


def test_a_model_without_numbers_reads_such_a_recording(trained):
    model, batch, _, folder = trained
    plain = TokenModel(model.token_config.change(vector=0), model.tokenizers, model.actions, game=model.game)
    assert "vector" not in plain.losses(batch)[0]
    assert TokenModel.load(model.save(folder / "m")).vector_size == 4


class Lamp(gym.Env):
    "A dark room with a lamp that only the second of three numbers tells; a row in which it shines is paid"

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space, action_space = gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def _numbers(self):
        self.lamp = self.np_random.choice([-3, 3])
        return np.array([self.np_random.normal(), self.lamp, 7], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._numbers(), {}

    def step(self, action):
        return self._numbers(), float(self.lamp > 0), False, False, {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


SEQUENCES = SequenceConfig(length=6, batch_size=16)
KINDS = ("tokens", "shortcut")


def prepared(data):
    data.prepare_data()
    data.setup()
    return data, next(iter(data.train_dataloader()))


def learn_tokens(folder, schema):
    eyes = PictureTokenizer(PictureConfig(size=(8, 8), grid=(2, 2), codes=4))
    tokenizers = Tokenizers(eyes, None, None, schema.game)
    data, batch = prepared(TokenData(folder / "s", tokenizers, SEQUENCES))
    config = TokenModelConfig(size="tiny", embed=32, units=32, vector=schema.vector)
    model = TokenModel(config, tokenizers, schema.actions, game=schema.game)
    fit(WorldModelLearner(model), data, folder / "t", TrainConfig(steps=300, lr=3e-3, warmup=10))
    return model, batch


BOTH = {"width": 32, "layers": 2, "heads": 2, "time_every": 2, "context": 5}


def learn_shortcut(folder, schema):
    code = CausalTokenizerConfig(size=(8, 8), latents=2, mask_ratio=0.2, vector=schema.vector, **BOTH)
    tokenizer = CausalTokenizer(code)
    data, batch = prepared(ClipData(folder / "s", None, SEQUENCES))
    tokenizer.start_from(batch)
    fit(CausalTokenizerLearner(tokenizer), data, folder / "k", TrainConfig(steps=150, lr=4e-3, warmup=10))
    tokenizer.eval().normalise_latents(batch)
    codes, _ = prepared(CodeData(folder / "s", tokenizer, None, SEQUENCES))
    config = DynamicsConfig(**BOTH, registers=1, kv_heads=1, units=32, distances=1)
    model = ShortcutModel(tokenizer, schema.actions, config, ShortcutConfig(finest=8), schema.game)
    fit(DynamicsLearner(model), codes, folder / "d", TrainConfig(steps=200, lr=3e-3, warmup=10))
    return model, batch


@pytest.fixture(scope="module", params=KINDS)
def lamp(request, tmp_path_factory):
    "A model of each kind that learned the lamp, and rows that it can read"
    folder = tmp_path_factory.mktemp("lamp")
    if "Test/Lamp-v0" not in gym.registry:
        gym.register("Test/Lamp-v0", Lamp, max_episode_steps=12)
    record("gym:Test/Lamp-v0", folder / "s", steps=400, seed=1, settings=SETTINGS)
    torch.manual_seed(0)
    learn = {"tokens": learn_tokens, "shortcut": learn_shortcut}[request.param]
    model, batch = learn(folder, Store.open(folder / "s").schema)
    return model.eval(), batch, folder


def with_columns(batch, **columns):
    return dataclasses.replace(batch, **columns)


@torch.no_grad()
def reward_error(model, batch):
    states = model.observe(batch, every=True)
    told = model.reward(model.features(states)).view(batch.first.shape)
    return float((told - batch.reward)[~batch.first].square().mean().sqrt())


def test_the_predicted_reward_follows_the_numbers(lamp):
    model, batch, _ = lamp
    assert model.vector_size == 3 and batch.vector.shape == (16, 6, 3)
    assert reward_error(model, batch) < 0.3
    assert reward_error(model, with_columns(batch, vector=batch.vector.flip(0))) > 0.45  # those of other sequences


def test_decode_gives_the_numbers_as_the_game_does(lamp):
    model, batch, _ = lamp
    vector = model.decode(model.observe(batch, every=True))["vector"]
    assert vector.dtype == torch.float32 and vector.shape == (96, 3)
    lamp, seen = batch.vector[..., 1].flatten(), vector[:, 1]
    assert (seen - lamp).abs().median() < 1 and (vector[:, 2] - 7).abs().median() < 1  # not their symlogs, 1.4 and 2.1
    assert (seen - lamp.flip(0)).abs().mean() > 2  # the control


def test_a_dream_shows_the_numbers_and_an_agent_plays_in_it_as_in_the_game(lamp):
    model, batch, _ = lamp
    starts = model.observe(batch)
    game, dream = make_game("gym:Test/Lamp-v0", **SETTINGS), DreamEnv(model, starts, max_steps=5)
    space = dream.observation_space["vector"]
    assert space == game.observation_space["vector"] and space.dtype == np.float32
    agent = Agent(model, ActorCritic(ActorCriticConfig.preset("tiny"), model.feature_size, model.actions))
    agent.check(game)
    for env in (game, dream):
        agent.reset(0)
        observation, info = env.reset(seed=3)
        for _ in range(4):
            assert observation in env.observation_space
            action = agent(observation, info)
            observation, *_, info = env.step(action)
    together = DreamVector(model, starts, 2)
    seen, _ = together.reset(seed=1)
    assert seen in together.observation_space and seen["vector"].shape == (2, 3)


def test_what_a_dream_shows_is_read_back_as_it_was_meant(lamp):
    model, batch, _ = lamp
    told = {}
    for bright in (False, True):
        chosen = (batch.vector[:, -1, 1] > 0) == bright
        observation, _ = DreamEnv(model, pick_states(model.observe(batch), chosen)).reset(seed=0)
        rows = model.senses(1)({"image": observation["image"][None], "vector": observation["vector"][None]})
        rows = with_columns(rows, action=torch.zeros(1, 1, dtype=torch.int64), first=torch.zeros(1, 1, dtype=torch.bool))
        state = model.observe(rows, pick_states(model.observe(batch), slice(0, 1)))
        told[bright] = float(model.reward(model.features(state)))
    assert told[True] > told[False] + 0.5


def test_numbers_of_another_game_are_refused(lamp):
    model, batch, _ = lamp
    with pytest.raises(UsageError, match="vector of.*3") as refused:
        model.observe(with_columns(batch, vector=batch.vector[..., :2]))
    assert "2" in str(refused.value) and "\n" not in str(refused.value)
    seen = {"image": np.zeros((1, 8, 8, 3), np.uint8), "vector": np.zeros((1, 4), np.float32)}
    rows = with_columns(model.senses(1)(seen), first=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(UsageError, match="vector of"):
        model.observe(rows)


def test_a_model_that_reads_numbers_is_saved_and_loaded(lamp, tmp_path):
    model, batch, _ = lamp
    again = type(model).load(model.save(tmp_path / "m"))
    assert again.vector_size == 3
    state = model.observe(batch, generator=torch.Generator().manual_seed(0))
    assert again.decode(state)["vector"].equal(model.decode(state)["vector"])


def build(kind, schema):
    if kind == "tokens":
        eyes = PictureTokenizer(PictureConfig(size=(8, 8), grid=(2, 2), codes=4))
        tokenizers = Tokenizers(eyes, None, None, schema.game)
        return TokenModel(TokenModelConfig(size="tiny", embed=32, units=32), tokenizers, schema.actions)
    tokenizer = CausalTokenizer(CausalTokenizerConfig(size=(8, 8), latents=2, **BOTH))
    return ShortcutModel(tokenizer, schema.actions, DynamicsConfig(**BOTH, registers=1, kv_heads=1, units=32))


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_were_saved_before_there_were_numbers_load(kind, trained, tmp_path):
    schema = Store.open(trained[3] / "s").schema
    model = build(kind, schema).eval()
    about = json.loads((model.save(tmp_path / "m") / "model.json").read_text())
    for config in ("config", "tokenizer"):
        about[config] = {name: value for name, value in about.get(config, {}).items() if not name.startswith("vector")}
    (tmp_path / "m/model.json").write_text(json.dumps(about))
    again = type(model).load(tmp_path / "m")
    ours = model.state_dict()
    assert not any("vector" in name or "numbers" in name for name in ours) and again.vector_size == 0
    assert all(tensor.equal(ours[name]) for name, tensor in again.state_dict().items())


def test_a_model_of_pictures_reads_a_recording_with_numbers(trained):
    schema = Store.open(trained[3] / "s").schema
    _, batch = prepared(ClipData(trained[3] / "s", None, SEQUENCES))
    model = build("shortcut", schema).eval()
    assert batch.vector.shape == (16, 6, 4)
    assert set(model.decode(model.observe(batch))) == {"image"}
    assert set(DreamEnv(model, model.observe(batch)).observation_space) == {"image"}


BODIES = {"transformer": {}, "plain": {"plain": True}, "local": {"local": True, "latents": 4}}


def numbers_clip():
    "19 numbers, each on a scale of its own"
    torch.manual_seed(0)
    scale = 10 ** torch.linspace(-1.5, 4, 19)
    image = torch.zeros(8, 4, 8, 8, 3, dtype=torch.uint8)
    return Clip(image=image, vector=scale * torch.randn(8, 4, 19))


def numbers_tokenizer(**body):
    config = CausalTokenizerConfig(size=(8, 8), vector=19, mask_ratio=0.0, **{"latents": 3, **body})
    torch.manual_seed(0)
    return CausalTokenizer(config)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_every_tokenizer_reads_and_restores_vectors_of_any_width(body):
    clip, tokenizer = numbers_clip(), numbers_tokenizer(**body)
    patches = tokenizer.patches(clip)
    assert patches["vector"].shape == (8, 4, 3, 8) and tokenizer.config.patches == 4
    assert torch.allclose(tokenizer.render(patches)["vector"], clip.vector, rtol=1e-4)
    before = tokenizer.encode(clip)
    for number in (0, 10, 18):
        moved = clip.vector.clone()
        moved[..., number] *= -1
        assert not torch.allclose(before, tokenizer.encode(with_columns(clip, vector=moved)))
    tokenizer.start_from(clip)
    tokenizer.losses(clip)["vector"].mean().backward()
    for part in (tokenizer.embed, tokenizer.restore):
        assert part["vector"].weight.grad.abs().sum() > 0


def test_each_number_counts_in_its_own_spread():
    clip, tokenizer = numbers_clip(), numbers_tokenizer().eval()
    tokenizer.start_from(clip)
    patches = tokenizer.patches(clip)
    usual, spread = tokenizer.usual_vector, tokenizer.spread_vector
    of_symlog = symlog(clip.vector)
    assert torch.allclose(usual.flatten()[:19], of_symlog.mean((0, 1)), atol=1e-5)
    assert torch.allclose(spread.flatten()[:19], of_symlog.std((0, 1), unbiased=False), rtol=1e-3)
    wrong = []
    for number in (0, 18):  # one spread off in one number
        off = {name: x.clone() for name, x in patches.items()}
        off["vector"].flatten(2)[..., number] += spread.flatten()[number]
        tokenizer.decode = lambda z, first, off=off: off
        wrong.append(tokenizer.losses(clip)["vector"])
    for loss in wrong:  # nothing was learned yet: the running size is the floor
        assert torch.allclose(loss, torch.full((8, 4), 1 / 19 / tokenizer.config.rms_floor), rtol=1e-3)


def test_restored_numbers_are_measured():
    clip, tokenizer = numbers_clip(), numbers_tokenizer().eval()
    tokenizer.start_from(clip)
    table = restored(tokenizer, clip)
    off = symlog(clip.vector) - symlog(clip.vector).mean((0, 1))
    assert table.rmse["what is usual"] == pytest.approx(float(off.square().mean().sqrt()), rel=1e-3)
