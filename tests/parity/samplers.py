"""The published samplers as plain PyTorch loops over one row, written from their algorithms: (tokens, NFE) each.

`logits_of` takes ids [1 T] and gives logits [1 T V], already shifted where the family shifts, [MASK] excluded.
"""

import torch
from torch.nn import functional as F


def canvas(prompt, masks, mask):
    return torch.tensor([list(prompt) + [mask] * masks])


def spread(count, steps):
    """How many of `count` positions each of `steps` takes."""
    return [count // steps + (step < count % steps) for step in range(steps)]


def rounded(count, steps):
    """As `spread`, the way of dllm's MDLM sampler: what is left, over the steps that are left, rounded."""
    taken = []
    for left in range(steps, 0, -1):
        taken.append(round((count - sum(taken)) / left))
    return [each for each in taken if each]


def llada(logits_of, prompt, *, gen, block, steps, mask, cfg=None, counts=spread):
    """LLaDA `generate.py`: low-confidence remasking, `steps` forwards for each block."""
    x, nfe = canvas(prompt, gen, mask), 0
    given = x != mask
    for end in range(len(prompt) + block, len(prompt) + gen + 1, block):
        for count in counts(int((x[0, end - block : end] == mask).sum()), steps):
            logits = logits_of(x)
            nfe += 1
            if cfg is not None:
                blind = logits_of(torch.where(given, mask, x))
                logits = torch.where(torch.isinf(logits), logits, blind + (cfg + 1) * (logits - blind))
                nfe += 1
            token = logits.argmax(-1)
            confidence = F.softmax(logits, -1).gather(-1, token[..., None])[..., 0]
            confidence[:, end:] = -torch.inf
            confidence[x != mask] = -torch.inf
            chosen = confidence[0].topk(count).indices
            x[0, chosen] = token[0, chosen]
    return x[0, len(prompt) :].tolist(), nfe


def var_generate(logits_of, prompt, *, gen, block, steps, mask, sequence=(), boost=0.0, power=2.0, stops=()):
    """LLaDA's updated `generate.py` for iLLaDA: blocks are appended one by one, until one holds an id of `stops`."""
    x, nfe = list(prompt), 0
    for start in range(len(prompt), len(prompt) + gen, block):
        x += [mask] * block
        for count in spread(block, steps):
            logits = logits_of(torch.tensor([x]))
            nfe += 1
            if boost > 0 and not holds(x[len(prompt) :], sequence):
                at = x.index(mask, start)
                progress = min((at - len(prompt) + 1) / gen, 1.0)
                logits[0, at, _continues(x[len(prompt) : at], sequence)] += boost * progress**power
            prob, token = F.softmax(logits[0], -1).max(-1)
            prob[torch.tensor(x) != mask] = -torch.inf
            for chosen in prob.topk(count).indices.tolist():
                x[chosen] = int(token[chosen])
        if any(stop in x[len(prompt) :] for stop in stops):
            break
    return x[len(prompt) :], nfe


def holds(tokens, sequence):
    return any(tokens[i : i + len(sequence)] == list(sequence) for i in range(len(tokens) - len(sequence) + 1))


def _continues(before, sequence):
    """The token after the longest beginning of the sequence that ends what stands before."""
    known = next((n for n in range(len(sequence) - 1, 0, -1) if before[-n:] == list(sequence[:n])), 0)
    return sequence[known]


def confident(logits_of, prompt, *, gen, block, tau, mask):
    """Fast-dLLM's threshold: all that reach it, and always the best."""
    x, nfe = canvas(prompt, gen, mask), 0
    for start in range(len(prompt), len(prompt) + gen, block):
        while (x[0, start : start + block] == mask).any():
            logits = logits_of(x)[0, start : start + block]
            nfe += 1
            prob, token = F.softmax(logits, -1).max(-1)
            prob[x[0, start : start + block] != mask] = -torch.inf
            chosen = prob >= tau
            chosen[prob.argmax()] = True
            x[0, start : start + block][chosen] = token[chosen]
    return x[0, len(prompt) :].tolist(), nfe


def dream(logits_of, prompt, *, gen, steps, order, mask, eps=1e-3, top_p=None, top_k=None):
    """Dream `generation_utils.py` at temperature 0: the whole canvas at once, floor(masked * (1 - s / t)) a step."""
    x, nfe = canvas(prompt, gen, mask), 0
    times = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        masked = x[0] == mask
        if not masked.any():
            break  # the published loop runs on for nothing
        logits = logits_of(x)[0][masked]
        nfe += 1
        if top_p is not None:
            ordered, places = logits.sort(descending=True)
            out = ordered.softmax(-1).cumsum(-1) > top_p
            out = torch.cat([torch.zeros_like(out[:, :1]), out[:, :-1]], -1)
            logits = logits.masked_fill(out.gather(-1, places.argsort(-1)), -torch.inf)
        if top_k is not None:
            logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
        probs = logits.softmax(-1)
        confidence, token = probs.max(-1)
        if order == "topk_margin":
            best = probs.topk(2, dim=-1).values
            confidence = best[:, 0] - best[:, 1]
        elif order == "entropy":
            confidence = (probs * torch.log(probs + 1e-10)).sum(-1)
        left = int(masked.sum())
        count = int(left * (1 - times[step + 1] / times[step])) if step < steps - 1 else left
        chosen = confidence.topk(count).indices
        x[0, masked.nonzero()[:, 0][chosen]] = token[chosen]
    return x[0, len(prompt) :].tolist(), nfe


def block_causal(logits_of, prompt, *, gen, block, tau, mask, cut=False, strict=True):
    """LLaDA2 and SDAR: whole blocks from position 0, nothing right of the block is fed, the overhang is cut off.

    `tau` None commits one position a forward (SDAR's static strategy), else all above it, and the best where none is
    (LLaDA2's `generate`, SDAR's dynamic strategy, as many steps as positions). A pass that only stores keys and values
    is not counted: there is no cache here.

    Stable-DiffCoder's `generate_block`: the last block ends where the answer does (`cut`), and what reaches `tau`
    commits (not `strict`), the best always.
    """
    blocks = -(-(len(prompt) + gen) // block)
    x, nfe = canvas(prompt, gen if cut else blocks * block - len(prompt), mask), 0
    for index in range(len(prompt) // block, blocks):
        part = slice(index * block, (index + 1) * block)
        for _ in range(block):
            if not (x[0, part] == mask).any():
                break
            logits = logits_of(x[:, : part.stop])[0, part]
            nfe += 1
            prob, token = F.softmax(logits, -1).max(-1)
            prob = torch.where(x[0, part] == mask, prob, -torch.inf)
            chosen = torch.zeros_like(prob, dtype=torch.bool) if tau is None else prob > tau if strict else prob >= tau
            if not chosen.any():
                chosen[prob.argmax()] = True
            x[0, part] = torch.where(chosen, token, x[0, part])
    return x[0, len(prompt) : len(prompt) + gen].tolist(), nfe


def wino(logits_of, prompt, *, gen, block, tau, revoke, mask):
    """WINO's `decoding_wino`, on a model that attends in blocks: whole blocks from position 0, of which the prompt's
    tokens stay. Also how many commits were taken back.
    """
    blocks = -(-(len(prompt) + gen) // block)
    x, nfe, revoked = canvas(prompt, blocks * block - len(prompt), mask)[0], 0, 0
    for index in range(len(prompt) // block, blocks):
        part, most = slice(index * block, (index + 1) * block), 30
        fed = torch.cat([torch.arange(len(x)), torch.arange(part.start, part.stop)])
        beside = torch.arange(len(fed)) >= len(x)
        sees = torch.where(beside[:, None], beside[None] | (fed[None] != fed[:, None]), ~beside[None])
        while (x[part] == mask).any():
            probs = F.softmax(logits_of(torch.cat([x, torch.full((block,), mask)])[None], fed, sees)[0], -1)
            nfe += 1
            masked = x[part] == mask
            prob, token = probs[part].max(-1)
            prob = torch.where(masked, prob, -torch.inf)
            chosen, limit = prob > tau, min(max(int(masked.sum() * 0.7), 5), 20)
            if chosen.sum() > limit:
                chosen = torch.zeros_like(chosen)
                chosen[prob.topk(limit).indices] = True
            elif not chosen.any():
                chosen[prob.argmax()] = True
            alone = probs[len(x) :].gather(-1, x[part][:, None])[:, 0]
            alone[masked | (fed[part] < len(prompt))] = torch.inf
            back = (alone < revoke) & (chosen.sum() > 1)
            if back.sum() >= most:
                back = torch.zeros_like(back)
                back[alone.topk(most - 1, largest=False).indices] = True
            x[part] = torch.where(chosen, token, torch.where(back, mask, x[part]))
            revoked += int(back.sum())
            most = int(chosen.sum())
    return x[len(prompt) : len(prompt) + gen].tolist(), nfe, revoked


def edited(logits_of, prompt, *, gen, block, tau, edit, post, mask):
    """LLaDA2.1's `generate`, whose candidate is never [MASK]; blocks as `block_causal`.

    Also, of each block, whether its last forward changed it.
    """
    blocks = -(-(len(prompt) + gen) // block)
    x, nfe, changes = canvas(prompt, blocks * block - len(prompt), mask), 0, []
    for index in range(len(prompt) // block, blocks):
        part, after, changed = slice(index * block, (index + 1) * block), 0, False
        own = torch.arange(part.start, part.stop) >= len(prompt)
        while True:
            masked = x[0, part] == mask
            after += not masked.any()
            if after > post:
                break
            logits = logits_of(x[:, : part.stop])[0, part].clone()
            logits[:, mask] = -torch.inf
            nfe += 1
            prob, token = F.softmax(logits, -1).max(-1)
            chosen = masked & (prob > tau)
            if masked.any() and not chosen.any():
                chosen[torch.where(masked, prob, -torch.inf).argmax()] = True
            chosen |= ~masked & own & (token != x[0, part]) & (prob > edit)
            x[0, part] = torch.where(chosen, token, x[0, part])
            changed = bool(chosen.any())
            if not masked.any() and not changed:
                break
        changes.append(changed)
    return x[0, len(prompt) : len(prompt) + gen].tolist(), nfe, changes
