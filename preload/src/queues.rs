//! Queues of the kernel's: AIO by libaio, io_uring by liburing. The kernel makes the writes at its own time; they are
//! booked, and held back, when they are submitted. Of a ring that a program has made for itself nothing is known, nor
//! of files that it names by their place in the ring: those are [`sweep`]'s.
//!
//! These libraries may come later than ours (dlopen), so what is behind a symbol is looked for again when it is called.
//!
//! This is one of the modules that may say `unsafe`.

use crate::elf::{self, Object};
use crate::real::Next;
use crate::{calls, sweep, sys};
use core::ffi::{c_int, c_long};

/// libaio's `struct iocb`, as the kernel has it (`include/uapi/linux/aio_abi.h`), in words: operation and descriptor
/// stand in the third, then the buffer, bytes or vectors, and the offset.
pub type Block = [u64; 8];

/// One write of a submission.
struct Write {
    fd: c_int,
    /// `None`: the file's own.
    offset: Option<u64>,
    bytes: u64,
}

/// What is done for each of them.
type Act<'act> = dyn FnMut(&Write) + 'act;

/// What a block writes. What the kernel could not read writes nothing.
fn block_at(blocks: *const *const Block, index: usize) -> Option<Write> {
    const PWRITE: u16 = 1;
    const PWRITEV: u16 = 8;
    let [block] = sys::read_words(blocks.wrapping_add(index).cast::<[u64; 1]>())?;
    let [_, _, what, buffer, count, offset, ..] = sys::read_words(block as *const Block)?;
    let bytes = match what as u16 {
        PWRITE => count,
        PWRITEV => vector_bytes(buffer as usize, count),
        _ => return None,
    };
    Some(Write { fd: (what >> 32) as c_int, offset: Some(offset), bytes })
}

/// Submits blocks by `call`, and books what they write.
///
/// # Safety
/// As io_submit(2) asks of its arguments.
pub unsafe fn submit_blocks(count: c_long, blocks: *const *const Block, call: impl FnOnce() -> isize) -> isize {
    let count = usize::try_from(count).unwrap_or(0);
    let each = |from: usize, act: &mut Act| {
        (from..count).filter_map(|index| block_at(blocks, index)).for_each(|write| act(&write));
    };
    let last = book(|act| each(0, act));
    let submitted = call();
    // what the kernel did not take is submitted once more, or never
    each(submitted.max(0) as usize, &mut |write| calls::unqueue(write.fd, write.offset, write.bytes));
    if let Some(fd) = last {
        calls::queued(fd);
    }
    submitted
}

/// Books the writes of one submission: held back once, before the first, because none is on its way yet. The last file
/// that is written to, which is to be looked after: a look that has to wait comes by all others.
fn book(each: impl Fn(&mut Act)) -> Option<c_int> {
    let mut batch = calls::Batch::default();
    each(&mut |write| batch.expect(write.fd, write.offset, write.bytes));
    batch.admit();
    each(&mut |write| batch.book(write.fd, write.offset, write.bytes));
    batch.end()
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
    _area: [usize; 2],
    _numbers: [u32; 4],
    _completions: [u64; 11],
    setup_flags: u32,
}

const _: () = assert!(core::mem::offset_of!(Ring, setup_flags) == 192);

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
    ///
    /// # Safety
    /// `ring` is a ring of liburing's.
    unsafe fn submit(ring: *const Ring, call: impl FnOnce() -> c_int) -> c_int {
        /// `IOSQE_FIXED_FILE`: the descriptor is an index into a table of the ring's.
        const FIXED_FILE: u8 = 1;
        /// `IORING_SETUP_SQE128`: entries twice as long, for devices.
        const LONG_ENTRIES: u32 = 1 << 10;
        // SAFETY: the caller's; nothing holds on to it, because the call changes it.
        let (head, tail, mask, entries, flags) =
            unsafe { ((*ring).head, (*ring).tail, *(*ring).mask, (*ring).entries, (*ring).setup_flags) };
        let count = if flags & LONG_ENTRIES == 0 { tail.wrapping_sub(head) } else { 0 };
        // SAFETY: liburing's own: the mask keeps every index within the entries.
        let entry_at = |step: u32| unsafe { entries.add((head.wrapping_add(step) & mask) as usize).read() };
        let each = |act: &mut Act| {
            for entry in (0..count).map(entry_at).filter(|entry| entry.flags & FIXED_FILE == 0) {
                if let Some(bytes) = entry.writes() {
                    // the largest is its way of saying "at the file's own"
                    let offset = Some(entry.offset).filter(|&offset| offset != u64::MAX);
                    act(&Write { fd: entry.fd, offset, bytes });
                }
            }
        };
        if (0..count).map(entry_at).any(|entry| entry.flags & FIXED_FILE != 0 && entry.writes().is_some()) {
            sweep::admit();
        }
        let last = book(each);
        let submitted = call();
        if let Some(fd) = last {
            calls::queued(fd);
        }
        submitted
    }
}

impl Entry {
    /// How much it writes; `None`: it does something else.
    fn writes(&self) -> Option<u64> {
        const WRITEV: u8 = 2;
        const WRITE_FIXED: u8 = 5;
        const WRITE: u8 = 23;
        const SPLICE: u8 = 30;
        const WRITEV_FIXED: u8 = 61;
        match self.operation {
            WRITE | WRITE_FIXED | SPLICE => Some(u64::from(self.count)),
            WRITEV | WRITEV_FIXED => Some(vector_bytes(self.buffer as usize, self.count.into())),
            _ => None,
        }
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
                unsafe { Ring::submit(ring, call) }
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

/// The interposed symbol: libaio's, which does no more than this. (Its later versions do it by `syscall()`, which would
/// book everything once more.)
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
