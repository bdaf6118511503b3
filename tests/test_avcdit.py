"""AV-CDiT: what looks at what, a context that is read once and stays as it is, stages, sizes; each error caught."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from mutants import mutant
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metabonk.core.errors import UsageError
from metabonk.core.learner import TrainConfig
from metabonk.core.training import fit
from metabonk.dream import av_learner, avcdit
from metabonk.dream.av_learner import (
    STAGES,
    AVLearner,
    AVLearnerConfig,
    denoising_loss,
    group_of,
    make_task,
)
from metabonk.dream.avcdit import (
    AVCDiT,
    AVCDiTConfig,
    Block,
    CrossAttention,
    Factorised,
    Head,
    Modulation,
    Sinusoids,
    count_operations,
    count_parameters,
    matched,
    modulated,
    normed,
    to_parts,
    to_picture,
)
from metabonk.dream.diffusion import Diffusion, DiffusionConfig, Parts
from metabonk.sense.latents import LatentBatch

SMALL = AVCDiTConfig(width=16, layers=2, heads=2, vision=(2, 4, 4), audio=(3, 5))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """First weights are the same in every run."""
    torch.manual_seed(0)


def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with weights that are nowhere zero, so that everything passes through it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return net.eval()


def parts_of(config: AVCDiTConfig, *lead: int, seed: int = 0) -> Parts:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*lead, *size, generator=generator) for name, size in config.parts.items()}


def context_of(config: AVCDiTConfig, batch: int, seed: int = 1) -> Parts:
    return {name: x for name, x in parts_of(config, batch, config.context, seed=seed).items() if name != "reward"}


def asked(batch: int, goals: int, numbers: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Diffusion step, motion and offset of each goal."""
    generator = torch.Generator().manual_seed(2)
    step = 1000 * torch.rand(batch, goals, generator=generator)
    return step, torch.randn(batch, goals, numbers, generator=generator), torch.arange(1.0, goals + 1).expand(batch, -1)


