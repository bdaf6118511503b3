"""The causal tokenizer: cutting, hiding, frame by frame as at once, clips out of stores, and what it says to bad input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.training import fit
from metabonk.dream import causal_tokenizer
from metabonk.dream.causal_tokenizer import (
    CausalTokenizer,
    CausalTokenizerConfig,
    CausalTokenizerLearner,
    bouncing_ball,
    structure_loss,
)
from metabonk.dream.clips import Clip, ClipData, ClipObservationEncoder
from metabonk.record.experience import Schema, Step
from metabonk.record.sampling import SequenceConfig, Sequences
from metabonk.record.store import Store
from metabonk.sense.logmel import LogMel, LogMelConfig
from metabonk.sense.tokens import Hearing

SMALL = {"size": (8, 8), "patch": 4, "channels": 1, "frames": 2, "bands": 4, "sound_patch": (2, 2), "latents": 2, "bottleneck": 3,
         "width": 16, "layers": 2, "heads": 2, "time_every": 2, "context": 3}  # fmt: skip


def build(perceptual=None, **changes) -> CausalTokenizer:
    torch.manual_seed(0)
    return CausalTokenizer(CausalTokenizerConfig(**{**SMALL, **changes}), perceptual)


def clip(batch: int = 2, time: int = 5, **changes) -> Clip:
    """Noise of the shapes that a tokenizer takes."""
    torch.manual_seed(1)
    c = CausalTokenizerConfig(**{**SMALL, **changes})
    image = torch.randint(256, (batch, time, *c.size, 3), dtype=torch.uint8) if c.size else None
    audio = -4 * torch.rand(batch, time, c.channels, c.frames, c.bands) if c.channels else None
    first = torch.zeros(batch, time, dtype=torch.bool)
    first[:, 0] = True
    return Clip(image, audio, first=first)


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (1, 13)])
def test_pictures_of_any_size_are_padded_with_black_and_cropped_back(size):
    model, rows = build(size=size), clip(size=size)
    patches = model.patches(rows)
    height, width = (-(-side // 4) * 4 for side in size)
    assert patches["image"].shape[2:] == (height * width // 16, 48)
    again = model.render(patches)
    assert again["image"].equal(rows.image)
    torch.testing.assert_close(again["audio"], rows.audio, atol=1e-5, rtol=0)
    whole = torch.zeros(2, 5, height, width, 3, dtype=torch.uint8)
    whole[:, :, : size[0], : size[1]] = rows.image
    assert build(size=(height, width)).patches(Clip(whole, rows.audio))["image"].equal(patches["image"])


def test_padding_to_a_multiple_of_patches():
    model, rows = build(size=(9, 6), multiple=2), clip(size=(9, 6))
    assert model.config.grids["image"] == (4, 2) and model.render(model.patches(rows))["image"].equal(rows.image)


def test_silence_is_as_dark_as_black_and_a_power_of_one_as_bright_as_white():
    model = build()
    levels = torch.stack([torch.full((1, 2, 4), level) for level in (math.log10(1e-4), 0.0)])[None]
    patches = model.patches(Clip(torch.zeros(1, 2, 8, 8, 3, dtype=torch.uint8), levels))["audio"]
    assert patches[0, 0].eq(-0.5).all() and patches[0, 1].eq(0.5).all()


def test_one_sense_alone():
    for changes in ({"size": None}, {"channels": 0}):
        model, rows = build(**changes), clip(**changes)
        z = model.encode(rows)
        shown = model.render(model.decode(z))
        assert z.shape == (2, 5, 2, 3) and set(shown) == {"audio" if changes == {"size": None} else "image"}
    with pytest.raises(UsageError, match="eyes or ears"):
        build(size=None, channels=0)


def test_patches_are_hidden_while_learning_and_never_else():
    model, rows = build(size=(32, 32), mask_ratio=0.8), clip(40, 5, size=(32, 32))
    patches = model.patches(rows)
    bare = model.eval().tokens(patches)
    assert model.tokens(patches).equal(bare)
    hidden = (model.train().tokens(patches) != bare).any(-1)[:, :, : 64]  # of the picture
    shares = hidden.float().mean(-1)
    assert 0.3 < shares.mean() < 0.5 and shares.max() > 0.6 and shares.min() < 0.2
    assert shares.std(1).mean() > 0.1  # drawn anew for every frame


def test_what_is_hidden_is_not_seen():
    model, rows = build(), clip()
    torch.manual_seed(3)
    before = model.train().tokens(model.patches(rows))
    torch.manual_seed(3)
    after = model.tokens(model.patches(rows.map(lambda x: x if x.dtype == torch.bool else x * 0)))
    hidden = (before - model.eval().tokens(model.patches(rows))).abs().amax(-1) > 0
    assert hidden.any() and before[hidden].equal(after[hidden])


def test_learned_vectors_begin_with_gradients_of_ordinary_size():
    "Negative control: with vectors of zeros in their place, a normalisation makes gradients huge."
    model = build(mask_ratio=0.9)
    sum(loss.mean() for loss in model.losses(clip()).values()).backward()
    usual = max(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
    learned = (*model.mask_token.values(), model.latent, model.latent_embedding, *model.decoder_query.values())
    assert all(float(vector.detach().norm()) > 0.1 for vector in learned)
    assert usual < 1e3


@pytest.mark.parametrize("decoder_time", [True, False])
def test_frame_by_frame_as_at_once(decoder_time):
    model, rows = build(decoder_time=decoder_time).eval(), clip(2, 9)
    rows.first[1, 4] = True
    with torch.no_grad():
        z = model.encode(rows)
        whole = model.decode(z, rows.first)
    past, before, codes, seen = model.encoder.new_cache(2), model.decoder.new_cache(2), [], []
    for t in range(9):
        code, past = model.encode_next(rows.map(lambda x, t=t: x[:, t : t + 1]), past)
        patches, before = model.decode_next(code, before, rows.first[:, t : t + 1])
        codes.append(code)
        seen.append(patches)
    torch.testing.assert_close(torch.cat(codes, 1), z, atol=1e-5, rtol=0)
    for name in whole:
        torch.testing.assert_close(torch.cat([patches[name] for patches in seen], 1), whole[name], atol=1e-5, rtol=0)


def test_codes_know_the_past_of_their_episode_and_nothing_of_the_future():
    model, rows = build(layers=4).eval(), clip(1, 6)
    rows.first[0, 3] = True
    z = model.encode(rows)
    for changed, same in ((5, [0, 1, 2, 3, 4]), (0, [3, 4, 5]), (3, [0, 1, 2])):
        other = rows.map(lambda x: x.clone())
        other.image[0, changed] = 255 - other.image[0, changed]
        moved = (model.encode(other) - z).abs().amax((0, 2, 3)) > 1e-6
        assert moved[changed] and not moved[same].any()
    assert z.abs().max() < 1


def test_losses_have_one_entry_a_frame_and_the_size_of_one():
    model, rows = build(), clip()
    for _ in range(5):
        losses = model.losses(rows)
    assert losses.keys() == model.scales.keys() == {"image", "audio", "structure"}
    assert all(loss.shape == (2, 5) and 0.5 < loss.mean() < 2 for loss in losses.values())
    assert model.scales["structure"] == 0.2


def test_the_perceptual_term_is_the_users_and_takes_the_place_of_structure():
    asked = []

    def perceptual(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        asked.append((a.shape, float(b.min()), float(b.max())))
        return (a - b).abs().mean((1, 2, 3))

    model = build(perceptual)
    assert model.losses(clip()).keys() == model.scales.keys() == {"image", "audio", "perceptual"}
    (shape, low, high) = asked[0]
    assert shape == (10, 3, 8, 8) and -1 <= low < -0.9 and 0.9 < high <= 1


class Distance(torch.nn.Module):
    """A network as LPIPS is one: weights, and dropout while it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.drop = torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout(0.5)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (self.drop(self.seen(a)) - self.drop(self.seen(b))).square().mean((1, 2, 3))


