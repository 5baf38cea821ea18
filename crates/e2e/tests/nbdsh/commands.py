# Every command of the protocol, and every way in which a server must say no. Run by nbdsh; `h` is a fresh handle.
import errno
import os
import nbd

MIB = 1 << 20
SIZE = 64 * MIB


def refused(error, what):
    try:
        what()
    except nbd.Error as refusal:
        assert refusal.errnum == error, f"errno {refusal.errno} instead of {errno.errorcode[error]}: {refusal}"
    else:
        raise AssertionError(f"not refused, {errno.errorcode[error]} expected")


h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.set_export_name(os.environ["VOLUME"])
h.set_strict_mode(0)  # the client must not refuse what the server is to refuse
h.connect_unix(os.environ["SOCKET"])

assert h.get_protocol() == "newstyle-fixed"
assert h.get_structured_replies_negotiated()
assert h.get_size() == SIZE
assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
for promise in [h.can_flush, h.can_fua, h.can_trim, h.can_zero, h.can_fast_zero, h.can_cache, h.can_df, h.can_multi_conn]:
    assert promise(), promise.__name__
assert not h.is_read_only()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)

# A fresh volume reads as zeros everywhere.
assert h.pread(MIB, 0) == bytes(MIB)
assert h.pread(512, SIZE - 512) == bytes(512)

# Write and read, aligned and not, with and without FUA.
h.pwrite(b"a" * 4096, 0)
h.pwrite(b"b" * 512, 1024, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 0) == b"a" * 1024 + b"b" * 512 + b"a" * 2560
h.pwrite(b"c" * 8192, 4 * MIB - 4096)  # over the edge of an object
assert h.pread(8192, 4 * MIB - 4096) == b"c" * 8192
h.pwrite(b"d" * (32 * MIB), 16 * MIB)  # the longest
assert h.pread(32 * MIB, 16 * MIB) == b"d" * (32 * MIB)
h.flush()

# Don't fragment: one chunk or an error, never a wrong answer.
assert h.pread(MIB, 0, nbd.CMD_FLAG_DF)[:1024] == b"a" * 1024

# Trim and zero.
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 0) == bytes(4096)
h.zero(8192, 4 * MIB - 4096)
assert h.pread(8192, 4 * MIB - 4096) == bytes(8192)
h.pwrite(b"e" * 4096, 8192)
h.zero(512, 8192 + 512, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 8192) == b"e" * 512 + bytes(512) + b"e" * 3072
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 8192) == bytes(4096)
h.zero(SIZE, 0)  # a zero carries no payload, so its length has no such limit
h.pwrite(b"d" * MIB, 16 * MIB)
h.trim(SIZE - MIB, 0)
assert h.pread(MIB, 16 * MIB) == bytes(MIB)
h.cache(MIB, 0)

# Block status: zeros and holes, and one MiB of data.
h.pwrite(b"f" * MIB, 2 * MIB)
extents = []
h.block_status(8 * MIB, 0, lambda context, offset, found, error: extents.extend(found) or 0)
runs = []
for length, flags in zip(extents[::2], extents[1::2]):
    if runs and runs[-1][1] == flags:
        runs[-1] = (runs[-1][0] + length, flags)
    else:
        runs.append((length, flags))
HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
assert runs[0] == (2 * MIB, HOLE) and runs[1] == (MIB, 0) and runs[2][1] == HOLE, runs
one = []
h.block_status(8 * MIB, 0, lambda context, offset, found, error: one.extend(found) or 0, nbd.CMD_FLAG_REQ_ONE)
assert len(one) == 2 and one[1] == HOLE and one[0] <= 8 * MIB, one

# What lies beyond the end, wholly or in part.
refused(errno.EINVAL, lambda: h.pread(512, SIZE))
refused(errno.EINVAL, lambda: h.pread(1024, SIZE - 512))
refused(errno.ENOSPC, lambda: h.pwrite(bytes(512), SIZE))
refused(errno.ENOSPC, lambda: h.pwrite(bytes(1024), SIZE - 512))
refused(errno.ENOSPC, lambda: h.zero(1024, SIZE - 512))
refused(errno.EINVAL, lambda: h.trim(1024, SIZE - 512))
refused(errno.EINVAL, lambda: h.pread(512, (1 << 63) - 512))
# What is not a multiple of the smallest block.
refused(errno.EINVAL, lambda: h.pread(511, 0))
refused(errno.EINVAL, lambda: h.pread(512, 1))
refused(errno.EINVAL, lambda: h.pwrite(bytes(513), 0))
refused(errno.EINVAL, lambda: h.trim(100, 0))
refused(errno.EINVAL, lambda: h.zero(512, 7))
# Flags where they do not belong.
refused(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_REQ_ONE))
refused(errno.EINVAL, lambda: h.pwrite(bytes(512), 0, nbd.CMD_FLAG_FAST_ZERO))

# After all these refusals the connection still serves.
h.pwrite(b"g" * 512, 0)
assert h.pread(512, 0) == b"g" * 512

# Many at once, out of order.
buffers = [nbd.Buffer.from_bytearray(bytearray([n % 251 + 1]) * 4096) for n in range(200)]
waiting = {h.aio_pwrite(buffer, 8 * MIB + 4096 * n) for n, buffer in enumerate(buffers)}
while waiting:
    h.poll(10000)
    waiting -= {cookie for cookie in waiting if h.aio_command_completed(cookie)}
for n in range(200):
    assert h.pread(4096, 8 * MIB + 4096 * n) == bytes([n % 251 + 1]) * 4096, n
h.flush()
h.shutdown()
