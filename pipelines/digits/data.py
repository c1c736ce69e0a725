"""Source and features: the handwritten digits that scikit-learn brings along, an image of 64 bytes each.

1,797 images of 8 x 8 pixels, of 17 levels from white (0) to ink (16), by thirteen people. The file does not
say who wrote which, so that the same hands are in every split: the accuracy is that for known hands.
"""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from sklearn.datasets import load_digits

from sparktrain.features import Image, Target
from sparktrain.preparation import Rule

KEY = ["number"]

TARGET = Target("digit", kind="multiclass")

RULES = [Rule("whole_image", "length(image) = 64"), Rule.between("digit", 0, 9)]

FEATURES = [Image("image", shape=(8, 8, 1))]  # [height, width, channels] of uint8


def read(spark: SparkSession, workspace: Path) -> DataFrame:
    """Raw rows: the image's number in the file, its pixels row by row as binary, and the digit."""
    digits = load_digits()
    images = [image.tobytes() for image in digits.images.astype("uint8")]  # of [8, 8]
    rows = list(zip(range(len(images)), images, digits.target.tolist(), strict=True))
    return spark.createDataFrame(rows, "number int, image binary, digit int")
