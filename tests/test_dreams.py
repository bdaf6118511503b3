"""A film shows the rows it says, at their time, with each sound, in a page that needs nothing else."""

import base64
import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig
from metabonk.dream.clips import Clip
from metabonk.dream.dynamics import DynamicsConfig, ShortcutModel
from metabonk.dream.interface import WorldModel, pick_states
from metabonk.dream.token_model import TokenModel, TokenModelConfig
from metabonk.measure.dreams import (
    Film,
    dream_films,
    dream_video,
    film_player,
    film_states,
    frames_to_sound,
    free_dream_video,
    reconstruction_figure,
)
from metabonk.nn.distributions import Categorical
from metabonk.record.experience import Batch
from metabonk.sense.logmel import LogMel, LogMelConfig
from metabonk.sense.picture import PictureConfig, PictureTokenizer
from metabonk.sense.sound import SoundConfig, SoundTokenizer
from metabonk.sense.tokens import TokenBatch, Tokenizers

RATE, STEP, ROWS = 8_000, 500, 20
CONFIG = LogMelConfig(sample_rate=RATE, n_fft=256, bands=24, frames_per_step=2)


def tone(pitch: float, samples: int) -> np.ndarray:
    """A sound of one pitch."""
    return (8_000 * np.sin(2 * np.pi * pitch * np.arange(samples) / RATE)).astype(np.int16)


def recording(rows: int = ROWS, silent: bool = False) -> Batch:
    """Two sequences: pictures brighten row by row, left and right ear hear two pitches, row 12 earns a reward."""
    length = np.full((2, rows), 0 if silent else STEP)
    bright = np.arange(rows, dtype=np.uint8)[:, None, None, None] * 10
    image = np.broadcast_to(bright, (2, rows, 8, 10, 3)).copy()
    image[1] = 255 - image[1]
    sound = np.stack([tone(440, rows * STEP), tone(1_500, rows * STEP)])
    no = np.zeros((2, rows), bool)
    return Batch(
        image=image, audio=np.zeros((2, 2, 0), np.int16) if silent else np.stack([sound, sound // 2]), audio_length=length,
        action=np.tile(np.arange(rows) % 3, (2, 1)), reward=np.tile((np.arange(rows) == 12).astype(np.float32), (2, 1)),
        terminated=no, truncated=no, first=np.tile(np.arange(rows) == 0, (2, 1)),
        tick=np.tile(np.arange(rows), (2, 1)), sample=length.cumsum(1),
        episode=np.array([[4] * rows, [7] * rows]), step=np.tile(np.arange(rows), (2, 1)),
    )  # fmt: skip


class Counter(WorldModel):
    """A state is the number of a row; it tells which actions led to it, and is seen as that brightness."""

    feature_size, actions = 2, ActionSpec(categorical=(3,))

    def __init__(self, senses: str = "image audio"):
        super().__init__()
        self.senses = senses.split()

    def observe(self, context, state=None, every=False, generator=None):
        assert context.image.shape[:2] == context.reward.shape and len(context.audio) == len(context.reward)
        row = context.step.flatten() if every else context.step[:, -1]
        return {"row": row, "sum": torch.zeros(len(row))}

    def advance(self, state, action, generator=None):
        return {"row": state["row"] + 1, "sum": state["sum"] + action.argmax(-1)}

    def features(self, state):
        return torch.stack([state["row"].float(), state["sum"]], -1)

    def reward(self, features):
        return features[..., 1]

    def continuation(self, features):
        return torch.ones_like(features[..., 0])

    def decode(self, state):
        image = (state["row"] * 10).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 8, 10, 3).contiguous()
        audio = (100 * state["row"]).to(torch.int16).view(-1, 1, 1).expand(-1, 2, STEP + 7).contiguous()
        return {name: value for name, value in (("image", image), ("audio", audio)) if name in self.senses}


def page(html: str) -> tuple[dict, list[list[np.ndarray]]]:
    """What a player's script reads, and the pictures of every film in it: the one that is shown first."""
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.S)[1])
    shown = re.search(r'<video src="([^"]+)"', html)[1]
    return data, [pictures(uri)[0] for uri in [shown, *data["files"].values()]]


def pictures(uri: str) -> tuple[list[np.ndarray], list[float], np.ndarray]:
    """Pictures, their times and the sound of a film in a page."""
    file = io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))
    with av.open(file) as film:
        frames = [(frame.to_ndarray(format="rgb24"), frame.time) for frame in film.decode(video=0)]
    file.seek(0)
    with av.open(file) as film:
        heard = [f.to_ndarray() for f in film.decode(audio=0)] if film.streams.audio else [np.zeros((1, 0))]
    return [image for image, _ in frames], [time for _, time in frames], np.concatenate(heard, 1)


