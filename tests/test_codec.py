"""Codecs: exact lengths, no seam, the right side, and the error of principal components as the one to beat"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import mutant

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import UsageError
from metabonk.core.learner import TrainConfig
from metabonk.record.cache import Cache
from metabonk.record.experience import Schema, Step
from metabonk.record.store import Store
from metabonk.sense.codec import (
    Codec,
    CodecConfig,
    PCACodec,
    SoundCodec,
    codec_errors,
    decode_steps,
    encode_steps,
    level_difference,
    load_codec,
    stft_distance,
)
from metabonk.sense.codec_training import CodecLearner, CropCache, Crops, fit_pca, sound_sizes, train_codec

CONFIG = CodecConfig(samples=960, strides=(4, 5, 4), latents=24, width=4, sample_rate=6400)  # a step of 0.15 s


def ringing(steps: int, samples: int = 960, rate: int = 6400, level: float = 6.0, seed: int = 0) -> torch.Tensor:
    """A beating ring with pauses, `level` dB louder on the left and a little later on the right: (steps, 2, samples)"""
    t = np.arange(steps * samples) / rate
    random = np.random.default_rng(seed)

    def ring(t: np.ndarray) -> np.ndarray:
        tones = sum(np.sin(2 * math.pi * rate * share * t) / (i + 1) for i, share in enumerate((0.11, 0.152, 0.221)))
        return tones * (1 + np.sin(2 * math.pi * 20 * t)) * (t % 0.5 < 0.35)

    sound = np.stack([ring(t), ring(t - 3 / rate) / 10 ** (level / 20)]) * 2000 + random.normal(size=(2, len(t))) * 5
    return torch.from_numpy(sound.round().astype(np.int16)).unflatten(1, (steps, samples)).transpose(0, 1).contiguous()


def pca(sound: torch.Tensor, config: CodecConfig = CONFIG) -> PCACodec:
    return PCACodec(config).fit(sound)


def learned(sound: torch.Tensor, config: CodecConfig = CONFIG, loud: bool = True) -> Codec:
    """Principal components and layers that are not silent"""
    torch.manual_seed(0)
    codec = Codec(config)
    kept = [[p.detach().clone() for p in part.parameters()] for part in (codec.encoder[-1], codec.decoder[-1])]
    codec.start_from(pca(sound, config))
    for part, weights in zip((codec.encoder[-1], codec.decoder[-1]), kept, strict=True):
        for p, weight in zip(part.parameters(), weights, strict=True):
            p.data.copy_(weight * (0.3 if loud else 0))
    return codec.requires_grad_(False).eval()


# ---- lengths


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 3))
def test_lengths_are_exact_whatever_the_strides(strides: list[int], tokens: int, ears: int) -> None:
    frame = math.prod(strides)
    config = CodecConfig(samples=tokens * frame, channels=ears, strides=tuple(strides), latents=2, width=2, linear=frame < 400)
    sound = torch.randint(-3000, 3000, (2, ears, tokens * frame), dtype=torch.int16)
    z = Codec(config).encode(sound)
    assert z.shape == (2, tokens, 2)
    assert Codec(config).decode(z).shape == sound.shape


def test_the_published_padding_loses_samples() -> None:
    """Kernel 2 s with padding ceil(s / 2) is too short for odd strides; ours never is"""
    x = torch.zeros(1, 1, 15)
    for stride in (8, 5, 4):
        x = torch.nn.ConvTranspose1d(1, 1, 2 * stride, stride, math.ceil(stride / 2))(x)
    assert x.shape[2] == 2396
    y = torch.zeros(1, 1, 15)
    for stride in (8, 5, 4):
        y = torch.nn.ConvTranspose1d(1, 1, 2 * stride, stride, math.ceil(stride / 2), output_padding=stride % 2)(y)
    assert y.shape[2] == 2400 == Codec(CodecConfig(width=2)).decode(torch.zeros(1, 15, 64)).shape[2]


@pytest.mark.parametrize(("strides", "tokens"), [((4, 5, 8), 15), ((2, 5, 8), 30), ((2, 4, 5), 60)])
def test_tokens_of_a_step(strides: tuple[int, ...], tokens: int) -> None:
    assert CodecConfig(strides=strides).shape == (tokens, 64)


# ---- principal components


def test_principal_components_are_the_best_linear_codec() -> None:
    sound = ringing(30)
    frames = rearrange(sound.double(), "n ears (t f) -> (n t) (ears f)", f=80).numpy()
    _, _, basis = np.linalg.svd(frames, full_matrices=False)
    wanted = frames @ basis[:24].T @ basis[:24]
    codec = pca(sound)
    found = rearrange(codec.decode(codec.encode(sound)).double(), "n ears (t f) -> (n t) (ears f)", f=80).numpy()
    assert isinstance(codec, SoundCodec) and np.abs(found - wanted).max() < 1.5
    z = codec.encode(sound).double()
    torch.testing.assert_close(z.square().mean((0, 1)).sqrt(), torch.ones(24).double(), atol=1e-4, rtol=0)
    assert codec.encode(torch.zeros_like(sound)).abs().max() == 0  # silence is zero, and back
    assert codec.decode(torch.zeros(1, 12, 24)).abs().max() == 0


def test_more_numbers_a_token_are_never_worse() -> None:
    sound = ringing(30)
    errors = [codec_errors(pca(sound, CONFIG.change(latents=n)), sound)["snr"] for n in (8, 24, 160)]
    assert errors[0] < errors[1] < errors[2] and errors[2] > 60


# ---- convolutions


def test_the_learned_codec_starts_as_principal_components() -> None:
    sound = ringing(30)
    linear, codec = pca(sound), learned(sound, loud=False)
    torch.testing.assert_close(codec.encode(sound), linear.encode(sound), atol=1e-3, rtol=1e-3)
    assert (codec.decode(codec.encode(sound)).int() - linear.decode(linear.encode(sound)).int()).abs().max() <= 1


def test_steps_are_coded_as_the_whole_sound_is() -> None:
    """With the step before it, a step's latents and sound are those of the stretch that it is cut from: there is no seam"""
    sound = ringing(8)
    codec = learned(sound)
    whole = rearrange(sound, "t ears s -> 1 ears (t s)").float() / 2**15
    z = codec._encode(torch.cat([torch.zeros_like(whole[..., :960]), whole], 2))[..., 12:]
    steps = encode_steps(codec, sound)
    torch.testing.assert_close(steps.flatten(0, 1).T[None] * codec.scale[:, None], z, atol=1e-4, rtol=1e-2)
    assert (encode_steps(codec, sound)[1:] != codec.encode(sound[1:])).any()  # without a past it would be another
    y = decode_steps(codec, steps)
    quiet = codec.encode(torch.zeros_like(sound[:1]))[0].T[None] * codec.scale[:, None]
    wanted = codec._sound(codec._decode(torch.cat([quiet, z], 2)))[0, :, 960:]
    assert (y.int() - wanted.int()).abs().max() <= 1
    alone = rearrange(codec.decode(steps), "t ears s -> ears (t s)")
    assert (alone[:, 960:].int() - wanted[:, 960:].int()).abs().max() > 20  # decoded without what was before


