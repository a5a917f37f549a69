"""Quantization backends: each writes a folder and opens it again."""

from lightning_kd.quantization.base import Forward, Quantizer
from lightning_kd.quantization.dynamic import DynamicInt8
from lightning_kd.quantization.onnxruntime import ONNXRuntimeInt4, ONNXRuntimeInt8
from lightning_kd.quantization.openvino import OpenVINOInt8
from lightning_kd.quantization.torchao import TorchAO

__all__ = ["DynamicInt8", "Forward", "ONNXRuntimeInt4", "ONNXRuntimeInt8", "OpenVINOInt8", "Quantizer", "TorchAO"]
