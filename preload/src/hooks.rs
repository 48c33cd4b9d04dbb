//! Every symbol that is interposed, in one table. A hook is a thin shell: it says which kind of call this is, and the
//! work is done elsewhere ([`calls`] for what writes, [`descriptors`] for what moves descriptors).
//!
//! Variadic functions are declared with the arguments that they can have: on the architectures that we support a
//! variadic integer argument travels as a named one does, and one that is not there is not looked at.

use crate::real::interpose;
use crate::{calls, closing, descriptors, helper, process, reads, seccomp, sweep};
use core::ffi::{c_char, c_int, c_long, c_uint, c_void};
use libc::{gid_t, iovec, mode_t, off_t, pid_t, size_t, ssize_t, uid_t};

/// A vector at an offset; a negative one is pwritev2's way of saying "at the file's own".
pub fn vectored_at(fd: c_int, offset: off_t, call: impl Fn() -> ssize_t + Copy) -> ssize_t {
    calls::vectored(fd, u64::try_from(offset).ok(), call)
}

/// The same with flags, of which one makes the offset void.
pub fn vectored_with(fd: c_int, offset: off_t, flags: c_int, call: impl Fn() -> ssize_t + Copy) -> ssize_t {
    vectored_at(fd, if flags & libc::RWF_APPEND != 0 { -1 } else { offset }, call)
}

pub fn close_with<T>(fd: c_int, call: impl FnOnce() -> T) -> T {
    reads::before_close(fd);
    let entry = descriptors::get(fd);
    if !entry.is_unknown() && process::is_ours() {
        closing::before_close(fd, entry);
        descriptors::close(fd);
    }
    call()
}

pub fn duplicate_with(from: c_int, call: impl FnOnce() -> c_int) -> c_int {
    let to = call();
    reads::forget(to);
    if to >= 0 && process::is_ours() {
        descriptors::copy(from, to);
    }
    to
}

pub fn replace_with(from: c_int, to: c_int, call: impl FnOnce() -> c_int) -> c_int {
    if from == to || !process::is_ours() {
        return call();
    }
    reads::before_close(to);
    let entry = descriptors::get(to);
    if !entry.is_unknown() {
        closing::before_close(to, entry);
        descriptors::close(to);
    }
    let result = call();
    if result >= 0 {
        descriptors::copy(from, result);
    }
    result
}

pub fn close_range_with(first: c_uint, last: c_uint, flags: c_uint, call: impl FnOnce() -> c_int) -> c_int {
    const CLOEXEC: c_uint = 4;
    const UNSHARE: c_uint = 2;
    if flags & (CLOEXEC | UNSHARE) == 0 && first <= last && process::is_ours() {
        reads::before_close_range(first, last);
        for fd in descriptors::known(first, last) {
            closing::before_close(fd, descriptors::get(fd));
            descriptors::close(fd);
        }
    }
    call()
}

pub fn opened(fd: c_int) -> c_int {
    reads::forget(fd);
    // the number can have been closed unseen, inside libc
    if fd >= 0 && !descriptors::get(fd).is_unknown() && process::is_ours() {
        descriptors::forget(fd);
    }
    fd
}

/// The number may stand for another file by now, inside libc.
pub fn replaced(fd: c_int) {
    reads::forget(fd);
    if !descriptors::get(fd).is_unknown() && process::is_ours() {
        descriptors::close(fd);
    }
}

pub fn fcntl_with(fd: c_int, command: c_int, call: impl FnOnce() -> c_int) -> c_int {
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => duplicate_with(fd, call),
        libc::F_SETFL => {
            let result = call();
            reads::forget(fd);
            if result >= 0 && process::is_ours() {
                descriptors::forget(fd); // O_APPEND and O_DIRECT can have changed
            }
            result
        }
        _ => call(),
    }
}

fn moved<T>(fd: c_int, result: T) -> T {
    if let Some(file) = descriptors::get(fd).file() {
        file.scatter();
    }
    result
}

/// The size of a file is about to change by other means than writing: it is looked at first, so that what is written
/// into the new space counts as appended.
pub fn resized<T>(fd: c_int, call: impl FnOnce() -> T) -> T {
    descriptors::look(fd);
    call()
}

/// The same for a call that also sets the size.
pub fn truncated(fd: c_int, bytes: off_t, call: impl FnOnce() -> c_int) -> c_int {
    let file = descriptors::look(fd).file();
    let result = call();
    if result == 0
        && let Some(file) = file
    {
        file.truncated(bytes.max(0) as u64);
    }
    result
}

