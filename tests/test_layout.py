"""Token layouts: their rules, whatever the sizes, and what they say to bad input."""

import pytest
import torch

from metabonk.core.errors import UsageError
from metabonk.dream.layout import (
    TokenLayout,
    decoder_layout,
    dynamics_layout,
    encoder_layout,
    join_tokens,
    read_groups,
    take_tokens,
    token_positions,
    token_reach,
)

SENSES = {"image": (2, 2), "audio": 3}
LAYOUTS = {
    "encoder": encoder_layout(SENSES, 2),
    "decoder": decoder_layout(SENSES, 2),
    "dynamics": dynamics_layout(4, 2, 1, agents=2),
    "before there is an agent": dynamics_layout(4, 0, 2),
    "odd": TokenLayout({"a": 1, "b": 2, "c": 1, "d": 1}, {"a": ("c",), "b": ("d",)}),
}


def readers(layout: TokenLayout, name: str) -> set[str]:
    """Who reads a modality, by the mask alone."""
    rows = layout.mask[:, layout.slices[name]].any(1)
    return {layout.names[i] for i in layout.modality[rows].tolist()}


def test_encoder_latents_see_every_sense_and_each_sense_only_itself():
    layout = LAYOUTS["encoder"]
    assert readers(layout, "image") == {"image", "latent"}
    assert readers(layout, "audio") == {"audio", "latent"}
    assert readers(layout, "latent") == {"latent"}


def test_decoder_senses_see_themselves_and_the_latents_and_latents_only_themselves():
    layout = LAYOUTS["decoder"]
    assert readers(layout, "image") == {"image"}
    assert readers(layout, "audio") == {"audio"}
    assert readers(layout, "latent") == {"image", "audio", "latent"}


def test_nothing_reads_the_agent_and_the_agent_reads_everything():
    layout = LAYOUTS["dynamics"]
    assert readers(layout, "agent") == {"agent"}
    assert layout.mask[layout.slices["agent"]].all()
    for name in ("spatial", "register", "shortcut", "action"):
        assert readers(layout, name) == {"spatial", "register", "shortcut", "action", "agent"}


def test_a_layout_in_which_the_world_reads_the_agent_is_caught():
    "Negative control: give the world one more reading and the reach tells it."
    leaky = TokenLayout({"world": 2, "agent": 1}, {"world": ("agent",)})
    assert token_reach(leaky, ["space"], 1)[0, 0, 0, 2]
    layout = LAYOUTS["dynamics"]
    reach = token_reach(layout, ["space", "time"] * 3, 3)
    agent = layout.slices["agent"]
    assert not reach[:, : agent.start, :, agent].any()


@pytest.mark.parametrize("name", LAYOUTS)
def test_groups_are_the_mask(name):
    layout = LAYOUTS[name]
    rebuilt = torch.zeros(layout.tokens, layout.tokens, dtype=torch.int)
    for group in read_groups(layout):
        for keys in group.keys:
            rebuilt[group.queries, keys] += 1
    assert rebuilt.equal(layout.mask.int())  # each pair once


def test_the_agent_costs_one_more_group():
    assert len(read_groups(LAYOUTS["before there is an agent"])) == 1
    assert len(read_groups(LAYOUTS["dynamics"])) == 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_come_out_as_they_went_in(name):
    layout = LAYOUTS[name]
    parts = {part: torch.randn(2, 3, size, 4) for part, size in layout.sizes.items()}
    x = join_tokens(layout, dict(reversed(parts.items())))
    assert x.shape == (2, 3, layout.tokens, 4)
    for part, tokens in parts.items():
        assert take_tokens(layout, x, part).equal(tokens)


def test_reach_never_goes_to_the_future_and_stops_at_the_context():
    layout = dynamics_layout(1)
    reach = token_reach(layout, ["time", "space"], 5, context=2).any((1, 3))
    frames = torch.arange(5)
    assert reach.equal((frames[:, None] >= frames) & (frames[:, None] - frames <= 2))
    twice = token_reach(layout, ["time", "space", "time"], 5, context=2).any((1, 3))
    assert twice[4, 0] and not reach[4, 0]  # each time layer looks further back


def test_positions_follow_the_grid():
    places = token_positions(encoder_layout({"image": (2, 3)}, 2))
    assert places.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 0], [1, 1]]


def test_bad_input_says_so():
    with pytest.raises(UsageError, match="did you mean 'image'"):
        TokenLayout({"image": 2}, {"imgae": ()})
    with pytest.raises(UsageError, match="leave out"):
        TokenLayout({"image": 0})
    with pytest.raises(UsageError, match="unknown modality"):
        take_tokens(LAYOUTS["encoder"], torch.zeros(9, 2), "agent")
    with pytest.raises(UsageError, match="unknown kind of layer"):
        token_reach(LAYOUTS["encoder"], ["tmie"], 1)
