"""What a method may change of the whole process, and what the next run in the same process would inherit."""

from __future__ import annotations

import gc
import locale
import os
import signal
import sys
import threading
import warnings
from typing import Any

import torch
from torch import nn

SET_BY_LIBRARIES = (  # beginnings of environment variables that libraries set when they are first used
    *("KMP_", "CUDA_MODULE_LOADING", "TORCHINDUCTOR_", "TRITON_", "TORCH_NCCL_", "PYTORCH_NVML_", "TF_"),
    *("QT_", "MPLBACKEND", "LC_CTYPE", "TOKENIZERS_PARALLELISM"),
)


def snapshot() -> dict[str, Any]:
    """The state of the process that a run must leave as it was, by name. Random streams are seeded by every run."""
    matmul = torch.backends.cuda.matmul
    return {
        "torch's default dtype": torch.get_default_dtype(),
        "torch's default device": str(torch.get_default_device()),
        "torch's threads": torch.get_num_threads(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "the precision of products": (
            torch.get_float32_matmul_precision(),
            matmul.allow_tf32,
            matmul.allow_fp16_reduced_precision_reduction,
            matmul.allow_bf16_reduced_precision_reduction,
        ),
        "cuDNN": (
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.allow_tf32,
        ),
        "MKL-DNN": torch.backends.mkldnn.enabled,
        "attention kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "hooks on all modules": [
            len(getattr(nn.modules.module, name))
            for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
        ],
        "what functions of torch do": [id(f) for f in _functions()],
        "environment variables": {k: v for k, v in os.environ.items() if not k.startswith(SET_BY_LIBRARIES)},
        "the working directory": _working_directory(),
        "the import path": list(sys.path),
        "warning filters": list(warnings.filters),
        "the recursion limit": sys.getrecursionlimit(),
        "signal handlers": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "the locale": locale.setlocale(locale.LC_NUMERIC),
        "tracing": (sys.gettrace() is None, sys.getprofile() is None, threading.gettrace() is None),
        "garbage collection": gc.isenabled(),
    }


def changed(before: dict[str, Any]) -> list[str]:
    """The names of what differs from a snapshot now."""
    now = snapshot()
    return [name for name in before if now[name] != before[name]]


def _functions() -> list[Any]:
    functional, tensor = nn.functional, torch.Tensor
    return [
        *(functional.linear, functional.embedding, functional.dropout, functional.layer_norm),
        *(functional.cross_entropy, functional.softmax, functional.scaled_dot_product_attention),
        *(nn.Linear.forward, nn.Embedding.forward, nn.LayerNorm.forward, nn.Dropout.forward, nn.Module.__call__),
        *(tensor.backward, torch.manual_seed, torch.nn.utils.clip_grad_norm_, torch.matmul),
    ]


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None