/// What a vector is taken to read: its length stands in memory that only the kernel may read unharmed.
const VECTOR_BYTES: usize = 1 << 20;

interpose! {
    // what writes
    fn write(fd: c_int, buffer: *const c_void, bytes: size_t) -> ssize_t
        | libc::SYS_write, [fd, buffer, bytes] => calls::plain(fd, bytes, move || next::write(fd, buffer, bytes));
    fn __write(fd: c_int, buffer: *const c_void, bytes: size_t) -> ssize_t
        | libc::SYS_write, [fd, buffer, bytes] => calls::plain(fd, bytes, move || next::__write(fd, buffer, bytes));
    fn pwrite(fd: c_int, buffer: *const c_void, bytes: size_t, offset: off_t) -> ssize_t
        | libc::SYS_pwrite64, [fd, buffer, bytes, offset] => calls::positional(fd, offset, bytes, move |done, length| {
            next::pwrite(fd, buffer.byte_add(done), length, offset + done as off_t)
        });
    fn pwrite64(fd: c_int, buffer: *const c_void, bytes: size_t, offset: off_t) -> ssize_t
        | libc::SYS_pwrite64, [fd, buffer, bytes, offset] => calls::positional(fd, offset, bytes, move |done, length| {
            next::pwrite64(fd, buffer.byte_add(done), length, offset + done as off_t)
        });
    fn __pwrite64(fd: c_int, buffer: *const c_void, bytes: size_t, offset: off_t) -> ssize_t
        | libc::SYS_pwrite64, [fd, buffer, bytes, offset] => calls::positional(fd, offset, bytes, move |done, length| {
            next::__pwrite64(fd, buffer.byte_add(done), length, offset + done as off_t)
        });
    fn writev(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t
        | libc::SYS_writev, [fd, vectors, count] => calls::vectored(fd, None, move || next::writev(fd, vectors, count));
    fn pwritev(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t
        | libc::SYS_pwritev, [fd, vectors, count, offset] => {
            vectored_at(fd, offset, move || next::pwritev(fd, vectors, count, offset))
        };
    fn pwritev64(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t
        | libc::SYS_pwritev, [fd, vectors, count, offset] => {
            vectored_at(fd, offset, move || next::pwritev64(fd, vectors, count, offset))
        };
    fn pwritev2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t
        | libc::SYS_pwritev2, [fd, vectors, count, offset, 0, flags] => {
            vectored_with(fd, offset, flags, move || next::pwritev2(fd, vectors, count, offset, flags))
        };
    fn pwritev64v2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t
        | libc::SYS_pwritev2, [fd, vectors, count, offset, 0, flags] => {
            vectored_with(fd, offset, flags, move || next::pwritev64v2(fd, vectors, count, offset, flags))
        };
    fn sendfile(to: c_int, from: c_int, offset: *mut off_t, bytes: size_t) -> ssize_t
        | libc::SYS_sendfile, [to, from, offset, bytes] => {
            calls::sending(to, from, offset, bytes, &mut |length| {
                reads::moving(from, offset, length, || next::sendfile(to, from, offset, length))
            })
        };
    fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, bytes: size_t) -> ssize_t
        | libc::SYS_sendfile, [to, from, offset, bytes] => {
            calls::sending(to, from, offset, bytes, &mut |length| {
                reads::moving(from, offset, length, || next::sendfile64(to, from, offset, length))
            })
        };
    fn copy_file_range(
        from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, bytes: size_t, flags: c_uint
    ) -> ssize_t
        | libc::SYS_copy_file_range, [from, from_at, to, to_at, bytes, flags] => {
            calls::copying(to, to_at, from, from_at, bytes, &mut |length| {
                reads::moving(from, from_at, length, || {
                    next::copy_file_range(from, from_at, to, to_at, length, flags)
                })
            })
        };
    fn splice(from: c_int, from_at: *mut off_t, to: c_int, to_at: *mut off_t, bytes: size_t, flags: c_uint) -> ssize_t
        | libc::SYS_splice, [from, from_at, to, to_at, bytes, flags] => {
            calls::splicing(to, to_at, bytes, &mut || {
                reads::moving(from, from_at, bytes, || next::splice(from, from_at, to, to_at, bytes, flags))
            })
        };

    // what reads
    fn read(fd: c_int, buffer: *mut c_void, bytes: size_t) -> ssize_t
        | libc::SYS_read, [fd, buffer, bytes] => reads::plain(fd, bytes, move || next::read(fd, buffer, bytes));
    fn __read(fd: c_int, buffer: *mut c_void, bytes: size_t) -> ssize_t
        | libc::SYS_read, [fd, buffer, bytes] => reads::plain(fd, bytes, move || next::__read(fd, buffer, bytes));
    fn __read_chk(fd: c_int, buffer: *mut c_void, bytes: size_t, room: size_t) -> ssize_t
        | libc::SYS_read, [fd, buffer, bytes, room] => {
            reads::plain(fd, bytes, move || next::__read_chk(fd, buffer, bytes, room))
        };
    fn pread(fd: c_int, buffer: *mut c_void, bytes: size_t, offset: off_t) -> ssize_t
        | libc::SYS_pread64, [fd, buffer, bytes, offset] => {
            reads::positional(fd, offset, bytes, move || next::pread(fd, buffer, bytes, offset))
        };
    fn pread64(fd: c_int, buffer: *mut c_void, bytes: size_t, offset: off_t) -> ssize_t
        | libc::SYS_pread64, [fd, buffer, bytes, offset] => {
            reads::positional(fd, offset, bytes, move || next::pread64(fd, buffer, bytes, offset))
        };
    fn __pread64(fd: c_int, buffer: *mut c_void, bytes: size_t, offset: off_t) -> ssize_t
        | libc::SYS_pread64, [fd, buffer, bytes, offset] => {
            reads::positional(fd, offset, bytes, move || next::__pread64(fd, buffer, bytes, offset))
        };
    fn __pread_chk(fd: c_int, buffer: *mut c_void, bytes: size_t, offset: off_t, room: size_t) -> ssize_t
        | libc::SYS_pread64, [fd, buffer, bytes, offset, room] => {
            reads::positional(fd, offset, bytes, move || next::__pread_chk(fd, buffer, bytes, offset, room))
        };
    fn __pread64_chk(fd: c_int, buffer: *mut c_void, bytes: size_t, offset: off_t, room: size_t) -> ssize_t
        | libc::SYS_pread64, [fd, buffer, bytes, offset, room] => {
            reads::positional(fd, offset, bytes, move || next::__pread64_chk(fd, buffer, bytes, offset, room))
        };
    fn readv(fd: c_int, vectors: *const iovec, count: c_int) -> ssize_t
        | libc::SYS_readv, [fd, vectors, count] => {
            reads::plain(fd, VECTOR_BYTES, move || next::readv(fd, vectors, count))
        };
    fn preadv(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t
        | libc::SYS_preadv, [fd, vectors, count, offset] => {
            reads::positional(fd, offset, VECTOR_BYTES, move || next::preadv(fd, vectors, count, offset))
        };
    fn preadv64(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t) -> ssize_t
        | libc::SYS_preadv, [fd, vectors, count, offset] => {
            reads::positional(fd, offset, VECTOR_BYTES, move || next::preadv64(fd, vectors, count, offset))
        };
    fn preadv2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t
        | libc::SYS_preadv2, [fd, vectors, count, offset, 0, flags] => {
            reads::flagged(fd, offset, VECTOR_BYTES, flags, move || next::preadv2(fd, vectors, count, offset, flags))
        };
    fn preadv64v2(fd: c_int, vectors: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t
        | libc::SYS_preadv2, [fd, vectors, count, offset, 0, flags] => {
            reads::flagged(fd, offset, VECTOR_BYTES, flags, move || next::preadv64v2(fd, vectors, count, offset, flags))
        };

    // what changes a file's size
    fn fallocate(fd: c_int, mode: c_int, offset: off_t, bytes: off_t) -> c_int
        | libc::SYS_fallocate, [fd, mode, offset, bytes] => resized(fd, || next::fallocate(fd, mode, offset, bytes));
    fn fallocate64(fd: c_int, mode: c_int, offset: off_t, bytes: off_t) -> c_int
        | libc::SYS_fallocate, [fd, mode, offset, bytes] => resized(fd, || next::fallocate64(fd, mode, offset, bytes));
    fn posix_fallocate(fd: c_int, offset: off_t, bytes: off_t) -> c_int
        | libc::SYS_fallocate, [fd, 0, offset, bytes] => resized(fd, || next::posix_fallocate(fd, offset, bytes));
    fn posix_fallocate64(fd: c_int, offset: off_t, bytes: off_t) -> c_int
        | libc::SYS_fallocate, [fd, 0, offset, bytes] => resized(fd, || next::posix_fallocate64(fd, offset, bytes));
    fn ftruncate(fd: c_int, bytes: off_t) -> c_int
        | libc::SYS_ftruncate, [fd, bytes] => truncated(fd, bytes, || next::ftruncate(fd, bytes));
    fn ftruncate64(fd: c_int, bytes: off_t) -> c_int
        | libc::SYS_ftruncate, [fd, bytes] => truncated(fd, bytes, || next::ftruncate64(fd, bytes));

    // what moves descriptors and offsets
    fn close(fd: c_int) -> c_int
        | libc::SYS_close, [fd] => close_with(fd, || next::close(fd));
    fn __close(fd: c_int) -> c_int
        | libc::SYS_close, [fd] => close_with(fd, || next::__close(fd));
    fn dup(from: c_int) -> c_int
        | libc::SYS_dup, [from] => duplicate_with(from, || next::dup(from));
    fn dup2(from: c_int, to: c_int) -> c_int
        | libc::SYS_dup3, [from, to, 0] => replace_with(from, to, || next::dup2(from, to));
    fn __dup2(from: c_int, to: c_int) -> c_int
        | libc::SYS_dup3, [from, to, 0] => replace_with(from, to, || next::__dup2(from, to));
    fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int
        | libc::SYS_dup3, [from, to, flags] => replace_with(from, to, || next::dup3(from, to, flags));
    fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int
        | libc::SYS_fcntl, [fd, command, argument] => fcntl_with(fd, command, || next::fcntl(fd, command, argument));
    fn __fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int
        | libc::SYS_fcntl, [fd, command, argument] => fcntl_with(fd, command, || next::__fcntl(fd, command, argument));
    fn fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int
        | libc::SYS_fcntl, [fd, command, argument] => fcntl_with(fd, command, || next::fcntl64(fd, command, argument));
    fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> c_int
        | libc::SYS_close_range, [first, last, flags] => {
            close_range_with(first, last, flags, || next::close_range(first, last, flags))
        };
    fn closefrom(first: c_int) -> ()
        | libc::SYS_close_range, [first, c_uint::MAX, 0] => {
            close_range_with(first.max(0) as c_uint, c_uint::MAX, 0, || {
                next::closefrom(first);
                0
            });
        };
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int
        | libc::SYS_openat, [libc::AT_FDCWD, path, flags, mode] => opened(next::open(path, flags, mode));
    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int
        | libc::SYS_openat, [libc::AT_FDCWD, path, flags, mode] => opened(next::open64(path, flags, mode));
    fn openat(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int
        | libc::SYS_openat, [at, path, flags, mode] => opened(next::openat(at, path, flags, mode));
    fn openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int
        | libc::SYS_openat, [at, path, flags, mode] => opened(next::openat64(at, path, flags, mode));
    fn lseek(fd: c_int, offset: off_t, whence: c_int) -> off_t
        | libc::SYS_lseek, [fd, offset, whence] => {
            moved_unless_asked(fd, offset, whence, next::lseek(fd, offset, whence))
        };
    fn lseek64(fd: c_int, offset: off_t, whence: c_int) -> off_t
        | libc::SYS_lseek, [fd, offset, whence] => {
            moved_unless_asked(fd, offset, whence, next::lseek64(fd, offset, whence))
        };

    // what is written without a call
    fn mmap(at: *mut c_void, bytes: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void
        | libc::SYS_mmap, [at, bytes, protection, flags, fd, offset] => {
            mapped(next::mmap(at, bytes, protection, flags, fd, offset), bytes, protection, flags, fd)
        };
    fn mmap64(at: *mut c_void, bytes: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void
        | libc::SYS_mmap, [at, bytes, protection, flags, fd, offset] => {
            mapped(next::mmap64(at, bytes, protection, flags, fd, offset), bytes, protection, flags, fd)
        };
    fn mremap(at: *mut c_void, bytes: size_t, new_bytes: size_t, flags: c_int, new_at: *mut c_void) -> *mut c_void
        | libc::SYS_mremap, [at, bytes, new_bytes, flags, new_at] => {
            let result = next::mremap(at, bytes, new_bytes, flags, new_at);
            if result != libc::MAP_FAILED {
                sweep::grown(new_bytes.saturating_sub(bytes));
            }
            result
        };
    fn mprotect(at: *mut c_void, bytes: size_t, protection: c_int) -> c_int
        | libc::SYS_mprotect, [at, bytes, protection] => {
            let result = next::mprotect(at, bytes, protection);
            if result == 0 {
                sweep::protected(bytes, protection);
            }
            result
        };

    // what makes a process
    fn fork() -> pid_t
        | libc::SYS_clone, [libc::SIGCHLD, 0, 0, 0, 0] => forked(next::fork());
    fn __fork() -> pid_t
        | libc::SYS_clone, [libc::SIGCHLD, 0, 0, 0, 0] => forked(next::__fork());

    // what a process with a second thread may not do, or what such a thread would not hear of
    fn setuid(user: uid_t) -> c_int
        | libc::SYS_setuid, [user] => alone(|| next::setuid(user));
    fn seteuid(user: uid_t) -> c_int
        | libc::SYS_setresuid, [-1, user, -1] => alone(|| next::seteuid(user));
    fn setreuid(user: uid_t, effective: uid_t) -> c_int
        | libc::SYS_setreuid, [user, effective] => alone(|| next::setreuid(user, effective));
    fn setresuid(user: uid_t, effective: uid_t, saved: uid_t) -> c_int
        | libc::SYS_setresuid, [user, effective, saved] => alone(|| next::setresuid(user, effective, saved));
    fn setgid(group: gid_t) -> c_int
        | libc::SYS_setgid, [group] => alone(|| next::setgid(group));
    fn setegid(group: gid_t) -> c_int
        | libc::SYS_setresgid, [-1, group, -1] => alone(|| next::setegid(group));
    fn setregid(group: gid_t, effective: gid_t) -> c_int
        | libc::SYS_setregid, [group, effective] => alone(|| next::setregid(group, effective));
    fn setresgid(group: gid_t, effective: gid_t, saved: gid_t) -> c_int
        | libc::SYS_setresgid, [group, effective, saved] => alone(|| next::setresgid(group, effective, saved));
    fn setgroups(count: size_t, groups: *const gid_t) -> c_int
        | libc::SYS_setgroups, [count, groups] => alone(|| next::setgroups(count, groups));
    fn capset(header: *mut c_void, data: *const c_void) -> c_int
        | libc::SYS_capset, [header, data] => alone(|| next::capset(header, data));
    fn unshare(flags: c_int) -> c_int
        | libc::SYS_unshare, [flags] => alone(|| next::unshare(flags));
    fn setns(fd: c_int, kind: c_int) -> c_int
        | libc::SYS_setns, [fd, kind] => alone(|| next::setns(fd, kind));

    // what forbids system calls
    fn prctl(option: c_int, a: c_long, b: c_long, c: c_long, d: c_long) -> c_int
        | libc::SYS_prctl, [option, a, b, c, d] => {
            let call = || next::prctl(option, a, b, c, d);
            if seccomp::is_filter(option) { seccomp::filters(call) } else { call() }
        };

    // what ends a process without its destructors
    fn _exit(status: c_int) -> ()
        | libc::SYS_exit_group, [status] => {
            crate::finish();
            next::_exit(status)
        };
}

fn mapped(result: *mut c_void, bytes: size_t, protection: c_int, flags: c_int, fd: c_int) -> *mut c_void {
    if result != libc::MAP_FAILED {
        sweep::mapped(bytes, protection, flags, fd);
    }
    result
}

/// In a child, at once: it must not use up what its parent's files were granted.
pub fn forked(result: pid_t) -> pid_t {
    if result == 0 {
        process::is_ours();
    }
    result
}

/// A call that the kernel refuses where there is another thread, or one that shares the root directory; or one that
/// changes what each thread may do, of which libc tells only its own: without ours. One that sweeps is made anew after
/// it.
pub fn alone<T>(call: impl FnOnce() -> T) -> T {
    let is_ours = process::is_ours();
    if is_ours {
        helper::dismiss();
    }
    let result = call();
    if is_ours {
        helper::readmit();
    }
    sweep::again();
    result
}

/// `lseek(fd, 0, SEEK_CUR)` only asks.
pub fn moved_unless_asked(fd: c_int, offset: off_t, whence: c_int, result: off_t) -> off_t {
    if whence == libc::SEEK_CUR && offset == 0 {
        return result;
    }
    reads::moved(fd, result);
    moved(fd, result)
}