def test_the_dream_starts_where_reading_stops_and_follows_the_actions():
    films, edges = dream_films(Counter(), recording(), recording(), 8, 10, lead=5, sample_rate=RATE)
    game, dream = films["game"], films["dream"]
    assert game.image[:, 0, 0, 0].tolist() == dream.image[:, 0, 0, 0].tolist() == [10 * row for row in range(3, 18)]
    assert game.reward.tolist() == [float(row == 12) for row in range(3, 18)]
    # Rows read along carry no dreamt action; row 8 is the first that one led to: 8 % 3 = 2, then 0, 1, 2 ...
    assert dream.reward.tolist() == [0] * 5 + np.cumsum(np.arange(8, 18) % 3).tolist()
    np.testing.assert_allclose(edges, np.arange(16) * STEP / RATE)
    assert np.array_equal(game.sound, recording().audio[0, :, 3 * STEP : 18 * STEP])
    assert dream.sound.shape == game.sound.shape  # each step's sound cut to the step's true length
    assert dream.sound[0, ::STEP].tolist() == [100 * row for row in range(3, 18)]


def test_a_transformer_dreams_of_clips_and_its_sound_has_no_seams():
    raw, hearing = recording(), LogMel(CONFIG)
    heard = [hearing(torch.from_numpy(raw.audio[i]), torch.from_numpy(raw.audio_length[i])) for i in (0, 1)]
    clip = Clip(raw.image, torch.stack(heard).numpy(), action=raw.action, first=raw.first)
    code = CausalTokenizerConfig(size=(8, 10), patch=4, channels=2, frames=2, bands=24, width=16, layers=2, heads=2)
    model = ShortcutModel(CausalTokenizer(code), ActionSpec(categorical=(3,)), DynamicsConfig(width=16, layers=2, heads=2),
                          logmel=CONFIG, step_samples=STEP).eval()  # fmt: skip
    films, _ = dream_films(model, clip, raw, 8, 10, lead=5)
    assert films["dream"].image.shape == films["game"].image.shape == (15, 8, 10, 3)
    assert films["dream"].sound.shape == films["game"].sound.shape == (2, 15 * STEP)
    pressed = np.stack([raw.action % 2, raw.action == 0, raw.action], -1)  # two keys and a choice of three
    two = ShortcutModel(model.tokenizer, ActionSpec(binary=2, categorical=(3,)), model.config, logmel=CONFIG, step_samples=STEP)
    told, _ = dream_films(two.eval(), replace(clip, action=pressed), replace(raw, action=pressed), 8, 10, lead=5)
    assert told["dream"].image.shape == (15, 8, 10, 3)
    states, lengths = model.observe(clip.torch().map(lambda x: x[:1, :8]), every=True), np.full(8, STEP)
    film = film_states(model, [pick_states(states, slice(t, t + 1)) for t in range(8)], lengths)
    assert np.array_equal(film.sound, frames_to_sound(model.render(states)["audio"], CONFIG, lengths))
    alone = model.decode(states)["audio"].movedim(0, 1).flatten(1)
    assert alone.shape == film.sound.shape and not np.array_equal(film.sound, alone)  # each step begun anew
    deaf = ShortcutModel(model.tokenizer, model.actions, model.config).eval()  # nobody told it how sound was heard
    with pytest.raises(UsageError, match="logmel"):
        film_states(deaf, [pick_states(states, slice(0, 1))], np.full(1, STEP))


def test_another_sequence_of_the_batch_is_another_film():
    films, _ = dream_films(Counter(), recording(), recording(), 8, 4, sequence=1, lead=2, sample_rate=RATE)
    assert films["game"].image[:, 0, 0, 0].tolist() == [255 - 10 * row for row in range(6, 12)]
    assert np.array_equal(films["game"].sound, recording().audio[1, :, 6 * STEP : 12 * STEP])


