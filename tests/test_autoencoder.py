"""The autoencoder: sizes, a mean without chance, weights that are those that were saved, a user's own from diffusers"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import mutant

from metabonk.core.actions import ActionSpec
from metabonk.core.errors import FolderError, MissingLibrary, UsageError
from metabonk.core.learner import TrainConfig
from metabonk.record.experience import Schema, Step
from metabonk.record.store import Store
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig, DiffusersEncoder, ImageEncoder
from metabonk.sense.autoencoder_training import train_autoencoder

SMALL = {"widths": (16, 32), "patch": 4, "groups": 4, "blocks": 1, "attention": False}


def build(seed: int = 0, **changes: object) -> Autoencoder:
    """Untrained, of 16 x 24 pixels."""
    torch.manual_seed(seed)
    return Autoencoder(AutoencoderConfig(size=(16, 24), **{**SMALL, **changes}))


def pictures(n: int = 12, size: tuple[int, int] = (16, 24), seed: int = 0) -> torch.Tensor:
    """Boxes on a ground."""
    random = np.random.default_rng(seed)
    found = np.empty((n, *size, 3), np.uint8)
    for picture in found:
        picture[:] = random.integers(0, 256, 3)
        y, x = (int(random.integers(side // 2)) for side in size)
        picture[y : y + size[0] // 2, x : x + size[1] // 2] = random.integers(0, 256, 3)
    return torch.from_numpy(found)


# ---- ours


@pytest.mark.parametrize(("size", "shape"), [((64, 64), (4, 8, 8)), ((128, 128), (4, 16, 16)), ((64, 96), (4, 8, 12))])
@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_every_preset_makes_squares_of_eight_pixels_a_cell(preset: str, size: tuple[int, int], shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        autoencoder = Autoencoder(AutoencoderConfig.preset(preset, size=size))
        latents = autoencoder.encoder(torch.empty(2, 3, *size))
        assert autoencoder.decoder(latents[:, :4]).shape == (2, 3, *size)
    assert isinstance(autoencoder, ImageEncoder) and latents.shape == (2, 8, *shape[1:]) and autoencoder.shape == shape


def test_paper_has_as_many_weights_as_the_published_one() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        ours = Autoencoder(AutoencoderConfig.preset("paper"))
        theirs = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4,
        )  # fmt: skip
    counts = [[sum(p.numel() for p in part.parameters()) for part in (m.encoder, m.decoder)] for m in (ours, theirs)]
    counts[1] = [counts[1][0] + 8 * 8 + 8, counts[1][1] + 4 * 4 + 4]  # its convolutions of one cell stand outside
    assert counts[0] == counts[1] and sum(counts[0]) == 83_653_863


def as_published(autoencoder: Autoencoder, theirs: object) -> None:
    """Copy the weights of an `AutoencoderKL` of the same sizes, layer by layer in the order in which they are used"""
    state = theirs.state_dict()
    blocks = ("norm1", "conv1", "norm2", "conv2", "conv_shortcut")

    def of(*names: str) -> list[torch.Tensor]:
        return [state[f"{name}.{end}"] for name in names for end in ("weight", "bias") if f"{name}.{end}" in state]

    def block(name: str) -> list[torch.Tensor]:
        return of(*(f"{name}.{part}" for part in blocks))

    def attention(name: str) -> list[torch.Tensor]:
        qkv = [torch.cat([state[f"{name}.to_{part}.{end}"] for part in "qkv"]) for end in ("weight", "bias")]
        return [*of(f"{name}.group_norm"), *qkv, *of(f"{name}.to_out.0")]

    levels = len(theirs.config.block_out_channels)
    middle = lambda side: [*block(f"{side}.mid_block.resnets.0"), *attention(f"{side}.mid_block.attentions.0"),  # noqa: E731
                           *block(f"{side}.mid_block.resnets.1")]  # fmt: skip
    into, out = of("encoder.conv_in"), [*of("post_quant_conv", "decoder.conv_in"), *middle("decoder")]
    for level in range(levels):
        into += of(f"encoder.down_blocks.{level - 1}.downsamplers.0.conv") if level else []
        into += [w for b in range(theirs.config.layers_per_block) for w in block(f"encoder.down_blocks.{level}.resnets.{b}")]
        out += of(f"decoder.up_blocks.{level - 1}.upsamplers.0.conv") if level else []
        out += [w for b in range(theirs.config.layers_per_block + 1) for w in block(f"decoder.up_blocks.{level}.resnets.{b}")]
    into += [*middle("encoder"), *of("encoder.conv_norm_out", "encoder.conv_out", "quant_conv")]
    out += of("decoder.conv_norm_out", "decoder.conv_out")
    for part, weights in ((autoencoder.encoder, into), (autoencoder.decoder, out)):
        for ours, weight in zip(part.parameters(), weights, strict=True):
            ours.data.copy_(weight)


def test_the_layers_are_those_of_the_published_one() -> None:
    """With its weights, ours gives the same numbers: every layer is there, in its place"""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    widths, down, up = (8, 16, 16), ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    theirs = diffusers.AutoencoderKL(block_out_channels=widths, layers_per_block=2, down_block_types=down, up_block_types=up,
                                     latent_channels=4, norm_num_groups=4)  # fmt: skip
    ours = build(widths=widths, patch=1, blocks=2, attention=True)
    as_published(ours, theirs)
    x = pictures(3).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        moments = theirs.quant_conv(theirs.encoder(x))
        torch.testing.assert_close(ours.encoder(x), moments, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.decoder(moments[:, :4]), theirs.decode(moments[:, :4]).sample, atol=1e-5, rtol=1e-4)


def test_latents_have_mean_zero_and_deviation_one_and_the_scale_goes_with_the_encoder(tmp_path: Path) -> None:
    autoencoder, x = build().calibrate(pictures(40)), pictures(40)
    z = autoencoder.encode(x).double()
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4).double(), atol=1e-4, rtol=0)
    loaded = Autoencoder.load(autoencoder.save(tmp_path / "a"))
    assert (loaded.encode(x) == autoencoder.encode(x)).all() and (loaded.decode(z.float()) == autoencoder.decode(z.float())).all()
    assert loaded.fingerprint() == autoencoder.fingerprint() != build().fingerprint()


def test_decoding_undoes_the_scale() -> None:
    """Whatever the scale, a picture comes back the same: nothing of offset or scale is left in it"""
    autoencoder, x = build(), pictures()
    before = autoencoder.decode(autoencoder.encode(x))
    autoencoder.offset += 0.5
    autoencoder.scale *= 3
    assert (autoencoder.decode(autoencoder.encode(x)).int() - before.int()).abs().max() <= 1
    broken = mutant(Autoencoder.decode, " + self.offset", "")
    assert (broken(autoencoder, autoencoder.encode(x)).int() - before.int()).abs().max() > 1


def test_latents_are_the_mean_whatever_the_chance() -> None:
    autoencoder, x = build(), pictures()
    torch.manual_seed(1)
    once = autoencoder.encode(x)
    torch.manual_seed(2)
    assert (autoencoder.encode(x) == once).all()
    assert (once == autoencoder.encoder(x.permute(0, 3, 1, 2) / 127.5 - 1)[:, :4]).all()


def test_the_losses() -> None:
    autoencoder, x = build(kl=1.0), pictures()
    moments = torch.distributions.Normal(*moments_of(autoencoder, x))
    wanted = torch.distributions.kl_divergence(moments, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    losses = autoencoder.losses(x)
    torch.testing.assert_close(losses["kl"], wanted)
    seen = []
    compared = autoencoder.losses(x, lambda y, x: (seen.append((y.shape, x.shape)), (y - x).square().mean((1, 2, 3)))[1])
    assert compared["perceptual"].shape == (12,) and seen == [((12, 3, 16, 24),) * 2]


def moments_of(autoencoder: Autoencoder, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of latents"""
    mean, log_variance = autoencoder.encoder(x.permute(0, 3, 1, 2) / 127.5 - 1).chunk(2, 1)
    return mean, (log_variance / 2).exp()


