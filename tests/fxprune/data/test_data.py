"""The data helpers on small real images, written in the layouts of CIFAR and of ImageNet."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import first_pictures, write_cifar, write_folders
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.data import DataError, cifar10, cifar100, imagenet
from fxprune.data.loaders import Shard, split
from fxprune.data.loops import Measures, Sums, classification_loss, train_one_epoch, validate, validation
from fxprune.training.context import DLContext


@pytest.fixture(scope="module")
def pictures(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    return first_pictures(data_dir)


def test_cifar10_gives_three_disjoint_parts(tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    write_cifar(tmp_path, pictures)
    train, selection, test = cifar10.get_dataloader(tmp_path, 32, 16, 0, selection=0.2, check_integrity=False)
    assert [len(part.dataset) for part in (train, selection, test)] == [80, 20, 20]
    fitted, held = set(train.dataset.indices), set(selection.dataset.indices)
    assert not fitted & held and fitted | held == set(range(100))
    labels = torch.cat([labels for _, labels in selection])
    assert labels.bincount().tolist() == [2] * 10
    images, _ = next(iter(train))
    assert images.shape == (16, 3, 32, 32) and images.dtype == torch.float32
    assert len(train) == 5 and len(selection) == 2  # whole batches for training, all images for selection
    again = cifar10.get_dataloader(tmp_path, 32, 16, 0, selection=0.2, check_integrity=False)
    assert list(again.selection.dataset.indices) == list(selection.dataset.indices)


def test_selection_and_test_images_are_as_they_were_written(tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    write_cifar(tmp_path, pictures)
    loaders = cifar10.get_dataloader(tmp_path, 32, 16, 0, selection=0.2, check_integrity=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (cifar10.MEAN, cifar10.STD))
    image, label = loaders.selection.dataset[3]
    index = int(loaders.selection.dataset.indices[3])
    written = torch.from_numpy(pictures[0][index]).permute(2, 0, 1)
    assert torch.equal(((image * std + mean) * 255).round().to(torch.uint8), written)
    assert label == pictures[1][index]
    assert (loaders.train.dataset[0][0] != loaders.train.dataset[0][0]).any()  # cropped and flipped anew each time


def test_images_are_resized_and_two_processes_may_read_them(tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    write_cifar(tmp_path, pictures)
    loaders = cifar10.get_dataloader(tmp_path, 48, 10, 2, check_integrity=False)
    for loader in loaders:
        assert next(iter(loader))[0].shape == (10, 3, 48, 48)


def test_cifar100_reads_fine_labels(tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    write_cifar(tmp_path, pictures, classes=100)
    loaders = cifar100.get_dataloader(tmp_path, 32, 10, 0, selection=0.2, check_integrity=False)
    assert [len(part.dataset) for part in loaders] == [80, 20, 20]
    assert {label for _, labels in loaders.test for label in labels.tolist()} <= set(range(10))


def test_official_files_are_known_by_their_checksums(tmp_path: Path, pictures, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder = write_cifar(tmp_path, pictures)
    with pytest.raises(DataError, match=r"not the official ones.*check_integrity=False"):
        cifar10.get_dataloader(tmp_path, workers=0)

    from torchvision.datasets import CIFAR10

    def signed(name: str) -> list[str]:
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    monkeypatch.setattr(CIFAR10, "train_list", [signed(f"data_batch_{n}") for n in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [signed("test_batch")])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": signed("batches.meta")[1]})
    assert len(cifar10.get_dataloader(tmp_path, workers=0).train.dataset) == 90


def test_a_missing_data_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as caught:
        cifar10.get_dataloader(tmp_path / "nowhere")
    said = str(caught.value)
    assert str(tmp_path / "nowhere" / "cifar-10-batches-py") in said and "does not exist" in said
    assert "download=True" in said and "cifar-10-python.tar.gz" in said
    (write_cifar(tmp_path, pictures) / "test_batch").unlink()
    with pytest.raises(DataError, match="test_batch not found"):
        cifar10.get_dataloader(tmp_path, check_integrity=False)
    with pytest.raises(DataError, match="cifar-100-python.tar.gz"):
        cifar100.get_dataloader(tmp_path)
    with pytest.raises(DataError, match=r"train.*does not exist.*<class>/\*.jpg.*image-net.org"):
        imagenet.get_dataloader(tmp_path)


def test_a_batch_that_would_run_code_is_refused(tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    folder = write_cifar(tmp_path, pictures)
    (folder / "data_batch_2").write_bytes(pickle.dumps({"data": print}))
    with pytest.raises(DataError, match=r"data_batch_2.*names builtins.print"):
        cifar10.get_dataloader(tmp_path, check_integrity=False)
    (folder / "data_batch_2").write_bytes(b"\x80\x02")
    with pytest.raises(DataError, match="no batch of CIFAR images"):
        cifar10.get_dataloader(tmp_path, check_integrity=False)


def test_imagenet_layout(tmp_path: Path, pictures) -> None:  # type: ignore[no-untyped-def]
    write_folders(tmp_path, pictures)
    train, selection, test = imagenet.get_dataloader(tmp_path, 28, 8, 0, selection=0.3)
    assert [len(part.dataset) for part in (train, selection, test)] == [70, 30, 20]
    for loader in (train, selection, test):
        assert next(iter(loader))[0].shape == (8, 3, 28, 28)
    odd = tmp_path / "val" / "n9999"
    odd.mkdir()
    next((tmp_path / "val" / "n0001").iterdir()).rename(odd / "1.jpg")
    with pytest.raises(DataError, match="different classes.*n9999"):
        imagenet.get_dataloader(tmp_path)


def test_the_split_is_stratified_and_by_seed() -> None:
    labels = [0] * 30 + [1] * 10
    fitted, held = split(labels, 0.2, seed=1)
    assert np.bincount(np.array(labels)[held]).tolist() == [6, 2] and len(fitted) == 32
    assert not np.array_equal(held, split(labels, 0.2, seed=2)[1])
    for share in (0, 1, 1.5, 0.001):
        with pytest.raises(DataError, match="selection"):
            split(labels, share)


def test_shards_see_every_image_once() -> None:
    seen = [i for rank in range(3) for i in Shard(10, rank, 3)]
    assert sorted(seen) == list(range(10))


def small(classes: int = 7) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, classes))


def batches(count: int = 3, size: int = 5, classes: int = 7) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(size, 3, 4, 4), torch.randint(classes, (size,))) for _ in range(count)]


def context_of(model: nn.Module, **given) -> DLContext:  # type: ignore[no-untyped-def]
    return DLContext(
        **{
            "train_loader": batches(), "val_loader": batches(2), "criterion": nn.CrossEntropyLoss(),
            "optimizer": torch.optim.SGD(model.parameters(), 0.1), **given,
        }
    )  # fmt: skip


def test_one_epoch_is_the_textbook_loop() -> None:
    model, twin = small(), small()
    twin.load_state_dict(model.state_dict())
    context = context_of(model)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    losses = []
    for images, labels in context.train_loader:  # type: ignore[union-attr]
        optimizer.zero_grad()
        loss = F.cross_entropy(twin(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    measures = train_one_epoch(model, context)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert measures.loss == pytest.approx(np.mean(losses)) and measures.images == 15 and context.iteration == 3


def test_it_stops_after_max_iteration_and_draws_no_batch_more() -> None:
    model = small()
    drawn = []

    class Counting(list):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for batch in super().__iter__():
                drawn.append(1)
                yield batch

    context = context_of(model, train_loader=Counting(batches()), max_iteration=2)
    train_one_epoch(model, context)
    assert context.iteration == 2 and len(drawn) == 2
    train_one_epoch(model, context)
    assert context.iteration == 2 and len(drawn) == 2


def test_schedulers_step_when_they_should() -> None:
    model = small()
    context = context_of(model, warmup_iteration=2)
    optimizer = context.optimizer
    assert optimizer is not None
    steps: list[str] = []

    class Counting:
        def __init__(self, name: str):
            self.name = name

        def step(self) -> None:
            steps.append(f"{self.name}{context.iteration}")

    context.warmup_scheduler, context.iter_scheduler, context.scheduler = (Counting(n) for n in ("w", "i", "e"))
    train_one_epoch(model, context)
    assert steps == ["w0", "w1", "i2", "i3", "e3"]


def test_accuracies_are_counted_over_batches_of_different_sizes() -> None:
    model = nn.Flatten()
    logits = torch.randn(11, 7)
    labels = torch.randint(7, (11,))
    context = DLContext(val_loader=[(logits[:8], labels[:8]), (logits[8:], labels[8:])])
    found = validation(model, context)
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.top1 == pytest.approx(100 * (ranks < 1).float().mean().item())
    assert found.top5 == pytest.approx(100 * (ranks < 5).float().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert validate(model, context) == found.top1 and not model.training


def test_binary_cross_entropy_gets_one_hot_labels() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    expected = nn.BCEWithLogitsLoss()(logits, torch.eye(3)[labels])
    assert torch.equal(classification_loss(logits, labels, nn.BCEWithLogitsLoss()), expected)


def test_auxiliary_classifiers_have_a_share_in_the_loss() -> None:
    first, second, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 2, 1, 2])
    found = classification_loss((first, None, second), labels, F.cross_entropy)
    assert torch.equal(found, F.cross_entropy(first, labels) + 0.3 * F.cross_entropy(second, labels))


def test_mixed_precision_and_channels_last() -> None:
    model, types, layouts = small(), [], []
    model[0].register_forward_hook(lambda _, args, out: types.append(out.dtype))
    model[0].register_forward_pre_hook(
        lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    context = context_of(model, amp=True, channels_last=True)
    measures = train_one_epoch(model, context)
    assert isinstance(measures, Measures) and np.isfinite(measures.loss)
    validate(model, context)
    assert set(types) == {torch.bfloat16} and all(layouts)
    assert model[0].weight.dtype == torch.float32
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_what_is_missing_is_named() -> None:
    model = small()
    for name in ("criterion", "optimizer", "train_loader"):
        with pytest.raises(DataError, match=f"context.{name} is not set"):
            train_one_epoch(model, context_of(model, **{name: None}))
    with pytest.raises(DataError, match="holds no batch"):
        train_one_epoch(model, context_of(model, train_loader=[]))
    with pytest.raises(DataError, match="holds no batch"):
        validate(model, context_of(model, val_loader=[]))


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 7))  # statistics differ by process
    model = nn.parallel.DistributedDataParallel(plain)
    everything = batches(4)
    context = context_of(model, train_loader=everything[rank::2], val_loader=everything[rank::2])
    trained = train_one_epoch(model, context)
    found = validation(model.module, context)
    whole = context_of(model, val_loader=everything)
    sums = Sums(torch.device("cpu"))
    with torch.no_grad():
        for images, labels in whole.val_loader:  # type: ignore[union-attr]
            logits = model.module(images)
            sums.add(logits, labels, F.cross_entropy(logits, labels))
    alone = sums.measures(local=True)
    assert (found.images, found.top1, found.top5) == (alone.images, alone.top1, alone.top5)
    assert found.images == trained.images == 20 and abs(found.loss - alone.loss) < 1e-6
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
