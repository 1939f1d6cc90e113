"""Fashion-MNIST: 70,000 pictures of clothes in the form of MNIST.

Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", 2017, https://arxiv.org/abs/1708.07747.
"""

from __future__ import annotations

from fl_client.datasets.public.images import idx_files
from fl_client.datasets.public.published import Package, Published

DATASET = Published(
    name="fashion_mnist",
    summary="pictures of clothes, 28 x 28 pixels, ten classes",
    examples=70_000,
    licence="MIT, Zalando SE",
    # of the files unpacked, which may lie there packed as well
    files=idx_files(
        {
            "train-images-idx3-ubyte": (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
            ),
            "train-labels-idx1-ubyte": (
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
            ),
            "t10k-images-idx3-ubyte": (
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
            ),
            "t10k-labels-idx1-ubyte": (
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
            ),
        }
    ),
    package=Package(
        registry="debian",
        name="dataset-fashion-mnist",
        version="",
        command="apt install dataset-fashion-mnist",
        file="",
        folders=("/usr/share/datasets/fashion-mnist",),
    ),
)
