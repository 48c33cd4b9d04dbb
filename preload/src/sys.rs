//! Every system call that the library makes for itself, without libc: nothing here touches errno or thread-local
//! storage, is a cancellation point, or can be interposed. Results are the kernel's own: negative is `-errno`.
//!
//! This is one of the modules that may say `unsafe`.

use crate::apart;
use crate::elf::Object;
use core::ffi::CStr;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64};
use libc::{c_int, c_void};

/// One raw system call.
///
/// # Safety
/// As the kernel's documentation of call `nr` asks of its arguments.
#[inline]
pub unsafe fn call(nr: isize, args: [isize; 6]) -> isize {
    let [a, b, c, d, e, f] = args;
    let result;
    // SAFETY: the caller's; the clobbers are those of the kernel's calling convention.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!("syscall", inlateout("rax") nr => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!("svc 0", in("x8") nr, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, in("x5") f, options(nostack));
    }
    result
}

macro_rules! raw {
    ($nr:expr $(, $arg:expr)* $(,)?) => {{
        let args = $crate::sys::six(&[$($arg as isize),*]);
        // SAFETY: each use passes arguments that are valid for its call: descriptors may be any number, and pointers
        // come from references, or from memory that the using module owns.
        unsafe { $crate::sys::call($nr as isize, args) }
    }};
}

pub(crate) use raw;

// Whether the CPU has instructions for atomics is asked of this byte each time. The compiler's own library would look,
// from a constructor that may come after the first call of ours, and in some builds with symbols of libc that musl
// lacks. Zero is right on every CPU.
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".pushsection .bss.__aarch64_have_lse_atomics, \"aw\", %nobits",
    ".hidden __aarch64_have_lse_atomics",
    ".globl __aarch64_have_lse_atomics",
    "__aarch64_have_lse_atomics: .zero 1",
    ".popsection",
);

/// Adds to a word that no other thread changes at the same time, but a signal handler of this one may: one instruction,
/// so nothing comes in between, without the lock prefix, which beside a system call costs 15 ns (x86-64, measured).
#[inline(always)]
pub fn add_alone(word: &AtomicU64, value: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the word is a valid, aligned place for eight bytes; the instruction changes it and the flags alone.
    unsafe {
        core::arch::asm!("add qword ptr [{word}], {value}", word = in(reg) word.as_ptr(), value = in(reg) value,
            options(nostack));
    }
    #[cfg(not(target_arch = "x86_64"))]
    word.fetch_add(value, Relaxed);
}

/// Sets errno and gives -1 where a raw result is an error: for the few calls that we make in libc's place.
///
/// # Safety
/// Only where libc itself would set errno: in a hook, as its result.
pub unsafe fn as_libc(result: isize) -> isize {
    if (-4095..0).contains(&result) {
        set_errno(-result as c_int);
        -1
    } else {
        result
    }
}

/// The application's errno, for calls that are made more than once in the place of one.
pub fn errno() -> c_int {
    // SAFETY: errno's address is always valid for the calling thread.
    unsafe { *libc::__errno_location() }
}

