"""Small real images, written in the layouts of CIFAR's Python archives and of ImageNet."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np

PER_BATCH = 20


def first_pictures(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first 120 images of CIFAR-10, uint8 (120, 32, 32, 3), and their labels; 12 of each class."""
    sys.path.insert(0, str(data_dir))
    try:
        import cifar10 as packed
    finally:
        sys.path.remove(str(data_dir))
    with np.load(data_dir / "cifar10.npz", allow_pickle=False) as file:
        offsets = file["train_offsets"][:121]
        return packed.decode(file["train_bytes"][: offsets[-1]], offsets), file["train_labels"][:120].astype(int)


def write_cifar(root: Path, pictures: tuple[np.ndarray, np.ndarray], classes: int = 10) -> Path:
    """Write the images as the Python archive has them: five training batches and a test batch, or two files."""
    images, labels = pictures
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    if classes == 10:
        folder, key, meta = root / "cifar-10-batches-py", "labels", ("batches.meta", "label_names")
        names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
        parts = {name: slice(PER_BATCH * i, PER_BATCH * (i + 1)) for i, name in enumerate(names)}
    else:
        folder, key, meta = root / "cifar-100-python", "fine_labels", ("meta", "fine_label_names")
        parts = {"train": slice(0, 100), "test": slice(100, 120)}
    folder.mkdir(parents=True)
    for name, part in parts.items():
        content = {"data": rows[part], key: labels[part].tolist(), "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / meta[0]).write_bytes(pickle.dumps({meta[1]: [f"class {i}" for i in range(classes)]}, protocol=2))
    return folder


def write_folders(root: Path, pictures: tuple[np.ndarray, np.ndarray]) -> None:
    """Write the images as ImageNet lies: train and val, a folder for each class, JPEG files of several sizes."""
    from PIL import Image

    for i, (image, label) in enumerate(zip(*pictures, strict=True)):
        part = root / ("val" if i >= 100 else "train") / f"n{label:04d}"
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((40 + i % 7, 36)).save(part / f"{i}.jpg")
