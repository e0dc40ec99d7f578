"""The contract's small net, data and loop, under a short name for the tests of each method."""

from __future__ import annotations

from methods.contract.net import LR, Run, generator, regression_data, small_net, start

__all__ = ["LR", "Run", "generator", "regression_data", "small_net", "start"]
