"""The world model of tokens: every choice it offers, what it keeps on disk, and what it says to bad input."""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mutants import mutant

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.act.dreaming import DreamConfig, DreamLearner
from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, TrainingStopped, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.optimizer import LaProp
from metabonk.core.seed import spawn_seeds
from metabonk.core.training import fit
from metabonk.dream.fusion import TokenEncoder, fusions
from metabonk.dream.interface import imagine
from metabonk.dream.latents import kinds
from metabonk.dream.token_heads import TokenHead, _TokenCrossEntropy
from metabonk.dream.token_model import KeptStates, TokenModel, TokenModelConfig, WorldModelLearner
from metabonk.sense.logmel import LogMelConfig
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokens import TokenBatch, Tokenizers

SMALL = {"size": "tiny", "embed": 32, "units": 32}


def tokenizers(picture: bool = True, sound: bool = True) -> Tokenizers:
    """Eyes of 2 x 2 cells and ears of two frames, never trained."""
    torch.manual_seed(0)
    eyes = PictureTokenizer(PictureConfig(size=(8, 8), grid=(2, 2), codes=4)) if picture else None
    ears = SoundTokenizer(SoundConfig(channels=1, frames=2, bands=32, tokens=2, codes=4)) if sound else None
    logmel = LogMelConfig.preset("tiny", sample_rate=8_000, frames_per_step=2) if sound else None
    return Tokenizers(eyes, ears, logmel, "light")


def rows(count: int = 4, time: int = 6, seed: int = 0) -> TokenBatch:
    """A light that goes round four cells unless action 1 holds it; a ding and a reward when it passes the first."""
    generator = torch.Generator().manual_seed(seed)
    action = (torch.rand(count, time, generator=generator) < 0.3).long()
    place = (torch.randint(4, (count, 1), generator=generator) + (1 - action).cumsum(1)) % 4
    ding = (place == 0) & (action == 0)
    image = torch.zeros(count, time, 4, dtype=torch.long).scatter_(2, place[..., None], 1)
    no = torch.zeros(count, time, dtype=torch.bool)
    first = no.clone()
    first[:, 0] = True
    return TokenBatch(image, ding.long()[..., None].expand(count, time, 2).clone(), action, ding.float(), no, no, first)


def build(given: Tokenizers | None = None, actions: ActionSpec = ActionSpec(categorical=(2,)), **choices) -> TokenModel:  # noqa: B008
    torch.manual_seed(1)
    return TokenModel(TokenModelConfig(**{**SMALL, **choices}), given or tokenizers(), actions, step_samples=533.0)


CHOICES = [*itertools.product(fusions, ["categorical"]), *itertools.product(["concat"], kinds)]


