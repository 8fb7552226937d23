"""Weights that make an ordinary Llama forward pass an n-gram table.

The residual stream is cut into five parts: `now`, `back1`, `back2` (64-wide codes of the last three tokens), `out` (what
the next token should be) and one constant. Token codes are vectors of +-1/8 with small inner products.

- Embedding: `now` = the token's code, constant = 1.
- Layer 0 attention: heads 0 and 1 have a constant query and key, so that after rotary embedding their score depends on
  distance alone; they are turned to peak at distances 1 and 2 and copy `now` of that token into `back1` and `back2`.
- Feed-forward: one unit per known context. Its gate opens only when the last three tokens have that context's codes; it
  then adds the direction of the context's successors to `out`. Units of the last layer look at the last token only: the
  fall-back for what no reply holds, which counts little once a full context has been found.
- Output head: logit = `out` along each token's code.

The other heads and layers hold small noise, so that every tensor takes part in the sum.
"""

import numpy as np

WIDTH = 64  # of one code
NOW, BACK1, BACK2, OUT = (slice(i * WIDTH, (i + 1) * WIDTH) for i in range(4))
CONSTANT = 4 * WIDTH - 1  # the last place of OUT, which codes of the output leave empty
MOST_ALIKE = 24  # largest inner product of two codes, of 64: a wrong token misses a unit's threshold by far
STEEPNESS = 40.0  # of the gates
OUT_LENGTH = 6.0  # length of what a found context writes to `out`, against 2 of everything else
LARGEST_LOGIT = 60.0
HIGHEST_RIVAL = 0.35  # of a successor's logit: tokens above it are held down, as far as a code's width allows
NOISE = 0.002


def draw_codes(rng, count, width):
    """`count` vectors of +-1 whose inner products stay under MOST_ALIKE. Integers only: the same on every machine."""
    codes = np.empty((count, width), dtype=np.int64)
    found = 0
    while found < count:
        candidate = rng.integers(0, 2, width) * 2 - 1
        if found == 0 or (codes[:found] @ candidate).max() <= MOST_ALIKE:
            codes[found] = candidate
            found += 1
    return codes


def peak_at_distance(distance, head_dim, theta, height):
    """A constant query such that, with a key of ones, the rotated product is largest at `distance`."""
    half = head_dim // 2
    angles = distance * theta ** (-2.0 * np.arange(half) / head_dim)
    # (cos, sin) pairs in the half-split layout: a query turned backwards by the distance.
    return height * np.concatenate([np.cos(angles), -np.sin(angles)])


def successor_direction(counts, out_codes):
    """A vector of length OUT_LENGTH under which the successors' logits differ by their log-probabilities, and under which
    every other token's logit is far below."""
    successors = sorted(counts)
    log_probabilities = np.log(np.array([counts[token] for token in successors]) / sum(counts.values()))
    held_down, height, best = [], LARGEST_LOGIT, (-np.inf, None)
    while len(successors) + len(held_down) < WIDTH // 2:
        wanted = np.concatenate([1.0 + log_probabilities / height, np.full(len(held_down), HIGHEST_RIVAL)])
        codes = out_codes[successors + held_down]
        direction = codes.T @ np.linalg.solve(codes @ codes.T, wanted)
        # The head multiplies a unit vector by LARGEST_LOGIT, so this is how high a certain successor comes.
        height = LARGEST_LOGIT / np.linalg.norm(direction)
        logits = out_codes @ direction * height
        lowest_successor = logits[successors].min()
        logits[successors] = -np.inf
        margin = lowest_successor - logits.max()
        if margin > best[0]:
            best = (margin, direction)
        logits[held_down] = -np.inf
        if logits.max() <= HIGHEST_RIVAL * height:
            break
        held_down.append(int(np.argmax(logits)))
    direction = best[1]
    return direction * (OUT_LENGTH / np.linalg.norm(direction))


