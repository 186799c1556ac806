"""The yardstick of `long_training.py`: a training as the documentation of Ray Train shows it, of the same model.

LeNet on scikit-learn's digits with DistributedDataParallel, a checkpoint by `ray.train.report`, restarts by
FailureConfig. Prints a JSON object {step, t} for every tenth step of rank 0 to the file that it is given.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def train(config: dict[str, Any]) -> None:
    import ray.train
    import torch
    from ray.train import Checkpoint
    from ray.train.torch import prepare_data_loader, prepare_model
    from sklearn.datasets import load_digits
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    samples = TensorDataset(images, torch.tensor(digits.target))
    batch = config["batch_size"] // ray.train.get_context().get_world_size()
    loader = prepare_data_loader(DataLoader(samples, batch, shuffle=True, drop_last=True))
    conv1 = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    conv2 = [nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    linear = [nn.Linear(64, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    model = prepare_model(nn.Sequential(*conv1, *conv2, nn.Flatten(), *linear))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(os.path.join(folder, "state.pt"), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    criterion = nn.CrossEntropyLoss()
    rank = ray.train.get_context().get_world_rank()
    epoch = 0
    while step < config["steps"]:
        loader.sampler.set_epoch(epoch)
        epoch += 1
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            step += 1
            if rank == 0 and step % 10 == 0:
                with open(config["progress"], "a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, "t": time.time()}) + "\n")
            if step % config["checkpoint_every"] == 0:
                with tempfile.TemporaryDirectory() as folder:
                    saved = None
                    if rank == 0:
                        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                        torch.save(state, os.path.join(folder, "state.pt"))
                        saved = Checkpoint.from_directory(folder)
                    ray.train.report({"loss": loss.item()}, checkpoint=saved)
            if step >= config["steps"]:
                break


def main() -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config = json.loads(sys.argv[1])
    TorchTrainer(
        train,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(
            name=f"bare-{time.time_ns()}",
            storage_path=str(Path(config["progress"]).parent),
            failure_config=FailureConfig(max_failures=-1),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    ).fit()


if __name__ == "__main__":
    main()
