"""Pure functions of training losses that the criteria share: matching, points, masks, boxes."""

from vispeft.losses.matcher import CostWeights, HungarianMatcher, Match

__all__ = ["CostWeights", "HungarianMatcher", "Match"]
