# Several connections of one process share a volume; another process is refused, and told who has it.
import os
import subprocess
import nbd

SOCKET, VOLUME = os.environ["SOCKET"], os.environ["VOLUME"]


def connect(handle):
    handle.set_export_name(VOLUME)
    handle.connect_unix(SOCKET)
    return handle


connect(h)
assert h.can_multi_conn()
sister = connect(nbd.NBD())
# What one has written, the other reads, also without a flush; what one flushes, is durable for both.
h.pwrite(b"1" * 4096, 0)
assert sister.pread(4096, 0) == b"1" * 4096
sister.pwrite(b"2" * 4096, 4096)
h.flush()
assert h.pread(4096, 4096) == b"2" * 4096

other = subprocess.run(
    ["qemu-io", "-f", "raw", "-c", "write 0 4k", f"nbd+unix:///{VOLUME}?socket={SOCKET}"], capture_output=True, text=True
)
assert other.returncode != 0, other
assert f"process {os.getpid()}" in other.stderr, other.stderr
# Being refused harmed nothing.
assert h.pread(4096, 0) == b"1" * 4096

sister.shutdown()
assert h.pread(4096, 0) == b"1" * 4096
h.shutdown()
