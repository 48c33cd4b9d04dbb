//! Sizes as people write them: Kubernetes quantities. `600M` is 600,000,000 bytes, `600Mi` is 600 x 2^20; a `B` at the
//! end (`4MiB`, `4MB`), a space before the unit and decimals (`1.5Gi`) change nothing else.
//!
//! Ours, because case counts: to Kubernetes `600m` is six tenths of a byte and `600K` is nothing, and the libraries
//! that parse sizes take both for something else.

use std::fmt;

use crate::error::{Fault, quoted};

/// Why a text is not a size; says what to write instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SizeError(pub(crate) Fault);

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SizeError {}

/// The powers of 1000, and with an `i` behind them of 1024; but for the first, whose binary form is `Ki`.
const PREFIXES: [char; 6] = ['k', 'M', 'G', 'T', 'P', 'E'];

/// Bytes in a unit that has lost its `B`.
fn factor(unit: &str) -> Option<u64> {
    if unit.is_empty() {
        return Some(1);
    }
    PREFIXES.iter().zip(1u32..).find_map(|(&prefix, power)| {
        let binary = format!("{}i", prefix.to_ascii_uppercase());
        if unit == binary {
            Some(1 << (10 * power))
        } else if unit.chars().eq([prefix]) {
            Some(1000u64.pow(power))
        } else {
            None
        }
    })
}

/// Bytes of a size, rounded up to whole bytes.
///
/// # Errors
/// Not a number with a known unit, or more than a `u64` holds.
///
/// ```
/// use freeboard_config::size;
/// assert_eq!(size::parse("600M"), Ok(600_000_000));
/// assert_eq!(size::parse("4MiB"), Ok(4 << 20));
/// assert!(size::parse("600m").is_err());
/// ```
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim();
    let unit_start = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(unit_start);
    let unit = unit.trim_start();
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let is_digits = |part: &str| !part.is_empty() && !part.contains('.');
    if !is_digits(whole) || !is_digits(decimals) {
        let what = format!("{} is not a size", quoted(text));
        return Err(SizeError(Fault::new(what, "write a number and a unit, as \"600Mi\" or \"4MB\"")));
    }
    let Some(factor) = factor(unit.strip_suffix('B').unwrap_or(unit)) else {
        return Err(SizeError(unknown_unit(text, number, unit)));
    };
    bytes(whole, decimals.trim_end_matches('0'), factor)
        .ok_or_else(|| SizeError(Fault::new(format!("{} is too large", quoted(text)), "write less than \"16Ei\"")))
}

/// `whole.decimals x factor`, rounded up.
fn bytes(whole: &str, decimals: &str, factor: u64) -> Option<u64> {
    let scale = 10u128.checked_pow(decimals.len().try_into().ok()?)?;
    let scaled: u128 = format!("{whole}{decimals}").parse().ok()?;
    scaled.checked_mul(factor.into())?.div_ceil(scale).try_into().ok()
}

fn unknown_unit(text: &str, number: &str, unit: &str) -> Fault {
    let what = format!("{} has no unit of size", quoted(text));
    // the case is wrong, or a letter of `iB` is
    let mut letters = unit.chars();
    let letter = letters.next().unwrap_or_default();
    let meant = PREFIXES.iter().find(|prefix| prefix.eq_ignore_ascii_case(&letter));
    match meant {
        Some(prefix) if matches!(letters.as_str(), "" | "i" | "b" | "ib" | "I" | "IB" | "Ib") => Fault::new(
            what,
            format!(
                "write \"{number}{prefix}\" (powers of 1000) or \"{number}{}i\" (powers of 1024)",
                prefix.to_ascii_uppercase()
            ),
        ),
        _ => Fault::new(what, "write one of k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024)"),
    }
}

