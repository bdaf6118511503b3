"""One training step of the RSSM, and imagination, against the arithmetic that they need

    python benchmarks/rssm.py [--threads 2] [--rounds 5] [--clock wall|cpu]

A training step is forward, KL losses and backward over 16 sequences of 64 rows. Its bound is 6 operations for each
parameter and row, at the rate of a large matrix product. The product, our scan, our plain loop and, where it is
installed, torchrl's DreamerV3 rollout (pip install 'torchrl==0.14.*') take turns; each is told by its fastest round,
on one thread or on `--threads`, whichever suits it better: small products are often faster alone.
On a computer that is busy with other things, `--threads 1 --clock cpu` counts the processor's time of one thread;
with several threads the environment variable OMP_WAIT_POLICY=passive keeps those that wait from taking processors.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from turns import fastest

from metabonk.act.actor_critic import ActorCritic, ActorCriticConfig
from metabonk.core.actions import ActionSpec
from metabonk.dream.interface import imagine
from metabonk.dream.recurrent import RecurrentModel
from metabonk.dream.rssm import RSSM, RSSMConfig
from metabonk.dream.scan import fast_observe

BATCH, TIME, ACTIONS, STARTS, HORIZON, SIDE = 16, 64, 18, 1024, 15, 2048


def our_step(config: RSSMConfig, embed: int, observe: Callable) -> tuple[Callable[[], None], int]:
    "A training step of ours, and the number of its parameters"
    torch.manual_seed(0)
    rssm = RSSM(config, embed, ACTIONS)
    seen, first = torch.randn(BATCH, TIME, embed), torch.rand(BATCH, TIME) < 0.01
    action = nn.functional.one_hot(torch.randint(ACTIONS, (BATCH, TIME)), ACTIONS).float()

    def step() -> None:
        rssm.zero_grad(set_to_none=True)
        kl = rssm.kl_losses(observe(rssm, seen, action, first))
        (kl["dynamics"] + 0.1 * kl["representation"]).mean().backward()

    return step, sum(p.numel() for p in rssm.parameters())


def their_step(config: RSSMConfig, embed: int) -> Callable[[], None] | None:
    "The same by torchrl's components, if they are installed"
    try:
        from tensordict import TensorDict
        from tensordict.nn import TensorDictModule
        from torchrl.modules.models.model_based import RSSMPosteriorV3, RSSMPriorV3, RSSMRolloutV3
        from torchrl.objectives import categorical_kl_terms
    except ImportError as error:
        print(f"torchrl's components are left out: {error}")
        return None
    torch.manual_seed(0)
    sizes = {"hidden_dim": config.hidden, "num_categoricals": 32, "num_classes": config.classes,
             "rnn_hidden_dim": config.deter, "unimix": 0.01}
    prior = RSSMPriorV3(action_shape=torch.Size([ACTIONS]), action_dim=ACTIONS, recurrent_model="block_gru", **sizes)
    posterior = RSSMPosteriorV3(obs_embed_dim=embed, use_rms_norm=True, **sizes)
    rollout = RSSMRolloutV3(
        TensorDictModule(prior, ["state", "belief", "action"],
                         [("next", "prior_logits"), ("next", "state"), ("next", "belief")]),
        TensorDictModule(posterior, [("next", "belief"), ("next", "encoded_latents")],
                         [("next", "posterior_logits"), ("next", "state")]),
    )
    rows = TensorDict({
        "state": torch.zeros(BATCH, TIME, 32 * config.classes), "belief": torch.zeros(BATCH, TIME, config.deter),
        "action": nn.functional.one_hot(torch.randint(ACTIONS, (BATCH, TIME)), ACTIONS).float(),
        "is_init": torch.rand(BATCH, TIME, 1) < 0.01,
        "next": {"encoded_latents": torch.randn(BATCH, TIME, embed)},
    }, [BATCH, TIME])
    assert rollout._check_fast_path()

    def step() -> None:
        rollout.zero_grad(set_to_none=True)
        out = rollout(rows.clone())
        dynamics, representation = categorical_kl_terms(out["next", "posterior_logits"], out["next", "prior_logits"])
        (dynamics + 0.1 * representation).backward()

    return step


def main() -> None:
    "Print a line a measurement"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--sizes", nargs="+", default=["1M", "12M"])
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    square = torch.randn(SIDE, SIDE)
    product = {"product": lambda: square @ square}

    for size in options.sizes:
        config = RSSMConfig.preset(size)
        embed = 64 * config.classes
        ours, parameters = our_step(config, embed, fast_observe)
        contenders = {**product, "ours": ours, "plain": our_step(config, embed, RSSM.observe)[0]}
        if theirs := their_step(config, embed):
            contenders["torchrl"] = theirs
        times = fastest(contenders, options.rounds, clock, options.threads)
        rate = 2 * SIDE**3 / times["product"]
        bound = 6 * parameters * BATCH * TIME / rate
        print(f"{size}: {parameters:,} parameters, {rate / 1e9:.0f} GFLOP/s, bound {bound * 1e3:.0f} ms")
        for name in list(contenders)[1:]:
            took = times[name]
            print(f"  {name}: {took * 1e3:.0f} ms, {took / bound:.2f} times the bound, {took / times['ours']:.2f} times ours")

    config = RSSMConfig.preset("1M")
    model = RecurrentModel(config, nn.Identity(), 256, {}, ActionSpec(categorical=(ACTIONS,)))
    agent = ActorCritic(ActorCriticConfig.preset("1M"), model.feature_size, model.actions)
    starts = model.rssm.initial(STARTS)
    dream = {"dream": lambda: imagine(model, agent.policy, starts, HORIZON)}
    times = fastest({**product, **dream}, 3 * options.rounds, clock, options.threads)
    rate = 2 * SIDE**3 / times["product"]
    print(f"imagination, 1M, policy, reward and continuation included: {STARTS * HORIZON / times['dream']:,.0f} steps/s "
          f"at {rate / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