def test_it_starts_as_principal_components() -> None:
    x = pictures(40)
    autoencoder = build(linear=True).start_from(x).calibrate(x)
    cells = x.numpy().reshape(40, 2, 8, 3, 8, 3).swapaxes(2, 3).reshape(-1, 192) / 127.5 - 1
    _, _, basis = np.linalg.svd(cells, full_matrices=False)
    wanted = ((cells @ basis[:4].T @ basis[:4] + 1) * 127.5).reshape(40, 2, 3, 8, 8, 3).swapaxes(2, 3).reshape(x.shape)
    assert np.abs(autoencoder.decode(autoencoder.encode(x)).numpy() - wanted.round().clip(0, 255)).max() <= 1
    assert autoencoder.moments(x.permute(0, 3, 1, 2) / 127.5 - 1)[1].max() == -6


def test_it_learns_boxes_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    store, x = record_pictures(tmp_path / "store", pictures(64)), pictures(64)
    config = AutoencoderConfig(size=(16, 24), **SMALL, linear=True)
    training = {"lr": 3e-3, "warmup": 5, "checkpoint_every": 10, "clip": 0.3}
    half = train_autoencoder(store, tmp_path / "a", config, TrainConfig(steps=20, **training), 16)
    whole = train_autoencoder(store, tmp_path / "a", config, TrainConfig(steps=60, **training), 16)
    once = train_autoencoder(store, tmp_path / "b", config, TrainConfig(steps=60, **training), 16)
    assert whole.fingerprint() == once.fingerprint() != half.fingerprint()
    assert Autoencoder.load(tmp_path / "a").fingerprint() == whole.fingerprint()
    start = Autoencoder(config).start_from(x)
    errors = [float((a.decode(a.encode(x)).float() - x).square().mean()) for a in (whole, half, start)]
    assert errors[0] < 0.9 * errors[1] and errors[1] < 0.97 * errors[2]
    torch.testing.assert_close(whole.encode(x).std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def record_pictures(path: Path, x: torch.Tensor) -> Store:
    """A recording of silent pictures"""
    size = tuple(x.shape[1:])
    store = Store.create(path, Schema(game="boxes", image_shape=size, channels=0, actions=ActionSpec(categorical=(2,))))
    silence = np.zeros((0, 0), np.int16)
    with store.writer() as writer:
        for t, picture in enumerate(x.numpy()):
            writer.add(Step(picture, silence, np.array(0), 0.0, False, t == len(x) - 1, t == 0, t, 0))
    return store


def test_bad_sizes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="60 pixels is no multiple of 8"):
        AutoencoderConfig.preset("tiny", size=(64, 60))
    with pytest.raises(UsageError, match="groups"):
        AutoencoderConfig.preset("tiny", widths=(30, 60), groups=8)
    with pytest.raises(UsageError, match="takes pictures of 16 x 24, not 32 x 32"):
        build().encode(pictures(size=(32, 32)))
    store = record_pictures(tmp_path / "store", pictures(4))
    with pytest.raises(UsageError, match="AutoencoderConfig.size"):
        train_autoencoder(store, tmp_path / "a", AutoencoderConfig.preset("tiny"))


