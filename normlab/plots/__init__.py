"""Figures of records and of training runs."""

from normlab.plots.delta import delta_figure
from normlab.plots.models import models_figure
from normlab.plots.ranges import ranges_figure
from normlab.plots.records import record_figures
from normlab.plots.runs import (
    depth_figure,
    gradient_figure,
    loss_figure,
    run_figures,
    training_figure,
)
from normlab.plots.scales import scales_figure
from normlab.plots.series import Series, series
from normlab.plots.sites import sites_figure, sites_training_figure
from normlab.plots.style import captioned, figure, look, save
from normlab.plots.sums import sums_figure
from normlab.plots.vectors import vectors_figure, vectors_training_figure

__all__ = [
    "Series",
    "captioned",
    "delta_figure",
    "depth_figure",
    "figure",
    "gradient_figure",
    "look",
    "loss_figure",
    "models_figure",
    "ranges_figure",
    "record_figures",
    "run_figures",
    "save",
    "scales_figure",
    "series",
    "sites_figure",
    "sites_training_figure",
    "sums_figure",
    "training_figure",
    "vectors_figure",
    "vectors_training_figure",
]
