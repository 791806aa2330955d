"""The published decoding loops in plain numpy, one row at a time: what the compiled loop is held against.

Written from the algorithms (LLaDA `generate.py`, Fast-dLLM, Dream, dParallel, the EB and BLC papers), float64, with
Python loops. It shares no code with the library; only random draws, which are part of the contract, come from
jax.random.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

LONGEST = 64  # of a canvas that is drawn for


@functools.partial(jax.jit, static_argnames="vocabulary")
def _gumbel(key, number, vocabulary):
    def at(position):
        own = jax.random.fold_in(jax.random.fold_in(key, number), position)
        lanes = jnp.arange(-(-vocabulary // 128))
        each = jax.vmap(lambda lane: jax.random.gumbel(jax.random.fold_in(own, lane), (128,), mode="high"))(lanes)
        return each.ravel()[:vocabulary]

    return jax.vmap(at)(jnp.arange(LONGEST))


def gumbel(step_key, number, length, vocabulary):
    """The noise of pass `number` of a step, whose key is the row's folded with the step: [length, vocabulary]."""
    return np.asarray(_gumbel(step_key, number, vocabulary), np.float64)[:length]


@jax.jit
def _uniform(key, number):
    own = jax.random.fold_in(key, number)
    return jax.vmap(lambda position: jax.random.uniform(jax.random.fold_in(own, position)))(jnp.arange(LONGEST))


def uniform(step_key, length, number=1):
    """Draws of a step, one for each position; number 1 are a policy's."""
    return np.asarray(_uniform(step_key, number))[:length]


def transfer_counts(masked, steps):
    """LLaDA's get_num_transfer_tokens for one row."""
    base, rest = divmod(masked, steps)
    return [base + (i < rest) for i in range(steps)]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_softmax(x):
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def best_first(values, masked):
    """Indices of masked positions, highest value first, ties to the left."""
    return [i for i in np.argsort(-values, kind="stable") if masked[i]]


class Fixed:
    def __init__(self, steps=None, order="confidence"):
        self.steps, self.order = steps, order

    def __call__(self, seen):
        if seen.block_step == 0:
            self.counts = transfer_counts(int(seen.masked.sum()), self.steps or len(seen.masked))
        if self.order == "random":
            value = seen.random
        else:
            value = {"confidence": seen.conf, "margin": seen.margin, "entropy": -seen.entropy}[self.order]
        return best_first(value, seen.masked)[: self.counts[seen.block_step]]


class Dream:
    """HKUNLP/Dream's time steps, order by confidence, counts per row."""

    def __init__(self, steps):
        self.times = np.linspace(1, 1e-3, steps + 1)

    def __call__(self, seen):
        i, left = seen.block_step, int(seen.masked.sum())
        t, s = self.times[i], self.times[i + 1]
        count = left if i + 2 == len(self.times) else int(left * (1 - s / t))
        return best_first(seen.conf, seen.masked)[:count]


def threshold(tau):
    return lambda seen: [i for i in np.flatnonzero(seen.masked) if seen.conf[i] >= tau] or _best(seen.conf, seen)


def factor(f):
    def select(seen):
        order, n = best_first(seen.conf, seen.masked), 0
        while n < len(order) and (n + 2) * (1 - seen.conf[order[n]]) <= f:
            n += 1
        return order[: max(n, 1)]

    return select


def factor_code(f):
    """The published code's loop: thresholds by rank, the first always passed, and one more at the last index."""

    def select(seen):
        order = best_first(seen.conf, seen.masked)
        bounds = [-1.0] + [1.0 - f / (rank + 1) for rank in range(2, len(order) + 1)]
        n = next((i for i, bound in enumerate(bounds) if seen.conf[order[i]] < bound), len(order) - 1)
        return order[: n + (n in (0, len(order) - 1))]

    return select


def margin(tau):
    return lambda seen: [i for i in np.flatnonzero(seen.masked) if seen.margin[i] >= tau] or _best(seen.margin, seen)


def entropy(tau):
    return lambda seen: [i for i in np.flatnonzero(seen.masked) if seen.entropy[i] <= tau] or _best(-seen.entropy, seen)


def entropy_bounded(gamma):
    def select(seen):
        order = best_first(-seen.entropy, seen.masked)
        n = 1
        while n < len(order) and sum(seen.entropy[i] for i in order[: n + 1]) - seen.entropy[order[n]] <= gamma:
            n += 1
        return order[:n]

    return select


def above_mean(seen):
    mean = seen.conf[seen.masked].mean()
    return [i for i in np.flatnonzero(seen.masked) if seen.conf[i] > mean] or _best(seen.conf, seen)


