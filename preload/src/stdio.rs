//! stdio: fwrite, fprintf, puts, and every program that writes through them (sort, sed, awk, shells, pg_dump). glibc's
//! own calls of write and close there cannot be interposed, but they go through two tables of function pointers, one
//! for narrow and one for wide streams. We put ours into the tables' write and close entries: data, not code, one
//! pointer-sized store each.
//!
//! Only where everything looks as it must: the tables exist (glibc), and the entries hold the very functions that glibc
//! exports under their names. Otherwise, and with `FREEBOARD_DEEP=0`, stdio is left alone.
//!
//! Source: glibc 2.2.5 to 2.41, libio/libioP.h (`struct _IO_jump_t`) and libio/bits/types/struct_FILE.h.
//!
//! This is one of the modules that may say `unsafe`.

use crate::sys::raw;
use crate::{hooks, pace};
use core::ffi::{CStr, c_int, c_void};
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::{Relaxed, Release};
use libc::{dl_phdr_info, size_t, ssize_t};

type Write = unsafe extern "C" fn(*mut c_void, *const c_void, ssize_t) -> ssize_t;
type Close = unsafe extern "C" fn(*mut c_void) -> c_int;

/// Entries of `struct _IO_jump_t`, in words.
const WRITE_ENTRY: usize = 15;
const CLOSE_ENTRY: usize = 17;
/// Offset of `_fileno` in `struct _IO_FILE` on 64-bit machines, in bytes.
const FILENO: usize = 112;

/// glibc's own `_IO_file_write` and `_IO_file_close`.
static NEXT_WRITE: AtomicUsize = AtomicUsize::new(0);
static NEXT_CLOSE: AtomicUsize = AtomicUsize::new(0);

/// Changes the tables. Once, from the constructor, while the process has one thread.
pub fn start() {
    if is_off() {
        return;
    }
    let (write, close) = (symbol(c"_IO_file_write"), symbol(c"_IO_file_close"));
    if write == 0 || close == 0 {
        return;
    }
    NEXT_WRITE.store(write, Relaxed);
    NEXT_CLOSE.store(close, Relaxed);
    for name in [c"_IO_file_jumps", c"_IO_wfile_jumps"] {
        let table = symbol(name) as *const AtomicUsize;
        if !table.is_null() {
            // SAFETY: a table of glibc's that is longer than the entries used; checked below before it is changed.
            unsafe { change(table, write, close) };
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

fn symbol(name: &CStr) -> usize {
    // SAFETY: the name is a C string.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) as usize }
}

/// Puts our functions into one table, if it holds glibc's.
///
/// # Safety
/// `table` is the address of a `struct _IO_jump_t`.
unsafe fn change(table: *const AtomicUsize, write: usize, close: usize) {
    // SAFETY: the caller's: both entries lie in the table.
    let (write_entry, close_entry) = unsafe { (&*table.add(WRITE_ENTRY), &*table.add(CLOSE_ENTRY)) };
    if write_entry.load(Relaxed) != write || close_entry.load(Relaxed) != close {
        return;
    }
    let mut place = Place { address: core::ptr::from_ref(write_entry) as usize, is_readonly: None };
    // SAFETY: the callback gets `place` back and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(find), (&raw mut place).cast()) };
    let Some(is_readonly) = place.is_readonly else { return };
    let page = place.address & !4095;
    let bytes = core::ptr::from_ref(close_entry) as usize + size_of::<usize>() - page;
    let opened = !is_readonly || raw!(libc::SYS_mprotect, page, bytes, libc::PROT_READ | libc::PROT_WRITE) == 0;
    if opened {
        write_entry.store(ours_write as *const () as usize, Release);
        close_entry.store(ours_close as *const () as usize, Release);
    }
    if is_readonly {
        raw!(libc::SYS_mprotect, page, bytes, libc::PROT_READ);
    }
}

/// What is looked for among the loaded objects: is the page of this address read-only after relocation?
struct Place {
    address: usize,
    is_readonly: Option<bool>,
}

unsafe extern "C" fn find(info: *mut dl_phdr_info, _: size_t, place: *mut c_void) -> c_int {
    // SAFETY: the loader's description of one object, and the `Place` that `change` passed.
    let (info, place) = unsafe { (&*info, &mut *place.cast::<Place>()) };
    let mut is_here = false;
    let mut is_readonly = false;
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: the object has `dlpi_phnum` program headers.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        let start = (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
        if place.address.wrapping_sub(start) >= header.p_memsz as usize {
            continue;
        }
        match header.p_type {
            libc::PT_LOAD => {
                is_here = true;
                is_readonly |= header.p_flags & libc::PF_W == 0;
            }
            libc::PT_GNU_RELRO => is_readonly = true,
            _ => {}
        }
    }
    if is_here {
        place.is_readonly = Some(is_readonly);
    }
    c_int::from(is_here)
}

/// The descriptor of a stream.
///
/// # Safety
/// `stream` is a `FILE *` of glibc's.
unsafe fn fileno(stream: *const c_void) -> c_int {
    // SAFETY: the caller's.
    unsafe { stream.byte_add(FILENO).cast::<c_int>().read() }
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
    pace::plain(unsafe { fileno(stream) }, bytes as usize, call)
}

/// In the place of `_IO_file_close`.
unsafe extern "C" fn ours_close(stream: *mut c_void) -> c_int {
    // SAFETY: as above.
    hooks::close_with(unsafe { fileno(stream) }, || unsafe {
        core::mem::transmute::<usize, Close>(NEXT_CLOSE.load(Relaxed))(stream)
    })
}