pub fn set_errno(errno: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

pub fn getpid() -> i32 {
    raw!(libc::SYS_getpid) as i32
}

pub fn gettid() -> i32 {
    raw!(libc::SYS_gettid) as i32
}

/// Is that thread of this process still there?
pub fn thread_exists(pid: i32, tid: i32) -> bool {
    raw!(libc::SYS_tgkill, pid, tid, 0) != -(libc::ESRCH as isize)
}

type ClockGettime = unsafe extern "C" fn(c_int, *mut libc::timespec) -> c_int;

/// The kernel's own function for the clock, which needs no system call (vdso(7)); null where there is none.
static CLOCK: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// Looks for the kernel's clock in an object. From the constructor.
pub fn resolve(object: &Object) {
    let name = if cfg!(target_arch = "x86_64") { c"__vdso_clock_gettime" } else { c"__kernel_clock_gettime" };
    if let Some(at) = object.symbol(name) {
        CLOCK.store(at as *mut c_void, Relaxed);
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = CLOCK.load(Relaxed);
    if clock.is_null() {
        raw!(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut time);
    } else {
        // SAFETY: the address of that function in the kernel's object, which stays mapped.
        unsafe { core::mem::transmute::<*mut c_void, ClockGettime>(clock)(libc::CLOCK_MONOTONIC, &raw mut time) };
    }
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Keeps signal handlers from running in this thread: what is done then cannot be left by siglongjmp. All but those
/// that the thread itself causes, which the kernel would kill for. What was blocked before.
pub fn block_signals() -> u64 {
    const OWN: [c_int; 6] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
    let mask = !OWN.iter().fold(0u64, |mask, signal| mask | 1 << (signal - 1));
    let mut before = 0u64;
    raw!(libc::SYS_rt_sigprocmask, libc::SIG_BLOCK, &raw const mask, &raw mut before, 8);
    before
}

/// Undoes [`block_signals`].
pub fn restore_signals(before: u64) {
    raw!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const before, 0, 8);
}

/// Sleeps; a signal ends it early.
pub fn sleep_ns(nanoseconds: u64) {
    let time =
        libc::timespec { tv_sec: (nanoseconds / 1_000_000_000) as i64, tv_nsec: (nanoseconds % 1_000_000_000) as i64 };
    raw!(libc::SYS_nanosleep, &raw const time, 0);
}

static NO_STATX: AtomicBool = AtomicBool::new(false);

/// statx is not to be called.
pub fn without_statx() {
    NO_STATX.store(true, Relaxed);
}

/// What there is to know of an open file.
#[derive(Clone, Copy)]
pub struct Stat {
    /// The device that it is on, or, of a block device, its own.
    pub dev: u64,
    pub ino: u64,
    pub mode: u32,
    /// In bytes; 0 of a block device.
    pub size: u64,
}

impl Stat {
    fn new(mode: u32, dev: u64, rdev: u64, ino: u64, size: u64) -> Stat {
        let stat = Stat { dev, ino, mode, size };
        if stat.is_block_device() { Stat { dev: rdev, ino: 0, size: 0, ..stat } } else { stat }
    }

    pub const fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    pub const fn is_block_device(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFBLK
    }
}

/// Device, inode, type and size of an open file, as the kernel has them at hand; `None` for a descriptor that is not
/// open. On NFS a plain fstat first writes all that is dirty to the server and waits for it, to learn the new mtime.
pub fn fstat(fd: c_int) -> Option<Stat> {
    let mut known = MaybeUninit::<libc::statx>::uninit();
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let mask = libc::STATX_TYPE | libc::STATX_INO | libc::STATX_SIZE;
    if !NO_STATX.load(Relaxed) && raw!(libc::SYS_statx, fd, c"".as_ptr(), flags, mask, known.as_mut_ptr()) == 0 {
        // SAFETY: the kernel filled it whole, and all bit patterns are valid.
        let known = unsafe { known.assume_init_ref() };
        let dev = libc::makedev(known.stx_dev_major, known.stx_dev_minor);
        let rdev = libc::makedev(known.stx_rdev_major, known.stx_rdev_minor);
        return Some(Stat::new(u32::from(known.stx_mode), dev, rdev, known.stx_ino, known.stx_size));
    }
    // before Linux 4.11, or where a seccomp filter forbids it
    let mut known = MaybeUninit::<libc::stat>::uninit();
    if raw!(libc::SYS_fstat, fd, known.as_mut_ptr()) != 0 {
        return None;
    }
    // SAFETY: as above.
    let known = unsafe { known.assume_init_ref() };
    Some(Stat::new(known.st_mode, known.st_dev, known.st_rdev, known.st_ino, known.st_size.max(0) as u64))
}

/// The filesystem's magic number (statfs(2)), or `None`.
pub fn fs_magic(fd: c_int) -> Option<u32> {
    let mut buffer = MaybeUninit::<libc::statfs>::zeroed();
    if raw!(libc::SYS_fstatfs, fd, buffer.as_mut_ptr()) != 0 {
        return None;
    }
    // SAFETY: the kernel filled it, and all bit patterns are valid.
    Some(unsafe { buffer.assume_init() }.f_type as u32)
}

/// The open file's status flags (`O_*`), or a negative error.
pub fn status_flags(fd: c_int) -> c_int {
    raw!(libc::SYS_fcntl, fd, libc::F_GETFL) as c_int
}

/// The application has a lease on the file (fcntl(2), F_SETLEASE), which opening it once more would break.
pub fn has_lease(fd: c_int) -> bool {
    let lease = raw!(libc::SYS_fcntl, fd, libc::F_GETLEASE) as c_int;
    lease == libc::F_RDLCK || lease == libc::F_WRLCK
}

/// The file offset, without moving it; negative where the file has none.
pub fn position(fd: c_int) -> i64 {
    raw!(libc::SYS_lseek, fd, 0, libc::SEEK_CUR) as i64
}

/// Starts writeback of a range and does not wait. Never with a WAIT flag: that would consume the writeback error that
/// belongs to the application's fsync.
pub fn start_writeback(fd: c_int, offset: u64, bytes: u64) -> isize {
    raw!(libc::SYS_sync_file_range, fd, offset, bytes, libc::SYNC_FILE_RANGE_WRITE)
}

/// `posix_fadvise(POSIX_FADV_DONTNEED)`: drops clean pages of the range; starts writeback of dirty ones.
pub fn drop_cache(fd: c_int, offset: u64, bytes: u64) -> isize {
    raw!(libc::SYS_fadvise64, fd, offset, bytes, libc::POSIX_FADV_DONTNEED)
}

/// `fdatasync` on a descriptor of our own.
pub fn fdatasync(fd: c_int) -> isize {
    raw!(libc::SYS_fdatasync, fd)
}

/// Gives up a lock on the whole of a file that its caller's descriptor table does not hold: changes nothing, but what a
/// filesystem does before it unlocks.
pub fn unlock(fd: c_int) -> isize {
    let whole =
        libc::flock { l_type: libc::F_UNLCK as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    raw!(libc::SYS_fcntl, fd, libc::F_SETLK, &raw const whole)
}

/// Pages of a range by state, in pages of 4 KiB (`cachestat`, Linux 6.5 and later).
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct CacheStat {
    pub cached: u64,
    pub dirty: u64,
    pub writeback: u64,
    pub evicted: u64,
    pub recently_evicted: u64,
}

pub const SYS_CACHESTAT: isize = 451;

/// It is missing, or not to be called.
pub static NO_CACHESTAT: AtomicBool = AtomicBool::new(false);

/// `bytes` 0: to the end of the file.
pub fn cachestat(fd: c_int, offset: u64, bytes: u64) -> Result<CacheStat, c_int> {
    if NO_CACHESTAT.load(Relaxed) {
        return Err(libc::ENOSYS);
    }
    let range = [offset, bytes];
    let mut stat = CacheStat::default();
    match raw!(SYS_CACHESTAT, fd, &raw const range, &raw mut stat, 0) {
        0 => Ok(stat),
        error => {
            if error == -(libc::ENOSYS as isize) {
                NO_CACHESTAT.store(true, Relaxed);
            }
            Err(-error as c_int)
        }
    }
}

/// Opens by path, close-on-exec; negative is an error.
pub fn open(path: &CStr, flags: c_int) -> c_int {
    made(raw!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC, 0))
}

/// A descriptor, or the news that there is no room for one.
fn made(fd: isize) -> c_int {
    if fd == -(libc::EMFILE as isize) {
        apart::crowded();
    }
    fd as c_int
}

pub fn close(fd: c_int) {
    raw!(libc::SYS_close, fd);
}

/// Reads once; the number of bytes, or `None`.
pub fn read(fd: c_int, buffer: &mut [u8]) -> Option<usize> {
    let got = raw!(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len());
    usize::try_from(got).ok().filter(|&got| got <= buffer.len())
}

/// Reads entries of a directory (getdents64(2)); how many bytes of them, 0 at the end.
pub fn read_directory(fd: c_int, buffer: &mut [u8]) -> Option<usize> {
    let got = raw!(libc::SYS_getdents64, fd, buffer.as_mut_ptr(), buffer.len());
    usize::try_from(got).ok().filter(|&got| got <= buffer.len())
}

/// Reads over memory of our own that other threads read as atomics.
pub fn read_over(fd: c_int, at: *const u8, bytes: usize) {
    raw!(libc::SYS_read, fd, at, bytes);
}

/// Reads a small file from its beginning; the part of `buffer` that was filled.
pub fn read_file<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let fd = open(path, libc::O_RDONLY);
    if fd < 0 {
        return None;
    }
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match read(fd, rest) {
            Some(0) => break,
            Some(got) => filled += got,
            None => {
                close(fd);
                return None;
            }
        }
    }
    close(fd);
    buffer.get(..filled)
}