def batch_of(config: AVCDiTConfig, batch: int = 4, goals: int = 3, seed: int = 0) -> LatentBatch:
    generator = np.random.default_rng(seed)

    def numbers(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    lead = ((batch, config.context), (batch, goals))
    image, audio = ([numbers(*two, *size) for two in lead] for size in (config.vision, config.audio))
    return LatentBatch(
        image[0], audio[0], np.ones((batch, config.context), bool), image[1], audio[1], numbers(batch, goals),
        numbers(batch, goals, len(config.motion)), generator.integers(1, 64, (batch, goals)), numbers(batch, goals, 4),
        np.zeros((batch, goals), bool), np.arange(batch),
    ).torch()  # fmt: skip


# What looks at what


def test_context_read_once_gives_what_it_gives_when_read_for_each_goal():
    net, (B, G) = awake(AVCDiT(SMALL)), (3, 4)
    noisy, context, told = parts_of(SMALL, B, G), context_of(SMALL, B), asked(B, G)
    once = net(noisy, *told, net.read_context(context))
    for g in range(G):
        one = {name: x[:, g : g + 1] for name, x in noisy.items()}
        alone = net(one, *(x[:, g : g + 1] for x in told), net.read_context(context))
        for name in noisy:
            torch.testing.assert_close(alone[name], once[name][:, g : g + 1], atol=1e-4, rtol=1e-4)


def test_memory_is_not_changed_by_what_is_asked():
    net, context = awake(AVCDiT(SMALL)), context_of(SMALL, 2)
    memory = net.read_context(context)
    copies = [(k.clone(), v.clone()) for k, v in memory]
    first = net(parts_of(SMALL, 2, 3), *asked(2, 3), memory)
    again = net(parts_of(SMALL, 2, 3), *asked(2, 3), memory)
    assert all(torch.equal(a, b) for pair in zip(memory, copies, strict=True) for a, b in zip(*pair, strict=True))
    assert all(torch.equal(first[name], again[name]) for name in first)


def written_out(cross: CrossAttention, x, context, shift, scale):
    """Keys and values modulated one by one for each goal, and PyTorch's own attention with its own key and value of bias."""
    width, heads = x.shape[-1], cross.heads
    torch_attention = nn.MultiheadAttention(width, heads, add_bias_kv=True, batch_first=True)
    rows = []
    with torch.no_grad():
        torch_attention.in_proj_weight.copy_(torch.cat([torch.eye(width)] * 3))
        torch_attention.in_proj_bias.zero_()
        torch_attention.out_proj.load_state_dict(cross.outward.state_dict())
        for b in range(x.shape[0]):
            for g in range(x.shape[1]):
                gain, add = 1 + scale[b, g], shift[b, g]
                both = cross.keys_values(context[b]).unflatten(-1, (2, -1)) * gain + add  # (M, 2, d)
                bias = cross.bias * gain + add
                torch_attention.bias_k.copy_(bias[0].view(1, 1, -1))
                torch_attention.bias_v.copy_(bias[1].view(1, 1, -1))
                q = cross.query(x[b, g])
                rows.append(torch_attention(q[None], both[None, :, 0], both[None, :, 1], need_weights=False)[0][0])
    return torch.stack(rows).unflatten(0, x.shape[:2])


def cross_attention(forward: Callable = CrossAttention.forward):
    cross = awake(CrossAttention(8, 2))
    nn.init.normal_(cross.bias, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(6)
    x, context, shift, scale = (
        torch.randn(*size, generator=generator) for size in ((2, 3, 4, 8), (2, 7, 8), (2, 3, 8), (2, 3, 8))
    )
    got = forward(cross, x, cross.read(context), shift, scale)
    return got, written_out(cross, x, context, shift, scale)


def test_cross_attention_is_that_of_modulated_keys_and_values():
    torch.testing.assert_close(*cross_attention(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "error", [("self.query(x) * gain", "self.query(x)"), ("shift[..., None, :], y, gain", "0 * y, y, gain")]
)
def test_a_context_that_is_modulated_by_half_is_caught(error):
    "Negative controls."
    got, wanted = cross_attention(mutant(CrossAttention.forward, *error))
    assert (got - wanted).abs().max() > 1e-2


def test_blocks_do_not_change_the_context():
    """The keys of the last block are those of the context as it was given, not of what earlier blocks made of it."""
    net, context = awake(AVCDiT(SMALL)), context_of(SMALL, 2)
    frames = [net.adaptors[name](x) + net.times[:, None] for name, x in context.items()]
    tokens = normed(torch.cat([x.flatten(1, 2) for x in frames], 1))
    wanted = [block.cross.read(tokens) for block in net.blocks]
    got = net.read_context(context)
    assert all(torch.equal(a, b) for pair in zip(got, wanted, strict=True) for a, b in zip(*pair, strict=True))

    old = "return [block.cross.read(tokens) for block in self.blocks]"
    new = ("return [(block.cross.read(tokens), tokens := tokens + block.attention(tokens[:, None])[:, 0])[0] "
           "for block in self.blocks]")  # fmt: skip
    other = mutant(AVCDiT.read_context, old, new)(net, context)
    assert torch.equal(other[0][0], wanted[0][0]), "negative control: the first block looks at the same"
    assert not torch.allclose(other[1][0], wanted[1][0], atol=1e-3), "negative control: the second does not"


def changes(net: nn.Module, part: str) -> set[str]:
    """Parts of which something else is said when one part of the target is another."""
    memory, told = net.read_context(context_of(SMALL, 2)), asked(2, 1)
    noisy = parts_of(SMALL, 2, 1)
    before, after = net(noisy, *told, memory), net({**noisy, part: noisy[part] + 1}, *told, memory)
    return {name for name in before if not torch.allclose(before[name], after[name], atol=1e-6)}


def test_all_parts_of_a_target_look_at_each_other_and_factorised_ones_do_not():
    assert all(changes(awake(AVCDiT(SMALL)), part) == {"vision", "audio", "reward"} for part in SMALL.parts)
    apart = awake(Factorised(SMALL))
    assert changes(apart, "vision") == {"vision"}
    assert changes(apart, "audio") == changes(apart, "reward") == {"audio", "reward"}


def experts_that_got(forward: Callable = Block.forward) -> dict[str, torch.Tensor]:
    """The tokens that each expert of a block gets, with attention silenced."""
    block, got = Block(SMALL), {}
    for module in block.modules():
        if isinstance(module, Modulation):
            nn.init.zeros_(module.linear.weight)
            nn.init.zeros_(module.linear.bias)
    for name, expert in block.experts.items():
        expert.register_forward_pre_hook(lambda module, given, name=name: got.update({name: given[0]}))
    x = torch.arange(8.0)[None, None, :, None].expand(1, 1, 8, 16).clone()  # 4 of vision, 3 of audio, the reward
    memory = block.cross.read(torch.randn(1, 5, 16))
    forward(block, x, torch.randn(1, 1, 16), memory, {"vision": 4, "audio": 4})
    return {name: x[0, 0, :, 0] for name, x in got.items()}


def test_each_expert_gets_its_own_tokens_and_the_reward_goes_with_audio():
    got = experts_that_got()
    assert got["vision"].tolist() == [0, 1, 2, 3] and got["audio"].tolist() == [4, 5, 6, 7]
    wrong = mutant(
        Block.forward, "self.experts[sense](group, c) for", "self.experts[[*tokens][sense == 'vision']](group, c) for"
    )
    assert experts_that_got(wrong)["vision"].tolist() != [0, 1, 2, 3], "negative control"


def test_an_expert_moves_its_own_part_alone_in_the_last_block():
    net = awake(AVCDiT(SMALL.change(layers=1)))
    memory, told, noisy = net.read_context(context_of(SMALL, 2)), asked(2, 1), parts_of(SMALL, 2, 1)
    before = net(noisy, *told, memory)
    with torch.no_grad():
        net.blocks[0].experts["audio"].outward.bias += torch.randn(16)  # a constant would be normalised away
    after = net(noisy, *told, memory)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"audio", "reward"}


def test_without_experts_there_is_one_feed_forward_network():
    shared = AVCDiT(SMALL.change(experts=False))
    assert [*shared.blocks[0].experts] == ["both"] and [*AVCDiT(SMALL).blocks[0].experts] == ["vision", "audio"]
    assert changes(awake(shared), "audio") == {"vision", "audio", "reward"}


def test_everything_that_is_asked_changes_what_is_said():
    net = awake(AVCDiT(SMALL))
    memory, (step, motion, offset), noisy = net.read_context(context_of(SMALL, 2)), asked(2, 2), parts_of(SMALL, 2, 2)
    before = net(noisy, step, motion, offset, memory)
    for told in ((step + 300, motion, offset), (step, motion + 1, offset), (step, motion, offset + 1)):
        after = net(noisy, *told, memory)
        assert all(not torch.allclose(before[name], after[name], atol=1e-4) for name in before)
    context = context_of(SMALL, 2)
    turned = {name: x.flip(1) for name, x in context.items()}
    after = net(noisy, step, motion, offset, net.read_context(turned))
    assert not torch.allclose(before["vision"], after["vision"], atol=1e-4), "frames of the context have times"


def test_single_frames_are_told_apart_by_their_offset():
    """Unlike an embedding of offset / 128, in which a frame moves the fastest sinusoid by .008 rad."""

    def nearest(embedding: Sinusoids, unit: float) -> float:
        x = torch.arange(-64.0, 65)[:, None] * unit
        angle = x[..., None] * embedding.frequencies
        waves = torch.cat([angle.cos(), angle.sin()], -1).flatten(1)
        return float((waves[1:] - waves[:-1]).norm(dim=1).min() / waves.norm(dim=1).mean())

    assert nearest(AVCDiT(SMALL).condition.offset, 1.0) > 0.3 > 0.01 > nearest(Sinusoids(1, 16), 1 / 128)


def test_first_weights_change_nothing_and_say_nothing():
    net = AVCDiT(SMALL)
    said = net(parts_of(SMALL, 2, 3), *asked(2, 3), net.read_context(context_of(SMALL, 2)))
    assert all(x.abs().max() == 0 for x in said.values())
    x = torch.randn(2, 3, 8, 16)
    memory = net.blocks[0].cross.read(torch.randn(2, 5, 16))
    assert torch.equal(net.blocks[0](x, torch.randn(2, 3, 16), memory, {"vision": 4, "audio": 4}), x)
    zero = {name for name, p in net.named_parameters() if p.abs().max() == 0 and not name.endswith("bias")}
    assert zero == {
        f"{name}.linear.weight" for name, module in net.named_modules() if isinstance(module, Modulation | Head)
    }


def test_eleven_vectors_modulate_each_token():
    net = AVCDiT(SMALL)
    for block in net.blocks:
        assert all(block.modulation.vectors + expert.modulation.vectors == 11 for expert in block.experts.values())


def test_latents_become_patches_and_come_back():
    config = AVCDiTConfig()
    picture, sound, reward = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 15, 64), torch.randn(2, 3)
    parts = to_parts(config, picture, sound, reward)
    assert {name: x.shape[2:] for name, x in parts.items()} == {
        "vision": (16, 16),
        "audio": (15, 64),
        "reward": (1, 64),
    }
    assert torch.equal(to_picture(config, parts["vision"]), picture)
    assert torch.equal(parts["vision"][0, 0, 5].view(4, 2, 2), picture[0, 0, :, 2:4, 2:4]), (
        "fifth patch: second row and column"
    )
    assert torch.equal(parts["reward"], reward[..., None, None].expand(2, 3, 1, 64))
    with pytest.raises(UsageError, match="audio of .14, 64. tokens and numbers, this network takes .15, 64."):
        to_parts(config, None, sound[..., :14, :])


# Sizes


def test_parameters_of_the_published_sizes():
    """Without experts XL has the billion of CDiT-XL; each block has 27 d^2, and an expert more 11 d^2."""
    for name, millions in {"paper_s": 50, "paper_b": 198, "paper_l": 691, "paper_xl": 1018}.items():
        config = AVCDiTConfig.preset(name)
        plain, with_experts = (count_parameters(config.change(experts=experts)) for experts in (False, True))
        assert abs(plain / 1e6 - millions) < 1
        blocks = config.layers * config.width**2
        assert abs(with_experts - plain - 11 * blocks) < 0.01 * 11 * blocks and plain == pytest.approx(
            27 * blocks, rel=0.08
        )
    sizes = {name: AVCDiTConfig.preset(name) for name in ("paper_s", "paper_b", "paper_l", "paper_xl")}
    assert [(c.width, c.layers, c.heads) for c in sizes.values()] == [
        (384, 12, 6), (768, 12, 12), (1024, 24, 16), (1152, 28, 16),
    ]  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"experts": False}, {"senses": "vision"}, {"senses": "audio"}, {"width": 256}])
