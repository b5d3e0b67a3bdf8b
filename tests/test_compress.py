"""Few bits and zeros: each solve against least squares and enumeration; what is trained is what is saved and served."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model, word_tokenizer
from test_update import run_of
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bontune import cli
from bontune.config import KLSchedule, ModelConfig, Stopped
from bontune.models.compress.gptq import Grid, gptq, solve
from bontune.models.compress.hessian import DAMPING, each_linear, linears
from bontune.models.compress.owq import (
    OWQ_CONFIG,
    add_owq,
    has_owq,
    mean_bits,
    packed,
    sensitivity,
    unpacked,
    weak_counts,
    with_owq,
)
from bontune.models.compress.sparse import MOVING, check, hold, prune, sparse_gpt, sparsity_of
from bontune.models.compress.squarehead import recovery_loss, squarehead
from bontune.models.loading import load_policy, save_policy
from bontune.train.checkpoint import load_newest, load_trained, trained_state
from bontune.train.loop import train

TEXTS = [torch.randint(3, 15, (9,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(12)]
IDS = torch.tensor([[3, 5, 4, 8, 9, 7]])


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hessian_of(inputs: int, seed: int = 1) -> Tensor:
    x = drawn(50, inputs, seed=seed) @ drawn(inputs, inputs, seed=seed + 1)
    return 2 * x.T @ x / 50


def damped(hessian: Tensor) -> Tensor:
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)


def error(weight: Tensor, found: Tensor, hessian: Tensor) -> float:
    gap = found.double() - weight
    return float((gap @ hessian * gap).sum())


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


# The solves.


@pytest.mark.parametrize("together", [2, 128])
@pytest.mark.parametrize("columns", [0, 2, 5])
def test_the_columns_behind_make_up_for_the_error_as_least_squares_would(
    columns: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bontune.models.compress.gptq.TOGETHER", together)
    weight, hessian, new = drawn(3, 6), hessian_of(6), drawn(3, 6, seed=7)
    found = solve(weight, hessian, lambda j, now: new[:, j], columns)
    full, done = damped(hessian), slice(0, columns)
    moved = (new - weight)[:, done]
    rest = torch.linalg.solve(full[columns:, columns:], full[columns:, done] @ moved.T).T
    assert torch.equal(found[:, done], new[:, done])
    assert torch.allclose(found[:, columns:], weight[:, columns:] - rest)


def test_gptq_lies_between_rounding_and_the_best_of_all_grid_points() -> None:
    rounded = solved = 0.0
    for seed in range(12):
        weight, hessian = drawn(1, 4, seed=seed), damped(hessian_of(4, seed))
        grid = Grid.fit(weight, 2)
        points = grid.values(torch.arange(4, dtype=torch.uint8).unsqueeze(0))[0]
        gaps = torch.cartesian_prod(*[points.double()] * 4) - weight
        best = float((gaps @ hessian * gaps).sum(1).min())
        by_gptq = error(weight, gptq(weight, hessian, grid), hessian)
        assert by_gptq >= best - 1e-6
        rounded, solved = rounded + error(weight, grid.nearest(weight), hessian), solved + by_gptq
    assert solved < 0.7 * rounded


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_grid_has_so_many_points_and_rounds_to_the_nearest(bits: int) -> None:
    weight = drawn(4, 40).float()
    weight[3] = 0
    grid = Grid.fit(weight, bits)
    points = grid.values(torch.arange(2**bits).to(torch.uint8).expand(4, -1))
    nearest = points.gather(1, (weight.unsqueeze(-1) - points.unsqueeze(1)).abs().argmin(-1))
    assert torch.allclose((grid.nearest(weight) - weight).abs(), (nearest - weight).abs(), atol=1e-6)
    assert torch.equal(grid.nearest(weight)[3], weight[3])
    assert torch.equal(unpacked(packed(grid.codes(weight), bits), bits, (4, 40)), grid.codes(weight))
    assert packed(grid.codes(weight), bits).numel() == 4 * 40 * bits / 8


def test_sensitivity_is_what_rounding_a_column_alone_costs() -> None:
    weight, x = drawn(3, 5), drawn(30, 5, seed=3)
    hessian, grid = 2 * x.T @ x / 30, Grid.fit(weight, 2)
    for j, found in enumerate(sensitivity(weight, hessian, grid).tolist()):
        other = weight.clone()
        other[:, j] = grid.nearest(weight)[:, j]
        squares = (x @ (other - weight).T).square().sum(1).mean()
        assert found == pytest.approx(2 * float(squares))


def test_weak_columns_are_as_many_as_the_mean_bits_pay_for() -> None:
    shapes = {"square": (128, 128), "up": (384, 128), "down": (128, 384)}
    total = sum(a * b for a, b in shapes.values())
    for weak_bits in (0.1, 0.5, 2.0):
        counts = weak_counts(shapes, 3, weak_bits)
        mean = sum(13 * shapes[name][0] * count for name, count in counts.items()) / total
        assert weak_bits - 13 * 384 / total < mean <= weak_bits
    assert weak_counts(shapes, 3, 0.02) == {
        "square": 0,
        "up": 0,
        "down": 1,
    }  # which lost most by rounding down
    assert weak_counts({"one": (4, 8)}, 3, 13) == {"one": 8}
    with pytest.raises(ValueError, match=r"weak_bits = 0.001 pays for no column .* takes 0.01"):
        weak_counts(shapes, 3, 0.001)
    with pytest.raises(ValueError, match="weak_bits must be above 0 and at most 13, got 14"):
        weak_counts(shapes, 3, 14)


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.6, None), (0.5, "2:4")])
def test_pruning_zeroes_the_cheapest_share_and_the_rest_makes_up_for_it(
    sparsity: float, pattern: str | None
) -> None:
    weight, hessian = drawn(5, 8), hessian_of(8)
    found, mask = sparse_gpt(weight, hessian, sparsity, pattern)
    assert torch.equal(found != 0, mask)
    assert int((~mask).sum()) == round(sparsity * 40)
    if pattern is not None:
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
    assert error(weight, found, hessian) < error(weight, torch.where(mask, weight, 0.0), hessian)


def test_hessians_are_of_the_inputs_after_what_came_before_was_changed() -> None:
    model = tiny_model()
    seen: dict[str, Tensor] = {}
    inputs: dict[str, list[Tensor]] = {}

    def halve(name: str, layer: nn.Linear, hessian: Tensor) -> None:
        seen[name] = hessian
        with torch.no_grad():
            layer.weight.mul_(0.5)

    each_linear(model, TEXTS, halve)
    name = "model.layers.1.self_attn.q_proj"  # nothing within its own block comes before it
    hook = lambda _, x: inputs.setdefault(name, []).append(x[0][0])  # noqa: E731
    linears(model)[name].register_forward_pre_hook(hook)
    for text in TEXTS:
        model(input_ids=torch.tensor([text]), use_cache=False)
    x = torch.cat(inputs[name]).double()
    assert [*seen] == [*linears(model)]
    assert torch.allclose(seen[name], 2 * x.T @ x / len(x), rtol=1e-4, atol=1e-6)


# Weak columns as an adapter.


def owq_model(folder: Path) -> Any:
    if not folder.exists():
        tiny_model().save_pretrained(folder)
        word_tokenizer().save_pretrained(folder)
    return add_owq(load_policy(folder)[0], TEXTS, 3, 1.0, str(folder))


def test_only_weak_columns_are_trained_and_all_else_is_on_the_grid(tmp_path: Path) -> None:
    model, plain = owq_model(tmp_path / "base"), tiny_model()
    before = {name: layer.weight.detach().clone() for name, layer in linears_of(model).items()}
    other = {name: p.clone() for name, p in plain.named_parameters() if "_proj" not in name}
    assert 3.9 < mean_bits(model) <= 4
    train(run_of(model, learning_rate=0.1, weight_decay=0.1, kl=KLSchedule(start=0.1, end=0.1)))
    for name, layer in linears_of(model).items():
        own = layer.parametrizations["weight"][0]
        moved = (layer.weight.detach() != before[name]).any(0).nonzero().squeeze(1)
        assert set(moved.tolist()) <= set(own.columns.tolist())
        rest = [j for j in range(layer.in_features) if j not in own.columns.tolist()]
        assert all(len(row.unique()) <= 8 for row in layer.weight.detach()[:, rest])
    assert any((layer.weight.detach() != before[name]).any() for name, layer in linears_of(model).items())
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in other.items())


def linears_of(model: Any) -> dict[str, Any]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "_proj" in name}


def test_what_is_trained_is_bit_for_bit_what_is_saved_and_served(tmp_path: Path) -> None:
    model = owq_model(tmp_path / "base")
    train(run_of(model, learning_rate=0.1))
    expected, weights = logits_of(model), {n: m.weight.detach().clone() for n, m in linears_of(model).items()}
    reference = copy.deepcopy(model)
    assert torch.equal(logits_of(reference), expected)
    save_policy(model, word_tokenizer(), tmp_path / "tuned")
    assert not has_owq(model)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")  # transformers and nothing else
    loaded, _ = load_policy(tmp_path / "tuned" / "owq")
    for found in (model, plain, loaded):
        assert all(torch.equal(m.weight, weights[n]) for n, m in linears_of(found).items())
        assert torch.equal(logits_of(found), expected)
    again = with_owq(load_policy(tmp_path / "base")[0], tmp_path / "tuned" / "owq")
    assert torch.equal(logits_of(again), expected)
    assert trained_state(again).keys() == trained_state(reference).keys()
    told = json.loads((tmp_path / "tuned" / "owq" / OWQ_CONFIG).read_text())
    assert told["base"] == str(tmp_path / "base")
    with pytest.raises(ValueError, match="are of another model"):
        with_owq(tiny_model(num_hidden_layers=1), tmp_path / "tuned" / "owq")


def sparse_model(folder: Path, pattern: str | None = "2:4") -> Any:
    model = tiny_model()
    hold(model, prune(model, TEXTS, 0.5, pattern))
    return model


@pytest.mark.parametrize("make", [owq_model, sparse_model])
def test_a_run_that_goes_on_ends_the_same(make: Any, tmp_path: Path) -> None:
    """As for low-rank adapters in tests/test_loading.py."""
    whole, first, second = (make(tmp_path / "base") for _ in range(3))
    kept = {"output": tmp_path / "run", "checkpoint_every": 1}
    settings = {"steps": 4, "learning_rate": 0.01, "weight_decay": 0.1}
    train(run_of(whole, **settings))
    stops = iter([False, True])
    with pytest.raises(Stopped):
        train(replace(run_of(first, **settings), should_stop=lambda: next(stops), **kept))
    state, _ = load_newest(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert state["model"].keys() == trained_state(whole).keys()
    with pytest.raises(ValueError, match="checkpoint is of another model"):
        load_trained(tiny_model(num_hidden_layers=1), state["model"])
    expected = logits_of(whole)
    train(replace(run_of(second, **settings), **kept))
    tuned, _ = load_policy(tmp_path / "run" / "model")
    assert torch.equal(logits_of(tuned), expected)
    assert not torch.equal(logits_of(first), expected)


# Zeros that stay.


@pytest.mark.parametrize("name", [n for n, kind in vars(torch.optim).items() if isinstance(kind, type)])
def test_optimizers_keep_a_zero_without_gradient_unless_they_are_named(name: str) -> None:
    kind: Any = getattr(torch.optim, name)
    if name == "Optimizer" or name in ("LBFGS", "SparseAdam"):
        return
    layer = nn.Linear(6, 4, bias=False)
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) > 0.5
    with torch.no_grad():
        layer.weight.copy_(drawn(4, 6)).mul_(mask)
    layer.weight.register_hook(lambda gradient: gradient * mask)
    options = {"weight_decay": 0.1} if "weight_decay" in kind.__init__.__code__.co_varnames else {}
    optimizer = kind(layer.parameters(), lr=0.05, **options)
    for step in range(4):
        optimizer.zero_grad()
        (layer(drawn(5, 6, seed=step).float()) - 1).square().sum().backward()
        optimizer.step()
    kept = bool((layer.weight[~mask] == 0).all())
    assert kept or name in MOVING
    assert (layer.weight[mask] != 0).all()
    if name == "Muon":
        assert not kept


def test_zeros_stay_through_training_and_a_second_pruning_changes_nothing(tmp_path: Path) -> None:
    model = sparse_model(tmp_path)
    zeros = {name: layer.weight == 0 for name, layer in linears(model).items()}
    before = logits_of(model)
    train(run_of(model, learning_rate=0.1, weight_decay=0.1, steps=4))
    assert not torch.equal(before, logits_of(model))
    assert all(torch.equal(layer.weight == 0, zeros[name]) for name, layer in linears(model).items())
    assert sparsity_of(model) == 0.5
    expected = logits_of(model)
    save_policy(model, word_tokenizer(), tmp_path / "tuned")
    loaded, _ = load_policy(tmp_path / "tuned")
    masks = prune(loaded, TEXTS, 0.5, "2:4")
    assert torch.equal(logits_of(loaded), expected)
    assert all(torch.equal(mask, ~zeros[name]) for name, mask in masks.items())


# Losses.


def test_squarehead_by_hand() -> None:
    student, teacher = [torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])], [torch.tensor([[[1.0, 1.0], [0.0, 7.0]]])]
    within = torch.tensor([[True, False]])
    assert float(squarehead(student, teacher, within)) == 2.0  # mean of 0 and 4, over mean of 1 and 1
    with pytest.raises(ValueError, match="the student has 1 layers, the teacher 2"):
        squarehead(student, teacher * 2, within)


@pytest.mark.parametrize("kind", ["kl", "squarehead"])
def test_a_teacher_adds_nothing_to_the_loss_of_itself_and_something_to_another_s(kind: str) -> None:
    teacher, student = tiny_model(), tiny_model(seed=1)
    ids = torch.tensor([[3, 4, 5, 6, 1], [3, 7, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, 5, 6, 1], [-100, 7, 1, -100, -100]])
    for model, least in ((teacher, 0.0), (student, 0.1)):
        plain, found = (recovery_loss(model, teacher, ids, labels, k).item() for k in ("cross-entropy", kind))
        assert found - plain == pytest.approx(0, abs=1e-5) if least == 0 else found - plain > least
    longer = torch.nn.functional.pad(ids, (0, 2)), torch.nn.functional.pad(labels, (0, 2), value=-100)
    assert torch.allclose(
        recovery_loss(student, teacher, ids, labels, kind), recovery_loss(student, teacher, *longer, kind)
    )


# What makes no sense.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"adapter": "owq"}, "adapter = 'owq' needs bits"),
        ({"bits": 3}, "bits = 3 needs adapter = 'owq'"),
        ({"adapter": "owq", "bits": 9}, "bits must be a whole number from 2 to 8, got 9"),
        ({"adapter": "owq", "bits": 3, "weak_bits": 0}, "weak_bits must be above 0"),
        ({"adapter": "owq", "bits": 3, "lora_rank": 2}, "lora_rank and adapter = 'owq' exclude each other"),
        ({"sparsity": 0.5, "lora_rank": 2}, "lora_rank and sparsity exclude each other"),
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1, got 1.0"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "pattern must be 2:4, with sparsity = 0.5"),
        ({"calibration_prompts": 0}, "calibration_prompts must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        ModelConfig(**options)


def test_models_and_texts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'gpt2' have weights in .*c_attn.weight, a Conv1D"):
        prune(tiny_model("gpt2"), TEXTS, 0.5)
    with pytest.raises(ValueError, match=r"text has 9 tokens, fewer than the 32 inputs of layer .*down_proj"):
        prune(tiny_model(), TEXTS[:1], 0.5)
    with pytest.raises(ValueError, match=r"pattern 2:4: layer .*down_proj' has 30 inputs"):
        prune(tiny_model(intermediate_size=30), TEXTS, 0.5, "2:4")
    with pytest.raises(ValueError, match="bits must be a whole number from 2 to 8, got 1"):
        Grid.fit(drawn(2, 2), 1)
    with pytest.raises(ValueError, match="pattern must be one of 2:4, got '4:8'"):
        check(0.5, "4:8")
    with pytest.raises(ValueError, match="the loss must be one of"):
        recovery_loss(None, None, IDS, IDS, "mse")


# The command.


def called(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.mark.parametrize("more", [["--adapter", "owq", "--bits", 3, "--weak-bits", 1], ["--sparsity", 0.6]])
def test_the_command_trains_what_is_asked_for(more: list[object], tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "base")
    word_tokenizer().save_pretrained(tmp_path / "base")
    few = ["--steps", 1, "--prompts-per-step", 8, "--group-size", 2, "--sampling.max-new-tokens", 4]
    asked = [
        "train",
        "--model",
        tmp_path / "base",
        "--task",
        "countdown",
        "--calibration-prompts",
        8,
        *few,
        *more,
    ]
    assert called(*asked, "--output", tmp_path / "run") == 0
    model, _ = load_policy(tmp_path / "run" / "model")
    if "owq" in more:
        assert (tmp_path / "run" / "model" / "owq" / OWQ_CONFIG).is_file()
    else:
        assert sparsity_of(model) == pytest.approx(0.6, abs=0.01)


def test_the_command_refuses_what_would_not_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", "--task", "countdown", "--model", "countdown-base", "--output", tmp_path]
    assert called(*base, "--sparsity", 0.5, "--optimizer", "Muon") == 2
    assert "--sparsity with --optimizer Muon, which moves weights" in capsys.readouterr().err
    assert called(*base, "--adapter", "owq", "--bits", 3, "--shard") == 2
    assert "--adapter owq holds whole weights, which --shard divides" in capsys.readouterr().err
