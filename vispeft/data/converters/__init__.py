"""Converters to COCO from YOLO polygons, LabelMe files, and folders of instance masks."""

from vispeft.data.converters.labelme import convert_labelme
from vispeft.data.converters.masks import convert_masks
from vispeft.data.converters.yolo import convert_yolo

__all__ = ["convert_labelme", "convert_masks", "convert_yolo"]
