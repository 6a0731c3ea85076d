"""Prefix cache of a replica: blocks of prompt KV by hash, kept least recently used first in the KV that nobody holds.

A block is present from the end of the prefill that computed it.  While live requests hold it it counts as theirs (each
holds a copy of its own: sharing saves prefill here, not memory); when the last of them leaves it becomes idle, as the
most recently used, the end of a prompt before its start, so that a prefix outlives what follows it.  Idle blocks fill at
most the KV that live requests leave free.  A prompt's hit is its leading run of present blocks.

The table of a slot has five planes: the hash, the holders and the two LRU links of each entry, and the buckets of an
open-addressing index (entry + 1, 0 = empty; linear probing, deletion by shifting back).
"""

# The fields of a record have no type that mypy could see.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

from load_tests.kernel_kv import decode_kv
from load_tests.kernel_state import Ints, Records, compiled

HASH, HOLDERS, OLDER, NEWER, BUCKET = 0, 1, 2, 3, 4
PREFIX_PLANES = 5


@compiled
def home(prefix: Ints, block_hash: int) -> int:
    """Bucket where the search for a hash begins."""
    folded = (block_hash ^ (block_hash >> 31)) & 0x7FFFFFFF
    return ((folded * 2654435761) >> 16) & (prefix.shape[2] - 1)


@compiled
def find(prefix: Ints, slot: int, block_hash: int) -> int:
    """Entry of a present block, -1 if it is not there."""
    i = home(prefix, block_hash)
    while prefix[slot, BUCKET, i] > 0:
        entry = prefix[slot, BUCKET, i] - 1
        if prefix[slot, HASH, entry] == block_hash:
            return entry
        i = (i + 1) & (prefix.shape[2] - 1)
    return -1


@compiled
def forget(prefix: Ints, slot: int, block_hash: int) -> None:
    """Take a hash out of the index and close the gap in its probe run."""
    mask = prefix.shape[2] - 1
    i = home(prefix, block_hash)
    while prefix[slot, HASH, prefix[slot, BUCKET, i] - 1] != block_hash:
        i = (i + 1) & mask
    gap = i
    i = (i + 1) & mask
    while prefix[slot, BUCKET, i] > 0:
        begin = home(prefix, prefix[slot, HASH, prefix[slot, BUCKET, i] - 1])
        if ((i - begin) & mask) >= ((i - gap) & mask):
            prefix[slot, BUCKET, gap] = prefix[slot, BUCKET, i]
            gap = i
        i = (i + 1) & mask
    prefix[slot, BUCKET, gap] = 0


@compiled
def unlink(r: Records, prefix: Ints, slot: int, entry: int) -> None:
    """Take an idle block out of the LRU list."""
    older, newer = prefix[slot, OLDER, entry], prefix[slot, NEWER, entry]
    if older >= 0:
        prefix[slot, NEWER, older] = newer
    else:
        r.oldest_block = newer
    if newer >= 0:
        prefix[slot, OLDER, newer] = older
    else:
        r.newest_block = older
    r.idle_blocks -= 1


@compiled
def hold_entry(r: Records, prefix: Ints, slot: int, entry: int) -> None:
    """One more live request holds a present block."""
    if prefix[slot, HOLDERS, entry] == 0:
        unlink(r, prefix, slot, entry)
    prefix[slot, HOLDERS, entry] += 1


@compiled
def evict_oldest(r: Records, prefix: Ints, slot: int) -> None:
    """The least recently used idle block loses its KV."""
    entry = r.oldest_block
    unlink(r, prefix, slot, entry)
    forget(prefix, slot, prefix[slot, HASH, entry])
    prefix[slot, NEWER, entry] = r.free_block
    r.free_block = entry


@compiled
def insert(r: Records, prefix: Ints, slot: int, block_hash: int) -> None:
    """A block becomes present, held by one request."""
    if r.free_block >= 0:
        entry = r.free_block
        r.free_block = prefix[slot, NEWER, entry]
    else:
        entry = r.high_blocks
        r.high_blocks += 1
    prefix[slot, HASH, entry] = block_hash
    prefix[slot, HOLDERS, entry] = 1
    i = home(prefix, block_hash)
    while prefix[slot, BUCKET, i] > 0:
        i = (i + 1) & (prefix.shape[2] - 1)
    prefix[slot, BUCKET, i] = entry + 1


@compiled
def full_blocks(m: Records, request: Records, offsets: Ints, q: int) -> int:
    """Hashed blocks of request `q` that its prompt fills."""
    return min(offsets[q + 1] - offsets[q], request.prompt // m.prefix_block)


@compiled
def hold_hits(
    m: Records, r: Records, requests: Records, prefix: Ints, offsets: Ints, hashes: Ints, slot: int, q: int
) -> int:
    """Hold the leading run of present blocks for request `q`; returns their tokens."""
    hits, blocks = 0, full_blocks(m, requests[q], offsets, q)
    while hits < blocks:
        entry = find(prefix, slot, hashes[offsets[q] + hits])
        if entry < 0:
            break
        hold_entry(r, prefix, slot, entry)
        hits += 1
    return hits * m.prefix_block


@compiled
def hold_rest(
    m: Records, r: Records, requests: Records, prefix: Ints, offsets: Ints, hashes: Ints, slot: int, q: int
) -> None:
    """The prefill of request `q` is complete: hold the blocks behind its hit, present or new."""
    request = requests[q]
    blocks = full_blocks(m, request, offsets, q)
    for i in range(request.cached // m.prefix_block, blocks):
        block_hash = hashes[offsets[q] + i]
        entry = find(prefix, slot, block_hash)
        if entry >= 0:
            hold_entry(r, prefix, slot, entry)
        else:
            insert(r, prefix, slot, block_hash)
    request.cached = blocks * m.prefix_block


@compiled
def release_blocks(
    m: Records, r: Records, requests: Records, prefix: Ints, offsets: Ints, hashes: Ints, slot: int, q: int
) -> None:
    """Request `q` leaves: what it held (``cached`` tokens) becomes idle, its last block first."""
    request = requests[q]
    for i in range(request.cached // m.prefix_block - 1, -1, -1):
        entry = find(prefix, slot, hashes[offsets[q] + i])
        prefix[slot, HOLDERS, entry] -= 1
        if prefix[slot, HOLDERS, entry] == 0:
            newest = r.newest_block
            prefix[slot, OLDER, entry], prefix[slot, NEWER, entry] = newest, -1
            if newest >= 0:
                prefix[slot, NEWER, newest] = entry
            else:
                r.oldest_block = entry
            r.newest_block = entry
            r.idle_blocks += 1
    request.cached = 0


@compiled
def trim(m: Records, r: Records, residues: Ints, prefix: Ints, slot: int) -> None:
    """Evict idle blocks until they fit into the KV that live requests leave free."""
    used = decode_kv(m, r, residues, slot, 0) + r.kv_prefill
    while r.idle_blocks > 0 and used + r.idle_blocks * m.prefix_block > m.kv_capacity:
        evict_oldest(r, prefix, slot)
