"""Quantizer, picture and sound tokenizers: what their pages do not show."""

import copy
import io
import math

import pytest
import torch
from mutants import mutant

from metabonk.core.errors import UsageError
from metabonk.sense.picture import PictureConfig, PictureTokenizer, cells_along
from metabonk.sense.quantizer import CodeMeans, Quantizer, nearest_codes, perplexity, spread, usage
from metabonk.sense.sound import SoundConfig, SoundTokenizer

EYES = {"size": (16, 24), "grid": (2, 3), "codes": 16, "width": 16, "narrow": 8, "code_size": 8}
EARS = {"channels": 2, "frames": 4, "bands": 8, "codes": 16, "width": 16, "heads": 2, "code_size": 8}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pictures(count: int) -> torch.Tensor:
    """Grey floor with one bright square somewhere: few things, many places."""
    x = torch.full((count, 16, 24, 3), 60, dtype=torch.uint8)
    for picture in x:
        row, column = int(torch.randint(0, 2, ())) * 8, int(torch.randint(0, 3, ())) * 8
        picture[row + 2 : row + 6, column + 2 : column + 6] = torch.tensor([250, 200, 10], dtype=torch.uint8)
    return x


def sounds(count: int) -> torch.Tensor:
    """One of three chords in each step, some with a click in one frame."""
    chords = torch.rand(3, 2, 1, 8) * -3
    x = chords[torch.randint(0, 3, (count,))].expand(-1, -1, 4, -1).clone()
    x[::4, :, 2] += 1.0
    return x


def eyes(**changes: object) -> PictureTokenizer:
    return PictureTokenizer(PictureConfig.preset("tiny", **(EYES | changes)))


def ears(**changes: object) -> SoundTokenizer:
    return SoundTokenizer(SoundConfig.preset("tiny", **(EARS | changes)))


def train(tokenizer: PictureTokenizer | SoundTokenizer, data: torch.Tensor, steps: int) -> list[float]:
    """The reconstruction loss of each step."""
    optimizer, curve = torch.optim.Adam(tokenizer.parameters(), lr=2e-3), []
    for _ in range(steps):
        losses = tokenizer.losses(data[torch.randint(len(data), (16,))])
        optimizer.zero_grad()
        torch.stack([term.mean() for term in losses.values()]).sum().backward()
        optimizer.step()
        curve.append(float(losses["reconstruction"].detach().mean()))
    return curve


def test_nearest_agrees_with_all_distances() -> None:
    vectors, codes = torch.randn(50, 5), torch.randn(7, 5)
    distances = torch.cdist(vectors, codes) ** 2
    squared, tokens = nearest_codes(vectors, codes)
    assert torch.equal(tokens, distances.argmin(1))
    assert torch.allclose(squared, distances.amin(1), atol=1e-4)


