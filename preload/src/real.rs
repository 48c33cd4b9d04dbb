//! The functions behind ours: what the same symbol names in the next object (libc, or another preload library).
//!
//! All are looked up once, when the library starts. A call that comes before that (another library's constructor), or
//! whose symbol the next objects do not have, goes to the kernel directly and sets errno as libc would.
//!
//! This is one of the modules that may say `unsafe`.

use crate::elf::Object;
use core::ffi::CStr;
use core::num::NonZeroUsize;
use once_cell::race::OnceNonZeroUsize;

/// The address of one function behind ours.
pub struct Next {
    name: &'static CStr,
    at: OnceNonZeroUsize,
}

impl Next {
    pub const fn new(name: &'static CStr) -> Next {
        Next { name, at: OnceNonZeroUsize::new() }
    }

    /// Takes it from an object that comes after this library, if none before that one had it. From the constructor.
    pub fn resolve(&self, object: &Object) {
        if self.get().is_none()
            && let Some(at) = object.symbol(self.name).and_then(NonZeroUsize::new)
        {
            let _ = self.at.set(at);
        }
    }

    /// The address, when it is known.
    #[inline(always)]
    pub fn get(&self) -> Option<NonZeroUsize> {
        self.at.get()
    }
}

/// What a hook may return, made from what the kernel returned.
pub trait FromRaw {
    fn from_raw(result: isize) -> Self;
}

impl FromRaw for () {
    fn from_raw(_: isize) {}
}

impl FromRaw for i32 {
    fn from_raw(result: isize) -> i32 {
        result as i32
    }
}

impl<T> FromRaw for *mut T {
    fn from_raw(result: isize) -> *mut T {
        result as *mut T
    }
}

impl FromRaw for isize {
    fn from_raw(result: isize) -> isize {
        result
    }
}

impl FromRaw for i64 {
    fn from_raw(result: isize) -> i64 {
        result as i64
    }
}

/// The table of everything that is interposed: for each symbol the hook (its body), the function behind it (in
/// [`crate::real`]'s terms, as `next::NAME`), and the system call that stands in where there is none behind it.
macro_rules! interpose {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $result:ty
            | $nr:expr, [$($raw:expr),*] => $body:expr;
    )*) => {
        /// The functions behind ours, by name.
        pub mod next {
            use super::*;

            $(
                $(#[$meta])*
                #[inline(always)]
                pub unsafe fn $name($($arg: $type),*) -> $result {
                    match symbols::$name.get() {
                        Some(at) => {
                            // SAFETY: the symbol of this name has this signature in every libc that we support
                            // (POSIX, or the Linux man page); the arguments are the application's own.
                            unsafe {
                                let function = core::mem::transmute::<usize, unsafe extern "C" fn($($type),*) -> $result>(at.get());
                                function($($arg),*)
                            }
                        }
                        // SAFETY: the same call with the same arguments.
                        None => unsafe { bare::$name($($arg),*) },
                    }
                }
            )*

            /// The same calls at the kernel's door. Out of the way of the hooks: what matters there is how little code
            /// a call runs through, because the kernel's own has just pushed it out of the cache.
            mod bare {
                use super::*;

                $(
                    #[cold]
                    #[inline(never)]
                    pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
                        let arguments = crate::sys::six(&[$($raw as isize),*]);
                        // SAFETY: the caller's: the application's own arguments.
                        unsafe {
                            crate::real::FromRaw::from_raw(crate::sys::as_libc(crate::sys::call($nr as isize, arguments)))
                        }
                    }
                )*
            }

            /// Where each of them is.
            #[allow(non_upper_case_globals)]
            pub mod symbols {
                $(
                    pub static $name: crate::real::Next = {
                        const NAME: &core::ffi::CStr = match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                            Ok(name) => name,
                            Err(_) => c"",
                        };
                        crate::real::Next::new(NAME)
                    };
                )*
            }

            /// Looks all of them up in an object that comes after this library.
            pub fn resolve(object: &crate::elf::Object) {
                $( symbols::$name.resolve(object); )*
            }
        }

        $(
            /// The interposed symbol of this name.
            ///
            /// # Safety
            /// As the man page of the function says.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> $result {
                // SAFETY: the caller's: the arguments go on unchanged.
                unsafe { $body }
            }
        )*
    };
}
pub(crate) use interpose;
