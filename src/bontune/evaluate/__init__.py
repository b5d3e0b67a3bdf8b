"""Curves over the budget, paired differences, diversity, the samples file, and `results.json`."""

from bontune.evaluate import coscale
from bontune.evaluate.curves import (
    Curve,
    Difference,
    Diversity,
    Estimator,
    all_budgets,
    auc_within,
    bootstrap,
    curve_from,
    difference,
    diversity,
    doubling_budgets,
    level_curves,
    measure,
)
from bontune.evaluate.meta import meta_of, meta_strategy
from bontune.evaluate.responses import Responses, is_judged, read_judged, read_responses
from bontune.evaluate.results import (
    differences,
    example,
    policy_curves,
    policy_results,
    run_results,
    write_json,
)
from bontune.evaluate.samples import (
    Sample,
    SampleGroup,
    SampleSet,
    append_samples,
    pair,
    parse_line,
    read_samples,
)
from bontune.evaluate.verifier import Calibration, Peak, calibration, peak

__all__ = [
    "Calibration",
    "Curve",
    "Difference",
    "Diversity",
    "Estimator",
    "Peak",
    "Responses",
    "Sample",
    "SampleGroup",
    "SampleSet",
    "all_budgets",
    "append_samples",
    "auc_within",
    "bootstrap",
    "calibration",
    "coscale",
    "curve_from",
    "difference",
    "differences",
    "diversity",
    "doubling_budgets",
    "example",
    "is_judged",
    "level_curves",
    "measure",
    "meta_of",
    "meta_strategy",
    "pair",
    "parse_line",
    "peak",
    "policy_curves",
    "policy_results",
    "read_judged",
    "read_responses",
    "read_samples",
    "run_results",
    "write_json",
]