def test_operations_are_those_that_are_counted(changes):
    config, (B, G) = AVCDiTConfig(**changes), (3, 4)
    with torch.device("meta"):
        net = AVCDiT(config)
        noisy, told = (
            {n: torch.zeros(B, G, *size) for n, size in config.parts.items()},
            [torch.zeros(B, G) for _ in range(2)],
        )
        context = {n: torch.zeros(B, config.context, *size) for n, size in config.parts.items() if n != "reward"}
        with FlopCounterMode(display=False) as counter:
            net(noisy, told[0], torch.zeros(B, G, 3), told[1], net.read_context(context))
    assert counter.get_total_flops() == pytest.approx(count_operations(config, B * G, B), rel=0.04)


def test_variants_of_as_many_parameters():
    config = AVCDiTConfig()
    joint = count_parameters(config)
    for wanted, factorised in ((config, True), (config.change(experts=False), False)):
        assert count_parameters(matched(wanted, joint, factorised), factorised) == pytest.approx(joint, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"heads": 3}, "can't be cut into 3 heads"), ({"patch": 3}, "patches of 3"), ({"layers": 0}, "at least 1"),
     ({"motion": ()}, "at least 1")],
)  # fmt: skip
def test_bad_sizes_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        AVCDiTConfig(**changes)