/// `readlink`; the part of `buffer` that was filled, `None` also where it was too small.
pub fn read_link<'a>(path: &CStr, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let got = raw!(libc::SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), buffer.as_mut_ptr(), buffer.len());
    let got = usize::try_from(got).ok().filter(|&got| got < buffer.len())?;
    buffer.get(..got)
}

/// RLIMIT_FSIZE's soft limit in bytes.
pub fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: u64::MAX, rlim_max: u64::MAX };
    raw!(libc::SYS_prlimit64, 0, libc::RLIMIT_FSIZE, 0, &raw mut limit);
    limit.rlim_cur
}

/// process_vm_readv is not to be called.
static MEMORY_IS_TRUSTED: AtomicBool = AtomicBool::new(false);

/// The application's pointers are followed without asking the kernel whether they can be.
pub fn trust_memory() {
    MEMORY_IS_TRUSTED.store(true, Relaxed);
}

/// The offset that the application keeps there; `None` where the kernel would fault.
pub fn read_offset(from: *const i64) -> Option<i64> {
    read_words(from.cast()).map(|[offset]: [u64; 1]| offset as i64)
}

/// The words that the application keeps there, for the kernel to read; `None` where it would fault.
pub fn read_words<const N: usize>(from: *const [u64; N]) -> Option<[u64; N]> {
    if !MEMORY_IS_TRUSTED.load(Relaxed) {
        let mut words = [0u64; N];
        let bytes = size_of_val(&words);
        let local = libc::iovec { iov_base: (&raw mut words).cast(), iov_len: bytes };
        let remote = libc::iovec { iov_base: from.cast_mut().cast(), iov_len: bytes };
        match raw!(libc::SYS_process_vm_readv, getpid(), &raw const local, 1, &raw const remote, 1, 0) {
            got if got == bytes as isize => return Some(words),
            got if got >= 0 || got == -(libc::EFAULT as isize) => return None,
            _ => trust_memory(), // it is denied (Docker's default profile does so)
        }
    }
    // SAFETY: the application passes the address to the kernel, which reads as much there.
    Some(unsafe { from.read_unaligned() })
}