/// A size for people: binary units, rounded to a whole number, or to a tenth below ten. [`parse`] reads it back.
///
/// ```
/// use freeboard_config::size::show;
/// assert_eq!(show(158_334_976), "151 MiB");
/// assert_eq!(show(3 << 29), "1.5 GiB");
/// ```
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let rounded = |times: u128, power: u32| (u128::from(bytes) * times + (1 << (10 * power) >> 1)) >> (10 * power);
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (unit, power) =
        UNITS.into_iter().zip(1u32..).find(|&(_, power)| rounded(1, power) < 1024).unwrap_or(("EiB", 6));
    match rounded(10, power) {
        tenths if tenths < 100 && tenths % 10 != 0 => format!("{}.{} {unit}", tenths / 10, tenths % 10),
        _ => format!("{} {unit}", rounded(1, power)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases: [(&str, u64); 20] = [
            ("0", 0),
            ("4194304", 4 << 20),
            ("100B", 100),
            ("100 B", 100),
            ("600k", 600_000),
            ("600kB", 600_000),
            ("600Ki", 600 << 10),
            ("600M", 600_000_000),
            ("600MB", 600_000_000),
            ("600Mi", 600 << 20),
            ("4MiB", 4 << 20),
            (" 4 MiB ", 4 << 20),
            ("2G", 2_000_000_000),
            ("2Gi", 2 << 30),
            ("3Ti", 3 << 40),
            ("3T", 3_000_000_000_000),
            ("1.5Gi", 3 << 29),
            ("0.1Ki", 103),
            ("1.50000000000000000000000000000000000000000000Ki", 1536),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size() {
        let number = "write a number and a unit, as \"600Mi\" or \"4MB\"";
        let unit = "write one of k, M, G, T (powers of 1000) or Ki, Mi, Gi, Ti (powers of 1024)";
        let large = "write less than \"16Ei\"";
        let cases = [
            ("", "\"\" is not a size", number),
            ("M", "\"M\" is not a size", number),
            ("-5M", "\"-5M\" is not a size", number),
            ("1.2.3M", "\"1.2.3M\" is not a size", number),
            (".5M", "\".5M\" is not a size", number),
            ("5.M", "\"5.M\" is not a size", number),
            ("a\nb", "\"a\\nb\" is not a size", number),
            ("600m", "\"600m\" has no unit of size", "write \"600M\" (powers of 1000) or \"600Mi\" (powers of 1024)"),
            ("600K", "\"600K\" has no unit of size", "write \"600k\" (powers of 1000) or \"600Ki\" (powers of 1024)"),
            ("4mib", "\"4mib\" has no unit of size", "write \"4M\" (powers of 1000) or \"4Mi\" (powers of 1024)"),
            ("1e9", "\"1e9\" has no unit of size", unit),
            ("4 apples", "\"4 apples\" has no unit of size", unit),
            ("4é", "\"4é\" has no unit of size", unit),
            ("16Ei", "\"16Ei\" is too large", large),
            ("18446744073709551616", "\"18446744073709551616\" is too large", large),
            (
                "1.0000000000000000000000000000000000000001Ei",
                "\"1.0000000000000000000000000000000000000001Ei\" is too large",
                large,
            ),
        ];
        for (text, what, mend) in cases {
            let error = parse(text).expect_err(text).to_string();
            assert_eq!(error, format!("{what}; mend: {mend}"));
        }
    }

    #[test]
    fn shown() {
        let cases: [(u64, &str); 13] = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (9_999, "9.8 KiB"),
            (10_240, "10 KiB"),
            (1_048_064, "1 MiB"),
            (1_047_552, "1023 KiB"),
            (158_334_976, "151 MiB"),
            (600_000_000, "572 MiB"),
            (3 << 29, "1.5 GiB"),
            (1 << 60, "1 EiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, want) in cases {
            assert_eq!(show(bytes), want);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_shown_reads_back_within_its_rounding(bytes in 0u64..1 << 63) {
            let back = parse(&show(bytes)).expect("what we show, we read");
            proptest::prop_assert!(back.abs_diff(bytes) <= bytes / 19, "{bytes} became {back}");
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}|[0-9. ]{0,50}[a-zA-Z]{0,4}") {
            let _ = parse(&text);
        }
    }
}
