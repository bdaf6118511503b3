"""The autoencoder: sizes, a mean without chance, weights that are those that were saved, a user's own from diffusers"""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from metabonk.core.errors import FolderError, MissingLibrary, UsageError
from metabonk.sense.autoencoder import Autoencoder, AutoencoderConfig, DiffusersEncoder, ImageEncoder

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
