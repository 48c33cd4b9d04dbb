//! Benchmarks: the same thing plainly and under the library, in turns, so that what else the machine does meets both.

use crate::sys;
use std::io::{PipeWriter, Write};
use std::time::{Duration, Instant};

/// What a program is fed waits in a pipe of so many bytes, at most.
const PIPE_BYTES: i32 = 1 << 20;
/// How often is looked whether it has read them.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// What was measured in pairs.
#[derive(Clone, Copy, Debug)]
pub struct Pairs {
    /// Median of the plain runs.
    pub plain: f64,
    /// Median of the runs under the library.
    pub under: f64,
    /// Median of plain over under within each pair, with its 95 % confidence interval (by order statistics): the two
    /// runs of a pair are close in time, so what drifts is in both.
    pub ratio: [f64; 3],
}

/// Feeds two programs that read their standard input the same bytes, a slice in turns, and says how long each had
/// something to read. Two runs of a second differ by a tenth on a machine that is shared; two slices of a millisecond
/// that follow one another do not.
///
/// # Panics
/// Where a program does not read.
pub fn in_step(feed: &[u8], slice_bytes: usize, mut inputs: [PipeWriter; 2]) -> [Duration; 2] {
    let mut took = [Duration::ZERO; 2];
    for input in &inputs {
        sys::set_pipe_size(input, PIPE_BYTES).expect("cannot make the pipe larger");
    }
    for (n, slice) in feed.chunks(slice_bytes).enumerate() {
        for which in if n % 2 == 0 { [0, 1] } else { [1, 0] } {
            let start = Instant::now();
            inputs[which].write_all(slice).expect("the program does not read");
            while sys::unread_bytes(&inputs[which]).expect("cannot ask the pipe") > 0 {
                std::thread::sleep(LOOK_EVERY);
            }
            took[which] += start.elapsed();
        }
    }
    took
}

/// Measures `pairs` times plainly (`false`) and under the library (`true`); every other pair the other way round.
pub fn measure(pairs: usize, mut measure: impl FnMut(bool) -> f64) -> Pairs {
    let pair = |n| {
        let mut pair = [0.0; 2];
        for is_under in if n % 2 == 0 { [false, true] } else { [true, false] } {
            pair[usize::from(is_under)] = measure(is_under);
        }
        pair
    };
    Pairs::of((0..pairs).map(pair))
}

impl Pairs {
    /// Of pairs of a plain figure and one under the library.
    pub fn of(pairs: impl Iterator<Item = [f64; 2]>) -> Pairs {
        let (plain, under): (Vec<f64>, Vec<f64>) = pairs.map(|[plain, under]| (plain, under)).unzip();
        let pairs = plain.len();
        let mut ratios: Vec<f64> = plain.iter().zip(&under).map(|(plain, under)| plain / under).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        // a median's place among n values is binomial: n / 2, give or take 1.96 x sqrt(n) / 2
        let reach = 0.98 * (pairs as f64).sqrt();
        let last = pairs.saturating_sub(1);
        let low = (pairs as f64 / 2.0 - reach).max(0.0) as usize;
        let ratio = [ratios[low], median(ratios.clone()), ratios[last - low]];
        Pairs { plain: median(plain), under: median(under), ratio }
    }
}

/// The middle one; the mean of the two in the middle where their number is even.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_values_taken_in_turns() {
        let mut order = Vec::new();
        let mut next = [1.0, 20.0, 30.0, 3.0].into_iter();
        let pairs = measure(2, |is_under| {
            order.push(is_under);
            next.next().unwrap()
        });
        assert_eq!(order, [false, true, true, false]);
        assert_eq!((pairs.plain, pairs.under), (2.0, 25.0));
        let [low, ratio, high] = pairs.ratio;
        assert_eq!((low, high), (1.0 / 20.0, 3.0 / 30.0));
        assert_eq!(ratio, (low + high) / 2.0);
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
    }

    #[test]
    fn half_of_the_pairs_lie_about_the_middle() {
        let mut n = 0.0;
        let pairs = measure(25, |is_under| {
            n += f64::from(u8::from(!is_under));
            if is_under { 1.0 } else { n }
        });
        // the 8th and the 18th of 25: a 95.7 % interval
        assert_eq!(pairs.ratio[1], 13.0);
        assert!((8.0..9.0).contains(&pairs.ratio[0]) && (18.0..19.0).contains(&pairs.ratio[2]), "{pairs:?}");
    }
}
