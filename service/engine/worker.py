"""What an engine does from its configuration to its end, in a process of its own or in a thread."""

from __future__ import annotations

import msgspec
import torch

from service.engine.certification import certify
from service.engine.cpu import CpuNetwork, rows_of_part
from service.engine.cuda import CudaNetwork
from service.engine.forward import build_forward
from service.engine.heap import give_back, keep_freed_memory
from service.engine.inbox import Inbox, InboxClosed
from service.engine.loop import EngineLoop
from service.engine.network import Network
from service.engine.protocol import Cancel, Configure, Emit, EngineConfig, Ready, Submit, ToEngine
from service.engine.request import ModelStatus
from service.engine.runner import ModelRunner
from service.errors import FatalModelError
from service.models.info import ModelInfo
from service.models.loader import load_unet


def run_engine(configure: Configure, inbox: Inbox, emit: Emit, fault_seed: int | None = None) -> None:
    """Loads, certifies, then steps until the inbox closes.

    Raises `FatalModelError` for a model that can never be served; whatever else is raised is a crash, and the
    client replaces the engine.
    """
    config = resolve(configure.config)
    settle(config)
    with torch.inference_mode():
        runners, statuses = [], []
        for info in configure.models:
            runner, status = prepare_runner(info, config)
            runners.append(runner)
            statuses.append(status)
        loop = EngineLoop(runners, emit, fault_seed, inbox.bell)
        emit(Ready(tuple(statuses)))
        busy = False
        try:
            while True:
                for message in inbox.take(wait=not busy):
                    _apply(loop, message)
                busy = loop.step()
        except InboxClosed:
            return


def resolve(config: EngineConfig) -> EngineConfig:
    """The configuration with `auto` replaced by what this machine has.

    Raises FatalModelError when a GPU is named that is not there.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = "cuda:0"
    if device != "cpu" and torch.device(device).index >= torch.cuda.device_count():
        raise FatalModelError(f"there is no {device} here: torch sees {torch.cuda.device_count()} GPUs")
    dtype = config.dtype
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    return msgspec.structs.replace(config, device=device, dtype=dtype)


def settle(config: EngineConfig) -> None:
    """Settings of the whole process, before a network is loaded."""
    device = torch.device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # the lanes have the cores
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)  # where Triton's kernels run and graphs are captured, whatever tensors say
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False  # float32 is what was asked for, and what other forms are held against


def build_network(info: ModelInfo, config: EngineConfig) -> Network:
    """The network of a model in the form that suits the device."""
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    unet = load_unet(info, device)
    parameters = sum(weight.numel() for weight in unet.parameters())
    forward = build_forward(unet, info, device, dtype, config if config.compile else None)
    del unet
    give_back()
    if device.type == "cuda":
        return CudaNetwork(forward, info.latent_shape, info.class_conditional, device, config.max_batch_size)
    return CpuNetwork(forward, config.threads, rows_of_part(parameters, info.image_size**2))


def prepare_runner(info: ModelInfo, config: EngineConfig) -> tuple[ModelRunner, ModelStatus]:
    """A loaded, certified and warm model on the configured device."""
    network = build_network(info, config)
    found, sizes = certify(info, network, config)
    status = ModelStatus(info.name, found.fingerprint, config.device, config.dtype, sizes)
    return ModelRunner(info, network, sizes, config.max_step_time), status


def _apply(loop: EngineLoop, message: ToEngine) -> None:
    if isinstance(message, Submit):
        loop.submit(message.samples)
    elif isinstance(message, Cancel):
        loop.cancel(message.samples)