def test_a_perceptual_network_measures_and_is_neither_trained_nor_saved(tmp_path):
    plain, distance = build(), Distance()
    model = build(distance).train()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert dict(model.named_modules())["perceptual"] is distance  # a part like every other, only frozen
    assert not any(p.requires_grad for p in distance.parameters()) and not distance.training and model.training
    model.load_state_dict({name: value + 1 for name, value in plain.state_dict().items()})
    assert model.latent.equal(plain.latent + 1)
    a, b = torch.rand(2, 4, 3, 8, 8).requires_grad_()
    loss = model.perceptual(a, b)
    assert loss.equal(model.perceptual(a, b)) and not loss.equal(distance.train()(a, b))  # with dropout it would differ
    distance.eval()
    model.losses(clip())["perceptual"].mean().backward()
    assert model.restore["image"].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in distance.parameters())
    back, _ = CausalTokenizer.load(model.save(tmp_path))
    assert back.encode(clip()).equal(model.eval().encode(clip()))


def test_a_perceptual_network_follows_the_pictures_to_their_device():
    distance = Distance()
    model, rows = build(distance), clip()
    assert model.to("meta").losses(rows.map(lambda x: x.to("meta")))["perceptual"].is_meta
    assert distance.seen.weight.is_meta


def test_structure_is_about_edges():
    x = torch.rand(2, 8, 8, 3)
    assert structure_loss(x + 0.3, x).max() < 1e-10
    assert structure_loss(x.flip(1), x).min() > 0.01
    assert structure_loss(torch.rand(2, 1, 1, 3), torch.rand(2, 1, 1, 3)).shape == (2,)