/// Private anonymous memory, or a null pointer.
pub fn map_private(bytes: usize) -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let at = raw!(libc::SYS_mmap, 0, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
    if (-4095..0).contains(&at) { core::ptr::null_mut() } else { at as *mut u8 }
}

/// Maps the whole of a file shared; null where it cannot be.
pub fn map_shared(fd: c_int, bytes: usize, writable: bool) -> *mut u8 {
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let at = raw!(libc::SYS_mmap, 0, bytes, protection, libc::MAP_SHARED, fd, 0);
    if (-4095..0).contains(&at) { core::ptr::null_mut() } else { at as *mut u8 }
}

/// Undoes a mapping that nobody else has seen.
pub fn unmap(at: *mut u8, bytes: usize) {
    raw!(libc::SYS_munmap, at, bytes);
}

/// clone(2): a thread or process that starts with `entry` on a stack of its own. Its id, or a negative error.
/// `cleared`: what CLONE_CHILD_CLEARTID clears, or 0.
///
/// # Safety
/// `top` is the 16-byte aligned end of a stack that nobody else uses; `entry` never returns, and uses neither libc nor
/// thread-local storage, because the child has the caller's.
pub unsafe fn clone_on(top: *mut u8, flags: c_int, cleared: usize, entry: extern "C" fn() -> !) -> isize {
    let made: isize;
    // SAFETY: the caller's: the child calls `entry` on its own stack and never returns into this frame; the parent goes
    // on with the result. The clobbers are the kernel's.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone as isize => made,
            in("rdi") flags, in("rsi") top, in("rdx") 0, in("r10") cleared, in("r8") 0, in("r9") entry,
            lateout("rcx") _, lateout("r11") _,
        );
        #[cfg(target_arch = "aarch64")]
        core::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "blr x9",
            "brk 1",
            "2:",
            in("x8") libc::SYS_clone, inlateout("x0") flags as isize => made, in("x1") top, in("x2") 0, in("x3") 0,
            in("x4") cleared, in("x9") entry, lateout("x30") _,
        );
    }
    made
}

