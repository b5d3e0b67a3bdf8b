"""The trainer for TRL against plain autograd: whatever TRL drew, its gradient is that of sum_i w_i log pi(y_i)."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import paired
import pytest
import torch
from models import tiny_model, word_tokenizer
from torch import Tensor

pytest.importorskip("trl")
from datasets import Dataset
from transformers import MixtralConfig, MixtralForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bontune import BestOfN, MajorityVote, PassAtK, Scored, WeightedVote
from bontune.integrations.trl import StrategyTrainer, exact_config
from bontune.objectives import GRPO, RLOO, BoNRLBP, BoNSFT, LogPassAtN, StrategyObjective

TOKENIZER = word_tokenizer()
PROMPTS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w1 w2", "w3 w3", "w2 w9"]
TRUTH = ("w1", "w5")


class Record:
    """Reward functions that keep what they judged, and the gradients of the first step."""

    def __init__(self, undecided: str = "none of the words") -> None:
        self.undecided = undecided
        self.rows: list[dict[str, Any]] = []
        self.gradients: dict[str, Tensor] = {}

    def truth(
        self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        found = [
            None if self.undecided in t.split() else float(any(w in t.split() for w in TRUTH))
            for t in completions
        ]
        for prompt, text, ids, reward in zip(prompts, completions, completion_ids, found, strict=True):
            self.rows.append({"prompt": prompt, "text": text, "ids": list(ids), "reward": reward})
        return found

    def score(
        self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any
    ) -> list[float | None]:
        """With ties, and not the truth; kept with the row, whatever the order TRL calls in."""
        return [score_of(ids) for ids in completion_ids]

    def length(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        return [len(ids) / 4 for ids in completion_ids]


def score_of(ids: list[int]) -> float | None:
    return None if ids[0] == 9 else ids[0] % 3 / 2


def answer_of(text: str) -> str | None:
    words = text.split()
    return None if len(words) < 2 else words[1]


def answers(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[str | None]:
    assert columns["number"] == [PROMPTS.index(prompt) for prompt in prompts]
    return [answer_of(text) for text in completions]


def config(folder: Path, **more: Any) -> GRPOConfig:
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 12,
        "num_generations": 6,
        "max_completion_length": 7,
        "max_grad_norm": 0.0,
        "learning_rate": 0.1,
        "temperature": 1.3,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return GRPOConfig(**(given | more))


def dataset() -> Dataset:
    return Dataset.from_list([{"prompt": prompt, "number": i} for i, prompt in enumerate(PROMPTS)])


def train(record: Record, args: GRPOConfig, model: Any, kind: Any = StrategyTrainer, **more: Any) -> Any:
    """One step; leaves the gradients of that step in the record."""

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(
            self, args: Any, state: Any, control: Any, model: Any, **named: Any
        ) -> None:
            inner = getattr(model, "module", model)
            record.gradients = {
                n: p.grad.clone()
                for n, p in inner.named_parameters()
                if p.requires_grad and p.grad is not None
            }

    given = {"model": model, "reward_funcs": record.truth, "args": args, "train_dataset": dataset()}
    trainer = kind(**(given | more), processing_class=TOKENIZER, callbacks=[Keep()])
    trainer.train()
    return trainer


def groups_of(rows: list[dict[str, Any]], size: int, *, scored: bool = False, votes: bool = False) -> Scored:
    """The groups of the recorded rows, which come prompt by prompt."""
    names: list[str | None] = [answer_of(row["text"]) for row in rows]
    known = sorted({name for name in names if name is not None})
    rewards = torch.tensor([float("nan") if r["reward"] is None else r["reward"] for r in rows]).view(
        -1, size
    )
    found = [score_of(row["ids"]) for row in rows]
    scores = torch.tensor([float("nan") if s is None else s for s in found]).view(-1, size)
    return Scored(
        rewards,
        scores if scored else None,
        torch.tensor([-1 if n is None else known.index(n) for n in names]).view(-1, size) if votes else None,
        rewards.isfinite() & (scores.isfinite() if scored else True),
    )


def plain_gradients(
    model: Any, rows: list[dict[str, Any]], weights: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Of minus (1/P) sum_p sum_i w_i log pi(y_i): one response at a time, no padding, in float64."""
    model = model.double().eval()
    model.zero_grad()
    for row, weight in zip(rows, weights.flatten().tolist(), strict=True):
        prompt = TOKENIZER(row["prompt"])["input_ids"]
        ids = torch.tensor([prompt + row["ids"]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
        drawn = logits.log_softmax(-1).gather(-1, torch.tensor(row["ids"]).unsqueeze(-1))
        (-weight * drawn.sum() / len(weights)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference between gradients, over the largest gradient."""
    assert set(found) == set(expected)
    largest = max(g.abs().max() for g in expected.values())
    assert largest > 0
    return float(max((found[n].double() - expected[n]).abs().max() for n in expected) / largest)


CASES = {
    "pass@3": (PassAtK(3), {}, {}),
    "best-of-2 by a scorer": (BestOfN(2), {"scorer": "score"}, {}),
    "best-of-4, centred": (StrategyObjective(BestOfN(4), "centred"), {"scorer": "score"}, {}),
    "vote of 3": (MajorityVote(3), {"answers": answers}, {}),
    "weighted vote of 4": (WeightedVote(4), {"answers": answers, "scorer": "score"}, {}),
    "BoN-RLB(P)": (BoNRLBP(4), {}, {}),
    "log pass@32": (LogPassAtN(32), {}, {}),
    "RLOO": (RLOO(), {}, {}),
    "GRPO": (GRPO(), {}, {}),
    "nothing left out": (PassAtK(3), {"skip_zero_weights": False}, {}),
    "accumulated, groups over micro-batches": (
        PassAtK(3),
        {},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 6},
    ),
    "accumulated, scorer": (
        BestOfN(2),
        {"scorer": "score"},
        {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4},
    ),
    "gradient checkpointing": (PassAtK(3), {}, {"gradient_checkpointing": True}),
}
# In float32, too: one of each way through the trainer.
USUAL = (
    "pass@3",
    "best-of-2 by a scorer",
    "vote of 3",
    "RLOO",
    "accumulated, scorer",
    "gradient checkpointing",
)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in CASES), *((name, torch.float32) for name in USUAL)],
)
def test_the_gradient_is_that_of_plain_autograd(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    objective, more, settings = CASES[name]
    record = Record(undecided="w7")
    model = tiny_model().to(dtype)
    start = copy.deepcopy(model)
    more = {key: getattr(record, value) if value == "score" else value for key, value in more.items()}
    trainer = train(record, config(tmp_path, **settings), model, objective=objective, **more)
    groups = groups_of(record.rows, 6, scored="scorer" in more, votes="answers" in more)
    assert not groups.complete
    weights = objective.weights(groups) if hasattr(objective, "weights") else objective(groups)
    assert int((weights != 0).sum()) > 0
    expected = plain_gradients(start, record.rows, weights, 1.3)
    assert error(record.gradients, expected) < (1e-6 if dtype == torch.float64 else 1e-5)
    assert trainer.args.loss_type == "cispo"


def test_the_comparison_sees_what_trl_does_by_itself(tmp_path: Path) -> None:
    """TRL's default loss weighs tokens alike, so long responses count for more; and its default clip scales."""
    record, start = Record(), tiny_model()
    train(record, config(tmp_path), copy.deepcopy(start), kind=GRPOTrainer)
    weights = GRPO()(groups_of(record.rows, 6))
    assert error(record.gradients, plain_gradients(start, record.rows, weights, 1.3)) > 0.1


def test_only_responses_with_a_weight_are_pushed_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    compute = GRPOTrainer._compute_loss

    def counting(self: Any, model: Any, inputs: Any) -> Tensor:
        rows.append((len(inputs["completion_ids"]), int((inputs["advantages"] != 0).sum())))
        return compute(self, model, inputs)

    monkeypatch.setattr(GRPOTrainer, "_compute_loss", counting)
    record = Record()
    trainer = train(record, config(tmp_path, logging_strategy="steps"), tiny_model(), objective=PassAtK(3))
    right = sum(row["reward"] for row in record.rows)
    assert 0 < right < 12
    ((passed, weighted),) = rows
    assert passed == weighted <= right
    logged = trainer.state.log_history[0]
    assert logged["bontune/weighted"] == pytest.approx(weighted / 12)
    assert logged["bontune/undecided"] == 0
    assert logged["bontune/value"] == pytest.approx(PassAtK(3).value(groups_of(record.rows, 6)).mean().item())


def test_a_step_that_teaches_nothing_moves_nothing(tmp_path: Path) -> None:
    class Silent(Record):
        def truth(
            self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any
        ) -> list[float | None]:
            return [None] * len(prompts)

    record, model = Silent(), tiny_model()
    start = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="nothing is learnt"):
        train(record, config(tmp_path), model, objective=RLOO())
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_undecided_responses_are_not_wrong_ones(tmp_path: Path) -> None:
    """The same responses with None taken for 0 give another gradient, and ours is not that one."""
    record, start = Record(undecided="w7"), tiny_model().double()
    train(record, config(tmp_path), copy.deepcopy(start), objective=RLOO())
    groups = groups_of(record.rows, 6)
    assert 0 < int(groups.decided.sum()) < 12
    wrong = RLOO()(Scored(groups.rewards))
    assert error(record.gradients, plain_gradients(start, record.rows, RLOO()(groups), 1.3)) < 1e-6
    assert error(record.gradients, plain_gradients(start, record.rows, wrong, 1.3)) > 1e-2


def test_several_reward_functions_are_added_by_their_weights(tmp_path: Path) -> None:
    record, start = Record(), tiny_model().double()
    args = config(tmp_path, reward_weights=[2.0, 0.5])
    funcs = [record.truth, record.length]
    train(record, args, copy.deepcopy(start), reward_funcs=funcs, objective=BestOfN(2), scorer=record.score)
    plain = groups_of(record.rows, 6, scored=True)
    lengths = torch.tensor([len(row["ids"]) / 4 for row in record.rows]).view(-1, 6)
    weights = BestOfN(2).weights(Scored(2 * plain.rewards + lengths / 2, plain.scores, None, plain.decided))
    assert error(record.gradients, plain_gradients(start, record.rows, weights, 1.3)) < 1e-6
    assert args.reward_weights == [2.0, 0.5]


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    base = tiny_model()
    record, model = Record(), peft.get_peft_model(copy.deepcopy(base), settings)
    start = copy.deepcopy(model)
    train(record, config(tmp_path), model, objective=PassAtK(2))
    expected = plain_gradients(start, record.rows, PassAtK(2).weights(groups_of(record.rows, 6)), 1.3)
    assert all("lora" in name for name in expected)
    assert error(record.gradients, expected) < 1e-5
    trainer = StrategyTrainer(
        base, record.truth, config(tmp_path), objective=PassAtK(2), train_dataset=dataset(),
        processing_class=TOKENIZER, peft_config=settings,
    )  # fmt: skip
    trainer.train()
    assert set(record.gradients) == {n for n, p in trainer.model.named_parameters() if p.requires_grad}


def trained(out: str) -> None:
    """One of two processes: what it judged, and its gradients, in a file that begins with `out`."""
    record = Record(undecided="w7")
    args = config(Path(out), per_device_train_batch_size=3, gradient_accumulation_steps=2, num_generations=4)
    trainer = train(record, args, tiny_model().double(), objective=BestOfN(2), scorer=record.score)
    assert trainer.accelerator.num_processes == 2
    torch.save((record.rows, record.gradients), out + str(trainer.accelerator.process_index))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_share_groups_and_agree_with_plain_autograd(tmp_path: Path) -> None:
    """Twelve responses in groups of four over two processes: the middle group is split between them."""
    paired.call("test_integration_trl:trained", f"{tmp_path}/out-")
    (first, one), (second, other) = (
        torch.load(f"{tmp_path}/out-{rank}", weights_only=False) for rank in (0, 1)
    )
    assert [len(first), len(second)] == [6, 6]
    assert first[5]["prompt"] == second[0]["prompt"] != first[3]["prompt"]
    rows = first + second
    weights = BestOfN(2).weights(groups_of(rows, 4, scored=True))
    assert 0 < int((weights != 0).sum()) < 12
    expected = plain_gradients(tiny_model(), rows, weights, 1.3)
    assert error(one, expected) < 1e-6
    assert error(other, expected) < 1e-6


REFUSED = {
    "loss_type": "dr_grpo",
    "num_iterations": 2,
    "steps_per_generation": 2,
    "mask_truncated_completions": True,
    "off_policy_mask_threshold": 0.5,
    "top_entropy_quantile": 0.5,
    "use_liger_kernel": True,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "vllm_structured_outputs_regex": "a+",
    "generation_kwargs": {"num_beams": 2},
    "beta": 0.04,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
}


def test_an_auxiliary_loss_on_all_responses_is_refused(tmp_path: Path) -> None:
    if not hasattr(config(tmp_path), "router_aux_loss_coef"):
        pytest.skip("this TRL adds no auxiliary loss")
    sizes = {"vocab_size": 15, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    given = {"objective": RLOO(), "train_dataset": dataset(), "processing_class": TOKENIZER}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
    with pytest.raises(ValueError, match="router_aux_loss_coef must be"):
        StrategyTrainer(model, Record().truth, config(tmp_path), **given)
    StrategyTrainer(model, Record().truth, config(tmp_path, router_aux_loss_coef=0.0), **given)


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_change_the_gradient_are_refused(name: str, tmp_path: Path) -> None:
    args = config(tmp_path)
    exact_config(args)
    setattr(args, name, REFUSED[name])
    with pytest.raises(ValueError, match=name):
        exact_config(args)
    if name in ("beta", "entropy_coef", "use_adaptive_entropy"):
        exact_config(args, skip_zero_weights=False)


def test_vllm_only_without_its_correction(tmp_path: Path) -> None:
    args = config(tmp_path)
    args.use_vllm = True
    with pytest.raises(ValueError, match="vllm_importance_sampling_correction must be False, got True"):
        exact_config(args)
    args.vllm_importance_sampling_correction = False
    assert exact_config(args).loss_type == "cispo"
    assert args.loss_type == "dapo"


def test_what_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    record = Record()

    def build(model: Any = None, args: Any = None, **more: Any) -> Any:
        given = {"objective": PassAtK(3), "train_dataset": dataset(), "processing_class": TOKENIZER} | more
        return StrategyTrainer(model or tiny_model(), record.truth, args or config(tmp_path), **given)

    with pytest.raises(ValueError, match="num_generations = 6"):
        build(objective=BestOfN(8))
    with pytest.raises(ValueError, match="answers"):
        build(objective=MajorityVote(3))
    with pytest.raises(ValueError, match="expert"):
        build(objective=BoNSFT(4))
    with pytest.raises(ValueError, match=r"trl\.GRPOConfig, got a dict"):
        build(args={"beta": 0.0})
    with pytest.raises(ValueError, match="disable_dropout must be True"):
        build(tiny_model("gpt2", resid_pdrop=0.1))
    build(tiny_model("gpt2", resid_pdrop=0.1), config(tmp_path, disable_dropout=True))
    with pytest.raises(ValueError, match="attention_dropout"):
        build(tiny_model(attention_dropout=0.1))


def test_async_grpo_is_refused(tmp_path: Path) -> None:
    config_of = pytest.importorskip("trl.experimental.async_grpo")
    with pytest.raises(ValueError, match="got a AsyncGRPOConfig"):
        exact_config(object.__new__(config_of.AsyncGRPOConfig))


def test_a_group_that_is_split_stops_the_training(tmp_path: Path) -> None:
    class Shuffling(StrategyTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    args = config(tmp_path, per_device_train_batch_size=6)
    with pytest.raises(ValueError, match="num_generations = 6 responses are not complete"):
        train(Record(), args, tiny_model(), kind=Shuffling, objective=PassAtK(3))


def test_the_model_card_of_trl_names_the_objective(tmp_path: Path) -> None:
    trainer = StrategyTrainer(
        model=tiny_model(),
        reward_funcs=Record().truth,
        args=config(tmp_path),
        objective=PassAtK(3),
        train_dataset=dataset(),
        processing_class=word_tokenizer(),
    )
    trainer.create_model_card("tuned")
    card = (tmp_path / "README.md").read_text()
    assert "trained with bontune, for PassAtK(budget=3)." in card
    assert "- bontune\n" in card
    assert "GRPO" not in card
    assert "grpo" not in card.replace("grpo_trainer", "")


def test_the_example_of_five_lines_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    import trl_five_lines

    text = Path(trl_five_lines.__file__).read_text()
    assert re.findall(r"  # \((\d)\)", text) == ["1", "2", "3", "4", "5"]
    history = trl_five_lines.main(2, str(tmp_path / "run"))
    assert [line["step"] for line in history] == [1, 2]
    assert all(line["bontune/undecided"] == 0 and 0 < line["bontune/weighted"] < 1 for line in history)
    assert (tmp_path / "run/model/config.json").exists()
