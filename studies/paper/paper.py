"""The claims and equations of arXiv:2412.15287, each with what regenerates it here.

`outcome` names an entry of the outcomes that the study computes; "" stands for what is tested and not measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """what: the paper's statement, in our words.  where: the code.  command: what regenerates it."""

    what: str
    where: str
    command: str
    outcome: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A claim of another paper that is near. outcome: what came out here, in words; its page has the numbers."""

    what: str
    where: str
    command: str
    outcome: str


CLAIMS = (
    Item(
        what="Fine-tuning for one response lowers what N responses reach together (RL with N' = 1 against the base)",
        where="`objectives.RLOO`",
        command="python -m studies.paper --only claims",
        outcome="rl-s",
    ),
    Item(
        what="The same for GRPO, a baseline of this study",
        where="`objectives.GRPO`",
        command="python -m studies.paper --only claims",
        outcome="grpo",
    ),
    Item(
        what="The same for STaR, supervised steps on the policy's own right responses",
        where="`objectives.STaR`",
        command="python -m studies.paper --only claims",
        outcome="star",
    ),
    Item(
        what="The same for MaxRL, which is later than the paper",
        where="`objectives.MaxRL`",
        command="python -m studies.paper --only claims",
        outcome="maxrl",
    ),
    Item(
        what="BoN-aware RL by the environment raises pass@N (BoN-RLB(P))",
        where="`objectives.BoNRLBP`",
        command="python -m studies.paper --only claims",
        outcome="bon-rlbp-32",
    ),
    Item(
        what="The same in its exact, unbiased form (BoN-RL-S)",
        where="`objectives.BoNRL(selector='environment', form='exact')`",
        command="python -m studies.paper --only claims",
        outcome="bon-rl-s-32",
    ),
    Item(
        what="The same by the gradient of log pass@N",
        where="`objectives.LogPassAtN`",
        command="python -m studies.paper --only claims",
        outcome="log-pass-32",
    ),
    Item(
        what="The variational form of BoN-RL-S, as the paper trains it",
        where="`objectives.BoNRL(selector='environment', form='variational')`",
        command="python -m studies.paper --only breadth",
        outcome="bon-rl-s-variational-32",
    ),
    Item(
        what="RL for one response against a learned verifier is hacked (RL-V)",
        where="`objectives.RLOO(by='score')`",
        command="python -m studies.paper --only verifier",
        outcome="rl-v",
    ),
    Item(
        what="BoN-RL-V raises best-of-N by that verifier (exact form)",
        where="`objectives.BoNRL(form='exact')`",
        command="python -m studies.paper --only verifier",
        outcome="bon-rl-v-8",
    ),
    Item(
        what="How far that depends on the learning rate",
        where="`objectives.BoNRL(form='exact')`",
        command="python -m studies.paper --only verifier rates",
        outcome="rates",
    ),
    Item(
        what="Gains by that verifier hold against the base at its best temperature",
        where="`records.Sampling`",
        command="python -m studies.paper --only verifier rates served",
        outcome="served",
    ),
    Item(
        what="BoN-RL-V in its variational form",
        where="`objectives.BoNRL(form='variational')`",
        command="python -m studies.paper --only verifier",
        outcome="bon-rl-v-variational-8",
    ),
    Item(
        what="BoN-RLB with both readings of the sign of its failure term",
        where="`objectives.BoNRLB(failure_sign=...)`",
        command="python -m studies.paper --only breadth",
        outcome="bon-rlb-minus-32",
    ),
    Item(
        what="BoN-SFT imitates an expert through best-of-N",
        where="`objectives.BoNSFT`",
        command="python -m studies.paper --only verifier",
        outcome="bon-sft-variational-8",
    ),
    Item(
        what="The same in its exact form",
        where="`objectives.BoNSFT(form='exact')`",
        command="python -m studies.paper --only verifier",
        outcome="bon-sft-exact-8",
    ),
    Item(
        what="Best-of-N distillation: a second policy learns from what best-of-8 of the base serves",
        where="`objectives.SFT`",
        command="python -m studies.paper --only verifier",
        outcome="bon-distilled-8",
    ),
    Item(
        what="The N that is trained for against the N that is served (two families; the others in reproduction.md)",
        where="`studies/paper/sections.py`",
        command="python -m studies.paper --only claims breadth verifier",
        outcome="budgets",
    ),
    Item(
        what="Gains carry over to harder problems than those trained on",
        where="`tasks.countdown.harder`",
        command="python -m studies.paper --only harder",
        outcome="harder",
    ),
    Item(
        what="Gains hold at other sampling temperatures (intervals in reproduction.md)",
        where="`records.Sampling`",
        command="python -m studies.paper --only temperature",
        outcome="temperature",
    ),
    Item(
        what="pass@N scales with N and T together: pass@N(T) = exp(a(T) N^b(T)), and the best T depends on N",
        where="`evaluate/coscale.py`",
        command="bontune coscale --model countdown-base --temperature 0.1 0.6 1.0 1.5",
        outcome="coscale",
    ),
    Item(
        what="Beyond the paper: responses drawn in training until pass@32 is 2 points above the base",
        where="`studies/paper/course.py`",
        command="python -m studies.paper --only base claims",
        outcome="course",
    ),
    Item(
        what="BoN-aware policies learn a meta-strategy: best responses interleaved with exploring ones",
        where="`evaluate/meta.py`",
        command="python -m studies.paper --only claims",
        outcome="meta",
    ),
)

EQUATIONS = (
    Item(
        what="The variational best-of-N policy, pi(y) exp(lambda_N Q(y)), and lambda_N",
        where="`objectives.variational_lambda`",
        command="pytest tests/test_objectives.py -k lambda",
    ),
    Item(
        what="BoN-SFT, variational, and its exact counterpart",
        where="`objectives.BoNSFT`",
        command="pytest tests/test_objectives.py -k sft",
    ),
    Item(
        what="BoN-RL with verifier (V) and environment (S) reward, variational, and its exact counterpart",
        where="`objectives.BoNRL`",
        command="pytest tests/test_objectives.py -k bonrl",
    ),
    Item(
        what="BoN-RLB and BoN-RLB(P) for binary rewards",
        where="`objectives.BoNRLB`, `objectives.BoNRLBP`",
        command="pytest tests/test_objectives.py -k rlb",
    ),
    Item(
        what="The KL coefficient that decays from 1 to 0.001",
        where="`config.KLSchedule`",
        command="bontune train --task countdown --kl.start 1 --kl.end 0.001",
    ),
)

QUESTIONS = {
    "Does training for one response lower what N responses reach together?": (
        "rl-s",
        "grpo",
        "star",
        "maxrl",
    ),
    "Do methods that train for best-of-N raise it above the base?": (
        "log-pass-32",
        "bon-rlbp-32",
        "bon-rl-s-32",
    ),
    "Does BoN-RL-V raise what a learned verifier chooses, and is RL for its score (RL-V) hacked? Does refreshing help?": (
        "bon-rl-v-8",
        "rates",
        "bon-rl-v-refreshed-8",
        "rl-v",
        "rl-v-refreshed",
    ),
    "Does the variational form lose to the exact one?": ("forms",),
    "Which method reaches a target with the fewest responses, and how far are the estimators from the least noise?": (
        "course",
        "noise",
    ),
}
"""{question of the study: the outcomes that answer it}."""

NEIGHBOURS = (
    Neighbour(
        what="[OWQ](https://arxiv.org/abs/2306.02272): 3.1 bits with weak columns are as good as 4 by GPTQ",
        where="`models.compress.owq`, `--adapter owq`",
        command="python -m studies.cheaper owq",
        outcome="On SmolLM2-135M 3 bits by GPTQ add 1.7 nats a token, OWQ with 3.1 adds .3 (4 bits not run); on the "
        "embedded models 3 bits by GPTQ lose nothing that could be shown. [Page](owq.md).",
    ),
    Neighbour(
        what="[SquareHead](https://arxiv.org/abs/2310.06927) recovers the dense accuracy at 60 to 75 % zeros where "
        "cross-entropy does not",
        where="`models.compress.sparse`, `squarehead`, `--sparsity`",
        command="python -m studies.cheaper sparse",
        outcome="Cross-entropy alone recovers pass@1 up to 75 % zeros, and SquareHead adds nothing; at 90 % a teacher is "
        "worth 4 points of pass@32. pass@32 survives 80 % zeros. [Page](sparse.md).",
    ),
    Neighbour(
        what="Responses from a copy in few bits, with exact weights of the group",
        where="`studies.cheaper.sampler`",
        command="python -m studies.cheaper sampler",
        outcome="It does not pay: int8 takes up to a quarter less time, with noise of pass@32 1.2 to 1.5 times as high; "
        "3 bits are out of the question. [Page](low-precision-sampler.md).",
    ),
    Neighbour(
        what="[KnowTuning](https://arxiv.org/abs/2402.11176): train on what the model knows least",
        where="`train.hard`, `--hardest-share`",
        command="python -m studies.cheaper hard",
        outcome="The hardest half costs 1.7 points of pass@1 and 15 of pass@32 on Countdown, 4.5 of pass@1 on programs; "
        "on a pretrained model (GSM8K, answered directly) it changes nothing; DPO on made negatives adds .8 of pass@1 to "
        "the base on Countdown and costs .9 on programs and .8 on GSM8K. "
        "[Page](hard-prompts.md).",
    ),
)
