//! stdio: fwrite, fprintf, puts, and every program that writes through them (sort, sed, awk, shells, pg_dump). glibc's
//! own calls of read, write, lseek and close there cannot be interposed, but they go through two tables of function pointers,
//! one for narrow and one for wide streams. We put ours into the tables' read, write, seek and close entries: data, not code,
//! one pointer-sized store each.
//!
//! Only where everything looks as it must: the tables exist (glibc), and the entries hold the very functions that glibc
//! exports under their names. Otherwise, and with `FREEBOARD_DEEP=0`, stdio is left alone.
//!
//! Source: glibc 2.2.5 to 2.41, libio/libioP.h (`struct _IO_jump_t`) and libio/bits/types/struct_FILE.h.
//!
//! This is one of the modules that may say `unsafe`.

use crate::elf::Object;
use crate::sys::raw;
use crate::{calls, hooks, reads};
use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Relaxed, Release};
use libc::{off_t, ssize_t};

type Read = unsafe extern "C" fn(*mut c_void, *mut c_void, ssize_t) -> ssize_t;
type Write = unsafe extern "C" fn(*mut c_void, *const c_void, ssize_t) -> ssize_t;
type Seek = unsafe extern "C" fn(*mut c_void, off_t, c_int) -> off_t;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;

/// Entries of `struct _IO_jump_t`, in words.
const READ_ENTRY: usize = 14;
const WRITE_ENTRY: usize = 15;
const SEEK_ENTRY: usize = 16;
const CLOSE_ENTRY: usize = 17;
/// Offset of `_fileno` in `struct _IO_FILE` on 64-bit machines, in bytes.
const FILENO: usize = 112;

/// glibc's own `_IO_file_read`, `_IO_file_write`, `_IO_file_seek` and `_IO_file_close`.
static NEXT_READ: AtomicUsize = AtomicUsize::new(0);
static NEXT_WRITE: AtomicUsize = AtomicUsize::new(0);
static NEXT_SEEK: AtomicUsize = AtomicUsize::new(0);
static NEXT_CLOSE: AtomicUsize = AtomicUsize::new(0);

/// Changes the tables, if this is the object that has them. Once, from the constructor, while the process has one
/// thread.
pub fn change(object: &Object) {
    let function = |name: &CStr| object.symbol(name).unwrap_or(0);
    let theirs = [c"_IO_file_read", c"_IO_file_write", c"_IO_file_seek", c"_IO_file_close"].map(function);
    let [read, write, seek, close] = theirs;
    if theirs.contains(&0) {
        return;
    }
    if is_off() {
        return;
    }
    NEXT_READ.store(read, Relaxed);
    NEXT_WRITE.store(write, Relaxed);
    NEXT_SEEK.store(seek, Relaxed);
    NEXT_CLOSE.store(close, Relaxed);
    for name in [c"_IO_file_jumps", c"_IO_wfile_jumps"] {
        if let Some(table) = object.symbol(name)
            && let Some(is_readonly) = object.segment(table + CLOSE_ENTRY * size_of::<usize>())
        {
            // SAFETY: a table of glibc's that is longer than the entries used; checked there before it is changed.
            unsafe { change_table(table as *const AtomicUsize, theirs, is_readonly) };
        }
    }
}

/// `FREEBOARD_DEEP=0`.
fn is_off() -> bool {
    // SAFETY: the environment of a process that is still starting; the result is null or a C string.
    unsafe {
        let value = libc::getenv(c"FREEBOARD_DEEP".as_ptr());
        !value.is_null() && CStr::from_ptr(value) == c"0"
    }
}

/// Puts our functions into one table, if it holds glibc's.
///
/// # Safety
/// `table` is the address of a `struct _IO_jump_t`; `is_readonly`: it lies in memory that is.
unsafe fn change_table(table: *const AtomicUsize, theirs: [usize; 4], is_readonly: bool) {
    // SAFETY: the caller's: the entries lie in the table.
    let entries = unsafe { [READ_ENTRY, WRITE_ENTRY, SEEK_ENTRY, CLOSE_ENTRY].map(|entry| &*table.add(entry)) };
    if entries.map(|entry| entry.load(Relaxed)) != theirs {
        return;
    }
    let [read_entry, write_entry, seek_entry, close_entry] = entries;
    let page = core::ptr::from_ref(read_entry) as usize & !4095;
    let bytes = core::ptr::from_ref(close_entry) as usize + size_of::<usize>() - page;
    let opened = !is_readonly || raw!(libc::SYS_mprotect, page, bytes, libc::PROT_READ | libc::PROT_WRITE) == 0;
    if opened {
        read_entry.store(ours_read as *const () as usize, Release);
        write_entry.store(ours_write as *const () as usize, Release);
        seek_entry.store(ours_seek as *const () as usize, Release);
        close_entry.store(ours_close as *const () as usize, Release);
    }
    if is_readonly {
        raw!(libc::SYS_mprotect, page, bytes, libc::PROT_READ);
    }
}

/// The descriptor of a stream.
///
/// # Safety
/// `stream` is a `FILE *` of glibc's.
unsafe fn fileno(stream: *const c_void) -> c_int {
    // SAFETY: the caller's.
    unsafe { stream.byte_add(FILENO).cast::<c_int>().read() }
}

/// In the place of `_IO_file_read`.
unsafe extern "C" fn ours_read(stream: *mut c_void, data: *mut c_void, bytes: ssize_t) -> ssize_t {
    // SAFETY: as in `ours_write`; glibc's own stream.
    reads::plain(unsafe { fileno(stream) }, bytes.max(0) as usize, || unsafe {
        core::mem::transmute::<usize, Read>(NEXT_READ.load(Relaxed))(stream, data, bytes)
    })
}

/// In the place of `_IO_file_write`: writes all of it, by as many calls as it takes.
unsafe extern "C" fn ours_write(stream: *mut c_void, data: *const c_void, bytes: ssize_t) -> ssize_t {
    // SAFETY: the address is glibc's function of this type (stored before the tables were changed), called with what
    // glibc passed.
    let call = || unsafe { core::mem::transmute::<usize, Write>(NEXT_WRITE.load(Relaxed))(stream, data, bytes) };
    if bytes <= 0 {
        return call();
    }
    // SAFETY: glibc's own stream.
    calls::plain(unsafe { fileno(stream) }, bytes as usize, call)
}

/// In the place of `_IO_file_seek`.
unsafe extern "C" fn ours_seek(stream: *mut c_void, offset: off_t, whence: c_int) -> off_t {
    // SAFETY: as above.
    let (fd, result) = unsafe {
        let next = core::mem::transmute::<usize, Seek>(NEXT_SEEK.load(Relaxed));
        (fileno(stream), next(stream, offset, whence))
    };
    hooks::moved_unless_asked(fd, offset, whence, result)
}

/// In the place of `_IO_file_close`.
unsafe extern "C" fn ours_close(stream: *mut c_void) -> c_int {
    // SAFETY: as above.
    hooks::close_with(unsafe { fileno(stream) }, || unsafe {
        core::mem::transmute::<usize, Close>(NEXT_CLOSE.load(Relaxed))(stream)
    })
}
