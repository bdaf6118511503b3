"""The block-causal transformer: what reaches what, cached and whole passes alike, and what it says to bad input."""

import copy

import numpy as np
import pytest
import torch
from mutants import mutant

from metabonk.core.errors import UsageError
from metabonk.dream import transformer
from metabonk.dream.interface import join_states, pick_states, repeat_states
from metabonk.dream.layout import TokenLayout, dynamics_layout, encoder_layout, token_reach
from metabonk.dream.transformer import Attention, Transformer, TransformerConfig, episode_starts, rotary

LAYOUT = dynamics_layout(2, 1, 1, agents=1)


def build(layout: TokenLayout = LAYOUT, **changes) -> Transformer:
    """A small one, in evaluation mode."""
    torch.manual_seed(0)
    small = {"width": 16, "layers": 4, "time_every": 2, "heads": 2, "kv_heads": 1}
    return Transformer(TransformerConfig(**{**small, **changes}), layout).eval()


def video(batch: int, time: int, model: Transformer, seed: int = 1) -> torch.Tensor:
    """Random frames for a model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, model.layout.tokens, model.config.width, generator=generator)


def touched(model: Transformer, frames: int) -> torch.Tensor:
    """Which token's output has a gradient to which token's input."""
    model, S = model.double(), model.layout.tokens
    x = video(1, frames, model).double().requires_grad_()
    y, table = model(x), torch.zeros(frames, S, frames, S, dtype=torch.bool)
    for t in range(frames):
        for i in range(S):
            (gradient,) = torch.autograd.grad(y[0, t, i].sum(), x, retain_graph=True)
            table[t, i] = gradient[0].abs().amax(-1) > 0
    return table


@pytest.mark.parametrize("layout", [LAYOUT, encoder_layout({"image": 2, "audio": 1}, 1)], ids=["dynamics", "encoder"])
@pytest.mark.parametrize("changes", [{}, {"fused": False}, {"kv_heads": 2}, {"time_every": 0}, {"context": 1}], ids=str)
def test_gradients_reach_exactly_what_the_layout_says(layout, changes):
    model = build(layout, **changes)
    assert touched(model, 3).equal(token_reach(layout, model.config.kinds, 3, model.config.context))


def test_a_frame_that_sees_the_future_is_caught(monkeypatch):
    "Negative control: attention that forgets to be causal."
    attend = Attention.attend
    monkeypatch.setattr(Attention, "attend", lambda self, q, k, v, mask=None, causal=False: attend(self, q, k, v))
    model = build()
    wrong = touched(model, 3) & ~token_reach(LAYOUT, model.config.kinds, 3)
    assert wrong.any((1, 3))[0, 2]


def test_a_world_that_reads_the_agent_is_caught(monkeypatch):
    "Negative control: one group for all, as if there were no rule."
    model = build()
    everything = build(TokenLayout(LAYOUT.sizes))
    model.groups = everything.groups
    assert (touched(model, 2) & ~token_reach(LAYOUT, model.config.kinds, 2)).any()


KINDS = [{}, {"fused": False}, {"soft_cap": 0.0}, {"kv_heads": 2}, {"context": 1}, {"context": 30}]


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("pieces", [[1] * 24, [7, 1, 1, 5, 1, 9], [24], [3, 21]], ids=str)
def test_cached_and_whole_passes_agree_at_any_length(changes, pieces):
    model = build(**{"context": 5, **changes})
    x = video(2, 24, model)
    first = torch.zeros(2, 24, dtype=torch.bool)
    first[1, [0, 9, 10, 17]] = True  # episodes of one row begin in the middle of pieces
    with torch.no_grad():
        whole = model(x, first)
    cache, parts, t = model.new_cache(2), [], 0
    for size in pieces:
        y, cache = model.read(x[:, t : t + size], cache, first[:, t : t + size])
        parts.append(y)
        t += size
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)


def test_the_past_after_every_frame_is_that_of_reading_frame_by_frame():
    model = build(context=3)
    x, first = video(2, 9, model), torch.zeros(2, 9, dtype=torch.bool)
    first[1, 4] = True
    _, cache = model.read(x[:, :2], model.new_cache(2), first[:, :2])
    _, trail = model.read(x[:, 2:], cache, first[:, 2:], every=True)
    every = model.pasts(trail, slice(None))
    assert len(every["frames"]) == 14
    for rows in ([9, 3, 3], torch.tensor([0]), slice(2, None, 7)):
        few, same = model.pasts(trail, rows), pick_states(every, rows)
        assert all(few[name].equal(same[name]) for name in same) and few.keys() == same.keys()
    follow = video(2, 1, model, 3)
    for t in range(2, 9):
        _, cache = model.read(x[:, t : t + 1], cache, first[:, t : t + 1])
        mine = pick_states(every, [t - 2, 7 + t - 2])
        assert mine["frames"].equal(cache["frames"]) and mine["start"].equal(cache["start"])
        torch.testing.assert_close(model.read(follow, mine)[0], model.read(follow, cache)[0], atol=1e-5, rtol=0)


def test_without_time_there_is_nothing_to_remember():
    model = build(time_every=0)
    x = video(2, 4, model)
    y, trail = model.read(x, model.new_cache(2), every=True)
    every = model.pasts(trail, slice(None))
    assert every["keys"].numel() == 0 and every["frames"].tolist() == [1, 2, 3, 4] * 2
    with torch.no_grad():
        torch.testing.assert_close(y, model(x))


def test_memory_is_constant_however_long_the_dream():
    model = build(context=4)
    cache = model.new_cache(1)
    sizes = {sum(t.nbytes for t in cache.values())}
    for t in range(12):
        _, cache = model.read(video(1, 1, model, t), cache)
        sizes.add(sum(t.untyped_storage().nbytes() for t in cache.values()))
    assert len(sizes) == 1


@pytest.mark.parametrize("past", [2, 4, 5, 11])
def test_a_glance_is_a_reading_without_a_trace(past):
    model = build(context=4)
    x = video(2, past + 2, model)
    _, cache = model.read(x[:, :past], model.new_cache(2))
    other = video(2, 1, model, 5)
    before = model.read(x[:, past : past + 1], cache)[0]
    assert model.peek(other, cache).equal(model.read(other, cache)[0])
    torch.testing.assert_close(model.peek(x[:, past : past + 1], cache), before, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(before[:, 0], model(x)[:, past], atol=1e-5, rtol=0)


def test_two_futures_of_one_past_do_not_disturb_each_other():
    model = build(context=3)
    x = video(1, 8, model)
    _, cache = model.read(x[:, :6], model.new_cache(1))
    _, one = model.read(x[:, 6:7], cache)
    model.read(video(1, 1, model, 9), cache)  # another future, from the same past
    model.peek(video(1, 1, model, 10), cache)
    with torch.no_grad():
        torch.testing.assert_close(model.read(x[:, 7:8], one)[0][:, 0], model(x)[:, 7], atol=1e-5, rtol=0)


def test_rows_picked_repeated_and_joined_go_on_as_they_were():
    model = build(context=4)
    x = video(2, 12, model)
    _, short = model.read(x[:, :2], model.new_cache(2))
    _, long = model.read(x[:, :9], model.new_cache(2))
    mixed = repeat_states(join_states([pick_states(short, [1]), pick_states(long, [0])]), 2)
    y, _ = model.read(torch.stack([x[1, 2:3]] * 2 + [x[0, 9:10]] * 2), mixed)
    with torch.no_grad():
        whole = model(x)
    torch.testing.assert_close(y[:, 0], torch.stack([whole[1, 2]] * 2 + [whole[0, 9]] * 2), atol=1e-5, rtol=0)


def test_every_frame_a_first_one_is_every_frame_alone():
    model = build()
    x = video(2, 5, model)
    with torch.no_grad():
        together = model(x, torch.ones(2, 5, dtype=torch.bool))
        alone = model(x.flatten(0, 1)[:, None]).view_as(together)
        assert not torch.allclose(together, model(x), atol=1e-3)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_starts_go_on_from_the_episode_under_way():
    first = torch.tensor([[False, True, False], [False, False, False]])
    assert episode_starts(first).tolist() == [[0, 1, 1], [0, 0, 0]]
    begun, frames = torch.tensor([3, 3]), torch.tensor([7, 7])
    assert episode_starts(first, begun, frames).tolist() == [[3, 8, 8], [3, 3, 3]]


@pytest.mark.parametrize("fused", [True, False])
def test_logits_never_exceed_the_cap(fused):
    "A head as sharp as it likes, one query that equals one key and opposes another: the softmax tells the logits."
    attention = Attention(TransformerConfig(width=4, heads=1, kv_heads=1, soft_cap=3.0, fused=fused))
    with torch.no_grad():
        attention.temperature.fill_(1e4)
        q, _, _ = attention.prepare(torch.randn(1, 1, 4))
        unit = torch.nn.functional.normalize(q, dim=-1)
        found = attention.attend(q, torch.cat([unit, -unit], 2), torch.eye(2, 4)[None, None])
    odds = (found[..., 0] / found[..., 1]).log()
    torch.testing.assert_close(odds, torch.full_like(odds, 6.0), atol=1e-2, rtol=0)  # 3 and -3


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = build(checkpointing=checkpointing).train()
        model(video(2, 3, model)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_sum_of_many_layers_begins_no_larger_than_a_token():
    model = build(width=64, heads=4, layers=16, time_every=4)
    x = video(2, 4, model)
    heard: list[torch.Tensor] = []
    model.norm.register_forward_pre_hook(lambda module, given: heard.append(given[0]))
    with torch.no_grad():
        model(x)
    assert 0.8 < heard[0].std() < 2


def test_half_precision_memory_is_half_as_large_and_nearly_as_good():
    model = build(context=4)
    x = video(1, 8, model)
    cache, exact = model.new_cache(1, torch.bfloat16), model.new_cache(1)
    assert cache["keys"].nbytes * 2 == exact["keys"].nbytes
    for t in range(8):
        y, cache = model.read(x[:, t : t + 1], cache)
        z, exact = model.read(x[:, t : t + 1], exact)
    assert cache["keys"].dtype == torch.bfloat16
    torch.testing.assert_close(y, z, atol=5e-2, rtol=0)


def test_a_cache_is_good_for_copies_of_its_model_alone():
    model = build()
    x = video(2, 3, model)
    _, cache = model.read(x, model.new_cache(2))
    other, loaded = (Transformer(model.config, LAYOUT).eval() for _ in range(2))  # of other weights
    loaded.load_state_dict(model.state_dict())
    for same in (copy.deepcopy(model), loaded):
        assert same.read(x[:, :1], cache)[0].equal(model.read(x[:, :1], cache)[0])
    learned = copy.deepcopy(model)
    learned(x).square().mean().backward()
    torch.optim.SGD(learned.parameters(), 1e-2).step()
    moved = Transformer(model.config, TokenLayout({name: LAYOUT.sizes[name] for name in reversed(LAYOUT.names)}))
    moved.load_state_dict(model.state_dict())  # the same weights, but other tokens in the same places
    mixed = join_states([pick_states(cache, [0]), pick_states(other.read(x, other.new_cache(2))[1], [1])])
    for wrong, past in ((other, cache), (learned, cache), (moved, cache), (model, mixed),
                        (model, {name: column for name, column in cache.items() if name != "mark"})):  # fmt: skip
        with pytest.raises(UsageError, match="another model of the same sizes"):
            wrong.read(x[:, :1], past)


def test_bad_input_says_so():
    model = build()
    with pytest.raises(UsageError, match="another model"):
        model.read(video(1, 1, model), build(context=7).new_cache(1))
    with pytest.raises(UsageError, match="another model"):
        model.read(video(1, 1, model), {"deter": torch.zeros(1, 3)})
    with pytest.raises(UsageError, match="frames of 4 tokens"):
        model(torch.zeros(1, 1, 4, 16))
    with pytest.raises(UsageError, match="multiple of kv_heads"):
        TransformerConfig(heads=4, kv_heads=3)
    with pytest.raises(UsageError, match="context"):
        TransformerConfig(context=0)


PLACES = torch.tensor([[0.0, 0], [1, 0], [3, 2], [0, 7]], dtype=torch.float64)


def turned(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """RoPE in complex numbers: pair i of a coordinate's pairs at place m is multiplied by exp(i m 10,000^(-i / pairs))."""
    half = x.shape[-1] // 2
    each = half // places.shape[-1]
    angle = (places[..., None] * 10_000.0 ** -(np.arange(each) / each)).reshape(*places.shape[:-1], half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], -1)


