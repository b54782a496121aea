"""Train the pair of GoogLeNets that actstats ships: S normally, R on adversarial examples, all else equal.

    python docs/studies/train_pair.py --data tiny-imagenet-11.tar --out pair

The tar holds 64x64 photographs as `.../train/<category>/<file>` and `.../val/<category>/<file>`. Each epoch
is appended to `OUT/googlenet-{s,r}.jsonl` and ends with a saved state, from which the same command resumes.
The final weights are in `OUT/googlenet-{s,r}.safetensors`; `evaluate_pair.py` measures them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from torchvision.models import googlenet

from actstats.data import open_source
from actstats.data.preprocessing import Preprocessing
from actstats.distort.attack import pgd_l2, random_offset

SIZE = 64
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights except the data. S and R differ only in `epsilon`, which is 0 for S.

    `cycles` has epochs and greatest learning rate of each cycle: up from a 25th of it within `warm_up` of the
    cycle and down to 0, along cosines. `growth` has, from each epoch on, the side of the images and the steps of
    the attack; the radius shrinks with the side, so that the change of a pixel is the same.
    """

    epsilon: float
    cycles: tuple[tuple[int, float], ...] = ((12, 0.04), (18, 0.04), (12, 0.04))
    attack_reach: float = 1.5  # length of all steps together, in units of epsilon
    batch_size: int = 64
    warm_up: float = 0.25
    greatest_gradient: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    average_decay: float = 0.99
    settled: int = (
        6  # the weights that are kept are the mean of the averages after each of so many last epochs
    )
    least_scale: float = 0.7
    colour: float = 0.2
    growth: tuple[tuple[int, int, int], ...] = ((0, 48, 1), (3, 56, 1), (8, SIZE, 1), (30, SIZE, 2))
    seed: int = 0

    def stage(self, epoch: int) -> tuple[int, int]:
        """Return the side of the images and the steps of the attack in an epoch, counted from 0."""
        return [(side, steps) for first, side, steps in self.growth if epoch >= first][-1]

    def learning_rate(self, progress: float) -> float:
        """Return the learning rate after `progress` epochs."""
        for epochs, greatest in self.cycles:
            if progress < epochs:
                done = progress / epochs
                if done < self.warm_up:
                    return greatest * (1 - 0.96 * (1 + math.cos(math.pi * done / self.warm_up)) / 2)
                return greatest * (1 + math.cos(math.pi * (done - self.warm_up) / (1 - self.warm_up))) / 2
            progress -= epochs
        return 0.0


@dataclass(frozen=True)
class Images:
    """uint8 [n, 3, 64, 64] in channels_last memory, and int64 [n] labels of the sorted `classes`."""

    pixels: Tensor
    labels: Tensor
    classes: list[str]


