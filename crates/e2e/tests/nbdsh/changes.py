# Two contexts at once, and a snapshot that is deleted under a client. Run by nbdsh; `h` is a fresh handle.
import errno
import os
import subprocess
import nbd

DIRTY = "sheepdog:dirty/a"
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.add_meta_context(DIRTY)
h.add_meta_context("sheepdog:dirty/never")
h.set_export_name(os.environ["VOLUME"])
h.connect_unix(os.environ["SOCKET"])
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert h.can_meta_context(DIRTY)
assert not h.can_meta_context("sheepdog:dirty/never")


def status(length, offset):
    found = {}

    def note(context, at, entries, error):
        pairs = found.setdefault(context, [])
        pairs += zip(entries[0::2], entries[1::2])

    h.block_status(length, offset, note)
    return found


# The first block was written before the snapshot, the second after it, the third discarded since.
K = 4096
found = status(4 * K, 0)
assert found[nbd.CONTEXT_BASE_ALLOCATION] == [(2 * K, 0), (2 * K, 3)], found
assert found[DIRTY] == [(K, 0), (K, 1), (K, 3), (K, 0)], found

# What is written is seen at once.
h.pwrite(b"x" * K, 3 * K)
assert status(4 * K, 0)[DIRTY] == [(K, 0), (K, 1), (K, 3), (K, 1)]

subprocess.run(os.environ["DELETE"].split(), check=True, stdout=subprocess.DEVNULL)
try:
    status(4 * K, 0)
except nbd.Error as refusal:
    assert refusal.errnum == errno.EINVAL, refusal
else:
    raise AssertionError("an answer about a snapshot that is gone")
# The connection goes on.
assert h.pread(K, 3 * K) == b"x" * K
h.shutdown()
