"""Other instance formats as COCO: YOLO polygons, LabelMe files, and folders of instance masks."""

from vispeft.data.convert.labelme import convert_labelme
from vispeft.data.convert.masks import convert_masks
from vispeft.data.convert.yolo import convert_yolo

__all__ = ["convert_labelme", "convert_masks", "convert_yolo"]
