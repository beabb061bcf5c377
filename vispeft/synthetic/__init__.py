"""Synthetic images for instance segmentation with exact masks: an endless stream, or a COCO set on disk."""

from vispeft.synthetic.coco import write_coco, write_splits
from vispeft.synthetic.contours import SHAPE_NAMES
from vispeft.synthetic.render import DOMAINS, Domain, Scene, find_domain, render_scene

__all__ = ["DOMAINS", "SHAPE_NAMES", "Domain", "Scene", "find_domain", "render_scene", "write_coco", "write_splits"]