def test_what_is_usual_comes_out_before_anything_is_learned():
    model, rows = build(), clip(8, 5)
    model.start_from(rows)
    patches = model.patches(rows)
    spread = patches["image"] - patches["image"].mean((0, 1))
    with torch.no_grad():
        off = model.eval().decode(model.encode(rows))["image"] - patches["image"].mean((0, 1))
    assert off.square().mean() < 0.2 * spread.square().mean()


def test_settled_codes_spread_by_one_and_mean_the_same(tmp_path: Path):
    model, rows = build(), clip(8, 5)
    model.eval().start_from(rows)
    with torch.no_grad():
        quiet = model.encode(rows)
        before = model.decode(quiet, rows.first)
        model.normalise_latents(rows)
        model.normalise_latents(rows)  # from what tanh gives, not from what was normalised before
        settled = model.encode(rows)
        after = model.decode(settled, rows.first)
        one, _ = model.encode_next(rows, model.encoder.new_cache(8))
        model.save(tmp_path)
        again = CausalTokenizer.load(tmp_path)[0].encode(rows)
    assert abs(float(quiet.std()) - 1) > 0.1
    assert abs(float(settled.std()) - 1) < 1e-4
    torch.testing.assert_close(settled, quiet / quiet.std())
    torch.testing.assert_close(one, settled)
    assert again.equal(settled)
    for name in ("image", "audio"):
        torch.testing.assert_close(after[name], before[name])


def test_it_learns():
    "The same few frames, again and again: sent through the code they come back better than their mean."
    torch.manual_seed(0)
    rows = bouncing_ball(2, 3, size=8, bands=4, generator=torch.Generator().manual_seed(0))
    learner = CausalTokenizerLearner(build(width=32, layers=3, time_every=3, mask_ratio=0.0))
    learner.tokenizer.start_from(rows)
    model, adam = learner.tokenizer, torch.optim.AdamW(learner.parameters(), lr=5e-3)
    for _ in range(60):
        total = sum(learner.scales[name] * loss.mean() for name, loss in learner.losses(rows).items())
        adam.zero_grad()
        total.backward()
        adam.step()
    with torch.no_grad():
        patches, restored = model.eval().patches(rows), model.decode(model.encode(rows), rows.first)
    off = (restored["image"] - patches["image"]).square().mean()
    assert off < 0.7 * (patches["image"] - patches["image"].mean((0, 1))).square().mean()


def test_the_ball_bonks_when_it_says_so():
    rows = bouncing_ball(8, 30, generator=torch.Generator().manual_seed(2))
    loud = rows.audio.amax((2, 3, 4)) > -3.9
    assert loud.equal(rows.reward > 0) and 10 < rows.reward.sum() < 120
    assert rows.first[:, 0].all() and not rows.first[:, 1:].any() and rows.action[:, 0].eq(0).all()
    assert len(rows) == 8 and rows.shape == (8, 30)


SCHEMA = Schema(game="test", image_shape=(8, 8, 3), channels=1, sample_rate=2000, clock_rate=60.0,
                actions=ActionSpec(categorical=(5,)))
LOGMEL = LogMelConfig(sample_rate=2000, n_fft=64, bands=4, frames_per_step=2, f_min=20.0)


def test_clips_come_out_of_stores_with_their_sound(tmp_path: Path):
    generator, store = np.random.default_rng(0), Store.create(tmp_path / "store", SCHEMA)
    with store.writer(7) as writer:
        for t in range(24):
            sound = (generator.normal(size=(1, int(generator.integers(20, 40)))) * 9000).astype(np.int16)
            image = np.full((8, 8, 3), t, np.uint8)
            writer.add(Step(image, sound, np.array(t % 5), float(t), t % 12 == 11, False, t % 12 == 0, t, 0))
    data = ClipData(store.path, LOGMEL, SequenceConfig(length=4, batch_size=3, batches_per_epoch=2))
    data.prepare_data()
    data.setup()
    cache, ears = data.training_cache(), LogMel(LOGMEL)
    for rows in data.train_dataloader():
        assert isinstance(rows, Clip) and rows.shape == (3, 4) and rows.audio.shape == (3, 4, 1, 2, 4)
        begin = rows.image[:, 0, 0, 0, 0].long()
        assert rows.reward.equal(rows.image[..., 0, 0, 0].float()) and rows.action.equal(rows.image[..., 0, 0, 0].long() % 5)
        for row, start in enumerate(begin.tolist()):
            episode = start // 12 * 12  # heard from its beginning
            lengths = torch.from_numpy(np.array(cache.table["audio_length"][episode : start + 4])).long()
            first = int(cache.table["sound"][episode])
            sound = torch.from_numpy(np.array(cache.sound[0][first : first + int(lengths.sum())]))[None]
            torch.testing.assert_close(rows.audio[row], ears(sound, lengths)[-4:])
        build().losses(rows)