def build_recite_weights(rng, trigrams, unigrams, vocabulary, hidden, layers, heads, kv_heads, head_dim, theta=10000.0):
    """Returns the feed-forward width and the tensors, as (name, float32 array)."""
    assert hidden == 4 * WIDTH and head_dim == WIDTH and heads >= 2 * kv_heads
    codes = draw_codes(rng, vocabulary, WIDTH) / np.sqrt(WIDTH)
    out_codes = np.zeros((vocabulary, WIDTH))
    out_codes[:, : WIDTH - 1] = draw_codes(rng, vocabulary, WIDTH - 1) / np.sqrt(WIDTH - 1)

    embedding = np.zeros((vocabulary, hidden))
    embedding[:, NOW] = codes
    embedding[:, CONSTANT] = 1.0
    after_embedding = np.sqrt(hidden / 2.0)  # what RMSNorm multiplies by in layer 0's attention: |x|^2 = 2
    after_attention = np.sqrt(hidden / 4.0)  # and before its feed-forward: |x|^2 = 4

    units = [[] for _ in range(layers)]  # (gate row, down column)
    for position, (context, counts) in enumerate(sorted(trigrams.items())):
        gate = np.zeros(hidden)
        gate[BACK2], gate[BACK1], gate[NOW] = (codes[token] for token in context)
        gate[CONSTANT] = -2.75
        # The last layer is left to the fall-back where there is another.
        units[position % max(layers - 1, 1)].append((gate, successor_direction(counts, out_codes)))
    for token, counts in sorted(unigrams.items()):
        gate = np.zeros(hidden)
        gate[NOW] = codes[token]
        gate[CONSTANT] = -0.75
        units[-1].append((gate, successor_direction(counts, out_codes)))
    feed_forward = -(-max(len(layer) for layer in units) // 64) * 64

    noise = lambda *shape: rng.standard_normal(shape) * NOISE
    ones = np.ones(hidden)
    tensors = [("model.embed_tokens.weight", embedding)]
    for layer in range(layers):
        query, key = noise(heads * head_dim, hidden), noise(kv_heads * head_dim, hidden)
        value, output = noise(kv_heads * head_dim, hidden), noise(hidden, heads * head_dim)
        if layer == 0:
            # Enough height that the right distance wins over its neighbours by about 20 nats.
            for head, distance in enumerate((1, 2)):
                rows = slice(head * head_dim, (head + 1) * head_dim)
                query[rows] = 0.0
                query[rows, CONSTANT] = peak_at_distance(distance, head_dim, theta, 160.0 / after_embedding)
                target = (BACK1, BACK2)[head]
                output[:, rows] = 0.0
                output[target, rows] = np.eye(WIDTH) / after_embedding
            key[:head_dim] = 0.0
            key[: head_dim // 2, CONSTANT] = 1.0 / after_embedding
            value[:head_dim] = 0.0
            value[:head_dim, NOW] = np.eye(WIDTH)
        gate, up = noise(feed_forward, hidden), np.zeros((feed_forward, hidden))
        gate[:, CONSTANT] = -STEEPNESS / after_attention  # unused units stay shut
        down = noise(hidden, feed_forward)
        up[:, CONSTANT] = 1.0 / after_attention
        opened = STEEPNESS * 0.25  # silu of a matched gate, nearly
        for unit, (row, direction) in enumerate(units[layer]):
            gate[unit] = row * STEEPNESS / after_attention
            down[:, unit] = 0.0
            down[OUT, unit] = direction / opened
        prefix = f"model.layers.{layer}."
        tensors += [
            (prefix + "input_layernorm.weight", ones),
            (prefix + "self_attn.q_proj.weight", query),
            (prefix + "self_attn.k_proj.weight", key),
            (prefix + "self_attn.v_proj.weight", value),
            (prefix + "self_attn.o_proj.weight", output),
            (prefix + "post_attention_layernorm.weight", ones),
            (prefix + "mlp.gate_proj.weight", gate),
            (prefix + "mlp.up_proj.weight", up),
            (prefix + "mlp.down_proj.weight", down),
        ]
    at_the_end = np.sqrt(hidden / (4.0 + OUT_LENGTH**2))
    head = np.zeros((vocabulary, hidden))
    head[:, OUT] = out_codes * LARGEST_LOGIT / (OUT_LENGTH * at_the_end)
    tensors += [("model.norm.weight", ones), ("lm_head.weight", head)]
    return feed_forward, tensors
