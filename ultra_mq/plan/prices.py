# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every layer costs in every format, under the cost model of a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ultra_mq.plan.cost import BITS_MODELS, CostModel, average_bits, cost_in_format, weight_sizes
from ultra_mq.plan.latency import LatencyModel
from ultra_mq.prepare import PreparedModel


@dataclass(frozen=True)
class Prices:
    """Costs of the layers of one model.

    Attributes:
        cost_model: What a budget counts.
        sizes: Layer to number of weights or MACs; of weights where the cost is a latency.
        latency: Prediction of the latency, where it was learnt.
    """

    cost_model: CostModel
    sizes: Mapping[str, float]
    latency: LatencyModel | None = None

    def of(self, layer: str, format_name: str) -> float | None:
        """Size times bits, or milliseconds; None for a latency that was not learnt."""
        if self.cost_model in BITS_MODELS:
            return cost_in_format(self.sizes[layer], format_name)
        return self.latency.layers_ms[layer][format_name] if self.latency else None

    def bits(self, choice: Mapping[str, str]) -> float:
        """Bits of a choice, averaged over ``sizes``."""
        return average_bits(choice, self.sizes)

    def predict_ms(self, choice: Mapping[str, str]) -> float | None:
        """Predicted latency of a choice; None where it was not learnt."""
        return self.latency.predict(choice) if self.latency else None


def weight_prices(model: PreparedModel) -> Prices:
    """Costs that count weights, as ModelOpt's effective bits do."""
    return Prices("weights", weight_sizes(model))
