//! `libfreeboard.so`: injected with LD_PRELOAD, it paces what an unmodified program writes, so that page cache that is
//! not yet on disk never fills the container's memory limit.
//!
//! What the process does is in one table, [`hooks`]. A call that writes takes its pages from what its file was granted
//! ([`files`]) and goes to the function behind ours ([`real`]); that is the hot path: two loads, a compare and an
//! addition. When the grant is used up, the slow path asks the [`ledger`] for another; when the window is nearly full,
//! it looks at the kernel's truth ([`look`]), sends pages to the disk ([`flush`]) and waits, if it must, for the oldest
//! of them ([`pace`]).
//!
//! | module | job |
//! | --- | --- |
//! | [`hooks`], [`syscall`], [`vfork`] | the interposed symbols |
//! | [`inside`] | those of which libc does the work by calls that no symbol reaches |
//! | [`stdio`] | glibc's streams, which no symbol reaches |
//! | [`real`], [`elf`] | the functions behind them, and how they are found |
//! | [`descriptors`] | what each descriptor is |
//! | [`files`] | what each file owes, chunk by chunk |
//! | [`ledger`] | what the process owes, and what a file's word says |
//! | [`calls`] | a call that writes: booked, admitted, in pieces |
//! | [`pace`] | whose turn it is to look, and how a call waits |
//! | [`look`] | what is really dirty is sent, what has arrived is taken off |
//! | [`reads`] | a call that reads, where a rule says drop-behind |
//! | [`closing`] | what a file owes when it is closed, a process when it ends |
//! | [`speed`] | the disk's speed, as this process measures it |
//! | [`flush`], [`probe`] | how, by filesystem, and by its effect |
//! | [`apart`] | a thread with a descriptor table of its own, for the length of one errand |
//! | [`helper`] | a thread with a descriptor table of its own, for what outlives a close |
//! | [`sweep`], [`queues`] | what no hook sees: mappings, io_uring, AIO, Go |
//! | [`region`] | the sidecar's budget |
//! | [`group`] | our own cgroup, where there is no sidecar |
//! | [`process`] | start, fork, vfork, end |
//! | [`seccomp`] | system calls that may not be made here |
//! | [`sys`] | raw system calls |
//!
//! Inside somebody else's process: no lock is waited for, nothing is allocated, nothing panics or prints, and no
//! thread-local storage is touched. The library is written as `no_std`, so that the compiler keeps most of that for us.
#![cfg_attr(not(test), no_std)]
#![allow(missing_docs, reason = "nothing but the symbols of `hooks` is public outside the library")]
// the unit tests are built without the symbols, or they would interpose on the test runner
#![cfg_attr(test, allow(dead_code))]
#![allow(clippy::missing_safety_doc, reason = "hooks take what their man pages say")]

// Other members of the workspace turn on the `std` features of crates that we share, so std is a dependency whether we
// use it or not. Nothing of it is linked as long as no panic can be reached; a test of the built library sees to that.
extern crate std as _;

mod apart;
mod calls;
mod closing;
mod descriptors;
mod elf;
mod files;
mod flush;
mod group;
mod helper;
pub mod hooks;
pub mod inside;
mod ledger;
mod look;
mod pace;
mod probe;
mod process;
mod queues;
mod reads;
mod real;
mod region;
mod seccomp;
mod speed;
mod stdio;
mod sweep;
mod sys;
pub mod syscall;
pub mod vfork;

#[cfg(not(test))]
#[ctor::ctor(unsafe)]
fn start() {
    // first of all, whatever else the environment says; the gates then stay shut, and every call goes through
    // SAFETY: the environment of a process that is still starting; the name is a C string.
    let is_disabled = unsafe { !libc::getenv(c"FREEBOARD_DISABLED".as_ptr()).is_null() };
    // a setuid program, where somebody has put us into /etc/ld.so.preload
    // SAFETY: takes a number.
    let is_disabled = is_disabled || unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    // kernels with larger pages (some for aarch64) count in these: what they say would be taken for less
    // SAFETY: takes a number.
    let is_disabled = is_disabled || unsafe { libc::getauxval(libc::AT_PAGESZ) } != ledger::PAGE;
    elf::visit(|object, is_after_ours| {
        process::resolve(object);
        sys::resolve(object);
        if object.is_program() && object.has_note(b"Go\0\0") {
            sweep::set_go();
        }
        if is_after_ours {
            hooks::next::resolve(object);
            syscall::resolve(object);
            queues::resolve(object);
            vfork::resolve(object);
            inside::resolve(object);
            if !is_disabled {
                stdio::change(object);
            }
        }
    });
    if is_disabled {
        return;
    }
    region::start();
    process::start();
}

/// The process ends: by its destructors, or by `_exit`. Not where a child of vfork ends, in its parent's memory.
extern "C" fn finish() {
    if process::is_ours() {
        closing::end();
        process::end();
    }
}

#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".fini_array")]
static FINISH: extern "C" fn() = finish;
