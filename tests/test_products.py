"""Products by oneDNN: the numbers and gradients of PyTorch's own, in every layout; and when they are left alone."""

import pytest
import torch
import torch.nn.functional as F

import metabonk.core.products as products
from metabonk.core.products import LEAST, Linear, Packed, onednn_is_faster, product

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def faster(monkeypatch):
    """As on a processor where oneDNN is the faster one; counts how often it is asked."""
    asked, direct = [], products._onednn
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_onednn", lambda *given: asked.append(1) or direct(*given))
    return asked


def layouts(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """The same shape, differently laid out in memory."""
    return {
        "rows": torch.randn(rows, columns),
        "columns": torch.randn(columns, rows).t(),
        "rows with gaps": torch.randn(rows, 2 * columns)[:, :columns],
        "columns with gaps": torch.randn(columns, 2 * rows)[:, :rows].t(),
        "one row for all": torch.randn(1, columns).expand(rows, columns),
    }


@onednn
@pytest.mark.parametrize("of_x", layouts(1, 1))
@pytest.mark.parametrize("of_weight", layouts(1, 1))
def test_numbers_and_gradients_are_those_of_pytorch(faster, of_x, of_weight):
    torch.manual_seed(0)
    x, weight, bias = layouts(192, 160)[of_x], layouts(96, 160)[of_weight], torch.randn(96)
    assert x.numel() * 96 >= LEAST
    given = [t.detach().requires_grad_() for t in (x, weight, bias)]
    direction = torch.randn(1, 96).expand(192, 96)
    ours, theirs = product(*given), F.linear(*given)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    gradients = (torch.autograd.grad(y, given, direction) for y in (ours, theirs))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)
    assert len(faster) == 3  # forward, and the gradients of x and of the weight


@onednn
def test_gradients_have_gradients(faster):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 96, 160, requires_grad=True), torch.randn(96, 160, requires_grad=True)

    def second(multiply):
        first = torch.autograd.grad(multiply(x, weight).square().sum(), weight, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), (x, weight))

    for one, other in zip(second(product), second(F.linear), strict=True):
        torch.testing.assert_close(one / other.abs().max(), other / other.abs().max(), atol=1e-5, rtol=1e-4)
    assert faster


@onednn
def test_only_gradients_that_are_needed_are_computed(faster):
    layer = Linear(160, 96)
    layer(torch.randn(192, 160)).sum().backward()
    assert len(faster) == 2  # forward, and the weight's gradient: the input has none
    layer.requires_grad_(False)
    assert not layer(torch.randn(192, 160)).requires_grad


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 16), torch.float32), ((192, 160), torch.float64)], ids=["small", "double precision"]
)
def test_other_products_stay_with_pytorch(faster, shape, dtype):
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(96, shape[1], dtype=dtype)
    assert torch.equal(product(x, weight), F.linear(x, weight)) and not faster


def test_autocast_is_left_to_pytorch(faster):
    with torch.autocast("cpu", torch.bfloat16):
        assert product(torch.randn(192, 160), torch.randn(96, 160)).dtype == torch.bfloat16
    assert not faster


def test_a_processor_is_known_by_its_maker_and_its_instructions(tmp_path, monkeypatch):
    amd, other = tmp_path / "amd", tmp_path / "other"
    amd.write_text("vendor_id\t: AuthenticAMD\n")
    other.write_text("vendor_id\t: GenuineIntel\n")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    ask = onednn_is_faster.__wrapped__
    assert ask(str(amd)) == torch.backends.mkldnn.is_available()
    assert not ask(str(other)) and not ask(str(tmp_path / "nowhere"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not ask(str(amd))


@onednn
@pytest.mark.parametrize("blocks", [(), (4,)], ids=["one matrix", "blocks"])
@pytest.mark.parametrize("gaps", [False, True], ids=["dense", "with gaps"])
def test_packed_weights_give_the_same_product(faster, blocks, gaps):
    torch.manual_seed(0)
    weight = torch.randn(*blocks, 512, 384).mT  # (outputs 384, inputs 512)
    x = torch.randn(*blocks, 16, 1024)[..., :512] if gaps else torch.randn(*blocks, 16, 512)
    packed, wanted = Packed(weight, 16), x @ weight.mT
    assert len(packed.parts) == max(1, *blocks, 1)
    out = torch.zeros(*blocks, 16, 768)[..., ::2]
    torch.testing.assert_close(packed(x, out), wanted, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(packed(x, out, out), 2 * wanted, atol=1e-3, rtol=1e-4)  # added to what was there
    plus = torch.randn(*blocks, 1, 384)
    torch.testing.assert_close(packed(x, out, plus), wanted + plus, atol=1e-3, rtol=1e-4)


def test_a_layer_is_that_of_pytorch():
    torch.manual_seed(0)
    ours = Linear(32, 8)
    torch.manual_seed(0)
    theirs = torch.nn.Linear(32, 8)
    x = torch.randn(3, 5, 32)
    assert torch.equal(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())
