//! `syscall(2)`, for programs that write through it (node closes and copies files so). The symbol is a stub: it jumps
//! to libc's own, with nothing changed, unless the number is one of ours. A function of ours in between would break
//! the calls that return twice or on another stack (vfork, clone).
//!
//! This is one of the modules that may say `unsafe`.

use crate::elf::Object;
use crate::real::Next;
use crate::{calls, helper, hooks, queues, seccomp, sweep, sys};
use core::ffi::{c_int, c_long, c_uint};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

static SYMBOL: Next = Next::new(c"syscall");

/// Where the stub jumps to.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Numbers below this can be ours.
const NUMBERS: usize = 512;

/// Architectures that came later have dup3 alone.
#[cfg(target_arch = "x86_64")]
const DUP2: c_long = libc::SYS_dup2;
#[cfg(not(target_arch = "x86_64"))]
const DUP2: c_long = libc::SYS_dup3;

const OURS: [c_long; 34] = [
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_splice,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_close,
    libc::SYS_dup,
    DUP2,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_close_range,
    libc::SYS_openat,
    libc::SYS_lseek,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_setreuid,
    libc::SYS_setresuid,
    libc::SYS_setgid,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_io_submit,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_exit,
];

/// One bit a number.
static BITS: [u64; NUMBERS / 64] = {
    let mut bits = [0; NUMBERS / 64];
    let mut index = 0;
    while index < OURS.len() {
        let number = OURS[index] as usize;
        bits[number / 64] |= 1 << (number % 64);
        index += 1;
    }
    bits
};

/// Looks libc's own up in an object that comes after this library. From the constructor.
pub fn resolve(object: &Object) {
    SYMBOL.resolve(object);
    if let Some(at) = SYMBOL.get() {
        NEXT.store(at.get(), Relaxed);
    }
}

/// The interposed symbol.
///
/// # Safety
/// As syscall(2) says.
#[cfg(not(test))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!(
        "cmp rdi, {last}",
        "ja 2f",
        "lea rax, [rip + {bits}]",
        "bt qword ptr [rax], rdi",
        "jc 3f",
        "2:",
        "mov rax, qword ptr [rip + {next}]",
        "test rax, rax",
        "jz {bare}",
        "jmp rax",
        "3:",
        "jmp {ours}",
        last = const NUMBERS - 1,
        bits = sym BITS,
        next = sym NEXT,
        bare = sym bare,
        ours = sym ours,
    );
    #[cfg(target_arch = "aarch64")]
    core::arch::naked_asm!(
        "cmp x0, #{last}",
        "b.hi 2f",
        "adrp x9, {bits}",
        "add x9, x9, :lo12:{bits}",
        "lsr x10, x0, #6",
        "ldr x9, [x9, x10, lsl #3]",
        "lsr x9, x9, x0",
        "tbnz x9, #0, 3f",
        "2:",
        "adrp x9, {next}",
        "ldr x9, [x9, :lo12:{next}]",
        "cbz x9, 4f",
        "br x9",
        "3:",
        "b {ours}",
        "4:",
        "b {bare}",
        last = const NUMBERS - 1,
        bits = sym BITS,
        next = sym NEXT,
        bare = sym bare,
        ours = sym ours,
    );
}

/// Before start-up, or where there is no `syscall` behind ours.
unsafe extern "C" fn bare(nr: c_long, a: isize, b: isize, c: isize, d: isize, e: isize, f: isize) -> c_long {
    // SAFETY: the application's own call.
    unsafe { sys::as_libc(sys::call(nr as isize, [a, b, c, d, e, f])) as c_long }
}

