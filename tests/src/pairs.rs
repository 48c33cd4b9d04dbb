//! Benchmarks: the same thing plainly and under the library, in turns, so that what else the machine does meets both.

/// Medians of one thing measured in turns.
#[derive(Clone, Copy, Debug)]
pub struct Pairs {
    /// Median of the plain runs.
    pub plain: f64,
    /// Median of the runs under the library.
    pub under: f64,
}

/// Measures `pairs` times plainly (`false`) and under the library (`true`); every other pair the other way round.
pub fn measure(pairs: usize, mut measure: impl FnMut(bool) -> f64) -> Pairs {
    let (mut plain, mut under) = (Vec::new(), Vec::new());
    for n in 0..pairs {
        for is_under in if n % 2 == 0 { [false, true] } else { [true, false] } {
            if is_under { &mut under } else { &mut plain }.push(measure(is_under));
        }
    }
    Pairs { plain: median(plain), under: median(under) }
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
        assert_eq!(median(vec![9.0, 1.0, 5.0]), 5.0);
    }
}
