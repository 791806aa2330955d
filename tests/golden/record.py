"""What the library decodes in each case of the table, and the recording of it: `python -m tests.golden.record`.

All that is known of the library's Python interface stands between the two lines; a new interface changes that alone.
"""

import tests.conftest  # noqa: F401, I001  first: it sets the platform and XLA's flags, as for every test

import functools
import itertools
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

import jaxdiff
from jaxdiff.caches import CACHES
from jaxdiff.filters import learned_policy
from jaxdiff.policies import Replay
from jaxdiff.policies.filters import BlockFilter, Linear, LocalFilter
from jaxdiff.registry import arguments_of, parse_arguments
from jaxdiff.stoppers import STOPPERS
from jaxdiff.tasks import gsm_symbolic
from tests.golden import networks
from tests.golden.cases import CANVAS_IN_QUEUE, CANVASES, CASES, PROMPTS, QUEUE, SLOTS

FOLDER = Path(__file__).parent
FIELDS = ("tokens", "nfe", "commit_step", "near_ties")

# ---------------------------------------------------------------------------------------------------------------------


@functools.cache
def checkpoint(name):
    """A model of the table, with its params; the tiny ones are read from a folder as their families publish it."""
    if name == "shipped":
        return jaxdiff.load()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(networks.CONFIGS[name]))
        save_file(networks.tensors(name), Path(folder, "model.safetensors"))
        return jaxdiff.load(folder, dtype="float32")


def policy_of(case, text):
    """The policy that a text means for a case: `learned` names a filter that ships, or a random one."""

    def learned(name, tau):
        if case.model == "shipped":
            return learned_policy(jaxdiff.checkpoint.SHIPPED, name, tau)
        layers = networks.layers(name, case.block_length)
        made = tuple(Linear(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in layers)
        return jaxdiff.policies.Learned(BlockFilter(made) if name == "block" else LocalFilter(made), tau)

    name, _, rest = text.partition(":")
    if name == "replay":
        numbers = parse_arguments(name, arguments_of(Replay), [item for item in rest.split(",") if item])
        return Replay(blocks=case.gen_length // case.block_length, **numbers)
    return jaxdiff.policies.parse(text, learned=learned)


def decoded(case, decodes, ids):
    """FIELDS, each [decodes * rows, ...], of one batch: every decode has all of `ids` as its rows."""
    rows, model, params = len(ids), checkpoint(case.model).model, checkpoint(case.model).params
    decoder = decoder_of(
        case,
        _stacked([policy_of(case, policy) for policy, _, _ in decodes], rows),
        _stacked([CACHES.parse(cache) for _, cache, _ in decodes], rows),
        np.repeat(np.float32([temperature for _, _, temperature in decodes]), rows),
    )
    key = jnp.tile(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(rows)), len(decodes))
    if case.way == "infill":
        result = jaxdiff.infill(model, params, np.tile(np.int32(ids), (len(decodes), 1)), decoder, key=key)
    else:
        prompts, origin = jaxdiff.pad_prompts(ids * len(decodes), fill=networks.EOS)
        result = jaxdiff.decode(model, params, prompts, decoder, origin=origin, gen_length=case.gen_length, key=key)
    generated = result.commit_step.shape[1]
    return {field: np.asarray(getattr(result, field)) for field in FIELDS} | {
        "tokens": np.asarray(result.tokens)[:, -generated:]
    }


def streamed(case, decodes, ids, canvas_at):
    """As `decoded`, of one queue after the other; request `canvas_at` is a canvas."""
    model, params, meter = checkpoint(case.model).model, checkpoint(case.model).params, jaxdiff.Meter()
    found = []
    for policy, cache, temperature in decodes:
        decoder = decoder_of(case, policy_of(case, policy), CACHES.parse(cache), temperature)
        requests = [jaxdiff.Request(row, is_canvas=number == canvas_at) for number, row in enumerate(ids)]
        size = {"slots": SLOTS, "gen_length": case.gen_length, "meter": meter}
        answers = jaxdiff.decode_stream(model, params, requests, decoder, **size)
        found += sorted(answers, key=lambda answer: answer.request.number)
    return {field: np.stack([np.asarray(getattr(answer, field)) for answer in found]) for field in FIELDS}


def decoder_of(case, policy, cache, temperature):
    """A case's decoder with the parts that differ between its decodes."""
    same = {name: getattr(case, name) for name in ("cfg_scale", "top_p", "top_k", "forbid_eos", "defer_eos")}
    sampling = jaxdiff.Sampling(temperature=temperature, **same)
    stop = STOPPERS.parse(case.stop)
    return jaxdiff.Decoder(policy=policy, cache=cache, stop=stop, sampling=sampling, block_length=case.block_length)


def _stacked(parts, rows):
    """One policy or cache whose numbers are those of `parts`, each for `rows` rows; the parts differ in numbers."""
    if len(set(map(str, map(jax.tree.leaves, parts)))) == 1:
        return parts[0]
    return jax.tree.map(lambda *values: jnp.repeat(jnp.stack(values), rows), *parts)


def questions(count):
    """Test problems as prompts of the model that ships."""
    tokenizer = checkpoint("shipped").tokenizer
    problems = itertools.islice(gsm_symbolic.problems("test", 0), count)
    return [tokenizer.prompt(problem.question) for problem in problems]


# ---------------------------------------------------------------------------------------------------------------------


def run(case):
    """FIELDS as numpy arrays; rows are those of the first decode, of the second, and so on."""
    if case.way == "stream":
        at, canvas = CANVAS_IN_QUEUE
        return streamed(case, case.decodes, [*QUEUE[:at], canvas, *QUEUE[at:]], at)
    if case.way == "infill":
        return decoded(case, case.decodes, CANVASES)
    return decoded(case, case.decodes, questions(2) if case.model == "shipped" else PROMPTS)


def environment():
    """What float rounding depends on: where it differs, a near-tie may be decided the other way."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "jax": version("jax"),
        "jaxlib": version("jaxlib"),
        "cpu": names[0] if names else platform.processor(),
        "xla_flags": " ".join(dict.fromkeys(os.environ["XLA_FLAGS"].split())),  # a worker of xdist has them twice
    }


def main():
    """Write golden.npz and golden.json; the names of cases as arguments: record these anew, and keep the others."""
    arrays, chosen = {}, sys.argv[1:]
    if chosen:
        with np.load(FOLDER / "golden.npz") as file:
            known = {case.name for case in CASES}
            arrays = {name: file[name] for name in file.files if name.partition("/")[0] in known}
    for case in CASES:
        if chosen and case.name not in chosen:
            continue
        since = time.process_time()
        found = run(case)
        arrays |= {f"{case.name}/{field}": value.astype(np.int16) for field, value in found.items()}
        seconds, near = time.process_time() - since, found["near_ties"]
        print(
            f"{case.name:24} {seconds:5.2f} s, {len(case.decodes)} decodes, {(near > 0).sum()} of {near.size} rows "
            f"with near-ties, nfe {found['nfe'].tolist()}",
            flush=True,
        )
    np.savez_compressed(FOLDER / "golden.npz", **arrays)
    near = np.concatenate([value for name, value in arrays.items() if name.endswith("/near_ties")])
    counts = {"cases": len(CASES), "decodes": sum(len(case.decodes) for case in CASES), "rows": int(near.size)}
    counts["rows_without_near_ties"] = int((near == 0).sum())
    (FOLDER / "golden.json").write_text(json.dumps(environment() | counts, indent=2) + "\n")
    print(counts)


if __name__ == "__main__":
    main()