@pytest.mark.parametrize(("fusion", "latents"), CHOICES)
def test_every_fusion_and_every_kind_of_latents_learns(fusion, latents):
    model = build(fusion=fusion, latents=latents)
    optimizer = LaProp([p for p in model.parameters() if p.requires_grad], lr=3e-3, warmup=5)
    totals = []
    for step in range(25):
        losses, _ = model.losses(rows(16, 8, step))
        total = model.total(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert sum(totals[-3:]) < 0.75 * sum(totals[:3])
    trained = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    untouched = {name for name, p in model.named_parameters() if p.requires_grad} - trained
    assert all(name.startswith("encoder.absent") for name in untouched), untouched


def test_the_tokenizers_are_never_trained():
    model = build()
    assert not any(p.requires_grad for p in model.tokenizers.parameters())
    model.train()
    assert not model.tokenizers.training


def test_the_loss_in_pieces_is_the_plain_cross_entropy(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(_TokenCrossEntropy, "piece", 40)  # several pieces, the last one short
    vectors, table, bias = torch.randn(7, 3, 4).double(), torch.randn(5, 4).double(), torch.randn(3, 5).double()
    target = torch.randint(5, (7, 3))
    given = [t.requires_grad_() for t in (vectors, table, bias)]
    plain = F.cross_entropy((vectors @ table.T + bias).flatten(0, 1), target.flatten(), reduction="none").view(7, 3)
    torch.testing.assert_close(_TokenCrossEntropy.apply(*given, target), plain)
    assert torch.autograd.gradcheck(lambda *t: _TokenCrossEntropy.apply(*t, target), given)


def test_a_head_starts_from_what_is_usual():
    head = TokenHead("image", 8, 2, 3)
    head.start_from(torch.tensor([[0, 2], [0, 1], [0, 1], [0, 1]]))
    chances = head.bias.softmax(-1)
    torch.testing.assert_close(chances[0], torch.tensor([4.5, 0.5, 0.5]) / 5.5)
    torch.testing.assert_close(chances[1], torch.tensor([0.5, 3.5, 1.5]) / 5.5)


def test_a_hidden_sense_is_hidden_and_the_other_is_not():
    model, batch = build().eval(), rows()
    blind = TokenBatch(**{**vars(batch), "image": None})
    other = TokenBatch(**{**vars(batch), "image": batch.image.flip(0)})
    same = model.encoder(blind)
    assert not torch.equal(same, model.encoder(batch))
    assert not torch.equal(model.encoder(other), model.encoder(batch))
    model.encoder.train()
    model.encoder.dropout = {"image": 1.0}
    torch.testing.assert_close(model.encoder(other), same)  # the picture is gone, whichever it was


def test_every_sense_is_there_when_nothing_is_trained(monkeypatch):
    "Negative control: fusion that drops senses in evaluation, too."
    model, batch = build().eval(), rows()
    model.encoder.dropout = {"image": 1.0, "audio": 1.0}
    vectors = model.encoder.embed(batch)
    for name in ("image", "audio"):
        table, place = model.encoder.tables[name].weight, model.encoder.places[name]
        assert vectors[name].equal(table[getattr(batch, name)] + place)
    wrong = mutant(TokenEncoder.embed, "self.training and self.dropout.get(name)", "self.dropout.get(name)")
    monkeypatch.setattr(TokenEncoder, "embed", wrong)
    assert not model.encoder.embed(batch)["image"].equal(vectors["image"])


def test_early_late_and_concat_meet_where_they_say():
    sizes, batch = {"image": (4, 4), "audio": (2, 4)}, rows()
    other = TokenBatch(**{**vars(batch), "audio": 1 - batch.audio})

    def changed(fusion: str) -> torch.Tensor:
        encoder = TokenEncoder(sizes, 8, fusion)
        return (encoder(batch) != encoder(other)).flatten(0, 1).any(0)

    assert changed("concat").tolist() == [False] * 4 + [True] * 4  # the picture's half knows nothing of the sound
    assert changed("cross").all() and changed("early").all() and changed("late").all()


def test_one_sense_alone():
    for senses, given, names in [("picture", tokenizers(), ("image",)), ("sound", tokenizers(), ("audio",)),
                                 ("both", tokenizers(sound=False), ("image",))]:
        model = build(given, senses=senses)
        assert tuple(model.encoder.sizes) == names
        losses, states = model.losses(rows())
        assert set(names) == {"image", "audio"} & losses.keys()
        assert set(model.token_logits(model.features(states))) == set(model.render(model.observe(rows()))) == set(names)
    with pytest.raises(UsageError, match="no audio"):
        build(tokenizers(sound=False), senses="sound")


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model = build(fusion="cross").eval()
    again = TokenModel.load(model.save(tmp_path / "model"))
    assert again.game == "light" and not again.training
    state = model.observe(rows())
    policy = lambda features: torch.distributions.OneHotCategorical(logits=torch.zeros(len(features), 2))  # noqa: E731
    dreams = []
    for one in (model, again):
        torch.manual_seed(3)
        dreams.append(imagine(one, policy, state, 5))
    assert torch.equal(dreams[0].features, dreams[1].features) and torch.equal(dreams[0].reward, dreams[1].reward)
    seen = again.decode(state)
    assert seen["image"].shape == (4, 8, 8, 3) and seen["audio"].shape == (4, 1, 533)


def test_a_damaged_or_foreign_folder_says_so(tmp_path):
    with pytest.raises(FolderError, match="holds no world model"):
        TokenModel.load(tmp_path)
    folder = build().save(tmp_path / "model")
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**about, "actions": {"categorical": [3]}}))
    with pytest.raises(FolderError, match="does not fit its own description"):
        TokenModel.load(folder)
    (folder / "model.json").write_text(json.dumps(about))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(FolderError, match="damaged"):
        TokenModel.load(folder)


