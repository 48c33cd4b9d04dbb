"""volume.py VOLUME OUTSIDE READY GO MIB SECONDS ROUNDS: holds so much memory, and has files on a volume: one that nobody needs,
one that is read again and again, one with a lease, one that a link leads to, and a pipe. Says so with the file READY, waits for
the file GO, reads for so many seconds and so many times, and prints what it noticed."""
import errno, fcntl, os, sys, time

volume, outside, ready, go = sys.argv[1:5]
mib, seconds, rounds = map(int, sys.argv[5:])
memory = bytearray(mib << 20)
memory[::4096] = b"x" * (mib << 8)

def write(path, mib):
    with open(path, "wb", buffering=0) as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))

write(outside, 4)
os.symlink(outside, f"{volume}/link")
os.mkfifo(f"{volume}/pipe")
for name, size in (("idle", 24), ("hot", 8), ("leased", 4)):
    write(f"{volume}/{name}", size)
os.sync()
for _ in range(2):  # what was read twice the kernel does not take back first
    with open(outside, "rb") as file:
        file.read()
leased = os.open(f"{volume}/leased", os.O_RDWR)
fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
idle = open(f"{volume}/idle", "ab")
open(ready, "w").close()
while not os.path.exists(go):
    time.sleep(0.01)

def from_disk():
    with open("/proc/self/io") as io:
        return next(int(line.split()[1]) for line in io if line.startswith("read_bytes"))

before, reads, pipe_readers = from_disk(), 0, 0
end = time.monotonic() + seconds
while time.monotonic() < end or rounds > 0:
    rounds -= 1
    with open(f"{volume}/hot", "rb", buffering=0) as hot:
        while hot.read(1 << 20):
            reads += 1 << 20
    try:
        os.close(os.open(f"{volume}/pipe", os.O_WRONLY | os.O_NONBLOCK))
        pipe_readers += 1
    except OSError as error:
        assert error.errno == errno.ENXIO
    time.sleep(0.02)
lease = fcntl.fcntl(leased, fcntl.F_GETLEASE)
print(f"received={reads}\nread_bytes={from_disk() - before}\npipe_readers={pipe_readers}\nlease={lease}")
