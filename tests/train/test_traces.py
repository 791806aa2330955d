"""Trace collection equals a plain Python loop step for step; it goes on where it stopped; bad traces are refused."""

import dataclasses

import numpy as np
import pytest

from jaxdiff import InputError
from jaxdiff.decode import Timed
from jaxdiff.policies import Fixed, Replay
from jaxdiff.stoppers import Eos, NoStop
from jaxdiff.train.traces import collect, load_traces
from tests import reference, small

IDS = [10, 11, 12, 13]
BLOCKS = small.GEN // small.BLOCK


def gather(folder, seed=0, policy=None, **changes):
    decoder = small.decoder(policy=policy or Fixed())
    options = dict(gen_length=small.GEN, batch_size=3) | changes
    return collect(small.MODEL, small.params(seed), small.PROMPTS, IDS, folder, decoder, **options)


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_a_plain_loop(tmp_path, seed):
    """Learn2PD's generate_training_data: one row for each forward, the stuck one too, visible positions as they are."""
    traces, tree = gather(tmp_path, seed, features=True), small.params(seed)
    expected = []
    for prompt, name in zip(small.PROMPTS, IDS, strict=True):
        answer, _, _ = reference.decode(
            lambda x: small.logits(tree, x),
            prompt,
            reference.Fixed(),
            gen=small.GEN,
            block=small.BLOCK,
            mask=small.MASK,
            eos_ids=(small.EOS, small.EOT),
        )
        x = np.array([*prompt, *[small.MASK] * small.GEN])
        wanted = np.concatenate([prompt, answer])
        for number, start in enumerate(range(len(prompt), len(x), small.BLOCK)):
            block, step, previous = slice(start, start + small.BLOCK), 0, None
            while (x[block] == small.MASK).any():
                table = small.logits(tree, x)[block]
                table[:, small.MASK] = -np.inf
                candidate, p = table.argmax(-1), reference.softmax(table)
                final = candidate == wanted[block]
                ordered = np.sort(p, -1)
                expected.append(
                    (
                        p.max(-1),
                        ordered[:, -2],
                        x[block] == small.MASK,
                        final,
                        step,
                        number,
                        name,
                        small.features(tree, x)[block],
                    )
                )
                if previous is not None and (candidate == previous).all():
                    x[block] = wanted[block]
                    continue
                x[block] = np.where(final & (x[block] == small.MASK), candidate, x[block])
                step, previous = step + 1, candidate
    probs, runners, masked, final, steps, blocks, prompts, hidden = map(np.asarray, zip(*expected, strict=True))
    np.testing.assert_allclose(1 / (1 + np.exp(-traces.log_odds)), probs, atol=1e-4)
    np.testing.assert_allclose(traces.runner_up, runners, atol=1e-4)
    np.testing.assert_array_equal(traces.masked, masked)
    np.testing.assert_allclose(traces.hidden, hidden, atol=2e-3)  # half precision
    np.testing.assert_array_equal(traces.final, final)
    np.testing.assert_array_equal(traces.step, steps)
    np.testing.assert_array_equal(traces.block, blocks)
    np.testing.assert_array_equal(traces.prompt, prompts)


def test_any_policy_may_give_the_answer(tmp_path):
    """One token a step in another order answers otherwise, and what is final is judged by that."""
    sure, margin = (gather(tmp_path / name, policy=Fixed(order=name)) for name in ("confidence", "margin"))
    assert not np.array_equal(sure.final, margin.final)
    np.testing.assert_array_equal(sure.final, gather(tmp_path / "default").final)
    with pytest.raises(InputError, match="holds traces of other decoder; name a new folder, or delete it"):
        gather(tmp_path / "margin")


def test_a_block_that_is_stuck_is_filled_and_left():
    """Towards an answer that the model would never give: one forward to see it, one to see that nothing changed."""
    prompts, _ = small.batch()
    wanted = np.concatenate([prompts, np.full((4, small.GEN), 17)], axis=1).astype(np.int32)
    result = small.decode(policy=Replay(BLOCKS + 1), reference=wanted)  # one more than there are: it stays empty
    np.testing.assert_array_equal(np.asarray(result.tokens)[:, -small.GEN :], 17)
    never = ~np.asarray(result.policy.final)[:, -BLOCKS:, 0].any(-1)  # not one position agreed in the first forward
    assert never.any()
    assert (np.asarray(result.policy.forwards)[:, -BLOCKS:][never] == 2).all()
    assert (np.asarray(result.policy.forwards)[:, :-BLOCKS] == 0).all()