# Stages


def trained(
    tmp_path, stages: dict[str, int], steps: int = 6, net: AVCDiT | None = None, killed_at: int = 0, **changes
) -> tuple[dict, dict]:
    """Weights of a network before and after some stages, or before it was killed."""
    torch.manual_seed(0)
    net = net or awake(AVCDiT(SMALL)).train()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    learner = AVLearner(net, Diffusion(), AVLearnerConfig(stages=stages, **changes))
    if killed_at:
        losses = learner.losses
        learner.losses = lambda batch: 1 / 0 if learner.steps_done == killed_at else losses(batch)  # type: ignore
    fit(learner, [batch_of(SMALL)], tmp_path, TrainConfig(steps=steps, lr=1e-2, warmup=0, checkpoint_every=3))
    assert all(p.requires_grad for p in net.parameters()), "nothing stays frozen"
    return before, dict(net.named_parameters())


def groups_that_moved(before: dict, after: dict) -> set[str]:
    return {group_of(name) for name, x in after.items() if not torch.equal(before[name], x)}


def groups_that_moved_whole(before: dict, after: dict) -> set[str]:
    """Groups in which every tensor moved."""
    still = {group_of(name) for name, x in after.items() if torch.equal(before[name], x)}
    return {"shared", "vision", "audio"} - still