def test_nothing_is_heard_before_it_sounds() -> None:
    sound, other = ringing(4), ringing(4)
    other[2:, :, 80:] = 0
    codec = learned(sound)
    a, b = encode_steps(codec, sound), encode_steps(codec, other)
    assert (a[:2] == b[:2]).all() and (a[2, 0] == b[2, 0]).all() and (a[2, 1:] != b[2, 1:]).any()
    x, y = decode_steps(codec, a), decode_steps(codec, b)
    edge = 2 * 960 + 80
    assert (x[:, :edge] == y[:, :edge]).all() and (x[:, edge : edge + 80] != y[:, edge : edge + 80]).any()


def test_a_quantizer_is_optional_and_leaves_codes_only() -> None:
    sound = ringing(20)
    codec = learned(sound, CONFIG.change(quantizers=2, codes=8))
    codec.train()
    losses = CodecLearner(codec).losses(Crops(torch.cat([sound[:-1], sound[1:]], 2)))
    assert losses["quantizer"].ndim == 0 and "quantizer" not in dict(learned(sound).named_children())
    codec.eval()
    tokens = codec.encode(sound, torch.zeros_like(sound)).flatten(0, 1)
    assert len(torch.unique(tokens.round(decimals=4), dim=0)) <= 64 < len(tokens) * 2


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    sound = ringing(12)
    for name, codec in (("pca", pca(sound)), ("learned", learned(sound))):
        loaded = load_codec(codec.save(tmp_path / name))
        assert type(loaded) is type(codec) and loaded.fingerprint() == codec.fingerprint()
        assert (loaded.encode(sound) == codec.encode(sound)).all()
    assert pca(sound).fingerprint() != pca(ringing(12, seed=1)).fingerprint()


# ---- measures


@pytest.mark.parametrize("level", [-9.0, 0.0, 6.0])
def test_the_level_difference_has_the_sign_of_the_louder_ear(level: float) -> None:
    sound = ringing(12, level=level).double().transpose(0, 1).flatten(1)
    found = level_difference(sound, 1920)
    assert abs(float(found[0]) - level) < 0.3
    torch.testing.assert_close(level_difference(sound.flip(0), 1920), -found)  # swapped ears


def test_swapped_ears_are_an_error_of_twice_the_level() -> None:
    sound, whole = ringing(24, level=8.0), ringing(24, level=8.0)

    class Swapped(PCACodec):
        def decode(self, latents, past=None):  # noqa: ANN001, ANN202
            return super().decode(latents, past).flip(1)

    config = CONFIG.change(latents=120)
    good, bad = codec_errors(pca(whole, config), sound), codec_errors(Swapped(config).fit(whole), sound)
    assert good["level"] < 0.1 and 13 < bad["level"] < 19


