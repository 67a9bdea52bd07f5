"""An own method: new weights come where the gradient and its running mean together are largest.

``python examples/own_method.py`` trains with it, and holds it to what every method must keep. Where a package registers it
behind an entry point ``dstee.methods``, ``dstee train --method mix --set beta=0.5`` knows it, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dstee
from dstee.methods import Action, Method, Step, Swap, Update
from dstee.testing import check_method


@dstee.register
@dataclass(frozen=True)
class Mix(Method):
    beta: float = 0.3  # of the running mean
    name, key, needs_gradients, needs_every_gradient, keeps = "Mix", "mix", True, True, ("mean",)

    def before_step(self, c: Step) -> None:
        for mean, grad in zip(c.state("mean"), c.grads, strict=True):
            mean.mul_(self.beta).add_(grad * (1 - self.beta))

    def plan(self, u: Update) -> Sequence[Action]:
        return [Swap(grow_by=lambda u: [g + mean for g, mean in zip(u.grads, u.state("mean"), strict=True)])]


def digits(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten patterns of 8 x 8 pixels under noise, and which of them each row is."""
    patterns = torch.rand(10, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (rows,), generator=generator)
    return patterns[labels] + 0.5 * torch.randn(rows, 64, generator=generator), labels


def main() -> None:
    torch.manual_seed(0)
    x, y = digits(1024, seed=1)
    x_test, y_test = digits(512, seed=2)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    steps = 320
    schedule = dstee.UpdateSchedule(every=20, stop=3 * steps // 4)
    sparse = dstee.sparsify(model, sparsity=0.9, method=Mix(beta=0.5), schedule=schedule)
    optimizer = dstee.SparseSGD(model.parameters(), sparse, lr=0.05, momentum=0.9)
    print(sparse.summary())
    for t in range(1, steps + 1):
        rows = slice(64 * t % 1024, 64 * t % 1024 + 64)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        updated = sparse.step(optimizer)
        if updated and t % 60 == 0:
            accuracy = float((model(x_test).argmax(1) == y_test).float().mean())
            print(
                f"step {t}: update {sparse.round} changed {dstee.metrics.churn(sparse):.1%} of {sparse.nnz} active weights, "
                f"loss {loss.item():.3f}, test accuracy {accuracy:.1%}"
            )
    check_method(Mix)
    print(f"{Mix.name} keeps what every method must: totals, masks, states, the same bits on every backend")


if __name__ == "__main__":
    main()
