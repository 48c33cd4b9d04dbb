//! `vfork(2)` and `clone(2)`, which can make a child that runs in our memory under another process id. The symbols are
//! stubs: they note that there may be such a child from now on, and jump to libc's own with nothing changed. A function
//! of ours in between would break a call that returns twice or on another stack.
//!
//! The note saves the others a system call: only where it was taken does [`process`](crate::process) ask for the
//! process id each time.
//!
//! This is one of the modules that may say `unsafe`.

use crate::elf::{self, Object};
use crate::real::Next;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicUsize};

static MAY_SHARE: AtomicBool = AtomicBool::new(false);

/// May some process other than ours run in this memory? Once `true`, it stays so.
#[inline(always)]
pub fn may_share_memory() -> bool {
    MAY_SHARE.load(Relaxed)
}

/// The stubs, by name.
macro_rules! stubs {
    ($($name:ident, $next:ident, $symbol:ident, $text:literal;)*) => {
        $(
            /// Where it jumps to; 0: not looked up yet, or there is none.
            static $next: AtomicUsize = AtomicUsize::new(0);
            static $symbol: Next = Next::new($text);

            /// The interposed symbol of this name.
            ///
            /// # Safety
            /// As its man page says.
            #[cfg(not(test))]
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name() {
                #[cfg(target_arch = "x86_64")]
                core::arch::naked_asm!(
                    "mov byte ptr [rip + {note}], 1",
                    "mov r11, qword ptr [rip + {next}]",
                    "test r11, r11",
                    "jz 2f",
                    "jmp r11",
                    "2:",
                    "push rdi",
                    "push rsi",
                    "push rdx",
                    "push rcx",
                    "push r8",
                    "push r9",
                    "push rax",
                    "call {find}",
                    "pop rax",
                    "pop r9",
                    "pop r8",
                    "pop rcx",
                    "pop rdx",
                    "pop rsi",
                    "pop rdi",
                    "mov r11, qword ptr [rip + {next}]",
                    "test r11, r11",
                    "jz {missing}",
                    "jmp r11",
                    note = sym MAY_SHARE,
                    next = sym $next,
                    find = sym find,
                    missing = sym missing,
                );
                #[cfg(target_arch = "aarch64")]
                core::arch::naked_asm!(
                    "adrp x9, {note}",
                    "mov w10, #1",
                    "strb w10, [x9, :lo12:{note}]",
                    "adrp x9, {next}",
                    "ldr x9, [x9, :lo12:{next}]",
                    "cbz x9, 2f",
                    "br x9",
                    "2:",
                    "stp x29, x30, [sp, #-80]!",
                    "stp x0, x1, [sp, #16]",
                    "stp x2, x3, [sp, #32]",
                    "stp x4, x5, [sp, #48]",
                    "stp x6, x7, [sp, #64]",
                    "bl {find}",
                    "ldp x0, x1, [sp, #16]",
                    "ldp x2, x3, [sp, #32]",
                    "ldp x4, x5, [sp, #48]",
                    "ldp x6, x7, [sp, #64]",
                    "ldp x29, x30, [sp], #80",
                    "adrp x9, {next}",
                    "ldr x9, [x9, :lo12:{next}]",
                    "cbz x9, 3f",
                    "br x9",
                    "3:",
                    "b {missing}",
                    note = sym MAY_SHARE,
                    next = sym $next,
                    find = sym find,
                    missing = sym missing,
                );
            }
        )*

        /// Looks libc's own up in an object that comes after this library. From the constructor.
        pub fn resolve(object: &Object) {
            $(
                $symbol.resolve(object);
                if let Some(at) = $symbol.get() {
                    $next.store(at.get(), Relaxed);
                }
            )*
        }
    };
}

stubs! {
    vfork, NEXT_VFORK, VFORK, c"vfork";
    __vfork, NEXT_VFORK_ALIAS, VFORK_ALIAS, c"__vfork";
    clone, NEXT_CLONE, CLONE, c"clone";
    __clone, NEXT_CLONE_ALIAS, CLONE_ALIAS, c"__clone";
}

/// Another library's constructor calls before ours has run.
extern "C" fn find() {
    elf::visit(|object, is_after_ours| {
        if is_after_ours {
            resolve(object);
        }
    });
}

/// The libc has no such function.
extern "C" fn missing() -> libc::c_int {
    crate::sys::set_errno(libc::ENOSYS);
    -1
}
