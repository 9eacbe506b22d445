"""The attacks, by the names of the functions that play them."""

from strangers.attacks import answers, floods, images, streams, tensors, wire
from strangers.field import ATTACKS

__all__ = ["ATTACKS", "answers", "floods", "images", "streams", "tensors", "wire"]