@pytest.mark.parametrize("stage", [*STAGES])
def test_what_learns_in_a_stage_is_what_the_table_says(stage, tmp_path):
    net = awake(AVCDiT(SMALL)).train()
    net.has_heard.fill_(True)
    before, after = trained(tmp_path, {stage: 1}, net=net)
    senses = {av_learner.sense_of(part) for part in STAGES[stage].parts}
    wanted = {group for group in STAGES[stage].learns if group == "shared" or group in senses}
    assert groups_that_moved(before, after) == groups_that_moved_whole(before, after) == wanted


def test_groups_are_those_of_the_paper():
    net = AVCDiT(SMALL)
    groups = {name: group_of(name) for name, _ in net.named_parameters()}
    assert all(groups[name] == "shared" for name in groups if ".attention." in name or ".cross." in name)
    assert all(groups[name] == "shared" for name in groups if name.startswith(("condition.", "times")))
    for sense in ("vision", "audio"):
        for kind in ("adaptors.", "heads.", "experts."):
            assert any(kind in name and f"{kind}{sense}." in name and groups[name] == sense for name in groups)
    assert groups["adaptors.reward.places"] == groups["heads.reward.linear.weight"] == "audio"
    assert groups["blocks.0.experts.audio.modulation.linear.weight"] == "audio", (
        "the feed-forward's adaLN goes with its expert"
    )


def test_a_frozen_part_that_moves_in_stage_2_is_caught(monkeypatch, tmp_path):
    "Negative control: adaLN of the attention counts as audio's."
    monkeypatch.setattr(av_learner, "group_of", mutant(group_of, "words = name.split(\".\")",
                        "words = name.replace('s.0.modulation', '.audio.').split('.')"))  # fmt: skip
    before, after = trained(tmp_path, {"audio": 1})
    assert groups_that_moved(before, after) == {"shared", "audio"}