@pytest.mark.parametrize(("old", "spec"), [
    ({"action_size": 2, "discrete": True}, ActionSpec(categorical=(2,))),
    ({"action_size": 2, "discrete": False}, ActionSpec(continuous=2)),
])
def test_models_saved_with_former_names_open(tmp_path, old, spec):
    folder = build().save(tmp_path / "model")
    about = json.loads((folder / "model.json").read_text())
    del about["actions"]
    (folder / "model.json").write_text(json.dumps({**about, **old}))
    assert TokenModel.load(folder).actions == spec


def test_choices_are_not_read_as_controls():
    """A class of a choice is one-hot in what the model reads, beside keys and controls."""
    spec = ActionSpec(binary=1, categorical=(3, 4), continuous=1)
    model, batch, read = build(actions=spec), rows(), []
    batch.action = torch.tensor([1, 2, 3, 0.5]).expand(*batch.first.shape, 4)
    model.rssm.observe = lambda tokens, action, *rest: read.append(action) or {}  # what the network is given
    with torch.no_grad():
        model.read(batch.map(lambda column: column[:, :1]))
    assert read[0][0, 0].tolist() == [1, 0, 0, 1, 0, 0, 0, 1, 0.5]


def test_tokens_of_another_tokenizer_and_actions_of_another_game_say_so():
    model, batch = build(), rows()
    with pytest.raises(UsageError, match="4 tokens|built for 4"):
        model.losses(TokenBatch(**{**vars(batch), "image": batch.image[..., :3]}))
    with pytest.raises(UsageError, match="goes from 0 to 5"):
        model.losses(TokenBatch(**{**vars(batch), "action": batch.action * 0 + torch.tensor([0, 5, 0, 0, 0, 0])}))


def test_a_loss_that_is_not_a_number_stops_the_training_and_is_named(tmp_path):
    batch = rows()
    bad = TokenBatch(**{**vars(batch), "reward": batch.reward * torch.nan})
    with pytest.raises(TrainingStopped, match="'reward'"):
        fit(WorldModelLearner(build()), [batch, batch, bad], tmp_path, TrainConfig(steps=5, warmup=0))


def test_a_checkpoint_of_another_game_does_not_fit(tmp_path):
    fit(WorldModelLearner(build()), [rows()], tmp_path, TrainConfig(steps=1))
    other = build()
    other.game = "dark"
    with pytest.raises(FolderError, match="game"):
        fit(WorldModelLearner(other), [rows()], tmp_path, TrainConfig(steps=2))


def test_gumbel_latents_cool_with_training(tmp_path):
    learner = WorldModelLearner(build(latents="gumbel"))
    before = float(learner.model.rssm.latents.temperature)
    fit(learner, [rows()], tmp_path, TrainConfig(steps=3, warmup=0))
    assert float(learner.model.rssm.latents.temperature) < before


def test_the_prior_loss_teaches_the_prior_what_will_be_seen():
    """Without it the prior learns from the latents alone; with it, from the tokens and the reward of each row too."""
    batch = rows()

    def taught_by(model: TokenModel, loss: str) -> bool:
        model.zero_grad()
        model.losses(batch)[0][loss].sum().backward()
        return any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.rssm.prior.parameters())

    assert "prior" not in build().losses(batch)[0]
    model = build(prior_loss=0.5)
    assert model.scales["prior"] == 0.5
    assert not taught_by(model, "image") and taught_by(model, "prior")
    torch.nn.init.normal_(model.reward_head[-1].bias)  # a head that expects something, so that it can be wrong
    asked = []
    for reward in (batch.reward, 5 * batch.reward):
        torch.manual_seed(2)
        asked.append(model.losses(TokenBatch(**{**vars(batch), "reward": reward}))[0]["prior"].mean())
    assert asked[0] != asked[1]  # the reward counts in it