def test_the_replay_ends_with_the_reference():
    prompts, _ = small.batch()
    for stop in (NoStop(), Eos()):
        standard = small.decode(stop=stop)
        replayed = small.decode(stop=stop, policy=Replay(BLOCKS))
        for row, length in enumerate(np.asarray(standard.lengths)):
            end = prompts.shape[1] + length
            np.testing.assert_array_equal(replayed.tokens[row, :end], standard.tokens[row, :end])
        assert (np.asarray(replayed.nfe) == np.asarray(replayed.policy.forwards).sum(1)).all()


def test_a_careful_replay_commits_what_is_final_and_sure(tmp_path):
    """Forward by forward, out of its own recording; the answer is the reference all the same."""
    standard = small.decode()
    odds, alone = np.log(0.6 / 0.4), 0
    replayed = small.decode(policy=Replay(BLOCKS, tau=0.6), reference=standard.tokens)
    np.testing.assert_array_equal(replayed.tokens, standard.tokens)
    seen = replayed.policy
    for row, block in np.argwhere(np.asarray(seen.forwards) > 1):
        for step in range(int(seen.forwards[row, block]) - 1):
            masked, after, final, belief = (
                np.asarray(part)
                for part in (
                    seen.masked[row, block, step],
                    seen.masked[row, block, step + 1],
                    seen.final[row, block, step] & seen.masked[row, block, step],
                    seen.log_odds[row, block, step],
                )
            )
            sure = final & (belief >= odds)
            if not sure.any() and final.any():
                sure, alone = final & (belief == belief[final].max()), alone + 1
            np.testing.assert_array_equal(masked & ~after, sure)
    assert alone  # the second rule was met
    greedy = gather(tmp_path / "greedy")
    both = gather(tmp_path / "both", taus=(0.0, 0.6))
    assert both.prompt.size > 2 * greedy.prompt.size  # a careful replay takes more forwards
    again = both.take(both.tau == 0)
    assert again.prompt.size == greedy.prompt.size
    np.testing.assert_array_equal(np.sort(again.log_odds, axis=None), np.sort(greedy.log_odds, axis=None))
    for taus in ((), (0.0, 2.0)):
        with pytest.raises(InputError, match="collect taus: found"):
            gather(tmp_path / "none", taus=taus)
    assert not (tmp_path / "none").exists()  # the folder is not claimed


def test_a_collection_goes_on_where_it_stopped(tmp_path):
    whole = gather(tmp_path)
    part = tmp_path / "part-00001.npz"
    kept = (tmp_path / "part-00000.npz").stat().st_mtime_ns
    part.unlink()
    again = gather(tmp_path)
    for field in dataclasses.fields(whole):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))
        np.testing.assert_array_equal(getattr(load_traces(tmp_path), field.name), getattr(whole, field.name))
    assert part.exists()
    assert (tmp_path / "part-00000.npz").stat().st_mtime_ns == kept


def test_a_folder_belongs_to_one_collection(tmp_path):
    gather(tmp_path)
    with pytest.raises(InputError, match="holds traces of other weights; name"):
        gather(tmp_path, seed=1)
    with pytest.raises(InputError, match="holds traces of other batch_size, taus; name"):
        gather(tmp_path, batch_size=2, taus=(0.0, 0.5))


def test_a_reference_with_masks_left_is_refused(tmp_path, monkeypatch):
    run = Timed.run

    def broken(*arguments):
        result = run(*arguments)
        return dataclasses.replace(result, tokens=result.tokens.at[1, -1].set(small.MASK))

    monkeypatch.setattr(Timed, "run", broken)
    with pytest.raises(InputError, match="the reference of prompt 11 has masks left"):
        gather(tmp_path)


def test_bad_traces_are_refused(tmp_path):
    traces = gather(tmp_path)
    with pytest.raises(InputError, match="traces: found no rows"):
        traces.take(slice(0, 0)).check()
    broken = traces.take(slice(None))
    broken.entropy[3, 2] = np.nan
    with pytest.raises(InputError, match=f"entropy of prompt {traces.prompt[3]} is not finite"):
        broken.check()
    with pytest.raises(InputError, match="no part-"):
        load_traces(tmp_path / "nothing")
    (tmp_path / "part-00000.npz").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"part-00000.npz: damaged"):
        load_traces(tmp_path)
