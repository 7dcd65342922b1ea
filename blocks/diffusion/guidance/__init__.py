"""Guidances: functions of the model's predictions that steer them, and compose.

guidance.py         Guidance, what they have in common; Compose puts one around another
classifier_free.py  ClassifierFree: away from the model without the condition
classifier.py       Classifier: along the gradient of a classifier
interval.py         Interval: a guidance between two times only
autoguidance.py     AutoGuidance: away from a worse model
similarity.py       Similarity: towards what resembles a target
"""

from ropewalk.blocks.diffusion.guidance.autoguidance import AutoGuidance
from ropewalk.blocks.diffusion.guidance.classifier import Classifier
from ropewalk.blocks.diffusion.guidance.classifier_free import ClassifierFree
from ropewalk.blocks.diffusion.guidance.guidance import Compose, Guidance, Guided, Predict
from ropewalk.blocks.diffusion.guidance.interval import Interval
from ropewalk.blocks.diffusion.guidance.similarity import Similarity

__all__ = [
    "AutoGuidance",
    "Classifier",
    "ClassifierFree",
    "Compose",
    "Guidance",
    "Guided",
    "Interval",
    "Predict",
    "Similarity",
]
