//! How a run went, second by second; and one that is both simulated and real. The simulator, in which the law is proven
//! (`sidecar/src/service/simulated.rs`), has to come to [`simulated`], and the kernel, in this crate's tests, near to it.

use crate::MIB;
use std::time::Duration;

/// The run: dd writes so much,
pub const WRITTEN: u64 = 240 * MIB;
/// by calls of this size,
pub const CALL: u64 = 64 << 10;
/// to a disk that writes so much in a second,
pub const DISK: u64 = 30 * MIB;
/// under this limit,
pub const LIMIT: u64 = 200 * crate::MB;
/// and has this much memory of its own, the kernel's for it included.
pub const OWN: u64 = 768 << 10;

/// A group at one moment, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Since something was first written.
    pub at: Duration,
    /// Usage.
    pub usage: u64,
    /// Dirty plus writeback.
    pub unwritten: u64,
}

/// A run, in seconds and MiB.
#[derive(Clone, PartialEq, Debug)]
pub struct Curve {
    /// To the end of the last write.
    pub seconds: f64,
    /// Most usage.
    pub peak_usage: f64,
    /// Most unwritten.
    pub peak_unwritten: f64,
    /// Unwritten, on average over all.
    pub unwritten: f64,
    /// The same of each whole second.
    pub unwritten_each_second: Vec<f64>,
}

/// What the simulator comes to.
pub fn simulated() -> Curve {
    Curve {
        seconds: 7.01,
        peak_usage: 146.9,
        peak_unwritten: 30.0,
        unwritten: 28.3,
        unwritten_each_second: vec![19.0, 29.8, 29.8, 29.8, 29.9, 29.9, 29.9],
    }
}

impl Curve {
    /// # Panics
    /// Where there is no moment.
    pub fn of(moments: &[Moment]) -> Curve {
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let peak = |bytes: fn(&Moment) -> u64| mib(moments.iter().map(bytes).max().unwrap_or(0));
        let mean = |moments: &mut dyn Iterator<Item = &Moment>| {
            let (count, sum) = moments.fold((0u32, 0), |(count, sum), moment| (count + 1, sum + moment.unwritten));
            mib(sum) / f64::from(count)
        };
        let last = moments.last().expect("a run has moments").at;
        let of_second = |second| mean(&mut moments.iter().filter(|moment| moment.at.as_secs() == second));
        Curve {
            seconds: last.as_secs_f64(),
            peak_usage: peak(|moment| moment.usage),
            peak_unwritten: peak(|moment| moment.unwritten),
            unwritten: mean(&mut moments.iter()),
            unwritten_each_second: (0..last.as_secs()).map(of_second).collect(),
        }
    }

    /// # Panics
    /// Where a figure is off by more than this share of the other's.
    pub fn assert_within(&self, share: f64, other: &Curve) {
        println!("{self:.2?}, and it should be {other:.2?}");
        let mut figures = vec![
            ("time to the end".to_owned(), self.seconds, other.seconds),
            ("peak usage".to_owned(), self.peak_usage, other.peak_usage),
            ("most unwritten".to_owned(), self.peak_unwritten, other.peak_unwritten),
            ("unwritten on average".to_owned(), self.unwritten, other.unwritten),
        ];
        let seconds = self.unwritten_each_second.iter().zip(&other.unwritten_each_second).enumerate();
        figures.extend(seconds.map(|(at, (this, other))| (format!("unwritten in second {at}"), *this, *other)));
        for (what, this, other) in figures {
            let off = (this / other - 1.0).abs();
            println!("{what}: {:.1} % off", off * 100.0);
            assert!(off <= share, "{what}: {this}, and it should be {other}");
        }
    }
}
