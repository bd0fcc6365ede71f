# SPDX-License-Identifier: Apache-2.0
"""SASolverScheduler."""

from __future__ import annotations

from fastdiff import planners
from fastdiff.integrations.diffusers import _schedules
from fastdiff.integrations.diffusers._options import Options, reproduces
from fastdiff.planners import Plan

_ORDERS = (1, 2, 3, 4)


@reproduces("SASolverScheduler")
def sa_solver(o: Options) -> Plan:
    """Both forms, any tau_func."""
    o.require("variance_type", None)
    data = o.require("algorithm_type", "data_prediction", "noise_prediction") == "data_prediction"
    prediction = _schedules.prediction(o)
    if not data and prediction == "flow_prediction":
        o.refuse("prediction_type", "algorithm_type='noise_prediction' cannot convert it")
    threshold = _schedules.threshold(o)
    if not data and threshold is not None:
        o.refuse("thresholding", "algorithm_type='noise_prediction' fails on it")
    tau = o["tau_func"]
    schedule = _schedules.multistep(o, spaced_end="last", flow_end="last", rounds=True)
    return planners.sa_solver(
        schedule,
        schedule.steps,
        prediction=prediction,
        predictor_order=o.require("predictor_order", *_ORDERS),
        corrector_order=o.require("corrector_order", *_ORDERS),
        tau=(200.0, 800.0) if tau is None else tau,
        predict_x0=data,
        lower_order_final=o["lower_order_final"],
        threshold=threshold,
    )
