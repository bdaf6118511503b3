"""Networks that compare are those that their authors trained, and a column without its network is empty."""

import builtins
import pickle

import numpy as np
import pytest
import torch
from mutants import mutant
from scipy.linalg import sqrtm
from skimage import data

from metabonk.core.errors import MissingLibrary, UsageError
from metabonk.dream.causal_tokenizer import CausalTokenizer, CausalTokenizerConfig, bouncing_ball
from metabonk.dream.clips import Clip
from metabonk.measure import perceptual as per

CATS, CUPS = (281, 282, 285), (504, 967)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def things() -> np.ndarray:
    """A cat and a cup of coffee."""
    return np.stack([data.chelsea()[:, 75:375], data.coffee()[:300, 150:450]])


@pytest.fixture(scope="module")
def lite():
    return per.EfficientNetLite0()


def test_the_network_knows_what_it_sees(things, lite, monkeypatch):
    network = per.EfficientNetLite0(size=224)
    cat, cup = network.classify(things)
    assert cat.argmax() in CATS and cup.argmax() in CUPS
    sure = float(cat[list(CATS)].sum() + cup[list(CUPS)].sum())
    for old, new in (
        ("sides += [pad // 2, pad - pad // 2]", "sides += [pad - pad // 2, pad // 2]"),  # the other side
        ("x + before if", "x if"),
        ("(x - 127) / 128", "x / 255"),
    ):
        wrong = mutant(per.EfficientNetLite0, old, new)(size=224).classify(things)
        assert float(wrong[0, list(CATS)].sum() + wrong[1, list(CUPS)].sum()) < sure, new


def test_distances_follow_what_is_seen(things, lite):
    levels, pooled = lite(things)
    assert [x.shape[1:] for x in levels] == [(16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4)]
    assert pooled.shape == (2, 1280)
    moved = lite(np.roll(things, 2, 2))[0]
    near, far = per.feature_distance(levels, moved), per.feature_distance(levels, [x.flip(0) for x in levels])
    assert (near > 0).all() and (3 * near < far).all() and not per.feature_distance(levels, levels).any()
    ones, none = [torch.ones(x.shape[1]) for x in levels], [torch.zeros(x.shape[1]) for x in levels]
    assert np.allclose(per.feature_distance(levels, moved, ones), near)
    assert not per.feature_distance(levels, moved, none).any()


def test_frechet_distance_is_the_usual_one():
    generator = np.random.default_rng(0)
    mix = generator.standard_normal((5, 5))
    one, other = generator.standard_normal((60, 5)), generator.standard_normal((80, 5)) @ mix + 1
    a, b = np.cov(one.T), np.cov(other.T)
    usual = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert per.frechet_distance(one, other) == pytest.approx(usual, rel=1e-9)
    wide = generator.standard_normal((6, 40))  # fewer pictures than features
    assert per.frechet_distance(wide, wide) == pytest.approx(0, abs=1e-9)
    assert per.frechet_distance(wide, wide + 2) == pytest.approx(40 * 4)
    for bad in (one[:1], one[:, :3], one[0]):
        with pytest.raises(UsageError, match="at least two"):
            per.frechet_distance(bad, other)


def alexnet() -> torch.nn.Sequential:
    """The features of AlexNet as torchvision has them, with weights drawn by chance."""
    nn, torch_seed = torch.nn, torch.manual_seed(0)
    assert torch_seed is not None
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    """A file such as torchvision's."""
    path = tmp_path / "alexnet.pth"
    state = {f"features.{name}": x for name, x in alexnet().state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(3, 3)}, path)
    return path


def test_lpips_is_that_of_torchmetrics(weights, things, monkeypatch):
    from torchmetrics.functional.image import lpips as theirs

    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: alexnet())
    judge = theirs._LPIPS(net="alex", pretrained=True, pnet_rand=True, eval_mode=True).eval()
    pictures = things[:, :64, :64].copy()
    one, other = pictures, np.roll(pictures, 5, 1)
    unit = [torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1 for x in (one, other)]
    with torch.no_grad():
        expected = judge(*unit).flatten().numpy()
    ours = per.Lpips(weights)
    assert np.allclose(ours(one, other), expected, rtol=1e-4) and expected.min() > 1e-3
    assert not ours(one, one).any()


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_hostile_weights_run_nothing(tmp_path, weights):
    marker, path = tmp_path / "it-ran", tmp_path / "weights.pth"
    torch.save({"features.0.weight": Touch(marker)}, path)
    contents = [path.read_bytes(), pickle.dumps(Touch(marker)), b"", b"PK\x03\x04" + b"\xff" * 50]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UsageError, match="weights.pth") as caught:
            per.Lpips(path)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    with pytest.raises(UsageError, match="can't be read"):
        per.Lpips(tmp_path / "nothing.pth")
    for wrong in ([torch.zeros(3)], {"features.0.weight": torch.zeros(3)}, {"features.0.weight": 1}):
        torch.save(wrong, path)
        with pytest.raises(UsageError, match="another network"):
            per.Lpips(path)
        with pytest.raises(UsageError, match="another network"):
            per.Lpips(weights, path)


