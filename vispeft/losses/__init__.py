"""Training losses over `Predictions` and `Targets`: matching, and the criterion."""

from vispeft.losses.criterion import Criterion
from vispeft.losses.matcher import CostWeights, HungarianMatcher, Match

__all__ = ["CostWeights", "Criterion", "HungarianMatcher", "Match"]
