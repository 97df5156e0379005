"""The default comparison as one would write it in PyTorch: `python benchmarks/plain_torch.py`.

Both arms, some seeds each: a training loop over a DataLoader, TensorBoard scalars and histograms
and a validation every 20 steps, evaluation on validation and test images, 100 of them one by one.
PyTorch is not among this package's requirements: `pip install torch`.
"""

import argparse
import tempfile

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from bn_keras import data

BATCH, EVERY = 64, 20


def build(normalized, seed):
    """The MNIST CNN of `bn_keras.models.mnist_cnn`."""
    torch.manual_seed(seed)

    def norm(kind, channels):
        return [kind(channels, eps=1e-3, momentum=0.1)] if normalized else []

    net = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding="same"), *norm(nn.BatchNorm2d, 64), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(3136, 1024), *norm(nn.BatchNorm1d, 1024), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(1024, 10), *norm(nn.BatchNorm1d, 10),
    )
    for layer in net:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
            nn.init.constant_(layer.bias, 0.1)
    return net


def accuracy(net, images, labels, batch_size=200):
    """Share of right answers in evaluation mode."""
    net.eval()
    with torch.no_grad():
        right = sum(
            int((net(part).argmax(1) == answers).sum())
            for part, answers in zip(images.split(batch_size), labels.split(batch_size))
        )
    net.train()
    return right / len(labels)


def train(splits, normalized, seed, steps, logdir):
    """One run; returns its validation accuracy."""
    net = build(normalized, seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=3.0)
    loss_of = nn.BCEWithLogitsLoss()
    writer = SummaryWriter(logdir)
    batches = iter(DataLoader(TensorDataset(*splits["train"]), BATCH, shuffle=True))
    for step in range(1, steps + 1):
        images, labels = next(batches)
        loss = loss_of(net(images), nn.functional.one_hot(labels, 10).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            images, labels = (part[:500] for part in splits["validation"])
            writer.add_scalar("loss/train", loss.item(), step)
            writer.add_scalar("accuracy/validation", accuracy(net, images, labels), step)
            for name, weight in net.named_parameters():
                writer.add_histogram(name, weight, step)
    writer.close()
    found = accuracy(net, *splits["validation"])
    accuracy(net, *splits["test"])
    accuracy(net, *(part[:100] for part in splits["test"]), batch_size=1)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    stored = data.load("mnist")
    splits = {
        name: (
            torch.from_numpy(split.images.copy()).permute(0, 3, 1, 2).float() / 255,
            torch.from_numpy(split.labels.copy()).long(),
        )
        for name, split in (
            ("train", stored.train), ("validation", stored.validation), ("test", stored.test)
        )
    }
    with tempfile.TemporaryDirectory() as logdir:
        for normalized in (False, True):
            for seed in range(options.seeds):
                found = train(
                    splits, normalized, seed, options.steps, f"{logdir}/{normalized}/{seed}"
                )
                print(f"batch normalization {normalized}, seed {seed}: {found:.3f}", flush=True)


if __name__ == "__main__":
    main()