/// Makes these pages zero in a child after fork (Linux 4.14 and later); `false` where the kernel will not.
pub fn wipe_on_fork(at: *mut u8, bytes: usize) -> bool {
    raw!(libc::SYS_madvise, at, bytes, libc::MADV_WIPEONFORK) == 0
}

/// The seals of a memfd; negative where it is none.
pub fn seals(fd: c_int) -> c_int {
    raw!(libc::SYS_fcntl, fd, libc::F_GET_SEALS) as c_int
}

/// A Unix socket of packets, close-on-exec and non-blocking; negative is an error.
pub fn packet_socket() -> c_int {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    made(raw!(libc::SYS_socket, libc::AF_UNIX, kind, 0))
}

pub fn connect(fd: c_int, address: &libc::sockaddr_un, bytes: usize) -> isize {
    raw!(libc::SYS_connect, fd, &raw const *address, bytes)
}

pub fn send_message(fd: c_int, message: &libc::msghdr) -> isize {
    raw!(libc::SYS_sendmsg, fd, &raw const *message, libc::MSG_NOSIGNAL)
}

pub fn receive_message(fd: c_int, message: &mut libc::msghdr) -> isize {
    let got = raw!(libc::SYS_recvmsg, fd, &raw mut *message, libc::MSG_CMSG_CLOEXEC);
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        apart::crowded(); // no room for the descriptors that came with it
    }
    got
}

/// Waits until the descriptor can be read, at most so long.
pub fn wait_readable(fd: c_int, milliseconds: u64) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let time = libc::timespec { tv_sec: 0, tv_nsec: (milliseconds.min(999) * 1_000_000) as i64 };
    raw!(libc::SYS_ppoll, &raw mut poll, 1, &raw const time, 0, 8) == 1
}

/// Random bytes for a name that nobody else has.
pub fn random() -> u64 {
    let mut word = 0u64;
    let got = raw!(libc::SYS_getrandom, &raw mut word, size_of::<u64>(), libc::GRND_NONBLOCK);
    if got == 8 { word } else { now_ns() ^ (u64::from(getpid() as u32) << 40) }
}

/// Pads arguments to the six that every call takes.
#[inline(always)]
pub fn six(args: &[isize]) -> [isize; 6] {
    let mut all = [0; 6];
    for (slot, arg) in all.iter_mut().zip(args) {
        *slot = *arg;
    }
    all
}