# ---- a user's own


def diffusers_folder(folder: Path, kind: str = "AutoencoderKL", **changes: object) -> Path:
    """A tiny one with random weights."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    if kind == "AutoencoderKL":
        model = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, **changes,
        )  # fmt: skip
    else:
        four = (8, 8, 8, 8)
        model = diffusers.AutoencoderTiny(encoder_block_out_channels=four, decoder_block_out_channels=four,
                                          num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))  # fmt: skip
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_a_users_autoencoder_is_what_diffusers_makes_of_it(kind: str, tmp_path: Path) -> None:
    loaded = DiffusersEncoder.load(diffusers_folder(tmp_path / "own", kind), (16, 24))
    assert isinstance(loaded, ImageEncoder) and loaded.shape == (4, 2, 3)
    x = pictures().permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        found = loaded.model.encode(x)
        z = found.latent_dist.mode() * 0.18215 if kind == "AutoencoderKL" else found.latents
        y = loaded.model.decode(z / 0.18215 if kind == "AutoencoderKL" else z).sample
    torch.testing.assert_close(loaded.encode(pictures()), z)
    again = ((y + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    assert (loaded.decode(z).int() - again.int()).abs().max() <= 1
    assert loaded.fingerprint() == DiffusersEncoder.load(tmp_path / "own", (16, 24)).fingerprint()


def test_a_shift_of_its_configuration_counts(tmp_path: Path) -> None:
    loaded = DiffusersEncoder.load(diffusers_folder(tmp_path / "own", scaling_factor=0.5, shift_factor=0.25), (16, 16))
    x = pictures(size=(16, 16))
    with torch.no_grad():
        mean = loaded.model.encode(x.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    torch.testing.assert_close(loaded.encode(x), (mean - 0.25) * 0.5)


def test_folders_that_hold_something_else_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = diffusers_folder(tmp_path / "own")
    about = json.loads((own / "config.json").read_text())
    for text in ("", "[]", "5", "{}", json.dumps(about | {"_class_name": "os.system"}), json.dumps(about | {"_class_name": 3})):
        (own / "config.json").write_text(text)
        with pytest.raises(UsageError, match="own"):
            DiffusersEncoder.load(own)
    (own / "config.json").write_text(json.dumps(about))
    with pytest.raises(UsageError, match="multiples of 8"):
        DiffusersEncoder.load(own, (60, 64))
    weights, marker = own / "diffusion_pytorch_model.safetensors", tmp_path / "it-ran"
    weights.write_bytes(b"\xff" * 20)
    with pytest.raises(FolderError, match="damaged"):
        DiffusersEncoder.load(own)
    weights.rename(own / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Touch(marker)))
    with pytest.raises(UsageError, match="safetensors"):
        DiffusersEncoder.load(own)
    assert not marker.exists()
    weights.touch()
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(MissingLibrary, match="autoencoder"):
        DiffusersEncoder.load(own)


class Touch:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)