def test_what_cannot_be_shown_is_told():
    batch, other = recording(), recording()
    other.step = other.step + 1
    late = recording()
    late.first[0, 10] = True
    for words, call in {
        "20 rows": lambda: dream_films(Counter(), batch, batch, 15, 6, sample_rate=RATE),
        "at least 1": lambda: dream_films(Counter(), batch, batch, 0, 6, sample_rate=RATE),
        "different rows": lambda: dream_films(Counter(), other, batch, 8, 6, sample_rate=RATE),
        "another episode begins at row 10": lambda: dream_films(Counter(), late, late, 8, 6, sample_rate=RATE),
        "sample_rate=": lambda: dream_films(Counter(), batch, batch, 8, 6),
    }.items():
        with pytest.raises(UsageError, match=words):
            call()


def test_the_player_holds_both_sounds_and_all_pictures_at_their_times():
    html = dream_video(Counter(), recording(), recording(), 8, 10, lead=5, sample_rate=RATE, title="<b>&").data
    data, films = page(html)
    assert len(films) == 2 and {len(film) for film in films} == {15}
    assert films[0][0].shape == (16, 44, 3)  # twice (10 + 2 + 10) wide
    left, right = films[0][12][4, 4], films[0][12][4, 36]
    assert abs(int(left[0]) - 150) < 12 and abs(int(right[0]) - 150) < 12
    assert data["alone"] == round(5 * STEP / RATE, 4) and data["seconds"] == round(15 * STEP / RATE, 4)
    _, times, heard = pictures(next(iter(data["files"].values())))
    np.testing.assert_allclose(times[1:], np.arange(2, 16) * STEP / RATE, atol=2e-3)
    assert abs(heard.shape[1] / 48_000 - 15 * STEP / RATE) < 0.05
    assert "<b>&" not in html and "&lt;b&gt;&amp;" in html and "http" not in re.sub(r"base64,[^\"']*", "", html)
    assert set(data["files"]) == {"game"} and len(re.findall("type=\"radio\"", html)) == 2


def test_the_switch_changes_what_is_heard():
    data, _ = page(html := dream_video(Counter(), recording(), recording(), 8, 10, lead=5, sample_rate=RATE).data)
    sounds = [pictures(uri)[2][0] for uri in (re.search(r'<video src="([^"]+)"', html)[1], data["files"]["game"])]
    dream, game = (np.abs(np.fft.rfft(sound[:30_000])) for sound in sounds)
    assert abs(np.argmax(game) * 48_000 / 30_000 - 440) < 5 and np.argmax(dream) < 5  # a tone; a slowly rising level


@pytest.mark.parametrize("senses", ["image", "audio"])
def test_a_model_with_one_sense_is_shown_with_that_one(senses):
    films, edges = dream_films(Counter(senses), recording(), recording(), 8, 4, sample_rate=RATE)
    assert (films["dream"].image is None, films["dream"].sound is None) == (senses == "audio", senses == "image")
    data, shown = page(film_player(films, edges, RATE, alone=8).data)
    assert len(shown) == 1 + (senses == "audio")


def test_a_silent_game_is_shown_at_the_pace_asked_for():
    films, edges = dream_films(Counter("image"), recording(silent=True), recording(silent=True), 8, 4, step_seconds=0.25)
    assert films["game"].sound is None and films["dream"].sound is None and edges[-1] == 3
    data, shown = page(film_player(films, edges).data)
    assert data["files"] == {} and len(shown[0]) == 12


def test_a_free_dream_is_a_film_of_its_own():
    policy = lambda features: Categorical(torch.zeros(len(features), 3))  # noqa: E731
    data, shown = page(free_dream_video(Counter(), policy, {"row": torch.tensor([2]), "sum": torch.zeros(1)}, 6, 0.1, RATE).data)
    assert len(shown) == 1 and len(shown[0]) == 7 and data["seconds"] == 0.7