def test_stages_follow_one_another_in_one_training(tmp_path):
    config = AVLearnerConfig(stages={"vision": 4, "audio": 2, "joint": 1})
    assert [config.stage(step) for step in range(8)] == ["vision"] * 4 + ["audio"] * 2 + ["joint"] * 2
    assert [*AVLearnerConfig().stages] == ["vision", "audio", "joint"]
    before, after = trained(tmp_path, config.stages, 8)
    assert groups_that_moved(before, after) == {"shared", "vision", "audio"}


def test_a_training_that_was_stopped_in_a_stage_goes_on_as_if_it_was_not(tmp_path):
    stages = {"vision": 2, "audio": 2, "joint": 2}
    _, whole = trained(tmp_path / "whole", stages, 6)
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "part", stages, 6, killed_at=4)
    _, part = trained(tmp_path / "part", stages, 6)
    assert all(torch.equal(x, part[name]) for name, x in whole.items())


def test_the_audio_expert_begins_as_a_copy_of_the_visual_one_and_once_only(tmp_path):
    net = awake(AVCDiT(SMALL)).train()
    learner = AVLearner(net, Diffusion())
    learner.begin("vision")
    assert not torch.equal(net.blocks[0].experts["audio"].inward.weight, net.blocks[0].experts["vision"].inward.weight)
    learner.begin("audio")
    for one in (net, learner.average):
        experts = one.blocks[1].experts
        assert all(
            torch.equal(a, b)
            for a, b in zip(experts["audio"].parameters(), experts["vision"].parameters(), strict=True)
        )
    _, after = trained(tmp_path, {"audio": 1}, net=net)
    again = AVCDiT(SMALL)
    again.load_state_dict(net.state_dict())
    AVLearner(again, Diffusion()).begin("audio")
    assert all(torch.equal(x, after[name]) for name, x in again.named_parameters()), "what was learned is kept"


def test_averaged_weights_follow_and_become_the_model(tmp_path):
    net = awake(AVCDiT(SMALL)).train()
    net.has_heard.fill_(True)
    learner = AVLearner(net, Diffusion(), AVLearnerConfig(stages={"joint": 1}, average=0.9))
    seen = [{name: x.detach().clone() for name, x in net.named_parameters()}]
    step = learner.after_step
    learner.after_step = lambda: (seen.append({n: x.detach().clone() for n, x in net.named_parameters()}), step())  # type: ignore
    fit(learner, [batch_of(SMALL)], tmp_path, TrainConfig(steps=4, lr=1e-2, warmup=0))
    mean = dict(seen[0])
    for t, weights in enumerate(seen[1:], 1):
        decay = min(0.9, (1 + t) / (10 + t))
        mean = {name: decay * mean[name] + (1 - decay) * x for name, x in weights.items()}
    learner.finish()
    for name, x in net.named_parameters():
        torch.testing.assert_close(x.detach(), mean[name], atol=1e-5, rtol=1e-5)


def test_gradients_are_cut_and_the_rate_rises_and_falls(tmp_path):
    rates, norms = [], []

    class Watched(AVLearner):
        def _before_step(self, optimizer, *rest):
            super()._before_step(optimizer, *rest)
            rates.append(optimizer.param_groups[0]["lr"])
            grads = [p.grad.norm() for p in self.model.parameters() if p.grad is not None]
            norms.append(float(torch.stack(grads).norm()))

    learner = Watched(awake(AVCDiT(SMALL)), Diffusion(), AVLearnerConfig(stages={"joint": 1}, longest=1e-3))
    fit(learner, [batch_of(SMALL)], tmp_path, TrainConfig(steps=10, lr=1.0, warmup=4, cooldown=0.2))
    assert rates == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 6, 0.5])
    assert max(norms) == pytest.approx(1e-3, rel=1e-2)


# Tasks and evidence