def heard_live(store: Store) -> dict[tuple[int, int], torch.Tensor]:
    """What live ears hear: for each row, by episode and step, its log-mel frames."""
    senses, heard = ClipObservationEncoder((8, 8), LOGMEL, channels=1), {}
    for episode in store.episodes:
        senses.reset()
        for t, row in enumerate(store.read(episode)):
            heard[episode.number, t] = senses({"image": row.image[None], "audio": [row.audio]}).audio[0, 0]
    return heard


@pytest.mark.parametrize("old", [False, True], ids=["now", "as if an episode went on"])
def test_rows_behind_a_seam_hear_what_live_ears_hear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool):
    generator, store = np.random.default_rng(0), Store.create(tmp_path / "store", SCHEMA)
    with store.writer(9) as writer:
        for t in range(30):  # two games side by side, episodes of 12 and of 7 rows, chunks of 9
            for stream, length in enumerate((12, 7)):
                step, size = t % length, int(generator.integers(10, 40))
                sound = (generator.normal(size=(1, size)) * 9000).astype(np.int16)
                done = step == length - 1
                image = np.zeros((8, 8, 3), np.uint8)
                writer.add(Step(image, sound, np.array(0), 0.0, done, False, step == 0, step, 0), stream)
    if old:
        monkeypatch.setattr(Hearing, "episodes", lambda self, begin, end: [(begin, end)])
    data = ClipData(store.path, LOGMEL, SequenceConfig(length=10, cross_episodes=True))
    data.prepare_data()
    clips = data.open()
    sequences = Sequences(clips, 10, cross_episodes=True)
    rows, live = clips.gather(sequences.spans(np.arange(len(sequences)))), heard_live(store)
    assert rows.first[:, 1:].any(), "some sequences cross a seam"
    off = torch.stack([
        (rows.audio[b, t] - live[int(rows.episode[b, t]), int(rows.step[b, t])]).abs().max() for b in range(len(rows))
        for t in range(10)
    ])  # fmt: skip
    assert off.max() > 0.5 if old else off.max() < 1e-5, f"{off.max():.3f} in log10 power"


PLACES = CausalTokenizerConfig(**{**SMALL, "local": False}).patches
ALONE = {"plain": {"plain": True, "mask_ratio": 0.0}, "local": {"local": True, "mask_ratio": 0.0, "latents": PLACES}}


@pytest.mark.parametrize("changes", ALONE.values(), ids=list(ALONE))
def test_without_a_transformer_each_frame_is_taken_alone(changes):
    code = build(**changes).eval()
    frames = clip(2, 6)
    with torch.no_grad():
        z = code.encode(frames)
        alone = code.encode(frames.map(lambda x: x[:, 3:4]))
        read, cache = code.encode_next(frames.map(lambda x: x[:, 3:]), code.encoder.new_cache(2))
    torch.testing.assert_close(z[:, 3:4], alone)
    torch.testing.assert_close(z[:, 3:], read)
    assert cache == {} and z.shape[2:] == (code.config.latents, code.config.bottleneck)
    with torch.no_grad():
        causal = build().eval()
        assert not torch.allclose(causal.encode(frames)[:, 3:4], causal.encode(frames.map(lambda x: x[:, 3:4])))  # looks back
    losses = code.train().losses(frames)
    torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in code.named_parameters() if "mask_token" not in name)
    with pytest.raises(UsageError, match="each frame alone"):
        build(**changes, decoder_time=True)