def test_sound_out_of_frames_has_their_pitches_and_no_seams():
    sound = np.stack([tone(440, ROWS * STEP), tone(1_500, ROWS * STEP)])
    lengths = np.full(ROWS, STEP)
    frames = LogMel(CONFIG)(torch.from_numpy(sound), torch.from_numpy(lengths))
    again = frames_to_sound(frames, CONFIG, lengths)
    assert again.shape == sound.shape and again.dtype == np.int16
    for channel, pitch in enumerate((440, 1_500)):
        spectrum = np.abs(np.fft.rfft(again[channel].astype(float)))
        assert abs(np.argmax(spectrum) * RATE / again.shape[1] - pitch) < 60
    steps = np.concatenate([frames_to_sound(frames[t : t + 1], CONFIG, lengths[:1]) for t in range(ROWS)], 1)
    whole, cut = (
        np.abs(sound[0, STEP:-STEP].astype(float)).reshape(-1, 10, STEP // 10).mean((0, 2)) for sound in (again, steps)
    )  # how loud each tenth of a step is
    assert whole.min() > 0.3 * whole.max()
    assert cut.min() < 0.1 * cut.max()  # negative control: step by step, each one ends in a gap


def test_frames_further_apart_than_the_window_are_filled_in():
    "Negative control: without frames in between, the window sees nothing of half the sound."
    apart = LogMelConfig(sample_rate=RATE, n_fft=256, bands=24, frames_per_step=1)
    sound, lengths = tone(440, ROWS * STEP)[None], np.full(ROWS, STEP)
    frames = LogMel(apart)(torch.from_numpy(sound), torch.from_numpy(lengths))
    again = frames_to_sound(frames, apart, lengths)[:, STEP:]
    assert np.abs(again[0, : 18 * STEP]).reshape(-1, 100).max(1).min() > 1_000


def test_reconstructions_stand_under_their_originals():
    asked = []
    eyes = SimpleNamespace(encode=lambda image: asked.append(len(image)) or image, decode=lambda tokens: 255 - tokens)
    ears = SimpleNamespace(encode=lambda frames: frames, decode=lambda tokens: tokens)
    html = reconstruction_figure(SimpleNamespace(picture=eyes, sound=ears, logmel=CONFIG), recording(), pictures=5).data
    assert asked == [5] and html.count("<audio") == 3 and html.count("<img") == 3
    strip = _png(re.search(r'class="mb-strip"[^>]*src="data:image/png;base64,([^"]+)"', html)[1])
    assert strip[6, 6, 0] == 0 and strip[6 + 12, 6, 0] == 255  # the black first picture above its negative
    for parts in ({"picture": None, "sound": ears}, {"picture": eyes, "sound": None}):
        html = reconstruction_figure(SimpleNamespace(logmel=CONFIG, **parts), recording()).data
        assert ("mb-strip" in html.split("</style>")[1]) == (parts["picture"] is not None)


def _png(text: str) -> np.ndarray:
    "The pixels of a PNG file"
    with av.open(io.BytesIO(base64.b64decode(text)), format="png_pipe") as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.parametrize("senses", ["both", "picture", "sound"])
def test_a_model_of_tokens_is_shown_with_the_senses_it_has(senses):
    torch.manual_seed(0)
    eyes = PictureTokenizer(PictureConfig(size=(8, 8), grid=(2, 2), codes=4))
    ears = SoundTokenizer(SoundConfig(channels=2, frames=2, bands=24, tokens=2, codes=4))
    tokenizers, raw = Tokenizers(eyes, ears, CONFIG, "toy"), recording()
    raw.image = raw.image[:, :, :, :8]
    config = TokenModelConfig(size="tiny", embed=32, units=32, senses=senses)
    model = TokenModel(config, tokenizers, ActionSpec(categorical=(3,)), step_samples=STEP)
    tokens = [torch.randint(4, (2, ROWS, places)) for places in (4, 2)]
    same = (getattr(raw, name) for name in ("action", "reward", "terminated", "truncated", "first", "episode", "step"))
    batch = TokenBatch(*tokens, *map(torch.from_numpy, same))
    films, edges = dream_films(model, batch, raw, 12, 6, lead=4)
    dream = films["dream"]
    assert (dream.image is None, dream.sound is None) == (senses == "sound", senses == "picture") and len(edges) == 11
    assert dream.image is None or dream.image.shape == films["game"].image.shape
    assert dream.sound is None or dream.sound.shape == films["game"].sound.shape
    policy = lambda features: Categorical(torch.zeros(len(features), 3))  # noqa: E731
    data, shown = page(free_dream_video(model, policy, pick_states(model.observe(batch), [0]), 5).data)
    assert len(shown[0]) == 6 and data["seconds"] == round(6 * STEP / RATE, 4)
    assert reconstruction_figure(tokenizers, raw).data.count("<audio") == 3


def test_predicted_and_real_rewards_are_drawn_apart():
    none = np.zeros((4, 8, 8, 3), np.uint8)
    films = {"game": Film(none, None, np.array([0, 1, 0, 0.0])), "dream": Film(none, None, np.array([0, 0.5, -0.5, 0]))}
    lane = film_player(films, np.arange(5) / 4).data.split("reward:")[1]
    assert lane.count("<path") == 3 and re.search(r'd="M500.0 39.0V3.0"', lane)
    quiet = {name: Film(none, None, np.zeros(4)) for name in films}
    assert "reward:" not in film_player(quiet, np.arange(5) / 4).data
