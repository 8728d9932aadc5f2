"""Figures of a measurement, from losses typed out."""

import pytest

from controlnet_ext.training.evaluation import NoiseLosses, compute_gains


def test_gain_is_what_control_takes_off_the_loss_and_relative_gain_counts_each_quartile_alike():
    unguided = NoiseLosses(0.4, (0.8, 0.4, 0.2, 0.2))
    guided = NoiseLosses(0.325, (0.8, 0.3, 0.1, 0.1))
    gains = compute_gains(guided, unguided)
    assert gains == pytest.approx(
        {"gain": 0.075, "gain_q1": 0, "gain_q2": 0.1, "gain_q3": 0.1, "gain_q4": 0.1, "relative_gain": 1.25 / 4}
    )