def test_a_batch_of_one_sense_has_a_context_of_this_sense_alone():
    batch = batch_of(SMALL)
    both, seen, heard = (make_task(SMALL, batch, STAGES[stage].parts) for stage in ("joint", "vision", "audio"))
    assert [*both.context] == ["vision", "audio"] and [*both.clean] == ["vision", "audio", "reward"]
    assert [*seen.context] == [*seen.clean] == ["vision"]
    assert [*heard.context] == ["audio"] and [*heard.clean] == ["audio", "reward"]
    scaled = make_task(SMALL.change(reward_scale=4.0), batch).clean["reward"]
    torch.testing.assert_close(scaled[..., 0, 0], batch.reward / 4)


def test_held_out_loss_is_fixed_and_each_parts_noise_its_own():
    net, diffusion, batches = awake(AVCDiT(SMALL)), Diffusion(), [batch_of(SMALL), batch_of(SMALL, seed=1)]
    before = torch.get_rng_state()
    once, again, other = (denoising_loss(net, diffusion, batches, (0.2, 0.8), seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert [*once] == ["vision", "audio", "reward"] and all(x.shape == (2,) for x in once.values())
    assert all(torch.equal(once[name], again[name]) and not torch.equal(once[name], other[name]) for name in once)
    apart = awake(Factorised(SMALL))
    together, alone = (
        denoising_loss(apart, diffusion, batches),
        denoising_loss(apart, diffusion, batches, parts=["vision"]),
    )
    torch.testing.assert_close(
        together["vision"], alone["vision"], msg="vision's noise is the same whatever else is asked for"
    )
    with pytest.raises(UsageError, match="no batch to judge by"):
        denoising_loss(net, diffusion, [])


@pytest.mark.parametrize(("kind", "target"), [(AVCDiT, "eps"), (AVCDiT, "v"), (AVCDiT, "flow"), (Factorised, "eps")])
def test_every_target_learns(kind, target, tmp_path):
    torch.manual_seed(0)
    config, diffusion = SMALL.change(learned_range=target == "eps"), Diffusion(DiffusionConfig(target=target))
    batch = batch_of(config)
    learner = AVLearner(kind(config), diffusion, AVLearnerConfig.preset("joint"))
    before = denoising_loss(learner.model, diffusion, [batch])
    fit(learner, [batch], tmp_path, TrainConfig(steps=15, lr=1e-2, warmup=0))
    after = denoising_loss(learner.finish(), diffusion, [batch])
    assert all(after[name].mean() < before[name].mean() for name in ("vision", "audio", "reward"))


def test_a_range_that_nobody_learns_is_refused():
    for target, learned in (("eps", False), ("flow", True)):
        with pytest.raises(UsageError, match="the range is learned for eps alone"):
            AVLearner(AVCDiT(SMALL.change(learned_range=learned)), Diffusion(DiffusionConfig(target=target)))


def test_bad_stages_are_refused():
    for stages in ({"visoin": 1}, {"vision": 0}, {}):
        with pytest.raises(UsageError, match="stage"):
            AVLearnerConfig(stages=stages)


def test_adaptive_norm_is_that_of_torch():
    x, shift, scale = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    norm = nn.LayerNorm(8, eps=1e-6, elementwise_affine=False)
    wanted = norm(x) * (1 + scale[:, :, None]) + shift[:, :, None]
    torch.testing.assert_close(modulated(x, shift, scale), wanted)
    assert avcdit.Expert(8).inward.out_features == 32 and math.isclose(AVCDiTConfig().motion[0] * 0.15, 1)


def test_a_training_that_ends_before_the_last_stage_is_refused(tmp_path):
    """It would never learn to hear, and say nothing."""
    learner = AVLearner(AVCDiT(SMALL), Diffusion(), AVLearnerConfig(stages={"vision": 4, "audio": 2, "joint": 4}))
    with pytest.raises(UsageError, match="ends before stage 'joint' begins: train for 10 steps"):
        fit(learner, [batch_of(SMALL)], tmp_path, TrainConfig(steps=6, lr=1e-2, warmup=0))
    fit(learner, [batch_of(SMALL)], tmp_path, TrainConfig(steps=7, lr=1e-2, warmup=0))