def test_the_prior_is_asked_after_a_while_and_always_where_nothing_is_trained(monkeypatch):
    """Negative control: a learner that forgets which step it is in."""

    def foreseen(steps_done: int, train: bool = True) -> float:
        learner = WorldModelLearner(build(prior_loss=0.5), prior_loss_after=3).train(train)
        learner.steps_done = steps_done
        return float(learner.losses(rows())["prior"].detach().sum())

    def late() -> bool:
        return foreseen(2) == 0 and foreseen(3) > 1 and foreseen(0, train=False) > 1

    assert late() and WorldModelLearner(build()).capturable and not WorldModelLearner(build(), prior_loss_after=1).capturable
    monkeypatch.setattr(
        WorldModelLearner, "losses", mutant(WorldModelLearner.losses, "self.steps_done >= self.prior_loss_after", "True")
    )
    assert not late()


def test_latents_are_as_many_as_are_asked_for():
    model = build(latents="gaussian", latent_size=7)
    assert model.rssm.latents.size == 7 and model.losses(rows())[1]["stoch"].shape[-1] == 7
    assert build(latents="categorical", latent_size=3).rssm.latents.size % 3 == 0
    assert TokenModelConfig.from_dict({"size": "play"}).latent_size == 0, "models that were saved before"


@pytest.mark.parametrize(("fusion", "latents"), CHOICES)
def test_half_precision_changes_little(fusion, latents):
    model, found = build(fusion=fusion, latents=latents, prior_loss=0.5), []
    for mixed in (False, True):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses, _ = model.losses(rows())
        found.append(model.total({name: loss.float() for name, loss in losses.items()}))
    found[1].backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    assert found[0].item() != found[1].item() and found[1].item() == pytest.approx(found[0].item(), rel=0.01)


class Looking(WorldModelLearner):
    """Asks whether anything was earned before it goes on."""

    def losses(self, batch):
        return super().losses(batch) if batch.reward.any() else {}


@pytest.mark.parametrize(("fusion", "latents"), CHOICES)
def test_a_step_can_be_captured_since_it_never_looks_at_a_number(fusion, latents):
    batch = rows().map(lambda x: x.to("meta"))  # where there are no numbers
    for kind in (WorldModelLearner, Looking):
        learner = kind(build(fusion=fusion, latents=latents, prior_loss=0.5)).to("meta")
        optimizer = LaProp([p for p in learner.parameters() if p.requires_grad])
        if kind is Looking:  # and a look is caught
            with pytest.raises(RuntimeError, match="meta"):
                learner.whole_step(batch, optimizer)
        else:
            assert learner.whole_step(batch, optimizer).shape == (len(learner.step_names),)
            assert optimizer.state[next(iter(optimizer.state))]["step"].device.type == "meta"


def test_a_whole_step_is_what_lightning_does_in_parts(tmp_path):
    learner = WorldModelLearner(build())
    fit(learner, [rows()], tmp_path, TrainConfig(steps=1, lr=1e-3, warmup=1))
    other = WorldModelLearner(build())
    other.train_config = TrainConfig(lr=1e-3, warmup=1)
    other.train()
    torch.manual_seed(spawn_seeds(0, 1)[0])
    other.whole_step(rows(), other.make_optimizer())
    for name, weight in learner.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, msg=name)


def numbered(batch: TokenBatch, begin: int = 0) -> TokenBatch:
    """The same rows with their places in episodes 3, 4, ... of a recording."""
    episode = 3 + torch.arange(batch.first.shape[0])[:, None].expand(batch.first.shape)
    step = begin + torch.arange(batch.first.shape[1]).expand(batch.first.shape)
    return TokenBatch(**{**vars(batch), "episode": episode, "step": step, "first": step == 0})


