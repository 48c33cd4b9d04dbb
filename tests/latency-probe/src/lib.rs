//! A test instrument to be preloaded in front of `libfreeboard.so`: notes how long each write call takes as the program
//! sees it, and at the program's end writes one line per call to the file that `LATENCY_PROBE_FILE` names: when it
//! returned and how long it took, both in microseconds, the former since 1970.
//!
//! Only calls of 4 KiB and more count: a wake-up through an eventfd, or a message, is not what is measured.
#![allow(missing_docs, reason = "the macro makes public items, and nobody links this library")]

use libc::{c_int, c_void, off64_t, size_t, ssize_t};
use redhook::{hook, real};
use std::fmt::Write;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SMALLEST: size_t = 4096;

struct Call {
    returned: Duration,
    took: Duration,
}

static CALLS: Mutex<Vec<Call>> = Mutex::new(Vec::new());

fn timed(bytes: size_t, call: impl FnOnce() -> ssize_t) -> ssize_t {
    if bytes < SMALLEST {
        return call();
    }
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        // SAFETY: registers a function that lives as long as this library, which is never unloaded.
        unsafe { libc::atexit(report) };
    });
    let start = Instant::now();
    let result = call();
    let took = start.elapsed();
    let returned = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    CALLS.lock().unwrap_or_else(PoisonError::into_inner).push(Call { returned, took });
    result
}

extern "C" fn report() {
    let calls = std::mem::take(&mut *CALLS.lock().unwrap_or_else(PoisonError::into_inner));
    let mut text = String::new();
    for call in calls {
        let _ = writeln!(text, "{} {}", call.returned.as_micros(), call.took.as_micros());
    }
    if let Some(path) = std::env::var_os("LATENCY_PROBE_FILE") {
        if let Err(error) = std::fs::write(path, text) {
            eprintln!("latency-probe: {error}");
        }
    }
}

hook! {
    unsafe fn write(fd: c_int, data: *const c_void, bytes: size_t) -> ssize_t => timed_write {
        // SAFETY: what the program asked for, handed on as it is.
        timed(bytes, || unsafe { real!(write)(fd, data, bytes) })
    }
}

hook! {
    unsafe fn pwrite64(fd: c_int, data: *const c_void, bytes: size_t, offset: off64_t) -> ssize_t => timed_pwrite64 {
        // SAFETY: what the program asked for, handed on as it is.
        timed(bytes, || unsafe { real!(pwrite64)(fd, data, bytes, offset) })
    }
}
