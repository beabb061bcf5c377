"""Segmentation models of other libraries behind the contract of `vispeft.models.base`."""
