//! The disk's speed as this process measures it, for the time without a sidecar.

use crate::ledger::TOTALS;
use crate::{pace, sys};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

static SPEED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static SPEED_FROM: AtomicU64 = AtomicU64::new(0);
static SPEED_BYTES: AtomicU64 = AtomicU64::new(0);
static SPEED_SECONDS: AtomicU64 = AtomicU64::new(0);

/// Bytes a second: the lowest of the last three seconds in which calls were held back throughout; 0: not yet known.
pub fn get() -> u64 {
    SPEED.iter().map(|speed| speed.load(Relaxed)).filter(|&speed| speed != 0).min().unwrap_or(0)
}

/// A second counts where the disk was the slow one from its beginning to its end.
pub fn measure() {
    let now = sys::now_ns();
    let confirmed = TOTALS.confirmed_bytes.load(Relaxed);
    let since = now.wrapping_sub(SPEED_FROM.load(Relaxed));
    if !pace::is_holding() || since > 2_000_000_000 {
        SPEED_FROM.store(now, Relaxed);
        SPEED_BYTES.store(confirmed, Relaxed);
    } else if since > 1_000_000_000 {
        let bytes = confirmed.wrapping_sub(SPEED_BYTES.load(Relaxed));
        let place = SPEED_SECONDS.fetch_add(1, Relaxed) % 3;
        if let Some(slot) = SPEED.get(place as usize) {
            slot.store(bytes / (since / 1_000_000).max(1) * 1000, Relaxed);
        }
        SPEED_FROM.store(now, Relaxed);
        SPEED_BYTES.store(confirmed, Relaxed);
    }
}
