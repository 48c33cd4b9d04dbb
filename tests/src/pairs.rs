//! Benchmarks: the same thing plainly and under the library, in turns, so that what else the machine does meets both.

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

/// Measures `pairs` times plainly (`false`) and under the library (`true`); every other pair the other way round.
pub fn measure(pairs: usize, mut measure: impl FnMut(bool) -> f64) -> Pairs {
    let (mut plain, mut under) = (Vec::new(), Vec::new());
    for n in 0..pairs {
        for is_under in if n % 2 == 0 { [false, true] } else { [true, false] } {
            if is_under { &mut under } else { &mut plain }.push(measure(is_under));
        }
    }
    let mut ratios: Vec<f64> = plain.iter().zip(&under).map(|(plain, under)| plain / under).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    // a median's place among n values is binomial: n / 2, give or take 1.96 x sqrt(n) / 2
    let reach = 0.98 * (pairs as f64).sqrt();
    let last = pairs.saturating_sub(1);
    let low = (pairs as f64 / 2.0 - reach).max(0.0) as usize;
    let ratio = [ratios[low], median(ratios.clone()), ratios[last - low]];
    Pairs { plain: median(plain), under: median(under), ratio }
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