def test_spread_takes_nothing_twice_while_there_is_something_new() -> None:
    vectors = torch.arange(6.0)[:, None].repeat(20, 1)  # six different ones, twenty times each
    assert sorted(spread(vectors, 6)[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(spread(vectors, 3, given=torch.tensor([[0.0], [1.0], [2.0]]))[:, 0].tolist()) == [3, 4, 5]
    assert spread(vectors, 0).shape == (0, 1)
    assert spread(torch.zeros(4, 2), 6).shape == (6, 2)  # more than there are


def test_usage_and_perplexity() -> None:
    tokens = torch.tensor([[0, 0], [2, 3]])
    assert usage(tokens, 5).tolist() == [0.5, 0, 0.25, 0.25, 0]
    assert math.isclose(perplexity(tokens, 5), 2**1.5, rel_tol=1e-5)
    assert perplexity(torch.arange(5), 5) == pytest.approx(5)


@pytest.mark.parametrize("cosine", [False, True])
def test_training_and_evaluation_give_the_same_tokens(cosine: bool) -> None:
    quantizer, vectors = Quantizer(4, 8, cosine=cosine), torch.randn(64, 3, 4)
    quantizer(vectors)
    before = quantizer.codebook.clone()
    quantized, tokens, _ = quantizer(vectors)  # assigned by the library, with the codes from before this call
    directions = torch.nn.functional.normalize(vectors, dim=-1) if cosine else vectors
    assert torch.equal(tokens, nearest_codes(directions.flatten(0, 1), before)[1].view(64, 3))
    assert torch.allclose(quantized, before[tokens], atol=1e-4)


def test_evaluation_learns_nothing() -> None:
    quantizer = Quantizer(4, 8)
    quantizer(torch.randn(64, 3, 4))
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(64, 3, 4))
    assert all(torch.equal(value, state[name]) for name, value in quantizer.state_dict().items())


def test_the_gradient_passes_and_the_commitment_pulls() -> None:
    quantizer, vectors = Quantizer(4, 8, commitment=1.0), torch.randn(64, 1, 4, requires_grad=True)
    quantizer(vectors)
    quantized, _, loss = quantizer(vectors)
    (passed,) = torch.autograd.grad(quantized.sum(), vectors, retain_graph=True)
    assert passed.abs().min() > 0
    (pull,) = torch.autograd.grad(loss, vectors)
    assert torch.allclose(pull, 2 * (vectors - quantized).detach() / vectors.numel(), atol=1e-5)


def test_dead_codes_return_and_rare_ones_stay() -> None:
    often, rarely, later = torch.randn(60, 1, 2), torch.randn(1, 1, 2) + 50, torch.randn(60, 1, 2) - 50
    found = {}
    for least in (0.01, 0.0):  # the second is the control: nobody is ever dead
        torch.manual_seed(1)
        quantizer = Quantizer(2, 16, least=least)
        for _ in range(5):
            quantizer(torch.cat([often, rarely]))
        for _ in range(150):
            quantizer(torch.cat([later, rarely]))
        found[least] = len(quantizer.encode(later).unique())
        assert (quantizer.codebook - rarely[0]).norm(dim=1).min() < 0.1  # once in a batch is enough to live
    assert found[0.01] >= 14 and found[0.0] < 5


def test_means_forget() -> None:
    means, tokens = CodeMeans(4, 1, decay=0.5), torch.tensor([[0, 0, 1]])
    means.learn(tokens, torch.tensor([[[2.0], [4.0], [7.0]]]))
    assert means(torch.tensor([[0, 1, 3]]))[0, :, 0].tolist() == pytest.approx([3, 7, 0])
    means.learn(torch.tensor([[0]]), torch.tensor([[[9.0]]]))
    assert means(torch.tensor([[0, 1]]))[0, :, 0].tolist() == pytest.approx([(0.5 * 6 + 9) / (0.5 * 2 + 1), 7])


@pytest.mark.parametrize(("make", "things", "given"), [
    (eyes, pictures, "cells.flatten(1, 2)"), (ears, sounds, "patches"),
], ids=["eyes", "ears"])  # fmt: skip
def test_a_batch_does_not_know_itself(monkeypatch, make, things, given) -> None:  # noqa: ANN001
    """Its error is that of the tokenizer as it was. Negative control: means that learn before the error is taken."""
    tokenizer, seen = make().train(), things(16)
    for _ in range(3):
        tokenizer.losses(seen)
    strange, kind = things(8).flip(0) // 2 if make is eyes else things(8) - 2, type(tokenizer)
    before, control = copy.deepcopy(tokenizer).eval(), copy.deepcopy(tokenizer)
    wanted = before.losses(strange)["reconstruction"]
    torch.testing.assert_close(tokenizer.losses(strange)["reconstruction"], wanted)
    early = f"self.training and self.means.learn(tokens, {given}); error = "
    monkeypatch.setattr(kind, "losses", mutant(kind.losses, "error = ", early))
    assert float((control.losses(strange)["reconstruction"] - wanted).abs().max().detach()) > 1e-3


def test_codes_are_no_longer_than_what_they_stand_for() -> None:
    assert ears(channels=1, bands=4).quantizer.codebook.shape == (16, 4)
    assert eyes(size=(4, 4), grid=(4, 4)).quantizer.codebook.shape == (16, 3)


def test_cells_and_back() -> None:
    tokenizer, x = eyes(), torch.randint(0, 256, (3, 16, 24, 3), dtype=torch.uint8)
    cells = tokenizer.cells(x)
    assert torch.equal((cells[1, 1, 2].unflatten(0, (8, 8, 3)) + 0.5).mul(255).round().byte(), x[1, 8:, 16:])
    assert torch.equal(tokenizer._pictures(cells).mul(255).round().byte(), x)


def test_patches_and_back() -> None:
    for tokens in (4, 8):
        tokenizer, x = ears(tokens=tokens), torch.rand(3, 2, 4, 8) * -4
        patches = tokenizer.patches(x)
        assert patches.shape == (3, tokens, 64 // tokens)
        assert torch.allclose(tokenizer._frames(patches), x, atol=1e-5)
        half = patches[0, tokens // 2].unflatten(0, (2, -1))  # first part of frame 2: low bands of both channels
        assert torch.allclose(half, 1 + x[0, :, 2, : half.shape[1]] / 2, atol=1e-6)


def test_neighbours_see_exactly_nine_cells() -> None:
    tokenizer = eyes(size=(40, 40), grid=(5, 5), blocks=0)
    x = torch.zeros(1, 5, 5, 8, requires_grad=True)
    layer = tokenizer.decoder[0]
    (seen,) = torch.autograd.grad(layer(x)[0, 2, 2].sum(), x)
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal(seen[0].abs().sum(-1) > 0, expected)


def test_pictures_are_learnt_with_their_colours() -> None:
    tokenizer, x = eyes(), pictures(64)
    train(tokenizer, x, 60)
    tokenizer.eval()
    again = tokenizer.decode(tokenizer.encode(x))
    assert again.dtype == torch.uint8
    assert (again.int() - x.int()).abs().float().mean() < 1
    shuffled = tokenizer.decode(tokenizer.encode(x)[torch.randperm(64)])  # the control
    assert (shuffled.int() - x.int()).abs().float().mean() > 5


@pytest.mark.parametrize("kind", ["resnet", "transformer"])
@pytest.mark.parametrize("tokens", [4, 8])
def test_sounds_are_learnt_with_their_clicks(kind: str, tokens: int) -> None:
    tokenizer, x = ears(kind=kind, tokens=tokens), sounds(64)
    train(tokenizer, x, 80)
    tokenizer.eval()
    found = tokenizer.encode(x)
    assert found.shape == (64, tokens) and found.dtype == torch.int64
    again = tokenizer.decode(found)
    assert (again - x).abs().mean() < 0.15
    click, before = again[::4, :, 2].mean(), again[::4, :, 1].mean()
    assert click - before > 0.5  # of 1.0


@pytest.mark.parametrize("make", [eyes, ears])
def test_state_survives_and_tokens_do_not_depend_on_the_batch(make) -> None:  # noqa: ANN001
    tokenizer = make()
    x = pictures(40) if make is eyes else sounds(40)
    train(tokenizer, x, 10)
    file = io.BytesIO()
    torch.save(tokenizer.state_dict(), file)
    file.seek(0)
    other = make()
    other.load_state_dict(torch.load(file, weights_only=True))
    tokens = tokenizer.eval().encode(x)
    assert torch.equal(other.eval().encode(x), tokens)
    assert torch.equal(other.decode(tokens), tokenizer.decode(tokens))
    assert torch.equal(torch.cat([other.encode(one[None]) for one in x]), tokens)
    assert all(value.is_contiguous() for value in tokenizer.state_dict().values())


@pytest.mark.parametrize("make", [eyes, ears])
def test_forward_decodes_what_it_encodes(make) -> None:  # noqa: ANN001
    tokenizer = make()
    x = pictures(40) if make is eyes else sounds(40)
    train(tokenizer, x, 5)
    tokenizer.eval()
    again, tokens, loss = tokenizer(x)
    assert torch.equal(tokens, tokenizer.encode(x))
    assert loss.item() > 0  # the commitment: how far the encoder is from its codes
    quantizer, vectors = tokenizer.quantizer, torch.randn(3, tokens.shape[1], tokenizer.quantizer.size)
    if not quantizer.cosine:
        quantized, _, loss = quantizer(vectors)
        torch.testing.assert_close(loss, 0.25 * (vectors - quantized).square().mean())
    decoded = tokenizer.decode(tokens)
    if make is eyes:
        assert torch.equal(again.clamp(0, 1).mul(255).round().byte(), decoded)
    else:
        assert torch.equal(again.clamp_min(-4), decoded)
    assert tokenizer.tokens == tokens.shape[1] and tokenizer.codes == 16 > int(tokens.max())


def test_balance_makes_rare_cells_dear() -> None:
    tokenizer, x = eyes(), pictures(64)
    for _ in range(30):
        tokenizer.losses(x)
    tokens = tokenizer.eval().encode(x)
    bright = (tokenizer.cells(x).flatten(1, 2).amax(-1) > 0.3).reshape(tokens.shape)  # one cell in six
    found = {}
    for wrong in (bright, ~bright):
        for balance in (0.0, 0.5):
            other = eyes(balance=balance)
            other.load_state_dict(tokenizer.state_dict())
            other.means.total[tokens[wrong].unique()] += 100.0
            found[bool(wrong is bright), balance] = float(other.eval().losses(x)["reconstruction"].detach().mean())
    assert found[True, 0.5] > 1.2 * found[True, 0.0]  # the rare ones are drawn wrongly
    assert found[False, 0.5] < found[False, 0.0]  # the common ones are


def test_the_anchor_keeps_things_apart() -> None:
    x = sounds(256)
    x = x + 0.3 * torch.randn_like(x)
    kept = {}
    for anchor in (4.0, 0.0):
        torch.manual_seed(0)
        tokenizer = ears(anchor=anchor, codes=8)
        train(tokenizer, x, 120)
        with torch.no_grad():
            patches = tokenizer.patches(x)
            both = tokenizer._encode(patches), patches @ tokenizer.projection
        kept[anchor] = float(both[0].flatten(0, 1).std(0).mean() / both[1].flatten(0, 1).std(0).mean())
    assert kept[4.0] > 0.93 and kept[0.0] < 0.9


@pytest.mark.parametrize(("side", "cells"), [(64, 8), (144, 16), (210, 15), (160, 16), (45, 5), (10, 5), (84, 12), (320, 16)])
def test_any_usual_side_is_cut_into_small_cells(side: int, cells: int) -> None:
    assert cells_along(side) == cells
    assert PictureConfig(size=(side, 64)).grid == (cells, 8) and PictureConfig(size=(side, 64), grid=(0, 4)).grid == (cells, 4)


def test_a_grid_that_was_found_is_kept_in_the_description() -> None:
    config = PictureConfig(size=(45, 20))
    assert config.to_dict()["grid"] == [5, 4] and PictureConfig.from_dict(config.to_dict()) == config
    assert PictureConfig().fingerprint() == PictureConfig(grid=(8, 8)).fingerprint()
    tokens = PictureTokenizer(config.change(width=16, codes=8)).encode(torch.zeros(2, 45, 20, 3, dtype=torch.uint8))
    assert tokens.shape == (2, 20)


def test_what_does_not_fit_is_told() -> None:
    for cut in ({"size": (64, 60), "grid": (8, 8)}, {"size": (64, 61)}, {"size": (0, 64)}, {"grid": (-1, 8)}):
        with pytest.raises(UsageError, match="grid"):
            PictureConfig.from_dict(cut)
    for wrong in ({"tokens": 6}, {"tokens": 12, "bands": 32}, {"tokens": 0}, {"tokens": 2}):
        with pytest.raises(UsageError, match="tokens"):
            SoundConfig.from_dict(wrong)
    with pytest.raises(UsageError, match="resnet"):
        SoundConfig.from_dict({"kind": "resnett"})
    with pytest.raises(UsageError, match="pixels"):
        eyes().encode(torch.zeros(1, 24, 16, 3, dtype=torch.uint8))
    with pytest.raises(UsageError, match="channels"):
        ears().encode(torch.zeros(1, 1, 4, 8))
