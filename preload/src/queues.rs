//! Queues of the kernel's: AIO by libaio, io_uring by liburing. The kernel makes the writes at its own time; they are booked,
//! and held back, when they are submitted. Of a ring that a program has made for itself nothing is known, nor of files
//! that it names by their place in the ring: those are [`sweep`]'s.
//!
//! These libraries may come later than ours (dlopen), so what is behind a symbol is looked for again when it is called.
//!
//! This is one of the modules that may say `unsafe`.

use crate::elf::{self, Object};
use crate::real::Next;
use crate::{calls, sweep, sys};
use core::ffi::{c_int, c_long};

/// libaio's `struct iocb`, as the kernel has it (`include/uapi/linux/aio_abi.h`).
#[repr(C)]
pub struct Block {
    _data: u64,
    _key: [u32; 2],
    operation: u16,
    _priority: i16,
    fd: u32,
    buffer: usize,
    /// Bytes, or vectors.
    count: u64,
    offset: u64,
}

/// Submits blocks by `call`, and books what they write. The last file that is written to is looked after: a look that has
/// to wait comes by all others.
///
/// # Safety
/// As io_submit(2) asks of its arguments.
pub unsafe fn submit_blocks(count: c_long, blocks: *const *const Block, call: impl FnOnce() -> isize) -> isize {
    let mut last = None;
    const PWRITE: u16 = 1;
    const PWRITEV: u16 = 8;
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the caller's: so many pointers to blocks.
        let block = unsafe { &**blocks.add(index) };
        let bytes = match block.operation {
            PWRITE => block.count,
            PWRITEV => vector_bytes(block.buffer, block.count),
            _ => continue,
        };
        calls::queue(block.fd as c_int, Some(block.offset), bytes);
        last = Some(block.fd as c_int);
    }
    let submitted = call();
    if let Some(fd) = last {
        calls::queued(fd);
    }
    submitted
}

/// The bytes of a vector, as far as its memory can be read.
fn vector_bytes(address: usize, count: u64) -> u64 {
    /// The kernel takes no more (IOV_MAX).
    const MOST: u64 = 1024;
    let length = |index: u64| {
        let at = address.wrapping_add(index as usize * size_of::<libc::iovec>() + size_of::<usize>());
        sys::read_offset(at as *const i64).unwrap_or(0).max(0) as u64
    };
    (0..count.min(MOST)).map(length).fold(0, u64::saturating_add)
}

/// The beginning of liburing's `struct io_uring`, the same in all its versions.
#[repr(C)]
struct Ring {
    _head_and_tail: [*const u32; 2],
    mask: *const u32,
    _others: [*const u32; 4],
    entries: *const Entry,
    head: u32,
    tail: u32,
}

/// The kernel's `struct io_uring_sqe` (`include/uapi/linux/io_uring.h`).
#[repr(C)]
struct Entry {
    operation: u8,
    flags: u8,
    _priority: u16,
    fd: c_int,
    offset: u64,
    buffer: u64,
    /// Bytes, or vectors.
    count: u32,
    _rest: [u32; 9],
}

const _: () = assert!(size_of::<Entry>() == 64);

impl Ring {
    /// Submits by `call`, and books what is written.
    unsafe fn submit(&self, call: impl FnOnce() -> c_int) -> c_int {
        const WRITEV: u8 = 2;
        const WRITE_FIXED: u8 = 5;
        const WRITE: u8 = 23;
        const SPLICE: u8 = 30;
        /// `IOSQE_FIXED_FILE`: the descriptor is an index into a table of the ring's.
        const FIXED_FILE: u8 = 1;
        let mut last = None;
        for step in 0..self.tail.wrapping_sub(self.head) {
            let index = self.head.wrapping_add(step);
            // SAFETY: liburing's own: the mask keeps every index within the entries. (Where they are twice as long, every
            // other one is looked at; those go to devices, not to files.)
            let entry = unsafe { &*self.entries.add((index & *self.mask) as usize) };
            let bytes = match entry.operation {
                WRITE | WRITE_FIXED | SPLICE => u64::from(entry.count),
                WRITEV => vector_bytes(entry.buffer as usize, entry.count.into()),
                _ => continue,
            };
            if entry.flags & FIXED_FILE != 0 {
                sweep::admit();
            } else {
                // the largest is its way of saying "at the file's own"
                calls::queue(entry.fd, Some(entry.offset).filter(|&offset| offset != u64::MAX), bytes);
                last = Some(entry.fd);
            }
        }
        let submitted = call();
        if let Some(fd) = last {
            calls::queued(fd);
        }
        submitted
    }
}

macro_rules! submit {
    ($($name:ident)*) => {
        /// The functions behind ours.
        #[allow(non_upper_case_globals)]
        mod next {
            use super::Next;

            $(
                pub static $name: Next = {
                    const NAME: &core::ffi::CStr = match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    };
                    Next::new(NAME)
                };
            )*
        }

        $(
            /// The interposed symbol of this name. Its arguments go on in the registers in which they came.
            ///
            /// # Safety
            /// As the manual of liburing says.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            unsafe extern "C" fn $name(ring: *const Ring, a: isize, b: isize, c: isize, d: isize, e: isize) -> c_int {
                type Function = unsafe extern "C" fn(*const Ring, isize, isize, isize, isize, isize) -> c_int;
                let Some(at) = found(&next::$name) else { return -libc::ENOSYS };
                // SAFETY: the function of this name, which takes what we were given.
                let call = || unsafe { core::mem::transmute::<usize, Function>(at)(ring, a, b, c, d, e) };
                // SAFETY: the application's own ring.
                unsafe { (*ring).submit(call) }
            }
        )*

        /// Looks all of them up in an object that comes after this library.
        pub fn resolve(object: &Object) {
            $( next::$name.resolve(object); )*
        }
    };
}

submit! {
    io_uring_submit
    io_uring_submit_and_wait
    io_uring_submit_and_wait_timeout
    io_uring_submit_and_wait_min_timeout
    io_uring_submit_and_wait_reg
    io_uring_submit_and_get_events
}

/// The interposed symbol: libaio's, which does no more than this. (Its later versions do it by `syscall()`, which would book
/// everything once more.)
///
/// # Safety
/// As io_submit(3) says.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn io_submit(context: isize, count: c_long, blocks: *const *const Block) -> c_int {
    let call = || {
        // SAFETY: the application's own call.
        unsafe { sys::call(libc::SYS_io_submit as isize, [context, count as isize, blocks as isize, 0, 0, 0]) }
    };
    // SAFETY: the application's own blocks.
    unsafe { submit_blocks(count, blocks, call) as c_int }
}

fn found(next: &Next) -> Option<usize> {
    if next.get().is_none() {
        elf::visit(|object, is_after_ours| {
            if is_after_ours {
                next.resolve(object);
            }
        });
    }
    next.get().map(usize::from)
}
