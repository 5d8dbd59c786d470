"""ImageNet downsampled to 64 x 64 pixels: pickled batches with "data", "labels" from 1 to 1000, and "mean".

The published labels count from 1; here they count from 0, in the published order. The validation images are the test
part, because the test images have no public labels. No checksums of the single files are published.
"""

from __future__ import annotations

from types import MappingProxyType

from surebound.data.files import Layout, PartName, Root, located, read
from surebound.data.pickles import pickled_images
from surebound.data.raw import Raw, joined

CLASSES = 1000
SIDE = 64

FILES = Layout(
    ("imagenet64", "."),
    MappingProxyType({"train": tuple(f"train_data_batch_{number}" for number in range(1, 11)), "test": ("val_data",)}),
    "https://image-net.org/download-images.php, Imagenet64_train_part1.zip, _part2.zip and Imagenet64_val.zip",
    batches=True,
)


def read_imagenet64(root: Root, part: PartName) -> Raw:
    """ImageNet-64, images [N, 3, 64, 64], in the order of the batches. The training part holds 16 GB of bytes."""
    _, paths = located(root, part, FILES)
    return joined([pickled_images(path, read(root, path), "labels", SIDE, 1, CLASSES) for path in paths], CLASSES)
