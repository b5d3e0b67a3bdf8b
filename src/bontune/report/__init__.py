"""`report.html` from a run folder, and the figures on it."""

from bontune.report.coscale import write_coscale
from bontune.report.page import write_report
from bontune.report.plots import (
    Series,
    calibration_plot,
    colours,
    curve_plot,
    difference_plot,
    frontier_plot,
    heat_plot,
    level_plot,
    metric_plot,
    time_plot,
)
from bontune.report.run import OUTCOME

__all__ = [
    "OUTCOME",
    "Series",
    "calibration_plot",
    "colours",
    "curve_plot",
    "difference_plot",
    "frontier_plot",
    "heat_plot",
    "level_plot",
    "metric_plot",
    "time_plot",
    "write_coscale",
    "write_report",
]
