"""Models as graphs: traced from a segmentation model, written as ONNX or by `torch.export`, and run again."""