def test_a_column_without_its_network_says_why(things, lite, weights, monkeypatch):
    audio = np.zeros((2, 2, 100), np.int16)
    both = {"image": things[:, ::4, ::4], "audio": audio}
    empty = per.network_scores(both, both)
    assert list(empty.index) == list(per.EMPTY) and empty["value"].isna().all() and (empty["why"] != "").all()
    means = lambda x: np.asarray(x, float).reshape(len(x), -1)[:, :4]  # noqa: E731
    whole = per.network_scores(both, both, lite, per.Lpips(weights), lambda a, b: [1.0, 2.0], means, means, batch=1)
    assert (whole["why"] == "").all() and whole.loc["DreamSim", "value"] == 1.5
    assert np.allclose(whole["value"].drop("DreamSim"), 0, atol=1e-6)
    blind = per.network_scores({"audio": audio}, both, lite, fad=means)
    assert blind["value"].notna().tolist() == [False] * 5 + [True]
    moved = per.network_scores({"image": np.roll(both["image"], 3, 1)}, both, lite)
    assert (moved["value"][:2] > 0.01).all()


def test_without_the_package_it_says_what_to_install(monkeypatch, things, lite):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("efficientnet"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingLibrary, match="pip install"):
        per.EfficientNetLite0()
    monkeypatch.undo()
    with pytest.raises(UsageError, match="uint8"):
        lite(things / 255)


def learned_from(judge) -> tuple[dict[str, torch.Tensor], float]:
    """Losses of a small tokenizer and the size of their gradient."""
    torch.manual_seed(0)
    config = CausalTokenizerConfig(size=(32, 32), width=16, layers=2, heads=2, time_every=2, latents=4, bottleneck=4)
    tokenizer = CausalTokenizer(config, judge).eval()
    ball = bouncing_ball(2, 3, 32, generator=torch.Generator().manual_seed(0))
    losses = tokenizer.losses(Clip(ball.image, first=ball.first))
    name = "perceptual" if judge else "structure"
    gradient = torch.autograd.grad(losses[name].sum(), tokenizer.restore["image"].weight)[0]
    assert gradient.isfinite().all()
    return losses, float(gradient.norm())


@pytest.mark.parametrize("name", ["lpips", "efficientnet-lite0"])
def test_a_perceptual_term_changes_the_loss_and_has_gradients(name, weights):
    judge = per.perceptual_loss(name, weights)
    (without, _), (told, gradient) = learned_from(None), learned_from(judge)
    assert set(without) == {"image", "structure"} and set(told) == {"image", "perceptual"} and gradient > 0
    assert told["image"].equal(without["image"]) and not told["perceptual"].isclose(without["structure"]).any()
    frozen = mutant(per._distance, "(unit(a) - unit(b))", "(unit(a) - unit(b)).detach()")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(per, "_distance", frozen)
        learned_from(judge)
    picture = torch.rand(2, 3, 32, 40) * 2 - 1
    assert not judge(picture, picture).any() and (judge(picture, picture.flip(0)) > 0).all()


def test_a_term_is_the_distance_of_the_table(weights, things):
    """At the sizes at which both take pictures as they are."""
    one = things[:, ::2, ::2]
    other, planes = np.roll(one, 3, 1), lambda x: torch.from_numpy(x.copy()).movedim(-1, 1) / 127.5 - 1
    lpips = per.perceptual_loss("lpips", weights)
    assert np.allclose(lpips(planes(one), planes(other)), per.Lpips(weights)(one, other), rtol=1e-4)
    lite = per.EfficientNetLite0(size=None)
    expected = per.feature_distance(lite(one)[0], lite(other)[0])
    assert np.allclose(per.PerceptualLoss(lite)(planes(one), planes(other)), expected, rtol=1e-4)


def test_a_term_without_its_file_says_what_to_do(tmp_path):
    for path in ("", tmp_path / "nothing.pth"):
        with pytest.raises(UsageError, match="name it in `alexnet`, or take efficientnet-lite0") as caught:
            per.perceptual_loss("lpips", path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="lpips"):
        per.perceptual_loss("lpip")