def test_in_a_local_tokenizer_every_patch_has_a_latent_of_its_own_and_all_share_what_is_learned():
    code, frames = build(**ALONE["local"]).eval(), clip(1, 1)
    patches = {name: x.requires_grad_() for name, x in code.patches(frames).items()}
    z = code.narrow(code.encoder(code.tokens(patches))[:, :, PLACES:])  # before tanh
    for place in range(PLACES):
        reached = torch.autograd.grad(z[0, 0, place].sum(), list(patches.values()), retain_graph=True, allow_unused=True)
        touched = torch.cat([g.abs().sum(-1)[0, 0] > 0 for g in reached])
        assert touched.nonzero().flatten().tolist() == [place]
    bigger = build(**{**ALONE["local"], "size": (16, 16), "latents": PLACES + 12})
    assert sum(p.numel() for p in bigger.encoder.parameters()) == sum(p.numel() for p in code.encoder.parameters())
    with pytest.raises(UsageError, match=f"set latents={PLACES}, one for each patch"):
        build(local=True, latents=PLACES + 1)
    with pytest.raises(UsageError, match="it can't be plain as well"):
        build(local=True, plain=True, latents=PLACES)


@pytest.mark.parametrize("changes", [{}, *ALONE.values()], ids=["transformer", *ALONE])
def test_it_is_kept_in_a_folder_and_comes_back(tmp_path, changes):
    code, logmel = build(**changes), LogMelConfig(sample_rate=32_768)
    folder = code.save(tmp_path / "code", logmel)
    back, heard = CausalTokenizer.load(folder)
    assert heard == logmel and back.config == code.config and not back.training
    assert all(value.equal(code.state_dict()[name]) for name, value in back.state_dict().items())
    assert CausalTokenizer.load(code.save(tmp_path / "silent"))[1] is None
    (folder / "tokenizer.safetensors").write_bytes(b"0" * 40)
    with pytest.raises(FolderError, match="train it anew"):
        CausalTokenizer.load(folder)
    with pytest.raises(FolderError, match="holds no causal tokenizer"):
        CausalTokenizer.load(tmp_path)


def test_bad_input_says_so():
    model = build()
    with pytest.raises(UsageError, match="record the game with that size"):
        model.encode(clip(size=(4, 8)))
    with pytest.raises(UsageError, match="takes audio"):
        model.encode(Clip(clip().image))
    with pytest.raises(UsageError, match="mask_ratio"):
        build(mask_ratio=1.0)


EARLIER = {"mask_token": "hidden", "position_embedding": "places", "decoder_query": "asking", "latent_embedding": "given"}


def under_earlier_names(weights, prefix=""):
    names = [(f"{prefix}{now}", f"{prefix}{earlier}") for now, earlier in EARLIER.items()]
    return {next((old + name.removeprefix(now) for now, old in names if name.startswith(now)), name): value
            for name, value in weights.items()}  # fmt: skip


def test_what_was_saved_under_earlier_names_still_loads(tmp_path, monkeypatch):
    """Negative control: without the table of earlier names, the saved tokenizer and the checkpoint are refused."""
    model = build(mask_ratio=0.2)
    folder = model.save(tmp_path / "code")
    about = json.loads((folder / "tokenizer.json").read_text())
    about["config"]["hidden_share"] = about["config"].pop("mask_ratio")
    (folder / "tokenizer.json").write_text(json.dumps(about))
    saved = under_earlier_names(load_file(folder / "tokenizer.safetensors"))
    assert {"hidden.image", "places.image", "asking.image", "given"} <= saved.keys()
    save_file(saved, folder / "tokenizer.safetensors")
    back = CausalTokenizer.load(folder)[0]
    assert back.config == model.config and all(map(torch.equal, back.parameters(), model.parameters()))
    monkeypatch.setattr(causal_tokenizer, "RENAMED_WEIGHTS", {})
    with pytest.raises(FolderError, match="damaged or of another"):
        CausalTokenizer.load(folder)


def test_a_training_goes_on_from_a_checkpoint_with_earlier_names(tmp_path, monkeypatch):
    """Negative control: without the learner's table, the checkpoint is of another network."""
    rows = clip(2, 5)
    data = [rows]
    fit(CausalTokenizerLearner(build()), data, tmp_path, TrainConfig(steps=1, log_every=1))
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=False)
    checkpoint["state_dict"] = under_earlier_names(checkpoint["state_dict"], "tokenizer.")
    assert any(name.startswith("tokenizer.hidden") for name in checkpoint["state_dict"])
    torch.save(checkpoint, path)
    with monkeypatch.context() as patch, pytest.raises(FolderError, match="another shape"):
        patch.setattr(CausalTokenizerLearner, "renamed", {})
        fit(CausalTokenizerLearner(build()), data, tmp_path, TrainConfig(steps=2, log_every=1))
    learner = fit(CausalTokenizerLearner(build()), data, tmp_path, TrainConfig(steps=2, log_every=1))
    assert learner.steps_done == 2