def main() -> None:
    """Train both networks, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="tar of train/ and val/, each with a folder per category"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for logs, states and weights")
    parser.add_argument(
        "--epsilon", type=float, default=1.0, help="l2 radius of R's attack, pixels in [0, 1]"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("s", "r"), help="train one of the two")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    train, val = read_images(given.data, "train"), read_images(given.data, "val")
    for name, epsilon in (("s", 0.0), ("r", given.epsilon)):
        if given.only in (None, name):
            recipe = Recipe(epsilon, seed=given.seed)
            fit(given.out / f"googlenet-{name}", recipe, train, val)


def read_images(tar: str, split: str) -> Images:
    """Decode the images of one split of the tar at once."""
    source = open_source(tar)
    chosen = [i for i, path in enumerate(source.paths) if path.split("/")[-3] == split]
    pixels = np.stack([PREPROCESSING.pixels(source.image(i)) for i in chosen])
    return Images(
        torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(source.labels[chosen]), source.classes
    )


def network(classes: int, seed: int) -> nn.Module:
    """Return the untrained network, its weights drawn from `seed` as torchvision draws them.

    They are small (standard deviation 0.01), so that what is learnt soon outweighs them: kernels that still showed
    the noise they began as could not be compared.
    """
    torch.manual_seed(seed)
    model = googlenet(num_classes=classes, aux_logits=False, init_weights=True, transform_input=False)
    return model.to(memory_format=torch.channels_last)


def fit(stem: Path, recipe: Recipe, train: Images, val: Images) -> None:
    """Train one network, resuming from its saved state if there is one, and write its weights.

    A network that is trained already stays as it is: a file of the same weights would have other bytes.
    """
    log, saved, weights = (stem.with_suffix(f".{kind}") for kind in ("jsonl", "state", "safetensors"))
    if weights.exists():
        return
    model, average, settled = (network(len(train.classes), recipe.seed) for _ in range(3))
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate(0),
        momentum=recipe.momentum,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    parts = {"model": model, "average": average, "settled": settled, "optimizer": optimizer}
    begin = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        begin = state.pop("epoch")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    epochs = sum(epochs for epochs, _ in recipe.cycles)
    for epoch in range(begin, epochs):
        started = time.perf_counter()
        loss = one_epoch(model, average, optimizer, recipe, train, epoch)
        first = epochs - recipe.settled
        if epoch >= first:
            follow(settled, average, 1 - 1 / (epoch - first + 1))
        record = {
            "epoch": epoch + 1,
            "side": recipe.stage(epoch)[0],
            "loss": round(loss, 4),
            "val": round(accuracy(average, val), 4),
            "seconds": round(time.perf_counter() - started, 1),
        }
        state = {name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch + 1}
        beside = saved.with_suffix(".new")
        torch.save(state, beside)
        beside.replace(saved)
        with log.open("a") as file:
            print(json.dumps(record), file=file)
        print(stem.name, record, flush=True)
    write_weights(weights, settled, recipe, train.classes)


def one_epoch(
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    train: Images,
    epoch: int,
) -> float:
    """Run one epoch and return its mean loss. Its random numbers depend only on seed and epoch."""
    torch.manual_seed(1000 * recipe.seed + epoch)
    order = torch.randperm(len(train.labels))
    size, total = recipe.batch_size, 0.0
    side, attack_steps = recipe.stage(epoch)
    epsilon = recipe.epsilon * side / SIZE
    steps = len(order) // size
    for step in range(steps):
        chosen = order[step * size : (step + 1) * size]
        images, labels = augmented(train.pixels[chosen], side, recipe), train.labels[chosen]
        if recipe.epsilon:
            # In eval mode, as the attack of a finished network is, and so that it leaves the running means alone.
            model.eval()
            start = random_offset(torch.randn_like(images), epsilon)
            length = recipe.attack_reach * epsilon / attack_steps
            images = pgd_l2(
                lambda x: logits(model, x),
                images,
                labels,
                epsilon,
                attack_steps,
                step=length,
                start=start,
            )
        model.train()
        loss = cross_entropy(logits(model, images), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.greatest_gradient)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(epoch + step / steps)
        optimizer.step()
        total += loss.item()
        # Early on the mean of all steps so far, so that the first weights do not linger.
        done = epoch * steps + step
        follow(average, model, min(recipe.average_decay, (1 + done) / (10 + done)))
    return total / steps


@torch.no_grad()
def augmented(pixels: Tensor, side: int, recipe: Recipe) -> Tensor:
    """Return augmented images, f32 in [0, 1], of this side: crop, flip, brightness, contrast, saturation."""
    count = len(pixels)
    images = (pixels.float() / 255).contiguous(memory_format=torch.channels_last)

    def between(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high)

    scale, stretch = between(recipe.least_scale, 1.1), between(-0.15, 0.15).exp()
    flip = between(-1, 1).sign()
    room = (1 - scale).clamp_min(0.06)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * stretch * flip, scale / stretch
    theta[:, 0, 2], theta[:, 1, 2] = between(-1, 1) * room, between(-1, 1) * room
    grid = affine_grid(theta, [count, 3, side, side], align_corners=False)
    images = grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def factor() -> Tensor:
        return between(1 - recipe.colour, 1 + recipe.colour).view(-1, 1, 1, 1)

    images = images * factor()
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * factor()
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * factor()
    return images.clamp(0, 1).contiguous(memory_format=torch.channels_last)


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return f32 [N, classes] for images in [0, 1], computed in bf16."""
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (PREPROCESSING.mean, PREPROCESSING.std))
    with torch.autocast("cpu", torch.bfloat16):
        scores: Tensor = model((images - mean) / std)
    return scores.float()


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move `average`, weights and running means, a step towards `model`."""
    for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Return the share of images that `model` classifies correctly."""
    model.eval()
    found = [logits(model, part.float() / 255).argmax(1) for part in images.pixels.split(100)]
    return (torch.cat(found) == images.labels).double().mean().item()


def write_weights(path: Path, model: nn.Module, recipe: Recipe, classes: list[str]) -> None:
    """Write `model` as f16, with everything needed to use it in the metadata."""
    notes = {
        "arch": "googlenet",
        "num_classes": str(len(classes)),
        "preprocessing": json.dumps(PREPROCESSING.to_dict()),
        "classes": json.dumps(classes),
        "training": json.dumps(asdict(recipe)),
    }
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, path, notes)


if __name__ == "__main__":
    main()
