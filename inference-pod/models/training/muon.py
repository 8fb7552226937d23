"""The optimiser: Muon for the matrices, Adam for the embedding and the norms. The masters are f32, whatever the model computes in."""

import torch


def orthogonalise(g, steps=5):
    """Newton-Schulz iteration: [n, rows, columns] with rows <= columns to matrices with singular values near one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (g.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class Optimiser:
    def __init__(self, named, matrix_rate, other_rate, momentum=0.95, betas=(0.9, 0.97), decay=0.01):
        self.named = dict(named)
        self.matrix_rate, self.other_rate, self.momentum, self.betas, self.decay = matrix_rate, other_rate, momentum, betas, decay
        self.masters = {n: p.detach().float().clone() for n, p in self.named.items()}
        self.matrices = [n for n in self.named if n.endswith("_proj.weight")]
        self.others = [n for n in self.named if n not in set(self.matrices)]
        self.first = {n: torch.zeros_like(m) for n, m in self.masters.items()}
        self.second = {n: torch.zeros_like(self.masters[n]) for n in self.others}
        self.steps = 0
        self.groups = {}
        for name in self.matrices:
            self.groups.setdefault(tuple(sorted(self.masters[name].shape)), []).append(name)
        for name, parameter in self.named.items():
            parameter.data.copy_(self.masters[name])

    @torch.no_grad()
    def step(self, factor):
        """One update with both rates times `factor`. Returns the norm of the gradient."""
        self.steps += 1
        gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad.float() for n, p in self.named.items()}
        total = torch.stack([g.norm() for g in gradients.values()]).norm()
        scale = min(1.0, 1.0 / (float(total) + 1e-6))
        for names in self.groups.values():
            updates = []
            for name in names:
                self.first[name].lerp_(gradients[name], 1 - self.momentum)
                update = gradients[name].lerp(self.first[name], self.momentum)
                updates.append(update.mT if update.shape[0] > update.shape[1] else update)
            # The iteration need not be exact: it runs in what the model computes in.
            for name, update in zip(names, orthogonalise(torch.stack(updates).to(self.named[names[0]].dtype)).float()):
                master = self.masters[name]
                update = update.mT if master.shape[0] > master.shape[1] else update
                rate = self.matrix_rate * factor
                master.mul_(1 - rate * self.decay)
                master.add_(update, alpha=-rate * max(1.0, master.shape[0] / master.shape[1]) ** 0.5)
        low, high = self.betas
        for name in self.others:
            g = gradients[name] * scale
            first, second = self.first[name].lerp_(g, 1 - low), self.second[name].lerp_(g * g, 1 - high)
            step = (first / (1 - low**self.steps)) / ((second / (1 - high**self.steps)).sqrt() + 1e-8)
            self.masters[name].add_(step, alpha=-self.other_rate * factor * (1.0 if self.masters[name].dim() > 1 else 0.5))
        for name, parameter in self.named.items():
            parameter.copy_(self.masters[name])
            parameter.grad = None
        return float(total)

    def state(self):
        return {"masters": self.masters, "first": self.first, "second": self.second, "steps": self.steps}

    def load(self, state):
        for mine, theirs in ((self.masters, state["masters"]), (self.first, state["first"]), (self.second, state["second"])):
            for name, value in theirs.items():
                mine[name].copy_(value)
        self.steps = state["steps"]
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(self.masters[name])