/// A call of ours, paced as the function of its name is, and made through libc's `syscall`: that one is no
/// cancellation point.
unsafe extern "C" fn ours(nr: c_long, a: isize, b: isize, c: isize, d: isize, e: isize, f: isize) -> c_long {
    type Function = unsafe extern "C" fn(c_long, isize, isize, isize, isize, isize, isize) -> c_long;
    let call = |a: isize, b: isize, c: isize, d: isize, e: isize, f: isize| -> isize {
        match NEXT.load(Relaxed) {
            // SAFETY: the application's own call.
            0 => unsafe { bare(nr, a, b, c, d, e, f) as isize },
            // SAFETY: the address of libc's syscall, which takes what we were given.
            at => unsafe { core::mem::transmute::<usize, Function>(at)(nr, a, b, c, d, e, f) as isize },
        }
    };
    let as_is = || call(a, b, c, d, e, f);
    let fd = a as c_int;
    // SAFETY: pointers are the application's own, and go where they would have gone.
    let result = unsafe {
        match nr {
            libc::SYS_write => calls::plain(fd, c as usize, as_is),
            libc::SYS_pwrite64 => calls::positional(fd, d as i64, c as usize, |done, length| {
                call(a, b + done as isize, length as isize, d + done as isize, e, f)
            }),
            libc::SYS_writev => calls::vectored(fd, None, as_is),
            libc::SYS_pwritev => hooks::vectored_at(fd, d as i64, as_is),
            libc::SYS_pwritev2 => hooks::vectored_with(fd, d as i64, f as c_int, as_is),
            libc::SYS_sendfile => {
                calls::sending(fd, b as c_int, c as _, d as usize, &mut |length| call(a, b, c, length as isize, e, f))
            }
            libc::SYS_copy_file_range => calls::copying(c as c_int, d as _, fd, b as _, e as usize, &mut |length| {
                call(a, b, c, d, length as isize, f)
            }),
            libc::SYS_splice => calls::splicing(c as c_int, d as _, e as usize, &mut || as_is()),
            libc::SYS_fallocate => hooks::resized(fd, as_is),
            libc::SYS_ftruncate => hooks::truncated(fd, b as i64, || as_is() as c_int) as isize,
            libc::SYS_close => hooks::close_with(fd, || as_is() as c_int) as isize,
            libc::SYS_dup => hooks::duplicate_with(fd, || as_is() as c_int) as isize,
            nr if nr == DUP2 || nr == libc::SYS_dup3 => {
                hooks::replace_with(fd, b as c_int, || as_is() as c_int) as isize
            }
            libc::SYS_fcntl => hooks::fcntl_with(fd, b as c_int, || as_is() as c_int) as isize,
            libc::SYS_close_range => {
                hooks::close_range_with(a as c_uint, b as c_uint, c as c_uint, || as_is() as c_int) as isize
            }
            libc::SYS_openat => hooks::opened(as_is() as c_int) as isize,
            libc::SYS_lseek => hooks::moved_unless_asked(fd, b as i64, c as c_int, as_is() as i64) as isize,
            libc::SYS_unshare
            | libc::SYS_setns
            | libc::SYS_setuid
            | libc::SYS_setreuid
            | libc::SYS_setresuid
            | libc::SYS_setgid
            | libc::SYS_setregid
            | libc::SYS_setresgid
            | libc::SYS_setgroups
            | libc::SYS_capset => hooks::alone(as_is),
            libc::SYS_prctl if seccomp::is_filter(a as c_int) => seccomp::filters(as_is),
            libc::SYS_seccomp if seccomp::is_filter_operation(a as c_long) => seccomp::filters(as_is),
            libc::SYS_io_submit => queues::submit_blocks(b as c_long, c as _, as_is),
            libc::SYS_io_uring_setup => {
                let ring = as_is();
                if ring >= 0 {
                    sweep::queued();
                }
                ring
            }
            libc::SYS_exit => {
                helper::a_thread_ends();
                as_is()
            }
            // to submit nothing is to wait
            libc::SYS_io_uring_enter if b != 0 => {
                sweep::admit();
                as_is()
            }
            _ => as_is(),
        }
    };
    result as c_long
}
