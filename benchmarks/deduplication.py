"""MinHash of this book against `datasketch`: signatures of 2,289 licence texts, and the pairs to look at.

Both get the same sets of 32-bit hashes, and make 128 values in the same way: with the same functions, equal ones.
"""

import datasketch
import numpy as np

from benchmarks.timing import in_turn
from lmsurvey_code.pretraining_data import candidates, hash_functions, licences, minhash, shingles

BANDS, ROWS = 16, 8


def rows() -> list[dict[str, str | float]]:
    """One row for each measurement: name, unit, and what this book and its peer reach."""
    sets = [shingles(text) for text in licences().values()]
    lists, functions = [s.tolist() for s in sets], np.array(hash_functions(BANDS * ROWS, 0))

    def ours() -> np.ndarray:
        return np.stack([minhash(s) for s in sets])

    def peer(**scheme: object) -> list[datasketch.MinHash]:
        made = [datasketch.MinHash(BANDS * ROWS, hashfunc=lambda x: x, **scheme) for _ in lists]
        for signature, values in zip(made, lists, strict=True):
            signature.update_batch(values)
        return made

    def peer_pairs() -> set[tuple[int, int]]:
        lsh = datasketch.MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        found = set()
        for i, signature in enumerate(theirs):
            found.update((j, i) for j in lsh.query(signature))
            lsh.insert(i, signature)
        return found

    signatures, theirs = ours(), peer(permutations=functions, scheme="legacy")
    assert all(np.array_equal(a, b.hashvalues) for a, b in zip(signatures, theirs, strict=True))
    assert candidates(signatures, BANDS) == peer_pairs()
    about = {"peer_name": f"datasketch {datasketch.__version__}"}
    made = in_turn(ours, peer)  # the peer with the scheme that it prefers
    found = in_turn(lambda: candidates(signatures, BANDS), peer_pairs)
    return [
        {"name": "MinHash: 128 values of 2,289 licences", "unit": "s", "ours": made[0], "peer": made[1]} | about,
        {"name": "MinHash: candidate pairs, 16 bands", "unit": "s", "ours": found[0], "peer": found[1]} | about,
    ]