def test_a_jump_between_steps_is_told() -> None:
    sound = ringing(24)

    class Jumping(PCACodec):
        def decode(self, latents, past=None):  # noqa: ANN001, ANN202
            found = super().decode(latents, past)
            found[:, :, 0] += 900
            return found

    assert codec_errors(pca(sound), sound)["seam"] < 2.0 < 4.0 < codec_errors(Jumping(CONFIG).fit(sound), sound)["seam"]


def test_spectra_of_equal_sounds_are_equal() -> None:
    x = ringing(8, 2400, 16_000).float().transpose(0, 1).flatten(1) / 5000
    assert stft_distance(x, x).max() == 0
    assert (stft_distance(x.roll(40, -1), x) < 0.3 * stft_distance(torch.zeros_like(x), x)).all()  # phase hardly counts


# ---- training


SCHEMA = Schema(game="ring", image_shape=(8, 8, 3), channels=2, sample_rate=6400, actions=ActionSpec(categorical=(2,)))


def record_sound(path: Path, sound: torch.Tensor, schema: Schema = SCHEMA, episode: int = 15) -> Store:
    store, picture = Store.create(path, schema), np.zeros((8, 8, 3), np.uint8)
    with store.writer() as writer:
        for t, step in enumerate(sound.numpy()):
            inside = t % episode
            writer.add(Step(picture, step, np.array(0), 0.0, False, inside == episode - 1, inside == 0, inside, 0))
    return store


def test_crops_end_with_their_row_and_begin_in_silence(tmp_path: Path) -> None:
    sound = ringing(30)
    crops = CropCache(Cache.build(record_sound(tmp_path / "store", sound)), 2400)
    found = crops.gather([[(16, 17)], [(20, 21)]]).sound
    whole = rearrange(sound[15:21], "t ears s -> ears (t s)").numpy()
    assert (found[1] == whole[:, -2400:]).all()
    assert not found[0][:, :480].any() and (found[0][:, 480:] == whole[:, :1920]).all()  # row 16 is the second of its episode


def test_training_brings_spectra_nearer_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    sound = ringing(45)
    store, config = record_sound(tmp_path / "store", sound), CONFIG.change(latents=8, width=4)
    training = {"lr": 3e-3, "warmup": 5, "checkpoint_every": 10}

    def train(folder: str, steps: int) -> Codec:
        return train_codec(store, tmp_path / folder, config, TrainConfig(steps=steps, **training), 4)

    train("a", 10)
    whole, once = train("a", 30), train("b", 30)
    assert whole.fingerprint() == once.fingerprint() == load_codec(tmp_path / "a").fingerprint()
    linear, found = codec_errors(fit_pca(store, config), sound), codec_errors(whole, sound)
    assert found["spectrum"] < 0.97 * linear["spectrum"] and found["snr"] > linear["snr"] - 0.5
    z = encode_steps(whole, sound)
    torch.testing.assert_close(z.square().mean((0, 1)).sqrt(), torch.ones(8), atol=0.3, rtol=0)


def test_the_losses_see_sides() -> None:
    sound = ringing(12)
    learner = CodecLearner(learned(sound))
    batch = Crops(torch.cat([sound[:-1], sound[1:]], 2))
    assert learner.losses(batch).keys() == learner.scales.keys()
    good = float(learner.losses(batch)["level"].mean())
    learner.codec._decode = lambda z: Codec._decode(learner.codec, z).flip(1)
    assert float(learner.losses(batch)["level"].mean()) > good + 5


# ---- bad input


def test_bad_sound_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2400 samples can't be cut into tokens of 2 x 4 x 5 x 8 = 320"):
        CodecConfig(strides=(2, 4, 5, 8))
    codec = pca(ringing(8))
    with pytest.raises(UsageError, match="2 ears, not mono sound"):
        codec.encode(ringing(8)[:, :1])
    with pytest.raises(UsageError, match="steps of 960 samples, not of 959"):
        codec.encode(ringing(8)[..., 1:])
    with pytest.raises(UsageError, match="has mono sound"):
        codec.check(SCHEMA.change(channels=1))
    with pytest.raises(UsageError, match="6400 Hz"):
        codec.check(SCHEMA.change(sample_rate=16_000))
    with pytest.raises(UsageError, match="160 samples has no 161 principal"):
        PCACodec(CONFIG.change(latents=161))
    mono = record_sound(tmp_path / "mono", ringing(20)[:, :1], SCHEMA.change(channels=1))
    with pytest.raises(UsageError, match="mono"):
        fit_pca(mono, CONFIG)
    assert fit_pca(mono, CodecConfig(**sound_sizes(Cache.build(mono), 80), strides=(4, 5, 4))).config.channels == 1


def test_planted_errors_are_caught() -> None:
    """A future that is heard, and a past that is not, make other numbers"""
    sound = ringing(8)
    codec, z = learned(sound), encode_steps(learned(sound), sound)
    deaf = mutant(Codec.encode, "torch.zeros_like(sound) if past is None else past", "torch.zeros_like(sound)")
    past = torch.cat([torch.zeros_like(sound[:1]), sound[:-1]])
    assert (deaf(codec, sound, past) - z).abs().max() > 1e-2
