"""Numbers that a game observes, from the game through the recording into a world model, and back to the game"""

import pytest
import torch

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.agent import Agent, RawSenses
from metabonk.core.errors import UsageError
from metabonk.core.training import TrainConfig, fit
from metabonk.dream.interface import imagine
from metabonk.dream.token_model import TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.nn.distributions import symlog
from metabonk.play.game import make_game
from metabonk.record.recorder import record
from metabonk.record.sampling import SequenceConfig
from metabonk.record.store import Store
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.tokens import TokenBatch, TokenData, Tokenizers

pytestmark = pytest.mark.filterwarnings("ignore")
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
