"""The data sets as a TensorFlow Datasets builder; importing this registers it: `tfds.builder("lasers")`."""

from data_pipeline.tfds.lasers import Lasers

__all__ = ["Lasers"]
