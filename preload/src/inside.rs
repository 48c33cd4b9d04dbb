//! Functions of libc's that put files in the place of others, or make a process, by calls of its own that no symbol
//! reaches. What is known of their descriptors is forgotten, and a child gets a state of its own at once.
//!
//! No system call can stand in for them, so one that is called before our constructor has run looks for libc's then.
//!
//! This is one of the modules that may say `unsafe`.

use crate::elf::{self, Object};
use crate::real::Next;
use crate::{hooks, sys};
use core::ffi::{c_char, c_int, c_void};
use core::num::NonZeroUsize;
use libc::pid_t;

/// Not `libc::fileno`, which the library would then be linked with.
static FILENO: Next = Next::new(c"fileno_unlocked");

type Fileno = unsafe extern "C" fn(*mut c_void) -> c_int;

/// What a call makes in place of what a stream was open on. What is still buffered is written in it, as the old file's.
///
/// # Safety
/// `stream` is libc's.
unsafe fn reopened(stream: *mut c_void, call: impl FnOnce() -> *mut c_void) -> *mut c_void {
    let Some(fileno) = found(&FILENO) else { return call() };
    let errno = sys::errno();
    // SAFETY: the symbol has this type in every libc; the caller's stream.
    let fd = unsafe { core::mem::transmute::<usize, Fileno>(fileno.get())(stream) };
    sys::set_errno(errno);
    if fd < 0 {
        return call();
    }
    let result = hooks::close_with(fd, call);
    hooks::replaced(fd);
    result
}

/// In a child, whose standard streams may have become something else.
fn detached(result: c_int) -> c_int {
    if hooks::forked(result) == 0 {
        (0..=2).for_each(hooks::replaced);
    }
    result
}

fn found(symbol: &Next) -> Option<NonZeroUsize> {
    if symbol.get().is_none() {
        elf::visit(|object, is_after_ours| {
            if is_after_ours {
                symbol.resolve(object);
            }
        });
    }
    symbol.get()
}

macro_rules! inside {
    ($( fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty, $failed:expr; |$next:ident| $body:expr; )*) => {
        #[allow(non_upper_case_globals)]
        mod symbols {
            $(
                pub static $name: super::Next = {
                    const NAME: &core::ffi::CStr = match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    };
                    super::Next::new(NAME)
                };
            )*
        }

        /// Looks all of them up in an object that comes after this library. From the constructor.
        pub fn resolve(object: &Object) {
            FILENO.resolve(object);
            $( symbols::$name.resolve(object); )*
        }

        $(
            /// The interposed symbol of this name.
            ///
            /// # Safety
            /// As the man page of the function says.
            #[allow(non_snake_case, reason = "libc's name")]
            #[cfg_attr(not(test), unsafe(no_mangle))]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
                let Some(at) = found(&symbols::$name) else {
                    sys::set_errno(libc::ENOSYS);
                    return $failed;
                };
                // SAFETY: the symbol of this name has this type in every libc; the arguments go on unchanged.
                unsafe {
                    let function = core::mem::transmute::<usize, unsafe extern "C" fn($($type),*) -> $result>(at.get());
                    let $next = || function($($arg),*);
                    $body
                }
            }
        )*
    };
}

inside! {
    fn freopen(path: *const c_char, mode: *const c_char, stream: *mut c_void) -> *mut c_void, core::ptr::null_mut();
        |next| reopened(stream, next);
    fn freopen64(path: *const c_char, mode: *const c_char, stream: *mut c_void) -> *mut c_void, core::ptr::null_mut();
        |next| reopened(stream, next);
    fn _Fork() -> pid_t, -1;
        |next| hooks::forked(next());
    fn daemon(stays: c_int, keeps_streams: c_int) -> c_int, -1;
        |next| detached(next());
    fn forkpty(terminal: *mut c_int, name: *mut c_char, settings: *const c_void, size: *const c_void) -> pid_t, -1;
        |next| detached(next());
    fn login_tty(fd: c_int) -> c_int, -1;
        |next| {
            let result = next();
            (0..=2).chain([fd]).for_each(hooks::replaced);
            result
        };
}
