# mapping FROM TO [RATE]: copies a file into a mapping of another, 1 MiB at a time, at most RATE of them a second, and says
# how many threads the process had before, while it was mapped, and a while after.
import mmap
import os
import sys
import time


def threads():
    return len(os.listdir("/proc/self/task"))


before = threads()
source = open(sys.argv[1], "rb")
size = os.fstat(source.fileno()).st_size
target = open(sys.argv[2], "w+b")
target.truncate(size)
mapping = mmap.mmap(target.fileno(), size)
rate = float(sys.argv[3]) if len(sys.argv) > 3 else float("inf")
start = time.monotonic()
for at in range(0, size, 1 << 20):
    time.sleep(max(0, start + (at >> 20) / rate - time.monotonic()))
    piece = source.read(1 << 20)
    mapping[at : at + len(piece)] = piece
mapped = threads()
mapping.flush()
mapping.close()
target.close()
for _ in range(100):
    after = threads()
    if after == before:
        break
    time.sleep(0.1)
print("threads", before, mapped, after)