def asked_by_both() -> tuple[np.ndarray, np.ndarray]:
    """Cosines between the queries and keys of four tokens that are alike, by the library and by complex numbers."""
    torch.manual_seed(0)
    attention = Attention(TransformerConfig(width=16, heads=2, kv_heads=1)).double()
    x = torch.randn(16, dtype=torch.float64).expand(4, 16)
    with torch.no_grad():
        q, k, _ = attention.prepare(x, rotary(PLACES, 4)[:, :, None].double())
        plain = attention.project(x).numpy()
    q, k = (y / y.norm(dim=-1, keepdim=True) for y in (q, k))
    query, key = (turned(plain[:, part], PLACES.numpy()) for part in (slice(0, 8), slice(16, 24)))
    query, key = (y / np.linalg.norm(y, axis=-1, keepdims=True) for y in (query, key))
    return (q[:, 0] @ k[:, 0].T).numpy(), query @ key.T


@pytest.mark.parametrize(("name", "old", "new"), [
    ("prepare", "qk if turns is None else rotate(qk, turns)", "qk"), ("rotate", "x.roll(x.shape[-1] // 2, -1)", "x"),
    ("rotate", "torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)", "x"), ("rotary", "-sin, sin", "sin, -sin"),
], ids=["not rotated", "each number by itself", "rotated by nothing", "the other way"])  # fmt: skip
def test_queries_and_keys_are_turned_by_their_places(monkeypatch, name, old, new):
    "Negative controls in the same test; turned the other way, all cosines between places stay, so that one looks at the turns."
    np.testing.assert_allclose(*asked_by_both(), atol=1e-6)
    x = torch.randn(4, 8, dtype=torch.float64)
    wanted = turned(x.numpy(), PLACES.numpy())
    np.testing.assert_allclose(transformer.rotate(x, transformer.rotary(PLACES, 4).double()).numpy(), wanted, atol=1e-6)
    owner = Attention if name == "prepare" else transformer
    monkeypatch.setattr(owner, name, mutant(getattr(owner, name), old, new))
    mine, theirs = asked_by_both()
    other = transformer.rotate(x, transformer.rotary(PLACES, 4).double()).numpy()
    assert max(np.abs(mine - theirs).max(), np.abs(other - wanted).max()) > 0.05


def test_what_is_seen_depends_on_when_it_was_seen(monkeypatch):
    "Negative control: without rotation, the last frame finds the same in a past of any order."
    model = build(layers=1, time_every=1)
    x = video(1, 4, model)
    other = x[:, [1, 0, 2, 3]]
    assert float((model(x) - model(other))[:, -1].abs().max()) > 1e-3
    monkeypatch.setattr(Attention, "prepare", mutant(Attention.prepare, "qk if turns is None else rotate(qk, turns)", "qk"))
    assert float((model(x) - model(other))[:, -1].abs().max()) < 1e-5