def part(batch: TokenBatch, begin: int, end: int) -> TokenBatch:
    """Some rows of every sequence."""
    return batch.map(lambda x: x[:, begin:end])


def table_of(model: TokenModel, batch: TokenBatch) -> KeptStates:
    """For its rows, in another order."""
    order = np.random.default_rng(0).permutation(batch.step.numel())
    sizes = {"deter": model.rssm.config.deter, "stoch": model.rssm.latents.size}
    return KeptStates(batch.episode.flatten().numpy()[order], batch.step.flatten().numpy()[order], sizes)


def test_a_state_that_was_kept_is_that_of_reading_the_rows_before(monkeypatch):
    "Negative controls: the zero state, and the state of the row itself."
    model, batch = build().eval(), numbered(rows(3, 10))
    noise = model.rssm.latents.noise((3, 10), torch.zeros(1))
    whole = model.read(batch, noise=noise)
    kept = table_of(model, batch)
    for begin in (0, 5):  # the second half goes on from what was kept of the first
        half = part(batch, begin, begin + 5)
        states = model.read(half, kept.before(half), noise[:, begin : begin + 5])
        kept.keep(half, states)
    for name in ("deter", "stoch"):
        torch.testing.assert_close(states[name], whole[name][:, 5:], atol=2e-3, rtol=1e-3)
    cut = model.read(half, None, noise[:, 5:])["deter"]
    assert float((cut - whole["deter"][:, 5:]).abs().max().detach()) > 0.02
    itself = mutant(KeptStates.before, "batch.step[:, 0].to(here) - 1", "batch.step[:, 0].to(here)")
    monkeypatch.setattr(KeptStates, "before", itself)
    late = model.read(half, kept.before(half), noise[:, 5:])["deter"]
    assert float((late - whole["deter"][:, 5:]).abs().max().detach()) > 0.02


def test_what_was_never_read_or_is_not_in_the_table_counts_as_zero():
    model, batch = build().eval(), numbered(rows(3, 6))
    kept = table_of(model, part(batch, 0, 4))
    states = {name: torch.ones(3, 6, size) for name, size in kept.sizes.items()}
    kept.keep(part(batch, 1, 6), {name: value[:, 1:] for name, value in states.items()})  # rows 4 and 5 have no place
    known = [float(kept.before(part(batch, begin, 6))["deter"].mean()) for begin in range(6)]
    assert known == [0, 0, 1, 1, 1, 0], "of row t - 1"


def test_kept_states_are_refreshed_by_training_alone_and_survive_an_interruption(tmp_path):
    batch = numbered(rows(4, 6))

    def learner() -> WorldModelLearner:
        model = build()
        return WorldModelLearner(model, table_of(model, batch))

    data = [part(batch, begin, begin + 3) for begin in (0, 3)] * 4
    config = TrainConfig(steps=6, warmup=0, checkpoint_every=1, log_every=1)
    whole = fit(learner(), data, tmp_path / "whole", config)
    for steps in (2, 6):
        parts = fit(learner(), data, tmp_path / "parts", config.change(steps=steps))
    assert whole.kept.kept_deter.any() and whole.kept.kept_deter.equal(parts.kept.kept_deter)
    before = whole.kept.kept_deter.clone()
    whole.eval().losses(data[0])
    assert whole.kept.kept_deter.equal(before)


def test_dreams_begin_where_the_rows_before_left_the_model():
    "Negative control: without the table, reading begins in the zero state."
    model, batch = build().eval(), numbered(rows(3, 8))
    kept, late = table_of(model, batch), part(batch, 4, 8)
    agent = ActorCritic(ActorCriticConfig(units=8), model.feature_size, model.actions)

    def read(before) -> torch.Tensor:
        torch.manual_seed(0)
        return DreamLearner(model, agent, DreamConfig(horizon=1), before=before).dream(late)[1]["deter"]

    early = part(batch, 0, 4)
    kept.keep(early, model.read(early))
    torch.manual_seed(0)
    wanted = model.observe(late, kept.before(late), every=True)["deter"]
    assert read(kept.before).equal(wanted) and not read(None).equal(wanted)
