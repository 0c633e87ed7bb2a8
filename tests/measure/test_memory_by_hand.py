"""Networks small enough to be counted by hand: a peak in forward, in backward and in the optimizer, part by part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peftbench.backbones.modules import SiteLinear
from peftbench.measure.memory import LiveTensors, track_step
from peftbench.method.layers.nf4 import NF4Linear, stored_bytes
from peftbench.methods.lora import LoRALinear

ROWS, IN, OUT, RANK = 32, 64, 128, 4
FLOAT = 4
X, Y, R = ROWS * IN * FLOAT, ROWS * OUT * FLOAT, ROWS * RANK * FLOAT  # bytes of x, of W x and of A x
W, A, B = IN * OUT * FLOAT, RANK * IN * FLOAT, OUT * RANK * FLOAT


def _parts(**bytes_: int) -> dict[str, int]:
    names = ("weights", "adapter", "gradients", "optimizer", "activations", "temporaries")
    return {name: bytes_.get(name, 0) for name in names}


def _groups(net: nn.Module) -> dict[str, list[Tensor]]:
    trained = [p for p in net.parameters() if p.requires_grad]
    return {
        "weights": [*(p for p in net.parameters() if not p.requires_grad), *net.buffers()],
        "adapter": trained,
    }


class Update(nn.Module):
    """h = W x + B A x, W frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(OUT, IN), requires_grad=False)
        self.A, self.B = nn.Parameter(torch.randn(RANK, IN)), nn.Parameter(torch.randn(OUT, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W.T + (x @ self.A.T) @ self.B.T


def test_an_updates_forward_peaks_while_both_products_and_their_sum_stand() -> None:
    net, x = Update(), torch.randn(ROWS, IN)
    optimizer = torch.optim.SGD([net.A, net.B], lr=0.1, foreach=False)
    with LiveTensors(_groups(net), optimizer) as live:
        h = net(x)
        live.phase("backward")
        del h
    record = live.record()
    # kept for backward: x, A x and the result, which the caller holds; passing: W x and B A x until they are added
    assert record["at_peak"] == _parts(weights=W, adapter=A + B, activations=X + R + Y, temporaries=2 * Y)
    assert record["peak_phase"] == "forward"
    assert record["peak_bytes"] == W + A + B + X + R + 3 * Y


def test_an_updates_backward_peaks_where_the_last_gradient_is_made() -> None:
    net, x = Update(), torch.randn(ROWS, IN)
    optimizer = torch.optim.SGD([net.A, net.B], lr=0.1, foreach=False)
    given = torch.randn(ROWS, OUT)
    h = net(x)
    with LiveTensors(_groups(net), optimizer) as live:
        live.phase("backward")
        h.backward(given)
    record = live.record()
    # What was made before and is used counts from the beginning: x, A x and the gradient that is given (h is not used).
    # B's gradient and that of A x stand beside them: X + R + Y + R + B. Then A x goes, and A's gradient comes, larger.
    assert record["at_peak"] == _parts(weights=W, adapter=A + B, gradients=A + B, activations=X + Y, temporaries=R)
    assert A > R
    assert record["peak_phase"] == "backward"


def test_adamw_peaks_in_the_loops_last_division() -> None:
    """One parameter, one tensor at a time: sqrt(v), divided into a second tensor, before m is added over it."""
    p = nn.Parameter(torch.randn(1000))
    optimizer = torch.optim.AdamW([p], foreach=False)
    track_step({"adapter": [p], "weights": []}, optimizer, lambda: p.sum())  # makes the moments
    p.grad = torch.ones(1000)
    with LiveTensors({"adapter": [p], "weights": []}, optimizer) as live:
        live.phase("optimizer")
        optimizer.step()
    record = live.record()
    assert record["at_peak"] == _parts(adapter=4000, gradients=4000, optimizer=2 * 4000 + 4, temporaries=2 * 4000)
    assert record["peak_phase"] == "optimizer"


def test_fused_adamw_makes_nothing() -> None:
    p = nn.Parameter(torch.randn(1000))
    optimizer = torch.optim.AdamW([p], fused=True)
    track_step({"adapter": [p], "weights": []}, optimizer, lambda: p.sum())
    p.grad = torch.ones(1000)
    with LiveTensors({"adapter": [p], "weights": []}, optimizer) as live:
        live.phase("optimizer")
        optimizer.step()
    assert live.record()["at_peak"] == _parts(adapter=4000, gradients=4000, optimizer=2 * 4000 + 4)


def _low_rank(base: nn.Module) -> LoRALinear:
    return LoRALinear(base, RANK, RANK)  # type: ignore[arg-type]


def test_loras_weights_adapter_and_kept_activations() -> None:
    """What stands when backward begins: x, A x and the result, whatever way the product is computed."""
    dense = SiteLinear(IN, OUT, bias=False).requires_grad_(False)
    net, x = _low_rank(dense), torch.randn(ROWS, IN)
    optimizer = torch.optim.SGD([net.A, net.B], lr=0.1, foreach=False)
    with LiveTensors(_groups(net), optimizer) as live:
        h = net(x)
        live.phase("backward")
        mark = torch.zeros(100_000)  # the peak is surely here
        del h, mark
    assert live.record()["at_peak"] == _parts(weights=W, adapter=A + B, activations=X + R + Y, temporaries=400_000)


def test_a_quantised_base_takes_its_stored_bytes_and_keeps_no_dense_weight() -> None:
    dense = SiteLinear(IN, OUT, bias=False).requires_grad_(False)
    net, x = _low_rank(NF4Linear.from_dense(dense)), torch.randn(ROWS, IN)
    optimizer = torch.optim.SGD([net.A, net.B], lr=0.1, foreach=False)
    tables = 2 * 256 * FLOAT + 256 * FLOAT  # two values for each byte of codes, and one for each byte of statistics
    with LiveTensors(_groups(net), optimizer) as live:
        h = net(x)
        live.phase("backward")
        mark = torch.zeros(100_000)
        del h, mark
    codes = IN * OUT // 2 + IN * OUT // 64 + 4 + 4  # half a byte each, one a block of 64, a scale and an offset
    assert codes == stored_bytes(IN * OUT)
    assert live.record()["at_peak"] == _parts(
        weights=codes + tables, adapter=A + B, activations=X + R + Y, temporaries=400_000
    )
