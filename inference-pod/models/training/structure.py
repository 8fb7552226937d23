"""Initial weights that already copy: previous-token heads in the first layer; copying heads and one that finds a word again in
the second.

From plain random weights a model of this size needs millions of tokens before it begins to copy. The residual stream is laid
out for that: dimension 0 is the same for all tokens (a head that looks at a fixed distance needs a constant to turn), then
the token itself, then the token before, then the one before that. Training is free to change all of it.
"""

import math
import zlib

import torch

CONSTANT = 0
# The first heads of the second layer.
COPYING = 2


def layout(hidden):
    """Where the token is kept, the one before it and the one before that; and how wide the last two are."""
    token = hidden * 2 // 3
    width = (hidden - token - 1) // 2
    return slice(1, 1 + token), slice(1 + token, 1 + token + width), slice(1 + token + width, 1 + token + 2 * width), width


def _direction(text, size):
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    return torch.randn(size, generator=generator)


def token_vectors(tokens, size, scale=0.3):
    """Tokens that differ only in case or a leading space begin alike, and tokens that share letters somewhat alike."""
    rows = []
    for token in tokens:
        plain = token.strip().lower()
        vector = 0.6 * _direction("own " + token, size) + 0.65 * _direction("plain " + plain, size)
        pairs = [plain[i : i + 2] for i in range(len(plain) - 1)] or [plain]
        vector += 0.45 * sum(_direction("pair " + pair, size) for pair in pairs) / math.sqrt(len(pairs))
        rows.append(vector * scale)
    return torch.stack(rows)


def orthogonal(rows, columns, generator):
    q, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    return q[:rows]


@torch.no_grad()
def initialise(model, tokens, seed=1):
    """`tokens`: the text of each token, in the order of their ids."""
    shape = model.shape
    generator = torch.Generator().manual_seed(seed)
    hidden, head = shape.hidden, shape.head_dim
    token, before, before2, width = layout(hidden)
    size = token.stop - token.start
    for layer in model.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight.copy_(torch.randn(projection.weight.shape, generator=generator) * 0.6 / math.sqrt(hidden))
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embedding = torch.zeros(shape.vocabulary, hidden)
    embedding[:, CONSTANT] = 1.0
    embedding[:, token] = token_vectors(tokens, size)
    model.model.embed_tokens.weight.copy_(embedding)
    model.model.norm.weight.fill_(0.25)

    frequencies = 1.0 / shape.rope_theta ** (torch.arange(0, head, 2).float() / head)
    half = head // 2
    views = orthogonal(width, size, generator)  # the part of a token that its successors remember
    first = model.model.layers[0].self_attn
    for index, (distance, place) in enumerate(((1, before), (2, before2))):
        rows = slice(index * head, (index + 1) * head)
        q, k = torch.zeros(head, hidden), torch.zeros(head, hidden)
        for pair in range(8):
            q[pair, CONSTANT] = 1.6 * math.cos(frequencies[pair] * distance)
            q[pair + half, CONSTANT] = -1.6 * math.sin(frequencies[pair] * distance)
            k[pair, CONSTANT] = 1.6
        v = torch.zeros(head, hidden)
        v[:width, token] = views
        first.q_proj.weight[rows], first.k_proj.weight[rows], first.v_proj.weight[rows] = q, k, v
        first.o_proj.weight[place, rows.start : rows.start + width] = 0.3 * torch.eye(width)

    # Content is compared in the slow pairs of the rope, whose angle hardly changes over a prompt.
    pairs = [pair for pair in range(half) if frequencies[pair] < 1e-3]
    slow = pairs + [pair + half for pair in pairs]
    each = len(slow) // 2
    second = model.model.layers[1].self_attn
    for index in range(COPYING):
        rows = slice(index * head, (index + 1) * head)
        q, k, v = torch.zeros(head, hidden), torch.zeros(head, hidden), torch.zeros(head, hidden)
        for i in range(each):
            p = (index * each + i) % width
            q[slow[i], token] = 1.7 * views[p]  # the token at hand ...
            k[slow[i], before.start + p] = 1.7  # ... against the token before the one that is looked at
            q[slow[each + i], before.start + p] = 1.5
            k[slow[each + i], before2.start + p] = 1.5
        share = -(-size // COPYING)
        dims = range(token.start + index * share, min(token.start + (index + 1) * share, token.stop))
        for i, d in enumerate(dims):
            v[i, d] = 1.0
            second.o_proj.weight[d, rows.start + i] = 0.8
        second.q_proj.weight[rows], second.k_proj.weight[rows], second.v_proj.weight[rows] = q, k, v

    # The same token, wherever it is: what guidance's `match` begins from.
    rows = slice(COPYING * head, (COPYING + 1) * head)
    same = torch.zeros(head, hidden)
    same[slow, token] = 1.2 * orthogonal(len(slow), size, generator)
    second.q_proj.weight[rows], second.k_proj.weight[rows] = same, same


@torch.no_grad()
def adopt(model, trained, pieces):
    """The weights `trained` of a model with fewer tokens. A new token begins as `initialise` made it, moved as far as training
    moved the `pieces` (their ids, for each new token) that it was written with before."""
    vectors = model.model.embed_tokens.weight
    name = "model.embed_tokens.weight"
    known = trained[name].shape[0]
    moved = trained[name].float() - vectors[:known]
    begun = vectors.clone()
    begun[:known] = trained[name]
    for token, of in enumerate(pieces, known):
        begun[token] += moved[of].mean(0)
    model.load_state_dict(trained | {name: begun})