class MultiBlock:
    """d3LLM's generate_multi_block without its early stop, over a window that is the whole answer."""

    def __init__(self, size, add, ready, tau):
        self.size, self.add, self.ready, self.tau = size, add, ready, tau

    def __call__(self, seen):
        starts = list(range(0, len(seen.masked), self.size))
        blocks = [list(range(start, min(start + self.size, len(seen.masked)))) for start in starts]
        if seen.block_step == 0:
            self.opened = 1
        share = [sum(not seen.masked[i] for i in block) / len(block) + 1e-9 for block in blocks]
        if self.opened < len(blocks) and share[self.opened - 1] >= self.add:
            self.opened += 1
        there = [[i for i in block if seen.masked[i]] for block in blocks[: self.opened]]
        masks = [i for block in there for i in block]
        least = lambda among: min(among, key=lambda i: (seen.entropy[i], i))  # noqa: E731
        chosen = {i for i in masks if seen.entropy[i] <= self.tau} | {least(masks)}
        for number, block in enumerate(there):
            if block and (number == 0 or share[number - 1] >= self.ready):
                chosen |= set() if chosen & set(block) else {least(block)}
                break
        return sorted(chosen)


def any_of(*rules):
    return lambda seen: sorted({i for chosen in [rule(seen) for rule in rules] for i in chosen})


def all_of(*rules):
    """Rules that force nobody; where they share nothing, the most confident goes."""

    def select(seen):
        chosen = [set(rule(seen)) for rule in rules]
        return sorted(set.intersection(*chosen)) or _best(seen.conf, seen)

    return select


def cap(k, rule):
    def select(seen):
        chosen = rule(seen)
        return [i for i in best_first(seen.conf, seen.masked) if i in chosen][:k]

    return select


def _best(values, seen):
    return best_first(values, seen.masked)[:1]


class Seen:
    """What a selection rule may look at, for one block of one row."""


def decode(
    logits_of,
    prompt,
    select,
    *,
    gen,
    block,
    mask,
    eos_ids,
    stop=False,
    temperature=0.0,
    key=None,
    cfg=None,
    forbid=(),
    defer=(),
    fill=None,
    tempered=False,
):
    """(generated tokens, commit steps, NFE) of one row.

    `fill` gets the canvas, the columns that commit, their candidates and the step's key, and says what is written: a
    token for each column, or for some of them.
    """
    x = np.array(list(prompt) + [mask] * gen)
    first, nfe, trace = len(prompt), 0, np.full(gen, -1)
    forwards = 0
    for start in range(first, first + gen, block):
        block_step = 0
        window = slice(start, start + block)
        while (x[window] == mask).any():
            table = logits_of(x)
            if cfg is not None:
                blind = x.copy()
                blind[:first] = mask
                unseeing = logits_of(blind)
                table = unseeing + (cfg + 1) * (table - unseeing)
            table[:, [mask, *forbid]] = -np.inf
            row_key = None if key is None else jax.random.fold_in(key, forwards)
            noisy = table
            if temperature > 0:
                noisy = table + temperature * gumbel(row_key, 0, *table.shape)
            candidate = noisy.argmax(-1)
            p = softmax(table / temperature if tempered and temperature > 0 else table)
            seen = Seen()
            seen.conf = np.take_along_axis(p, candidate[:, None], -1)[:, 0]
            others = p.copy()
            np.put_along_axis(others, candidate[:, None], -1.0, -1)
            seen.margin = seen.conf - others.max(-1)
            seen.entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)
            last = np.isin(candidate, defer)
            seen.conf[last], seen.margin[last], seen.entropy[last] = 0.0, -1.0, 1e30
            seen.masked, seen.block_step = x == mask, block_step
            for name in ("conf", "margin", "entropy", "masked"):
                setattr(seen, name, getattr(seen, name)[window])
            if row_key is not None:
                seen.random = uniform(row_key, len(x))[window]
            columns = [start + i for i in select(seen)]
            written = {at: candidate[at] for at in columns} if fill is None else fill(x, columns, candidate, row_key)
            for at, token in written.items():
                x[at], trace[at - first] = token, forwards
            forwards, block_step, nfe = forwards + 1, block_step + 1, nfe + (1 if cfg is None else 2)
            answer = x[first:]
            ends = np.flatnonzero(np.isin(answer, eos_ids))
            if stop and ends.size and not (answer[: ends[0]] == mask).any():
                trace[ends[0] + 1 :] = -1
                return np.concatenate([answer[: ends[0] + 1], np.full(gen - ends[0] - 1, eos_ids[0])]), trace, nfe
    return x[first:], trace, nfe
